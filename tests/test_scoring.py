"""Reading an answer: padding, batching and order change nothing, absolute positions are right, nothing is cut off."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
import transformers
from training_toys import llama, mixture, questions

from uq4ct.adapters.router import record_routing
from uq4ct.errors import UserError
from uq4ct.losses.calibration import functional_uncertainty
from uq4ct.losses.objective import Objective
from uq4ct.scoring import collate, context_length, score, score_all, uq4ct_loss


def gpt2():
    transformers.set_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64, n_inner=24, initializer_range=0.3
    )
    return transformers.GPT2LMHeadModel(config).eval()


def opt():
    transformers.set_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24, "init_std": 0.3}
    config = transformers.OPTConfig(num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64, **sizes)
    return transformers.OPTForCausalLM(config).eval()


MODELS = {"llama": lambda: llama().eval(), "mixture": lambda: mixture().eval(), "gpt2": gpt2, "opt": opt}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request):
    return MODELS[request.param]()


def options(number: int, seed: int = 0):
    generator = np.random.default_rng(seed)

    def text():
        return generator.integers(10, 50, size=generator.integers(1, 5)).tolist()

    return [
        {"input_ids": q["input_ids"], "option_ids": [text() for _ in q["choice_ids"]], "answer": q["answer"]}
        for q in questions(number, seed)
    ]


@torch.no_grad()
def alone(model, example) -> tuple[np.ndarray, float, float | None]:
    """Score one question with no padding at all: logits of the choices, their normaliser, FEU."""
    with record_routing(model) as routing:
        logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0, -1].double()
    feu = None
    if routing.layers:
        kept = torch.stack([layer.kept.sum(-1)[0] for layer in routing.layers])
        feu = kept.mean().item()
    return logits[example["choice_ids"]].numpy(), logits.logsumexp(-1).item(), feu


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_scores_each_question_as_if_it_were_alone(model, side):
    examples = questions(7)
    with torch.no_grad():
        scores = score(model, collate(examples, pad_token_id=0, padding_side=side))
    feu = functional_uncertainty(scores.routing, scores.routing_mask) if scores.routing else None
    for row, example in enumerate(examples):
        logits, normalizer, expected_feu = alone(model, example)
        np.testing.assert_allclose(scores.choice_logits[row, : len(logits)], logits, atol=2e-6)
        assert scores.log_normalizer[row].item() == pytest.approx(normalizer, abs=2e-6)
        assert torch.isneginf(scores.choice_logits[row, len(logits) :]).all()
        if feu is not None:
            assert feu[row].item() == pytest.approx(expected_feu, abs=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_option_texts_score_as_the_sum_of_their_tokens_log_likelihoods(model, side):
    examples = options(5)
    with torch.no_grad():
        scores = score(model, collate(examples, pad_token_id=0, padding_side=side))
        for row, example in enumerate(examples):
            for choice, tokens in enumerate(example["option_ids"]):
                whole = example["input_ids"] + tokens
                log_probs = model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
                start = len(example["input_ids"])
                expected = sum(log_probs[start + i - 1, token].item() for i, token in enumerate(tokens))
                assert scores.choice_logits[row, choice].item() == pytest.approx(expected, abs=5e-6)
            if scores.routing:
                prompt_feu = functional_uncertainty(scores.routing, scores.routing_mask)[row].item()
                assert prompt_feu == pytest.approx(alone(model, {**example, "choice_ids": [0]})[2], abs=1e-6)
    assert not scores.log_normalizer.any()
    assert scores.routing_mask.sum(-1).tolist() == [len(example["input_ids"]) for example in examples]


@pytest.mark.parametrize("make", [questions, options])
def test_probabilities_do_not_depend_on_batch_size_or_order(model, make):
    examples = make(11)
    logits, mask, feu, mass = score_all(model, examples, 0, batch_size=4)
    for batch_size in (1, 3, 64):
        again = score_all(model, examples, 0, batch_size)
        np.testing.assert_allclose(softmax(again[0]), softmax(logits), atol=1e-6)
    backwards = score_all(model, examples[::-1], 0, batch_size=4)
    np.testing.assert_allclose(softmax(backwards[0])[::-1], softmax(logits), atol=1e-6)
    assert mask.sum(axis=1).tolist() == [len(e.get("choice_ids", e.get("option_ids"))) for e in examples]
    assert logits.dtype == np.float64
    assert np.isneginf(logits[:, 0][~mask]).all()
    assert (mass is None) == (make is options)
    if feu is not None:
        np.testing.assert_allclose(backwards[2][::-1], feu, atol=1e-6)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def test_letter_mass_is_the_letters_share_of_the_vocabulary(model):
    examples = questions(3)
    _, _, _, mass = score_all(model, examples, 0, batch_size=2)
    for row, example in enumerate(examples):
        logits, normalizer, _ = alone(model, example)
        assert mass[row] == pytest.approx(np.exp(logits - normalizer).sum(), abs=1e-6)


def test_logits_are_computed_at_the_answer_only_where_the_model_can(model):
    widths = []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda *call: widths.append(call[2].shape[1]))
    try:
        score(model, collate(questions(4), 0))
        score(model, collate(questions(4), 0, padding_side="right"))
    finally:
        hook.remove()
    shortest, longest = (f(len(q["input_ids"]) for q in questions(4)) for f in (min, max))
    assert widths == [1, longest - shortest + 1]


def test_a_batch_without_an_answer_window_is_read_by_its_mask(model):
    batch = collate(questions(4), 0, padding_side="right")
    expected = score(model, batch)
    del batch["answer_window"]
    torch.testing.assert_close(score(model, batch).choice_logits, expected.choice_logits)


def test_softmax_is_float32_whatever_the_models_dtype():
    scores = score(llama(dtype=torch.bfloat16).eval(), collate(questions(3), 0))
    assert scores.choice_logits.dtype == scores.log_normalizer.dtype == torch.float32


def test_a_question_longer_than_the_context_is_named_and_never_cut():
    examples = [*questions(2), {"id": "far-too-long", "input_ids": [11] * 65, "choice_ids": [1, 2], "answer": 0}]
    with pytest.raises(UserError, match="example far-too-long: 65 tokens, but the model's context is 64") as raised:
        score_all(gpt2(), examples, 0, batch_size=2)
    assert len(raised.value.problems) == 1
    assert context_length(mixture()) == 64


def test_a_batch_too_big_for_the_device_is_halved_and_tried_again(monkeypatch):
    import uq4ct.scoring as scoring

    tried, real = [], scoring._score_rows

    def out_of_memory_above_two(model, batch, *rest):
        tried.append(len(batch["input_ids"]))
        if tried[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, batch, *rest)

    expected = score_all(gpt2(), questions(5), 0, batch_size=1)[0]
    monkeypatch.setattr(scoring, "_score_rows", out_of_memory_above_two)
    progress = []
    found = score_all(gpt2(), questions(5), 0, 8, progress=lambda done, total: progress.append((done, total)))[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert tried == [5, 4, 2, 2, 1]
    assert progress == [(2, 5), (4, 5), (5, 5)]


def test_longest_questions_go_first_and_training_flags_are_restored():
    model, seen = llama(), []
    model.train()
    model.lm_head.eval()
    model.model.embed_tokens.register_forward_hook(lambda *call: seen.append(call[1][0].shape[1]))
    score_all(model, questions(9), 0, batch_size=2)
    assert seen == sorted(seen, reverse=True)
    assert model.training
    assert not model.lm_head.training


def test_no_questions_give_empty_arrays():
    logits, mask, feu, mass = score_all(gpt2(), [], 0, batch_size=2)
    assert logits.shape == (0, 1, 0)
    assert mask.shape == (0, 0)
    assert feu is None
    assert mass is None


def test_letters_and_option_texts_do_not_mix_in_one_batch():
    with pytest.raises(ValueError, match="not both"):
        collate([*questions(1), *options(1)], 0)


def test_the_bare_loss_trains_router_and_experts_and_reports_what_it_is_made_of():
    model = mixture(dropout=0.1)
    batch = collate(questions(6), 0)
    losses = uq4ct_loss(model, batch, Objective(calibration_weight=0.5, balance_weight=0.01))
    expected = losses.answer + 0.01 * losses.balance + 0.5 * losses.calibration
    assert losses.loss.item() == pytest.approx(expected.item(), abs=1e-7)
    losses.loss.backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trainable.values())
    assert any("router" in name and p.grad.abs().max() > 1e-8 for name, p in trainable.items())
    tokens = sum(len(question["input_ids"]) for question in questions(6))
    assert [layer.sum().item() for layer in losses.expert_counts] == [tokens, tokens]


def test_the_bare_loss_of_a_plain_adapter_is_the_answer_alone():
    model = peft.get_peft_model(llama(), peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    losses = uq4ct_loss(model, collate(questions(3), 0), Objective())
    assert losses.loss.item() == losses.answer.item()
    assert losses.feu is None
    assert losses.expert_counts == []
