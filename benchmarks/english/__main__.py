"""``python -m benchmarks.english prepare|train``: the corpus as tokens (no GPU needed), then the model.

    python -m benchmarks.english prepare --corpus data/corpus --output build/english
    python -m benchmarks.english train --prepared build/english --output build/english/model
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.english.pretraining import Recipe, make_model, pretrain, write
from benchmarks.english.questions import asked
from benchmarks.english.texts import read_corpus
from benchmarks.english.tokens import of_questions, of_text, train_tokenizer
from uq4ct.prompts import plain


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser("python -m benchmarks.english", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser("prepare", help="train the tokenizer, and write text and questions as tokens")
    verb.add_argument("--corpus", type=Path, required=True, help="folder of *.txt.gz")
    verb.add_argument("--output", type=Path, required=True)
    verb.add_argument("--questions", type=int, default=400_000)
    verb.add_argument("--processes", type=int, default=1)
    verb.add_argument("--seed", type=int, default=1)
    verb = verbs.add_parser("train", help="train the model and write it")
    verb.add_argument("--prepared", type=Path, required=True, help="what prepare wrote")
    verb.add_argument("--output", type=Path, required=True)
    verb.add_argument("--minutes", type=float, default=4.5, help="default: the study's %(default)s")
    for field in dataclasses.fields(Recipe):
        if field.type in ("int", "float"):
            kind = int if field.type == "int" else float
            verb.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    verb.add_argument("--eager", action="store_true", help="do not compile the model")
    chosen = vars(parser.parse_args())
    (prepare if chosen.pop("verb") == "prepare" else train)(**chosen)


def prepare(corpus: Path, output: Path, questions: int, processes: int, seed: int) -> None:
    """Write the tokenizer, unless it is there, and both rows of tokens."""
    begun = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    read = read_corpus(corpus)
    documents = ["\n".join(lines) for file in read.values() for lines in file]
    if not (output / "tokenizer.json").is_file():
        samples = (f"{plain(question)} {letter}" for question, letter in asked(read, 5000, seed + 1))
        train_tokenizer([*documents, *samples]).save_pretrained(output)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(output)
    for name, (tokens, kinds) in {
        "text": of_text(tokenizer, documents),
        "questions": of_questions(tokenizer, corpus, questions, seed, processes),
    }.items():
        np.savez(output / f"{name}.npz", tokens=tokens, kinds=kinds)
        print(f"{name}: {len(tokens):,} tokens, {time.monotonic() - begun:.0f} s", flush=True)


def train(prepared: Path, output: Path, minutes: float, eager: bool, **recipe: float) -> None:
    """Train on what was prepared, and write the model."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(prepared)
    files = [np.load(prepared / f"{name}.npz") for name in ("text", "questions")]
    text, questions = ((file["tokens"], file["kinds"]) for file in files)
    torch.set_float32_matmul_precision("high")
    asked_for = Recipe(**recipe, compiled=not eager)  # type: ignore[arg-type]
    model = make_model(asked_for, tokenizer).to("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters on {model.device}", flush=True)
    made = pretrain(
        model,
        text,
        questions,
        asked_for,
        minutes,
        lambda said: print(
            f"{said['minutes']:5.2f} min  step {said['step']:6d}  text {said['text']:.3f} nats  "
            f"answers right {said['answers right']:.3f}",
            flush=True,
        ),
    )
    write(model, tokenizer, made, output)
    print(f"{made['steps']} steps, {made['tokens read'] / 1e6:.0f} M tokens in {made['minutes']:.2f} min: {output}")


if __name__ == "__main__":
    main()
