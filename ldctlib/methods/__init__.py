"""Every denoiser under one name and one signature: ``methods.load("nafnet")``."""

from ldctlib.methods.denoiser import Denoiser, LoadedMethod, blend
from ldctlib.methods.registry import METHODS, Method, from_spec, load, table
