"""What notebooks show: figures, widgets, exercises, and the page of a run. Nothing below imports it."""
