"""The numbered pre-flight of ``uq4ct validate``: config, data, base model, answer tokens, prompt, memory and time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from uq4ct.config import Config
from uq4ct.encoders import tokens_of, with_head
from uq4ct.fitting import Prepared, prepare

Say = Callable[[str], None]
SAMPLES = 16


def run(resolve: Callable[[], Config], say: Say) -> None:
    """Check a configuration step by step and print what each step found; nothing is trained or written.

    Raises UserError with every problem of the first step that fails.
    """
    from uq4ct.scoring import length

    config = resolve()
    say(f"[1/6] config         ok   method {config.method.label}, seed {config.output.seed}")
    ready = prepare(config)
    say(f"[2/6] data           ok   {_data(ready)}")
    for note in ready.notes:
        say(f"                          note: {note}")
    base = ready.backbone
    identity = f"{base.parameters / 1e6:,.1f} M parameters, {base.dtype}, fingerprint {base.fingerprint[:12]}"
    say(f"[3/6] base model     ok   {base.name}, {identity}")
    mass, seconds = _sample(config, ready)
    used = list(ready.encoder.letters.items())[: max(ready.questions.choice_counts)]
    letters = " ".join(f"{letter}={token}" for letter, token in used)
    samples = min(SAMPLES, len(ready.examples))
    tokens = (
        f"{letters} (distinct, one token each); mass on letters {mass:.2f} over {samples} prompts"
        if letters
        else ready.encoder.reading
    )
    say(f"[4/6] answer tokens  ok   {tokens}")
    lengths = np.array([length(example) for example in ready.examples])
    middle, most, cut_off = np.median(lengths), np.quantile(lengths, 0.99), config.prompt.max_length
    say(f"[5/6] prompt         ok   {middle:.0f} tokens in the middle, 99 % up to {most:.0f}, cut-off {cut_off}:")
    for line in ready.encoder.render(ready.questions.questions[0]).splitlines():
        say(f"                          | {line}")
    lengths = np.array([tokens_of(example) for example in ready.examples])
    say(f"[6/6] memory, time   ok   {_cost(config, ready, lengths, seconds)}")


def _data(ready: Prepared) -> str:
    choices = ready.questions.choice_counts
    balance = Counter(question.answer for question in ready.questions.questions)
    total = len(ready.questions)
    return (
        f"{ready.questions.name}: {total:,} to fit, {len(ready.calibration):,} for calibration; choices "
        + ", ".join(f"{number} ({count:,})" for number, count in choices.items())
        + "; gold "
        + " / ".join(f"{100 * balance[index] / total:.0f}" for index in range(max(choices)))
        + " %"
    )


def _sample(config: Config, ready: Prepared) -> tuple[float, float]:
    """Return the mean letter mass of the base model on a few prompts, and the seconds one takes in training's way."""
    from uq4ct.continuations import why_whole_texts
    from uq4ct.scoring import score_all

    some = ready.examples[:SAMPLES]
    score_all(ready.backbone.model, some[:1], ready.encoder.pad_token_id, 1)
    started = time.perf_counter()
    _, _, _, mass = score_all(ready.backbone.model, some, ready.encoder.pad_token_id, config.eval.batch_size)
    seconds = (time.perf_counter() - started) / len(some)
    if why_whole_texts(ready.backbone.model) is None:  # computed once here, once per option in training
        seconds *= sum(map(tokens_of, some)) / sum(tokens_of(example, prompt_once=True) for example in some)
    return float("nan") if mass is None else float(np.mean(mass)), seconds


def _cost(config: Config, ready: Prepared, lengths: Any, seconds: float) -> str:
    method, batch = config.method, config.train.per_device_train_batch_size * config.train.gradient_accumulation_steps
    trainable, steps = _trainable(config, ready), method.trainings * config.train.steps(len(ready.examples))
    weights = ready.backbone.model.get_memory_footprint()
    hidden = ready.backbone.model.config.get_text_config()
    tokens = config.train.per_device_train_batch_size * float(np.quantile(lengths, 0.99))
    # a rough count: about 40 kept numbers in fp32 for each token, hidden unit and layer
    activations = 40 * tokens * hidden.hidden_size * hidden.num_hidden_layers * 4
    # adapter, gradient and two Adam moments in fp32, of one training at a time
    total = weights + 16 * trainable / max(method.trainings, 1) + activations
    each = f" ({method.trainings} trainings)" if method.trainings > 1 else ""
    # A training step costs about three forward passes: forward, backward through the frozen base, and the adapters.
    minutes = seconds * (3 * steps * batch + _passes_besides(config, ready)) / 60
    return (
        f"{trainable:,} trainable parameters; {steps:,} steps of {batch}{each}; about {total / 2**30:.1f} GiB; "
        f"roughly {minutes:.1f} minutes on this machine"
    )


def _passes_besides(config: Config, ready: Prepared) -> float:
    """Return about how many forward passes of one question the fit takes besides training, calibration included."""
    counts = ready.questions.choice_counts
    choices = sum(number * count for number, count in counts.items()) / len(ready.questions)
    asked = len(ready.calibration)
    return config.method.fit_cost(len(ready.examples), asked, choices) + asked * config.method.answer_cost(choices)


def _trainable(config: Config, ready: Prepared) -> int:
    import peft

    if not config.method.trainings:
        return 0
    model = ready.backbone.model
    adapter = with_head(config.method.adapter_config(model), model)
    return config.method.parameters_of(peft.get_peft_model(model, adapter))
