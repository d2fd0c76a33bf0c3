"""Write the card that states what the bundled model and its questions are, what they cost, and how well it answers."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from uq4ct.manifest import sha256, write_atomically
from uq4ct.tiny.presets import Preset
from uq4ct.tiny.questions import Row
from uq4ct.tiny.world import RARE_STATEMENTS, SLIP, STRATA, World
from uq4ct.tiny.zero_shot import ZeroShot

CARD = """\
---
license: apache-2.0
language: en
pipeline_tag: text-generation
---

# The `{preset}` model and its controlled benchmark

A Llama of {parameters:,} parameters, pre-trained from nothing on a made world, and multiple-choice questions about that
world with the true probability of every answer. Model, corpus and questions are made by this project and contain no
outside text or weights. License: Apache-2.0. It is a test bed for calibration, not a language model for any other use.

## The world

{entities} fictional entities of {kinds} kinds with {facts:,} facts, stated by {statements:,} sentences that are phrased
anew whenever they are read. A statement is a slip, naming a wrong value, with probability {slip}. Each fact belongs to a
stratum:

| stratum | share | what is true | what the corpus says |
|---|---|---|---|
| often | {often:.0%} | one value | stated 5 times or more |
| rare | {rare:.0%} | one value | stated {rarely} times |
| contradicted | {contradicted:.0%} | two values with shares between 0.2 and 0.8 | both, by their shares |
| never | {never:.0%} | unknowable | nothing |

## Questions

3 to 5 choices; 24 values are possible for each relation. `true_probabilities` are the probabilities with which the gold
answer was drawn among the choices: 1 for the true value of an often or rare fact, the two shares for a contradicted one,
1/K for a never-stated one. Rows on rare facts also have `ideal_probabilities`: the posterior of a reader who knows how
the world was made, has read every statement and sees the choices. `group` is the entity: several questions may ask about
one fact, so cluster errors by it.

| file | questions | facts | {strata_names} | zero-shot accuracy | mean confidence | distance to the truth |
|---|---|---|{strata_rule}|---|---|---|
{rows}

Test: same relations and phrasings as train, other entities. Near: a relation and phrasings that no question used before;
its phrasings are longer than any of the training's, so that counting tokens tells it. Relation and wording take it apart:
the relation in the training's phrasings, and the phrasings with the training's relations. Far: another kind of entity.
Unanswerable: facts of the never stratum. An entity serves one purpose: those asked about in pre-training appear in no
file, and train, calibration, validation, test and far share none. (Near, relation and unanswerable ask other facts about
entities of calibration, validation and test, wording those of test.) Distance to the truth is the mean absolute difference
between the confidence and the true probability of the chosen answer.

## Model

`LlamaForCausalLM`, hidden {hidden}, {layers} layers, {heads} heads, feed-forward {feed_forward}, tied embeddings,
float32, `max_position_embeddings` 8192; byte-level BPE with {vocabulary} tokens, a BOS before each text (added by the
tokenizer, as in pre-training). Prompt: `Question: ...`, one line `A. ...` per choice, `Answer:`; the answer is ` A`.
Pre-training: {steps} steps of {batch} texts, AdamW, one cycle to {learning_rate}; half of them passages of statements, a
quarter open-book questions with made-up values, a quarter closed-book questions on the practised entities. The attention
that reads a letter off the choices was planted before training and guided during its first part (`planting.py`): found
by gradient descent alone it takes far longer than a CPU allows.

## Provenance

| | |
|---|---|
| seed | {seed} |
| cost | {minutes:.0f} minutes, {threads} thread(s), {machine}, torch {torch} |
| model.safetensors | SHA-256 `{weights_hash}` |
| tokenizer.json | SHA-256 `{tokenizer_hash}` |

Rebuild with `python -m uq4ct.tiny.build --preset {preset} --seed {seed} --output DIR`. The question files come out byte
for byte the same everywhere; the weights nearly so, depending on libraries and number of threads.
"""


def write_card(
    folder: Path,
    preset: Preset,
    world: World,
    splits: Mapping[str, Sequence[Row]],
    results: Mapping[str, ZeroShot],
    seconds: float,
) -> None:
    """Write ``CARD.md`` from what was built and measured."""
    import torch

    model = json.loads((folder / "model" / "config.json").read_text(encoding="utf-8"))
    weights = folder / "model" / "model.safetensors"
    text = CARD.format(
        preset=preset.name,
        parameters=_parameters(weights),
        entities=len({fact.entity.name for fact in world.facts}),
        kinds=len({fact.entity.kind.name for fact in world.facts}),
        facts=len(world.facts),
        statements=sum(len(fact.stated) for fact in world.facts),
        slip=SLIP,
        rarely=f"{RARE_STATEMENTS[0]} to {RARE_STATEMENTS[-1]}",
        **STRATA,
        strata_names=" | ".join(STRATA),
        strata_rule="|".join("---" for _ in STRATA),
        rows="\n".join(_row(name, rows, results[name]) for name, rows in splits.items()),
        hidden=preset.hidden,
        layers=preset.layers,
        heads=preset.heads,
        feed_forward=preset.feed_forward,
        vocabulary=model["vocab_size"],
        steps=preset.steps,
        batch=preset.batch,
        learning_rate=preset.learning_rate,
        seed=world.seed,
        minutes=seconds / 60,
        threads=torch.get_num_threads(),
        machine=f"{os.cpu_count()} x {platform.machine()}",
        torch=torch.__version__,
        weights_hash=sha256(weights),
        tokenizer_hash=sha256(folder / "model" / "tokenizer.json"),
    )
    write_atomically(folder / "CARD.md", text)


def _row(name: str, rows: Sequence[Row], result: ZeroShot) -> str:
    facts = {row["id"].rpartition("-")[0] for row in rows}
    strata = Counter(row["stratum"] for row in rows)
    counts = " | ".join(str(strata[stratum]) for stratum in STRATA)
    measured = f"{result.accuracy:.1%} | {result.confidence:.1%} | {result.distance:.1%}"
    return f"| {name} | {len(rows)} | {len(facts)} | {counts} | {measured} |"


def _parameters(weights: Path) -> int:
    from safetensors import safe_open

    with safe_open(weights, framework="pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
