"""What the mixture costs beside a plain LoRA, the reference computation and the base model: ``python -m benchmarks.speed``."""
