"""Measurements y = A x + n, for samplers and solvers."""

from ldctlib.operators.ct import CTProjection
from ldctlib.operators.linear import BlockMean, Identity, Mask
from ldctlib.operators.noise import CorrelatedNoise, WhiteNoise
from ldctlib.operators.operator import Composition, Operator
from ldctlib.operators.solvers import conjugate_gradient
