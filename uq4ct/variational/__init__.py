"""Gaussians over LoRA weights, learned by gradient descent: BLoB and IVON, rivals of the paper's method."""
