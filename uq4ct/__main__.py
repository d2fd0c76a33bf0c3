"""``python -m uq4ct`` is the command line, also below ``torchrun -m``."""

from uq4ct.cli import main

if __name__ == "__main__":
    main()
