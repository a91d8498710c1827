"""A trained diffusion model: what is trained is what is sampled."""
