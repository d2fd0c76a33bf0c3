"""Laplace-LoRA (Yang et al. 2024): a Gaussian around trained LoRA weights from the curvature there; a rival method."""
