"""Measurements y = A x + n, for samplers and solvers."""

from ldctlib.operators.ct import CTProjection
from ldctlib.operators.operator import Composition, Identity, Operator, conjugate_gradient
