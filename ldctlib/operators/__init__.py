"""Measurements y = A x + n, for samplers and solvers."""
