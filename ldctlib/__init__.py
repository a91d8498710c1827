"""ldctlib: low-dose CT denoising, from the scanner to the diffusion prior."""

__version__ = "0.1.0"
