"""Drawing experts at test time: by the right probabilities, for the question alone, and leaving nothing behind."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import transformers as tf
from peft import get_peft_model
from scipy import stats
from torch import nn
from training_toys import mixture, questions

from uq4ct.adapters import MixLoraConfig
from uq4ct.adapters.layers import FfnMixture, LoraLinear, MixtureLinear
from uq4ct.adapters.mixture import route, sample_experts
from uq4ct.adapters.noise import token_keys, uniform
from uq4ct.adapters.router import Routed, record_routing, sample_routing
from uq4ct.methods.mixlora import MixLora
from uq4ct.methods.uq4ct import Uq4ct
from uq4ct.scoring import collate, score, score_all
from uq4ct.types import FeuReading

ROUTINGS = ["ffn_block", "per_linear"]


def test_experts_are_drawn_as_often_as_plackett_and_luce_say():
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    n = 100_000
    routing, slots = sample_experts(p.expand(n, 4), uniform(token_keys(torch.arange(n)[:, None])[:, 0], 4, seed=3), 2)
    first, second = slots.int().argmax(dim=-1).unbind(dim=-1)
    pairs = list(itertools.permutations(range(4), 2))
    expected = [n * p[i].item() * p[j].item() / (1 - p[i].item()) for i, j in pairs]
    observed = [int(((first == i) & (second == j)).sum()) for i, j in pairs]
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    assert torch.equal(routing.first, first)


def test_the_weights_of_drawn_experts_follow_their_own_probabilities():
    p = torch.tensor([[0.5, 0.3, 0.2]])
    routing, slots = sample_experts(p, torch.tensor([[1e-6, 0.9, 0.9]]), 2)  # the largest one loses
    assert routing.kept.tolist() == [[0.0, pytest.approx(0.3), pytest.approx(0.2)]]
    assert routing.weights[0].tolist() == pytest.approx([0.0, 0.6, 0.4])
    assert torch.equal(routing.probabilities, p)
    assert slots.sum(dim=-1).tolist() == [[1, 1]]


def test_equal_noise_leaves_the_most_likely_experts():
    hidden, router = torch.randn(7, 5), torch.randn(6, 5)
    plain, slots = route(hidden, router, 3)
    drawn, drawn_slots = sample_experts(plain.probabilities, torch.full((7, 6), 0.5), 3)
    assert torch.equal(drawn.kept, plain.kept)
    assert torch.equal(drawn_slots, slots)


def test_the_rarest_expert_is_drawn_even_where_its_probability_underflows():
    routing, _ = sample_experts(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0**-24, 1 - 2.0**-24]]), 2)
    assert routing.weights.tolist() == [[1.0, 0.0]]


def toy() -> tuple[nn.Module, MixtureLinear]:
    """Return one embedding and one routed linear, small enough for a loop."""
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 6)
            self.layers = nn.ModuleList([nn.ModuleDict({"proj": nn.Linear(6, 5)})])

        def forward(self, input_ids, attention_mask=None):
            return self.layers[0]["proj"](self.embed(input_ids))

    model = Model().double()
    options = {"routing": "per_linear", "target_modules": ["proj"], "num_experts": 4, "top_k": 2, "r": 2}
    model = get_peft_model(model, MixLoraConfig(**options, lora_dropout=0.0), autocast_adapter_dtype=False).double()
    for name, parameter in model.named_parameters():
        parameter.data.normal_(std=0.2 if "router" in name else 1.0)
    return model.eval(), next(module for module in model.modules() if isinstance(module, MixtureLinear))


def test_a_routed_linear_computes_what_a_loop_over_the_drawn_experts_computes():
    model, layer = toy()
    ids = torch.tensor([[4, 5, 6], [7, 8, 9]])
    with torch.no_grad(), sample_routing(model, seed=5, sample=2):
        found = model(input_ids=ids)
    x, noise = model.get_base_model().embed(ids), uniform(token_keys(ids), 4, seed=5, sample=2, site=0).double()
    W_r, A, B = (part["default"] for part in (layer.uqmoe_router, layer.uqmoe_A, layer.uqmoe_B))
    drawn = set()
    for b, t in np.ndindex(2, 3):
        p = (W_r @ x[b, t]).softmax(dim=-1)
        score_of = [p[k].log().item() - np.log(-np.log(noise[b, t, k].item())) for k in range(4)]
        chosen = sorted(range(4), key=lambda k: -score_of[k])[:2]
        drawn.add((*chosen, *p.topk(2).indices.tolist()))
        expected = layer.base_layer(x[b, t])
        for k in chosen:
            delta = B[:, 2 * k : 2 * k + 2] @ (A[2 * k : 2 * k + 2] @ x[b, t])
            expected = expected + p[k] / sum(p[j] for j in chosen) * layer.settings["default"].scaling * delta
        torch.testing.assert_close(found[b, t], expected, rtol=1e-9, atol=1e-9)
    assert any(set(four[:2]) != set(four[2:]) for four in drawn)  # else the draw would show nowhere


@pytest.fixture(scope="module", params=ROUTINGS)
def model(request):
    return mixture(dtype=torch.float64, routing=request.param).eval()


def sampled(model, examples, batch_size, **draw):
    with sample_routing(model, **draw):
        return score_all(model, examples, pad_token_id=0, batch_size=batch_size)


def test_batch_order_and_size_change_nothing(model):
    examples = questions(9)
    logits, mask, feu, mass = sampled(model, examples, 9, seed=1, sample=3)
    plain = score_all(model, examples, 0, 9)[0]
    assert np.abs(logits[mask[:, None]] - plain[mask[:, None]]).max() > 1e-3
    for rows, batch_size in ((range(9), 1), (range(8, -1, -1), 4), ([3], 1)):
        other = sampled(model, [examples[row] for row in rows], batch_size, seed=1, sample=3)
        width = other[0].shape[-1]
        np.testing.assert_allclose(other[0], logits[list(rows)][..., :width], rtol=1e-9)
        np.testing.assert_allclose(other[2], feu[list(rows)], rtol=1e-9)
        np.testing.assert_allclose(other[3], mass[list(rows)], rtol=1e-9)


def test_the_side_of_the_padding_changes_nothing(model):
    left, right = (collate(questions(5), 0, side) for side in ("left", "right"))
    with torch.no_grad(), sample_routing(model, seed=2):
        one, two = score(model, left), score(model, right)
    torch.testing.assert_close(one.choice_logits, two.choice_logits, rtol=1e-9, atol=1e-12)


def test_seed_and_sample_decide_the_draw(model):
    examples = questions(4)
    first = sampled(model, examples, 4, seed=1, sample=0)[0]
    assert np.array_equal(sampled(model, examples, 4, seed=1, sample=0)[0], first)
    for draw in ({"seed": 1, "sample": 1}, {"seed": 2, "sample": 0}):
        assert not np.allclose(sampled(model, examples, 4, **draw)[0], first, atol=1e-6)


def test_the_options_of_a_question_are_scored_by_the_same_draw(model):
    def ask(options):
        return {"input_ids": [11, 12, 13, 14, 15], "option_ids": options, "answer": 0}

    two = sampled(model, [ask([[20, 21], [22]])], 1, seed=1)[0][0, 0]
    three = sampled(model, [ask([[30, 31, 32], [22], [20, 21]])], 1, seed=1)[0][0, 0]
    np.testing.assert_allclose(two, three[[2, 1]], rtol=1e-9)
    same = sampled(model, [ask([[20, 21], [20, 21]])], 1, seed=1)[0][0, 0]
    assert same[0] == pytest.approx(same[1], rel=1e-12)


def test_recorded_is_how_sure_the_router_is_and_not_what_was_drawn(model):
    batch = collate(questions(6), 0)
    with torch.no_grad(), sample_routing(model, seed=1), record_routing(model) as routing:
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for layer in routing.layers:
        torch.testing.assert_close(layer.kept.sum(-1), layer.probabilities.topk(2).values.sum(-1))
    feu = sampled(model, questions(6), 6, seed=1)[2]
    assert ((feu >= 0.5) & (feu <= 1)).all()


def test_all_is_as_before_afterwards(model):
    examples = questions(3)
    before = score_all(model, examples, 0, 3)[0]
    routers = [module for module in model.modules() if isinstance(module, Routed)]
    with sample_routing(model):
        assert all(router.draw is not None for router in routers)
    with pytest.raises(IndexError), sample_routing(model):
        score_all(model, [{"input_ids": [99], "choice_ids": [1, 2], "answer": 0}], 0, 1)  # there is no such token
    assert all(router.draw is None for router in routers)
    assert not model._forward_pre_hooks
    assert np.array_equal(score_all(model, examples, 0, 3)[0], before)


def test_contexts_may_be_nested_and_the_inner_one_rules(model):
    examples = questions(3)
    inner, outer = (sampled(model, examples, 3, seed=seed)[0] for seed in (1, 2))
    with sample_routing(model, seed=2):
        assert np.array_equal(sampled(model, examples, 3, seed=1)[0], inner)
        assert np.array_equal(score_all(model, examples, 0, 3)[0], outer)


def test_only_routers_are_touched(model):
    others = [module for module in model.modules() if isinstance(module, LoraLinear)]
    kinds = {type(module) for module in model.modules() if isinstance(module, Routed)}
    assert (kinds == {FfnMixture}) == bool(others)
    with sample_routing(model):
        assert not any(hasattr(module, "draw") for module in others)


def test_a_model_that_flattens_its_tokens_draws_by_token_too():
    sizes = {"hidden_size": 16, "ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 32}
    torch.manual_seed(0)
    base = tf.OPTForCausalLM(tf.OPTConfig(vocab_size=50, num_hidden_layers=2, num_attention_heads=2, **sizes))
    model = get_peft_model(base, MixLoraConfig(r=2, num_experts=4, task_type="CAUSAL_LM")).double().eval()
    for name, parameter in model.named_parameters():
        if "uqmoe" in name:
            parameter.data.normal_(std=0.3)
    examples = questions(5)
    together, alone = (sampled(model, examples, size, seed=1)[0] for size in (5, 1))
    np.testing.assert_allclose(together, alone, rtol=1e-9)
    assert not np.allclose(together, score_all(model, examples, 0, 5)[0], atol=1e-6)


def test_one_sample_is_the_most_likely_routing_and_several_are_stacked(model):
    examples = questions(5)
    options = {"ids": [e["id"] for e in examples], "pad_token_id": 0}
    logits, _, feu, _ = score_all(model, examples, 0, 5)
    single = MixLora().predict(model, examples, **options)
    assert np.array_equal(single.logits, logits)
    assert np.array_equal(single.feu, feu)
    method, calls = MixLora(router_samples=3), []
    assert (MixLora().passes, method.passes) == (1, 3)
    several = method.predict(model, examples, **options, progress=lambda done, total: calls.append((done, total)))
    parts = [sampled(model, examples, 5, sample=sample) for sample in range(3)]
    assert np.array_equal(several.logits, np.concatenate([part[0] for part in parts], axis=1))
    np.testing.assert_allclose(several.feu, np.mean([part[2] for part in parts], axis=0), rtol=1e-12)
    assert (several.epistemic > 0).all()
    assert calls[-1] == (5, 5)


def test_feu_is_read_over_the_tokens_that_it_was_trained_on(model):
    examples = questions(4)
    options = {"ids": [e["id"] for e in examples], "pad_token_id": 0}
    with sample_routing(model, sample=0):
        first = score_all(model, examples, 0, 4, feu=FeuReading(tokens="last"))[2]
    with sample_routing(model, sample=1):
        second = score_all(model, examples, 0, 4, feu=FeuReading(tokens="last"))[2]
    found = Uq4ct(router_samples=2, feu_tokens="last").predict(model, examples, **options).feu
    np.testing.assert_allclose(found, (first + second) / 2, rtol=1e-12)
