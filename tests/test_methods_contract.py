"""What every method owes, run over every file of ``methods/`` without naming one, on every kind of base model."""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import encoder_toys
import numpy as np
import peft
import pytest
import torch

from uq4ct import backbone, methods
from uq4ct.adapting import Bench, TrainConfig
from uq4ct.encoders import head_modules, kind_of, weights_of, with_head, without_adapters
from uq4ct.errors import UserError
from uq4ct.prompts import Encoder, PromptConfig
from uq4ct.sequences import encoder_for
from uq4ct.types import Question

torch.set_num_threads(1)
WORDS = ("ice", "iron", "salt", "sand", "wool")
# fewer of whatever a method has many of, where it has it: the laws do not depend on the number
SMALL = {"rank": 4, "members": 2, "samples": 2, "candidates": 2, "draws": 8, "num_experts": 4}


class Material(NamedTuple):
    """How to load a base model anew, encoded questions for it, its padding and how many choices each question has."""

    base: Callable[[], Any]
    examples: list[dict[str, Any]]
    pad: int
    choices: list[int]


@pytest.fixture(scope="module", params=["causal", "multiple_choice", "classification"])
def material(request, tmp_path_factory):
    """The bundled model's questions: two to five choices each, prompts of different lengths; and a tiny BERT's."""
    if request.param == "causal":
        loaded = backbone.load()
        questions = [
            Question(
                id=str(row),
                question=" ".join(["Which melts first?"] * (1 + row % 3)),
                choices=WORDS[: 2 + row % 4],
                labels=tuple("ABCDE"[: 2 + row % 4]),
                answer=row % 2,
            )
            for row in range(24)
        ]
        encoder = Encoder(loaded.tokenizer, PromptConfig(), context_length=loaded.context_length)
        counts = [len(question.choices) for question in questions]
        return Material(lambda: backbone.load().model, encoder.encode_all(questions), encoder.pad_token_id, counts)
    classes = encoder_toys.CLASSES if request.param == "classification" else ()
    folder = encoder_toys.save("bert", tmp_path_factory.mktemp("bert"))
    config = backbone.ModelConfig(name=str(folder), kind=request.param, device="cpu")
    loaded, questions = backbone.load(config, classes), encoder_toys.questions(24, classes)
    encoder = encoder_for(loaded, PromptConfig())
    counts = [len(question.choices) for question in questions]
    return Material(
        lambda: backbone.load(config, classes).model, encoder.encode_all(questions), encoder.pad_token_id, counts
    )


@pytest.fixture(scope="module", params=methods.names())
def fitted(request, material, tmp_path_factory):
    """One method, fitted in two steps on a fresh base, with the base's frozen weights from before."""
    kind = methods.find(request.param)
    method = kind(**{name: value for name, value in SMALL.items() if name in kind.model_fields})
    try:
        method.check(material.base())
    except UserError as error:
        pytest.skip(f"refused, with the reason: {error}")
    return method, *fit(method, material, tmp_path_factory.mktemp(request.param), seed=3)


def fit(method, material, folder, seed):
    base = material.base()
    head = () if kind_of(base) == "causal" else weights_of(base, head_modules(base))
    before = {name: value.clone() for name, value in base.state_dict().items() if name not in head}
    train = TrainConfig(max_steps=4, per_device_train_batch_size=4, learning_rate=1e-3)
    examples = material.examples
    bench = Bench(base, material.pad, examples[:16], examples[16:], train, seed, folder)
    return method.fit(bench), folder, before


def answer(method, model, material, rows=slice(None), batch_size=8):
    examples = material.examples[rows]
    ids = [str(row) for row in range(len(examples))]
    return method.predict(model, examples, ids=ids, pad_token_id=material.pad, batch_size=batch_size)


def network(model):
    """The module inside whatever object a method predicts with."""
    return model if isinstance(model, torch.nn.Module) else model.model


def test_it_says_what_it_is(fitted):
    method = fitted[0]
    assert method.summary
    assert method.label == method.name
    assert method.passes >= 1
    assert type(method).__doc__
    assert type(method).model_config["frozen"]


def test_probabilities_sum_to_one_over_the_items_own_choices(fitted, material):
    method, model, *_ = fitted
    prediction = answer(method, model, material)
    assert prediction.logits.shape[::2] == (24, max(material.choices))
    np.testing.assert_allclose(prediction.probabilities.sum(axis=1), 1, atol=1e-9)
    assert (prediction.probabilities[~prediction.mask] == 0).all()
    assert (prediction.mask.sum(axis=1) == material.choices).all()
    assert (prediction.epistemic >= 0).all()


def test_frozen_weights_stay_frozen(fitted, material):
    method, model, _, before = fitted
    answer(method, model, material, slice(4))
    now = copy.deepcopy(network(model))
    now = (without_adapters(now) if hasattr(now, "peft_config") else now).state_dict()
    for name, value in before.items():
        assert torch.equal(now[name], value), name


def test_the_same_seed_gives_the_same_answer(fitted, material, tmp_path):
    method, model, *_ = fitted
    again, *_ = fit(method, material, tmp_path, seed=3)
    assert np.array_equal(answer(method, again, material).logits, answer(method, model, material).logits)


def test_asking_twice_gives_the_same_answer_and_leaves_every_flag_as_it_was(fitted, material):
    method, model, *_ = fitted
    flags = [module.training for module in network(model).modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network(model).modules()]
    first = answer(method, model, material)
    assert np.array_equal(answer(method, model, material).logits, first.logits)
    assert [module.training for module in network(model).modules()] == flags
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network(model).modules()] == hooks


def test_saved_and_reloaded_it_answers_bit_for_bit_the_same(fitted, material):
    method, model, folder, _ = fitted
    reloaded = method.load(material.base(), folder)
    first, second = answer(method, model, material), answer(method, reloaded, material)
    assert np.array_equal(first.logits, second.logits)
    assert (first.feu is None) == (second.feu is None)
    if first.feu is not None:
        assert np.array_equal(first.feu, second.feu)


def test_batch_size_and_order_change_nothing(fitted, material):
    method, model, *_ = fitted
    whole = answer(method, model, material)
    one_by_one = answer(method, model, material, batch_size=1)
    backwards = answer(method, model, material, slice(None, None, -1), batch_size=5)
    finite = np.isfinite(whole.logits)
    np.testing.assert_allclose(one_by_one.logits[finite], whole.logits[finite], atol=2e-4)
    np.testing.assert_allclose(backwards.logits[::-1][finite], whole.logits[finite], atol=2e-4)


def test_trainable_parameters_are_those_that_were_trained_and_are_known_before(fitted, material):
    method, _, folder, _ = fitted
    counted = method.trainable_parameters(folder)
    assert isinstance(counted, int)
    assert (counted > 0) == any(folder.glob("*.safetensors"))
    if method.trainings:
        base = material.base()
        adapted = peft.get_peft_model(base, with_head(method.adapter_config(base), base))
        assert method.parameters_of(adapted) == counted


def test_progress_ends_at_all_items(fitted, material):
    method, model, *_ = fitted
    seen = []
    method.predict(
        model,
        material.examples[:6],
        ids=list("abcdef"),
        pad_token_id=material.pad,
        batch_size=4,
        progress=lambda *at: seen.append(at),
    )
    assert seen[-1] == (6, 6)
    assert seen == sorted(seen)


def test_no_method_answers_with_a_number_that_is_not_finite(fitted, material):
    method, model, *_ = fitted
    prediction = answer(method, model, material)
    assert all(map(math.isfinite, prediction.confidence))
