"""The thorax, one organ system a file."""
