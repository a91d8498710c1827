"""The exercises of each notebook: a module nbNN with a list ``EXERCISES``."""
