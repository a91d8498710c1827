"""One organ system a file, and the order in which they are drawn."""
