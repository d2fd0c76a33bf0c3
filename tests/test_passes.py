"""Samples of a single question as rows of one batch, against a pass for each."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
import transformers
from test_families import FAMILIES, SIZES, build
from training_toys import llama, mixture, questions

from uq4ct import passes, scoring
from uq4ct.adapters import linear_targets
from uq4ct.adapters.dropout import adapter_dropout
from uq4ct.adapters.noise import keep, token_keys, uniform
from uq4ct.adapters.router import sample_routing
from uq4ct.methods.deep_ensemble import DeepEnsemble
from uq4ct.methods.mc_dropout import McDropout
from uq4ct.methods.mixlora import MixLora
from uq4ct.passes import rows_together, takes_an_adapter_per_row

QUESTION = {"id": "q", "input_ids": [5, 9, 3, 3, 7, 2], "choice_ids": [1, 2, 3], "answer": 0}
ASK = {"ids": ["q"], "pad_token_id": 0}


def lora(base, **options) -> peft.PeftModel:
    torch.manual_seed(1)
    targets = options.pop("target_modules", None) or linear_targets(base)
    options |= {"r": 2, "lora_dropout": 0.4, "target_modules": targets, "task_type": "CAUSAL_LM"}
    return peft.get_peft_model(base, peft.LoraConfig(**options, init_lora_weights=False)).eval()


def with_members(base, **options) -> peft.PeftModel:
    model = lora(base, **options)
    for name in ("member-1", "member-2"):
        model.add_adapter(name, model.peft_config["default"])
    return model.double().eval()


@pytest.fixture
def rows(monkeypatch) -> list[int]:
    """Note the rows of each forward pass."""
    seen: list[int] = []
    forward = scoring.forward

    def noted(model, input_ids, *others):
        seen.append(len(input_ids))
        return forward(model, input_ids, *others)

    monkeypatch.setattr(scoring, "forward", noted)
    return seen


def compared(method, model, rows: list[int], expected_rows: list[int], monkeypatch, examples=(QUESTION,)) -> None:
    """Compare a prediction with the same one made pass by pass, and the rows of its passes with the expected ones."""
    progress: list[tuple[int, int]] = []
    ask = {**ASK, "ids": [str(number) for number in range(len(examples))]}
    found = method.predict(model, list(examples), **ask, progress=lambda *done: progress.append(done))
    assert rows == expected_rows
    assert progress[-1] == (len(examples), len(examples))
    monkeypatch.setattr(passes, "rows_together", lambda *given: 1)
    alone = method.predict(model, list(examples), **ask)
    assert len(rows) == len(expected_rows) + method.passes
    for one, other in ((found.logits, alone.logits), (found.letter_mass, alone.letter_mass), (found.feu, alone.feu)):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)
    assert found.logits.shape == (len(examples), method.passes, 3)
    assert np.ptp(found.logits[0], axis=0).max() > 1e-3  # else samples in another order would not show


@pytest.mark.parametrize("samples", [1, 4])
def test_dropout_samples_of_a_question_are_rows_of_one_batch(samples, rows, monkeypatch):
    model = lora(llama()).double()
    if samples > 1:
        compared(McDropout(samples=samples), model, rows, [samples], monkeypatch)
    else:
        McDropout(samples=1).predict(model, [QUESTION], **ASK)
        assert rows == [1]


@pytest.mark.parametrize("routing", ["ffn_block", "per_linear"])
def test_drawn_experts_of_a_question_are_rows_of_one_batch(routing, rows, monkeypatch):
    model = mixture(dtype=torch.float64, routing=routing).eval()
    compared(MixLora(router_samples=5, routing=routing), model, rows, [5], monkeypatch)


def test_members_answer_a_question_as_rows_of_one_batch_and_the_active_one_stays(rows, monkeypatch):
    model = with_members(llama())
    model.set_adapter("member-2")
    compared(DeepEnsemble(members=3), model, rows, [3], monkeypatch)
    assert model.active_adapter == "member-2"
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_members_of_every_family_answer_what_they_answer_one_by_one(family, rows, monkeypatch):
    model = with_members(build(family))
    compared(DeepEnsemble(members=3), model, rows, [1, 1, 1] if family == "opt" else [3], monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_samples_of_every_family_are_what_they_are_one_by_one(family, rows, monkeypatch):
    compared(McDropout(samples=3), lora(build(family)).double(), rows, [3], monkeypatch)


def test_no_batch_of_samples_is_larger_than_its_bound(rows, monkeypatch):
    monkeypatch.setattr(passes, "TOKENS", 13)  # two of six tokens
    compared(McDropout(samples=5), lora(llama()).double(), rows, [2, 2, 1], monkeypatch)
    assert rows_together([{**QUESTION, "input_ids": [5] * 600}], 10) == 1


def test_several_questions_and_option_texts_run_pass_by_pass(rows, monkeypatch):
    model = lora(llama()).double()
    compared(McDropout(samples=3), model, rows, [2, 2, 2], monkeypatch, examples=questions(2, choices=(3, 3)))
    monkeypatch.undo()
    options = {"id": "q", "input_ids": [5, 9, 3], "option_ids": [[4], [6]], "answer": 0}
    assert rows_together([options], 10) == 1
    assert McDropout(samples=3).predict(model, [options], **ASK).logits.shape == (1, 3, 2)


def test_where_there_is_no_memory_for_copies_passes_are_run(rows, monkeypatch):
    model = lora(llama()).double()
    plenty = McDropout(samples=3).predict(model, [QUESTION], **ASK)
    noted = scoring.forward

    def scarce(model, input_ids, *others):
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("no memory")
        return noted(model, input_ids, *others)

    monkeypatch.setattr(scoring, "forward", scarce)
    rows.clear()
    found = McDropout(samples=3).predict(model, [QUESTION], **ASK)
    assert rows == [1, 1, 1]
    np.testing.assert_allclose(found.logits, plenty.logits, rtol=1e-10)


def test_a_batch_of_members_that_fails_leaves_nothing_behind(rows):
    """Want of memory is met within a layer, and the members then answer one by one, this question and later ones."""
    model = with_members(llama())
    plenty = DeepEnsemble(members=3).predict(model, [QUESTION], **ASK)

    def scarce(layer, args):
        if len(args[0]) > 1:
            raise torch.OutOfMemoryError("no memory")

    handle = model.base_model.model.model.layers[0].mlp.register_forward_pre_hook(scarce)
    rows.clear()
    found = DeepEnsemble(members=3).predict(model, [QUESTION], **ASK)
    assert rows == [3, 1, 1, 1]
    np.testing.assert_allclose(found.logits, plenty.logits, rtol=1e-10)
    handle.remove()
    assert not any(module._forward_pre_hooks for module in model.modules())
    two = DeepEnsemble(members=3).predict(model, [QUESTION] * 2, ids=["a", "b"], pad_token_id=0)
    np.testing.assert_allclose(two.logits[:1], plenty.logits, rtol=1e-10)


def test_loras_that_take_the_input_alone_take_no_adapter_per_row(monkeypatch):
    """As those of PEFT on some quantised linears."""
    model = lora(llama())
    monkeypatch.setattr(peft.tuners.lora.Linear, "forward", lambda self, x: self.base_layer(x))
    assert not takes_an_adapter_per_row(model)


def test_only_plain_loras_of_causal_models_take_an_adapter_per_row():
    assert takes_an_adapter_per_row(lora(llama()))
    assert not takes_an_adapter_per_row(lora(llama(), use_dora=True))
    assert not takes_an_adapter_per_row(lora(llama(), modules_to_save=["lm_head"]))
    assert not takes_an_adapter_per_row(mixture())
    assert not takes_an_adapter_per_row(lora(build("opt")))
    moe = transformers.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=2, head_dim=8)
    base = transformers.MixtralForCausalLM(moe)
    assert not takes_an_adapter_per_row(lora(base, target_modules=["q_proj"]))


@pytest.mark.parametrize("flattened", [False, True])
def test_a_row_with_a_sample_of_its_own_gets_the_noise_that_it_gets_alone(flattened):
    keys = token_keys(torch.tensor([[5, 6, 7], [5, 6, 7], [8, 9, 5]]))
    given = keys.flatten() if flattened else keys
    for make in (lambda k, **at: uniform(k, 6, **at), lambda k, **at: keep(k, 6, 0.4, **at)):
        found = make(given, seed=2, sample=(4, 7, 4), site=3).view(3, 3, 6)
        for row, sample in enumerate((4, 7, 4)):
            assert torch.equal(found[row], make(keys[row], seed=2, sample=sample, site=3))
        assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("within", [adapter_dropout, sample_routing])
def test_a_batch_of_other_rows_than_samples_is_refused(within):
    model = lora(llama()) if within is adapter_dropout else mixture().eval()
    with within(model, sample=(1, 2)), pytest.raises(ValueError, match="a sample for each of 3 rows, got 2"):
        model(input_ids=torch.ones(3, 4, dtype=torch.long))
