"""lm-evaluation-harness: its tasks run with our adapters, our calibration metrics in its tables.

    from lm_eval import simple_evaluate
    from uq4ct.lmeval.model import UQLM

    simple_evaluate(model=UQLM("runs/mine"), tasks=["openbookqa"])

On the command line ``python -m uq4ct.lmeval run --model uq4ct --model_args pretrained=runs/mine --tasks ...`` is the
harness itself with these names registered; its versions with plugins find them without. Needs
``pip install -e '.[lmeval]'``; nothing else of uq4ct imports the harness.
"""
