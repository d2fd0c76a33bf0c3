"""What the mixture costs beside a plain LoRA, the reference's loop and the base: ``python -m benchmarks.speed``."""
