"""Rebuild the bundled model and its benchmark from a seed: ``python -m uq4ct.tiny.build [--preset tiny|wide]``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from uq4ct.manifest import write_atomically
from uq4ct.tiny.presets import PRESETS
from uq4ct.tiny.questions import Row, make_splits
from uq4ct.tiny.world import make_world

SEED = 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``data/*.jsonl``, ``model/`` and ``CARD.md`` below the output folder, by default this package's own."""
    parser = argparse.ArgumentParser(prog="python -m uq4ct.tiny.build", description=__doc__)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="tiny", help="wide is ten times larger")
    parser.add_argument("--output", type=Path, help="folder to write (default: for tiny, the package itself)")
    parser.add_argument("--seed", type=int, default=SEED, help="another seed, another world (default: %(default)s)")
    parser.add_argument("--data-only", action="store_true", help="write the question files alone: seconds, no training")
    parser.add_argument("--device", default="cpu", help="where to train, for instance cuda (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.output is None and options.preset != "tiny":
        parser.error(f"--output is needed with --preset {options.preset}: only tiny lives in the package")
    folder = options.output or Path(__file__).parent
    preset = PRESETS[options.preset]
    world = make_world(preset.size, options.seed)
    splits = make_splits(world)
    write_questions(folder / "data", splits)
    print(f"wrote {sum(map(len, splits.values()))} questions to {folder / 'data'}", file=sys.stderr)
    if options.data_only:
        return

    from tqdm import tqdm

    from uq4ct.tiny.card import write_card
    from uq4ct.tiny.pretraining import make_model, pretrain, train_tokenizer
    from uq4ct.tiny.zero_shot import ask

    start = time.monotonic()
    tokenizer = train_tokenizer(world, preset.vocabulary)
    model = make_model(preset, tokenizer, options.seed).to(options.device)
    with tqdm(total=preset.steps, desc="pre-training", unit="step") as bar:

        def progress(losses: Mapping[str, float]) -> None:
            bar.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()}, refresh=False)
            bar.update()

        pretrain(model, tokenizer, world, preset, progress)
    seconds = time.monotonic() - start
    model = model.to("cpu")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    results = {name: ask(model, tokenizer, rows) for name, rows in splits.items()}
    write_card(folder, preset, world, splits, results, seconds)
    for name, result in results.items():
        print(f"{name:13} accuracy {result.accuracy:.3f}  confidence {result.confidence:.3f}", file=sys.stderr)


def write_questions(folder: Path, splits: Mapping[str, Sequence[Row]]) -> None:
    """Write each split as ``<name>.jsonl``, one question a line; the same splits give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        write_atomically(folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
