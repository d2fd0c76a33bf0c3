"""Laplace-LoRA against dense matrices, explicit loops and another library: curvature, evidence, predictive, links.

The models are float64, but their norms compute in float32: a question alone and in a batch agree to about 1e-7.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
import transformers
from training_toys import llama, questions

from uq4ct.adapting import Bench, TrainConfig
from uq4ct.errors import UserError
from uq4ct.laplace import curvature, predictive
from uq4ct.laplace.curvature import Curvature, fit
from uq4ct.laplace.factors import SketchedFactor, Spectrum, WholeFactor, memory
from uq4ct.laplace.linearised import Linearised, lora_weights
from uq4ct.laplace.posterior import Block, Posterior, _turn_tokens
from uq4ct.laplace.predictive import GaussianLogits, bridge, gaussian_logits, monte_carlo, probit
from uq4ct.methods.laplace import PRIORS, Laplace
from uq4ct.methods.lora import Lora
from uq4ct.scoring import collate

TARGETS = ("q_proj", "v_proj", "down_proj")


def adapted(targets=TARGETS, dtype=torch.float64, rank=3, base=None, **options):
    """Return a small Llama whose LoRA is as if trained: neither A nor B is near zero."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=6, target_modules=list(targets), **options)
    model = peft.get_peft_model(llama(dtype=dtype) if base is None else base, config, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model.eval()


def option_questions(number: int):
    """Return questions whose choices are texts of one to four tokens."""
    generator = np.random.default_rng(0)
    return [
        {**{name: value for name, value in question.items() if name != "choice_ids"},
         "option_ids": [generator.integers(10, 50, size=generator.integers(1, 5)).tolist()
                        for _ in question["choice_ids"]]}
        for question in questions(number)
    ]  # fmt: skip


def choice_logits(model, example) -> torch.Tensor:
    """Score one question with no padding, straight from the model's logits."""
    if "choice_ids" in example:
        return model(input_ids=torch.tensor([example["input_ids"]])).logits[0, -1, example["choice_ids"]]
    start, logits = len(example["input_ids"]) - 1, []
    for option in example["option_ids"]:
        of_text = model(input_ids=torch.tensor([[*example["input_ids"], *option]])).logits[0].log_softmax(-1)
        logits.append(sum(of_text[start + place, token] for place, token in enumerate(option)))
    return torch.stack(logits)


def dense_jacobians(model, weights, example) -> list[torch.Tensor]:
    """Return d logits / d W for one question and every weight, (choice, out * in), by one backward pass per choice."""
    parameters = [linear.weight for linear in weights.values()]
    rows = [
        torch.autograd.grad(logit, parameters, retain_graph=True) for logit in choice_logits(model, example).unbind()
    ]
    return [torch.stack([row[place].flatten() for row in rows]) for place in range(len(parameters))]


def dense_curvature(block: Block) -> torch.Tensor:
    """Return H of one weight as a matrix over its entries in row-major order."""
    sides = [(side.basis * side.values) @ side.basis.T for side in (block.outputs, block.inputs)]
    return torch.kron(*sides)


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the distance of two tensors in units of the expected one's norm."""
    return ((found - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module")
def model():
    return adapted()


@pytest.fixture(scope="module")
def weights(model):
    return lora_weights(model)


@pytest.fixture(scope="module")
def posterior(model, weights):
    return fit(model, weights, questions(9), 0)


# ---- the curvature


@pytest.mark.parametrize("targets", [("v_proj", "down_proj", "lm_head"), ("v_proj",)])
def test_with_one_question_of_one_token_kfac_is_the_dense_fisher_information(targets):
    model = adapted(targets)
    weights = lora_weights(model)
    (example,) = questions(1, lengths=(1, 1), choices=(4, 4))
    posterior = fit(model, weights, [example], 0)
    p = choice_logits(model, example).softmax(-1).detach()
    for block, jacobian in zip(posterior.blocks.values(), dense_jacobians(model, weights, example), strict=True):
        fisher = jacobian.T @ (p.diag() - torch.outer(p, p)) @ jacobian
        assert apart(dense_curvature(block), fisher) < 1e-6


def test_the_head_alone_is_exact_for_one_long_question():
    model = adapted(["lm_head"])
    weights = lora_weights(model)
    (example,) = questions(1, lengths=(9, 9))
    posterior = fit(model, weights, [example], 0)
    p = choice_logits(model, example).softmax(-1).detach()
    for block, jacobian in zip(posterior.blocks.values(), dense_jacobians(model, weights, example), strict=True):
        fisher = jacobian.T @ (p.diag() - torch.outer(p, p)) @ jacobian
        assert apart(dense_curvature(block), fisher) < 1e-6


def watched(model, weights, example):
    """Return the choices' log-probabilities of one question, and (inputs, output) of every weight."""
    seen = {}
    handles = [
        linear.register_forward_hook(lambda _, args, y, name=name: seen.update({name: (args[0][0], y)}))
        for name, linear in weights.items()
    ]
    log_p = choice_logits(model, example).log_softmax(-1)
    for handle in handles:
        handle.remove()
    return log_p, seen


def loops(model, weights, examples, tokens):
    """Return N * E[a a^T] kron E[g g^T] of every weight by loops over questions, choices and tokens."""
    sums = {name: [0.0, 0.0] for name in weights}
    for example in examples:
        log_p, seen = watched(model, weights, example)
        for name, (inputs, output) in seen.items():
            places = range(len(inputs)) if tokens == "all_nonpad" else [len(inputs) - 1]
            for place in places:
                sums[name][0] = sums[name][0] + torch.outer(inputs[place], inputs[place]).detach() / len(places)
            for k in range(len(log_p)):
                (gradient,) = torch.autograd.grad(log_p[k], output, retain_graph=True)
                for place in places:
                    g = gradient[0, place]
                    sums[name][1] = sums[name][1] + log_p[k].exp().detach() * torch.outer(g, g)
    return {name: torch.kron(outputs, inputs / len(examples)) for name, (inputs, outputs) in sums.items()}


@pytest.mark.parametrize("tokens", ["all_nonpad", "last"])
def test_the_curvature_is_that_of_loops_over_questions_choices_and_tokens(model, weights, tokens):
    examples = questions(5)
    posterior = fit(model, weights, examples, 0, tokens=tokens, batch_size=3)
    for name, expected in loops(model, weights, examples, tokens).items():
        assert apart(dense_curvature(posterior.blocks[name]), expected) < 1e-6


@pytest.mark.parametrize("fisher", ["exact", "sampled"])
@pytest.mark.parametrize("full_below", [512, 4])
def test_batch_size_and_order_change_nothing(model, weights, fisher, full_below):
    examples = questions(9)
    options = {"fisher": fisher, "full_below": full_below, "rank": 2}
    one = fit(model, weights, examples, 0, batch_size=1, **options)
    other = fit(model, weights, examples[::-1], 0, batch_size=4, **options)
    torch.testing.assert_close(one.eigenvalues, other.eigenvalues, rtol=1e-7, atol=1e-12)
    assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-12)
    a = gaussian_logits(model, weights, one, examples, 0, batch_size=1)
    b = gaussian_logits(model, weights, other, examples[::-1], 0, batch_size=9)
    torch.testing.assert_close(a.covariance[0], b.covariance[0].flip(0), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(monte_carlo(a, 8), monte_carlo(b, 8).flip(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [questions, option_questions])
@pytest.mark.parametrize("tokens", ["all_nonpad", "last"])
def test_the_side_of_the_padding_changes_nothing(model, weights, make, tokens):
    found = []
    for side in ("left", "right"):
        sums = Curvature(weights, 512, 10)
        sums.add(model, collate(make(4), 0, padding_side=side), "exact", tokens, 0)
        found.append(sums.posterior())
    torch.testing.assert_close(found[0].eigenvalues, found[1].eigenvalues, rtol=1e-9, atol=1e-12)
    assert found[0].eigenvalues.max() > 0


def test_sampled_labels_give_the_exact_fisher_information_on_average(model, weights):
    examples, name = questions(6), next(iter(weights))
    exact = fit(model, weights, examples, 0).blocks[name]
    draws = [fit(model, weights, examples, 0, fisher="sampled", seed=seed).blocks[name] for seed in range(80)]
    mean = sum(dense_curvature(draw) for draw in draws) / len(draws)
    assert apart(mean, dense_curvature(exact)) < 0.2
    assert apart(dense_curvature(draws[0]), dense_curvature(exact)) > 0.3


def test_dropout_is_off_and_the_model_is_left_as_it_was():
    model = adapted(lora_dropout=0.5)
    weights = lora_weights(model)
    expected = fit(model, weights, questions(4), 0)
    model.train()
    found = fit(model, weights, questions(4), 0)
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=0, atol=0)
    assert all(module.training for module in model.modules())
    frozen = adapted()
    frozen.requires_grad_(False)
    fit(frozen, lora_weights(frozen), questions(2), 0)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not any(module._forward_hooks for module in frozen.modules())


def test_where_memory_is_short_the_batch_is_halved_and_nothing_counts_twice(model, weights, monkeypatch):
    expected = fit(model, weights, questions(6), 0)
    real = Linearised.gradients
    calls = []

    def short_of_memory(self, direction):
        calls.append(len(direction))
        if len(direction) > 3 and len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, direction)

    monkeypatch.setattr(curvature.Linearised, "gradients", short_of_memory)
    found = fit(model, weights, questions(6), 0, batch_size=6)
    torch.testing.assert_close(found.eigenvalues, expected.eigenvalues, rtol=1e-9, atol=1e-12)
    assert found.log_likelihood == pytest.approx(expected.log_likelihood)


# ---- long sides


def test_a_sketch_of_full_rank_is_the_whole_factor():
    rows = torch.randn(40, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, sketched = WholeFactor(12, torch.device("cpu")), SketchedFactor(12, 12, torch.device("cpu"))
    for part in rows.split(7):
        whole.add(part)
        sketched.add(part)
    for found in (whole.spectrum(), sketched.spectrum()):
        torch.testing.assert_close((found.basis * found.values) @ found.basis.T, rows.T @ rows)


def test_a_sketch_finds_few_directions_exactly_and_never_more_than_there_is():
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(200, 4, generator=generator, dtype=torch.float64) @ torch.randn(
        4, 60, generator=generator, dtype=torch.float64
    )
    sketched = SketchedFactor(60, 5, torch.device("cpu"))
    sketched.add(few)
    found = sketched.spectrum()
    torch.testing.assert_close((found.basis * found.values) @ found.basis.T, few.T @ few)

    decaying = torch.randn(300, 60, generator=generator, dtype=torch.float64) / torch.arange(1, 61)
    sketched = SketchedFactor(60, 5, torch.device("cpu"))
    sketched.add(decaying)
    found, whole = sketched.spectrum(), decaying.T @ decaying
    best = torch.linalg.eigvalsh(whole).flip(0)[:5]
    rest = whole - (found.basis * found.values) @ found.basis.T
    assert torch.linalg.eigvalsh(rest).min() > -1e-9 * best[0]
    assert 0.98 * best.sum() < found.values.sum() <= best.sum() * (1 + 1e-12)
    assert found.basis.shape == (60, 5)


def test_a_sketch_of_nothing_has_no_curvature():
    sketched = SketchedFactor(60, 5, torch.device("cpu"))
    sketched.add(torch.zeros(3, 60))
    assert sketched.spectrum().values.tolist() == [0.0] * 5


def test_full_rank_by_sketch_gives_the_same_posterior(model, weights, posterior):
    sketched = fit(model, weights, questions(9), 0, full_below=0, rank=100)
    expected = gaussian_logits(model, weights, posterior, questions(5), 0).covariance
    found = gaussian_logits(model, weights, sketched, questions(5), 0).covariance
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    assert sketched.log_evidence(0.3) == pytest.approx(posterior.log_evidence(0.3), rel=1e-9)


def meta_llama() -> dict[str, tuple[int, int]]:
    with torch.device("meta"):
        base = transformers.LlamaForCausalLM(transformers.LlamaConfig())  # its defaults are Llama-2-7B
    return {
        path: (module.in_features, module.out_features)
        for path, module in base.named_modules()
        if isinstance(module, torch.nn.Linear) and "layers" in path
    }


def test_memory_is_known_from_shapes_alone():
    linears = meta_llama()
    assert len(linears) == 224
    attention = {path: shape for path, shape in linears.items() if path.endswith(("q_proj", "v_proj"))}
    assert memory(attention, rank=8).whole / 2**30 == pytest.approx(8.0, abs=0.05)
    seven = memory(linears, rank=80)
    assert seven.whole / 2**30 == pytest.approx(65.3, abs=0.05)
    assert seven.fitting / 2**30 == pytest.approx(1.14, abs=0.01)
    assert seven.kept / 2**30 == pytest.approx(0.11, abs=0.01)
    assert str(seven).startswith("1.14 GiB while fitting, 0.10 GiB kept with the run; whole factors would take 65.3")


def test_memory_is_what_the_factors_really_take():
    model = adapted(rank=3)
    weights = lora_weights(model)
    for full_below, rank in ((512, 10), (8, 2)):
        sums = Curvature(weights, full_below, rank)
        fitting = [*sums.inputs.values(), *sums.outputs.values()]
        held = sum((part.sum if isinstance(part, WholeFactor) else part.sketch).nbytes for part in fitting)
        features = {name: (linear.in_features, linear.out_features) for name, linear in weights.items()}
        linears = {
            name: (shape[0], features[name.replace("lora_A", "lora_B")][1])
            for name, shape in features.items()
            if "lora_A" in name
        }
        assert memory(linears, 3, full_below, rank).fitting == held


# ---- precision, evidence, prior


@pytest.mark.parametrize("full_below", [512, 4])
def test_covariance_and_determinant_are_those_of_the_dense_precision(model, weights, full_below):
    posterior = fit(model, weights, questions(9), 0, full_below=full_below, rank=3).with_prior(0.7)
    found = gaussian_logits(model, weights, posterior, questions(4), 0, batch_size=3).covariance[0]
    for row, example in enumerate(questions(4)):
        expected = 0.0
        for block, jacobian in zip(posterior.blocks.values(), dense_jacobians(model, weights, example), strict=True):
            precision = dense_curvature(block) + torch.eye(jacobian.shape[1]) / 0.7
            expected = expected + jacobian @ torch.linalg.solve(precision, jacobian.T)
        own = len(expected)
        torch.testing.assert_close(found[row, :own, :own], expected, rtol=1e-6, atol=1e-9)
        assert not found[row, own:].any()
        assert not found[row, :, own:].any()

    dense = 0.0
    for block, linear in zip(posterior.blocks.values(), weights.values(), strict=True):
        prior = torch.eye(linear.weight.numel(), dtype=torch.float64) / 0.7
        dense += torch.logdet(dense_curvature(block) + prior) - torch.logdet(prior)
    norm = sum(linear.weight.square().sum().item() for linear in weights.values())
    likelihood = sum(choice_logits(model, q).log_softmax(-1)[q["answer"]].item() for q in questions(9))
    evidence = likelihood - norm / (2 * 0.7) - dense.item() / 2
    assert posterior.log_evidence(0.7) == pytest.approx(evidence, rel=1e-6)


def test_the_slope_of_the_evidence_is_that_of_finite_differences(posterior):
    for variance in (1e-3, 0.1, 1.0, 50.0):
        step = 1e-5
        up, down = (posterior.log_evidence(variance * math.exp(sign * step)) for sign in (1, -1))
        assert posterior.evidence_slope(variance) == pytest.approx((up - down) / (2 * step), rel=1e-5)


def test_the_most_probable_prior_variance_beats_a_fine_grid(posterior):
    best = posterior.most_probable_variance()
    grid = np.logspace(-6, 6, 4001)
    evidence = [posterior.log_evidence(variance) for variance in grid]
    assert best == pytest.approx(grid[int(np.argmax(evidence))], rel=0.01)
    assert posterior.log_evidence(best) >= max(evidence)
    assert posterior.evidence_slope(best) == pytest.approx(0.0, abs=1e-6)


def test_without_curvature_any_prior_is_too_narrow(posterior):
    flat = Posterior(
        {
            name: Block(*(side._replace(values=0 * side.values) for side in block))
            for name, block in posterior.blocks.items()
        },
        -1.0,
        2.0,
    )
    assert flat.most_probable_variance() == pytest.approx(1e8, rel=1e-6)


# ---- the predictive


def scaled(posterior: Posterior, factor: float) -> Posterior:
    blocks = {
        name: block._replace(outputs=block.outputs._replace(values=block.outputs.values * factor))
        for name, block in posterior.blocks.items()
    }
    return Posterior(blocks, posterior.log_likelihood, posterior.squared_norm, 0.5)


def test_without_curvature_the_prior_speaks_and_with_endless_data_nothing_is_uncertain(model, weights):
    # one token per layer side at least: 60 questions see every direction of every factor
    posterior = fit(model, weights, questions(60, lengths=(6, 14)), 0)
    examples = questions(3)
    none = gaussian_logits(model, weights, scaled(posterior, 0.0), examples, 0).covariance[0]
    endless = gaussian_logits(model, weights, scaled(posterior, 1e15), examples, 0).covariance[0]
    for row, example in enumerate(examples):
        jacobian = torch.cat(dense_jacobians(model, weights, example), dim=1)
        own = len(jacobian)
        torch.testing.assert_close(none[row, :own, :own], 0.5 * jacobian @ jacobian.T)
    assert endless.abs().max() < 1e-4 * none.abs().max()


def test_a_tight_prior_gives_the_trained_models_own_answer(model, weights, posterior):
    found = gaussian_logits(model, weights, posterior.with_prior(1e-12), questions(6), 0)
    for row, example in enumerate(questions(6)):
        expected = choice_logits(model, example).softmax(-1).detach()
        for log_probs in (probit(found)[row], *monte_carlo(found, 4)[row]):
            torch.testing.assert_close(log_probs.softmax(-1)[: len(expected)], expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(
            found.letter_mass[row],
            model(input_ids=torch.tensor([example["input_ids"]]))
            .logits[0, -1]
            .softmax(-1)[example["choice_ids"]]
            .sum(),
        )


@pytest.mark.parametrize("base", ["llama", "gpt2", "opt"])
def test_covariances_are_positive_for_every_family(base):
    transformers.set_seed(0)
    small = {"vocab_size": 50}
    if base == "gpt2":
        base = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **small)
        )
        model = adapted(["c_attn", "c_proj"], base=base.double(), fan_in_fan_out=True)
    elif base == "opt":
        sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24, "max_position_embeddings": 64}
        heads = {"num_hidden_layers": 2, "num_attention_heads": 2}
        base = transformers.OPTForCausalLM(transformers.OPTConfig(**sizes, **heads, **small))
        model = adapted(["q_proj", "fc1", "fc2"], base=base.double())
    else:
        model = adapted()
    weights = lora_weights(model)
    posterior = fit(model, weights, questions(5), 0)
    found = gaussian_logits(model, weights, posterior, questions(5), 0)
    for row, example in enumerate(questions(5)):
        jacobians, expected = dense_jacobians(model, weights, example), 0.0
        for block, jacobian in zip(posterior.blocks.values(), jacobians, strict=True):
            precision = dense_curvature(block) + torch.eye(jacobian.shape[1])
            expected = expected + jacobian @ torch.linalg.solve(precision, jacobian.T)
        own = len(expected)
        torch.testing.assert_close(found.covariance[0, row, :own, :own], expected, rtol=1e-6, atol=1e-9)
        assert torch.linalg.eigvalsh(found.covariance[0, row]).min() > -1e-12


def test_choices_that_are_texts_work_too(model, weights):
    examples = option_questions(5)
    posterior = fit(model, weights, examples, 0, batch_size=2)
    found = gaussian_logits(model, weights, scaled(posterior, 0.0), examples, 0, batch_size=3)
    assert found.letter_mass is None
    for row, example in enumerate(examples):
        jacobian = torch.cat(dense_jacobians(model, weights, example), dim=1)
        own = len(jacobian)
        torch.testing.assert_close(found.mean[row, :own], choice_logits(model, example).detach())
        torch.testing.assert_close(found.covariance[0, row, :own, :own], 0.5 * jacobian @ jacobian.T)
    again = gaussian_logits(model, weights, posterior, examples[::-1], 0, batch_size=1)
    here = gaussian_logits(model, weights, posterior, examples, 0)
    torch.testing.assert_close(monte_carlo(again, 8).flip(0), monte_carlo(here, 8), rtol=1e-6, atol=1e-6)
    likelihood = sum(choice_logits(model, q).log_softmax(-1)[q["answer"]].item() for q in examples)
    assert posterior.log_likelihood == pytest.approx(likelihood)
    # alone, a question has no row for a choice that only others have
    assert apart(fit(model, weights, examples, 0, batch_size=1).eigenvalues, posterior.eigenvalues) < 1e-6


def test_several_prior_variances_are_answered_in_one_pass(model, weights, posterior):
    both = gaussian_logits(model, weights, posterior, questions(4), 0, variances=(0.1, 2.0)).covariance
    for place, variance in enumerate((0.1, 2.0)):
        one = gaussian_logits(model, weights, posterior.with_prior(variance), questions(4), 0).covariance
        torch.testing.assert_close(both[place], one[0])


def gaussian(mean, covariance) -> GaussianLogits:
    mean, covariance = (torch.as_tensor(part, dtype=torch.float64) for part in (mean, covariance))
    return GaussianLogits(mean, covariance[None], torch.arange(len(mean)), None)


def random_logits(items: int, choices: int, spread: float = 1.0) -> GaussianLogits:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(items, choices, choices, generator=generator, dtype=torch.float64)
    return gaussian(torch.randn(items, choices, generator=generator, dtype=torch.float64), spread * root @ root.mT)


def test_every_link_gives_a_distribution_over_the_items_own_choices(model, weights, posterior):
    found = gaussian_logits(model, weights, posterior, questions(8), 0)
    for log_probs in (probit(found), bridge(found), *monte_carlo(found, 16).unbind(1)):
        probabilities = log_probs.softmax(-1)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(8, dtype=torch.float64))
        assert not probabilities[~found.mask].any()
        assert (probabilities[found.mask] > 0).all()


def test_draws_and_probit_agree_for_two_choices():
    logits = random_logits(200, 2, spread=2.0)
    drawn = monte_carlo(logits, 2**14).softmax(-1).mean(1)
    torch.testing.assert_close(drawn, probit(logits).exp(), atol=0.01, rtol=0)
    assert (drawn - logits.mean.softmax(-1)).abs().max() > 0.1


def test_draws_agree_with_a_plain_sampler_and_average_probabilities_not_logits():
    logits = random_logits(3, 4, spread=3.0)
    plain = torch.distributions.MultivariateNormal(logits.mean, logits.covariance[0] + 1e-9 * torch.eye(4))
    torch.manual_seed(0)
    expected = plain.sample((400_000,)).softmax(-1).mean(0)
    torch.testing.assert_close(monte_carlo(logits, 2**14).softmax(-1).mean(1), expected, atol=3e-3, rtol=0)
    assert (monte_carlo(logits, 2**10).mean(1).softmax(-1) - expected).abs().max() > 0.05


def test_128_spread_draws_are_worth_a_thousand_independent_ones():
    logits = random_logits(200, 4, spread=2.0)
    best = monte_carlo(logits, 2**13).softmax(-1).mean(1)
    few = monte_carlo(logits, 128, seed=1).softmax(-1).mean(1)
    torch.manual_seed(0)
    normal = torch.distributions.MultivariateNormal(logits.mean, logits.covariance[0] + 1e-9 * torch.eye(4))
    independent = normal.sample((1024,)).softmax(-1).mean(0)
    assert (few - best).square().mean() < (independent - best).square().mean()


@pytest.mark.parametrize("choices", [2, 4])
def test_a_number_added_to_all_logits_of_a_question_changes_nothing(choices):
    """Adding a common Gaussian c to all logits moves the mean by E c, the covariance by Var c."""
    logits = random_logits(20, choices)
    shifted = gaussian(logits.mean + 7.0, logits.covariance[0] + 3.0)
    for link in (probit, bridge, lambda found: monte_carlo(found, 64).log_softmax(-1)):
        torch.testing.assert_close(link(shifted), link(logits))


def test_the_bridge_inverts_laplaces_approximation_of_a_dirichlet():
    concentration = torch.tensor([[3.0, 5.0, 11.0], [20.0, 1.5, 4.0]], dtype=torch.float64)
    inverse, number = 1 / concentration, 3
    log = concentration.log()
    covariance = (
        torch.diag_embed(inverse) - (inverse[:, :, None] + inverse[:, None, :]) / number
        + inverse.sum(-1)[:, None, None] / number**2
    )  # fmt: skip
    found = bridge(gaussian(log - log.mean(-1, keepdim=True), covariance)).exp()
    torch.testing.assert_close(found, concentration / concentration.sum(-1, keepdim=True))


# ---- scope, files, errors


def test_the_last_layer_is_the_heads_lora_or_that_of_the_last_block():
    blocks = {"q_proj", "v_proj", "down_proj"}
    paths = [f"base_model.model.model.layers.1.{'mlp' if 'down' in n else 'self_attn'}.{n}" for n in blocks]
    assert set(lora_weights(adapted(), "last_layer")) == {
        f"{path}.lora_{side}.weight" for path in paths for side in "AB"
    }
    assert set(lora_weights(adapted([*TARGETS, "lm_head"]), "last_layer")) == {
        f"base_model.model.lm_head.lora_{side}.weight" for side in "AB"
    }


def test_the_last_layer_is_the_same_block_of_the_whole(model, weights, posterior):
    last = lora_weights(model, "last_layer")
    alone = fit(model, last, questions(9), 0)
    assert alone.blocks.keys() == last.keys() < posterior.blocks.keys()
    for name, block in alone.blocks.items():
        torch.testing.assert_close(dense_curvature(block), dense_curvature(posterior.blocks[name]))
    assert alone.squared_norm < posterior.squared_norm
    assert alone.log_likelihood == pytest.approx(posterior.log_likelihood)


def test_a_saved_posterior_comes_back_bit_by_bit(tmp_path):
    from safetensors.torch import load_file, save_file

    model = adapted(dtype=torch.float32)
    weights = lora_weights(model)
    posterior = fit(model, weights, questions(9), 0, full_below=4, rank=2).with_prior(0.3)
    save_file(posterior.tensors(), tmp_path / "state.safetensors")
    shapes = {name: tuple(linear.weight.shape) for name, linear in weights.items()}
    loaded = Posterior.of_tensors(load_file(tmp_path / "state.safetensors"), shapes)
    before, after = (gaussian_logits(model, weights, each, questions(5), 0) for each in (posterior, loaded))
    assert torch.equal(before.covariance, after.covariance)
    assert torch.equal(monte_carlo(before, 16), monte_carlo(after, 16))
    assert loaded.log_evidence(0.2) == posterior.log_evidence(0.2)


def test_the_posterior_of_another_adapter_is_refused(posterior):
    shapes = dict.fromkeys(posterior.blocks, (1, 1))
    with pytest.raises(UserError, match="belongs to no weight of this adapter, or has another size"):
        Posterior.of_tensors(posterior.tensors(), shapes)
    with pytest.raises(UserError, match="belongs to no weight"):
        Posterior.of_tensors(posterior.tensors(), {})
    with pytest.raises(UserError, match="'prior_variance' of the posterior is missing"):
        Posterior.of_tensors({n: t for n, t in posterior.tensors().items() if n != "prior_variance"}, {})


def test_a_half_precision_base_with_a_float32_adapter_works():
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules=list(TARGETS))
    model = peft.get_peft_model(llama(dtype=torch.bfloat16), config).eval()
    exact = adapted(base=llama(dtype=torch.bfloat16).double())
    model.load_state_dict(exact.state_dict())
    weights = lora_weights(model)
    assert {linear.weight.dtype for linear in weights.values()} == {torch.float32}
    posterior = fit(model, weights, questions(6), 0)
    found = gaussian_logits(model, weights, posterior, questions(6), 0)
    assert torch.isfinite(found.covariance).all()
    expected = fit(exact, lora_weights(exact), questions(6), 0)
    assert posterior.eigenvalues.sum().item() == pytest.approx(expected.eigenvalues.sum().item(), rel=0.1)


def test_models_that_laplace_cannot_treat_are_refused_by_name():
    with pytest.raises(UserError, match="needs a model with a LoRA adapter"):
        lora_weights(llama())
    with pytest.raises(UserError, match="needs one active, unmerged, plain LoRA"):
        lora_weights(adapted(use_dora=True))
    merged = adapted()
    merged.merge_adapter()
    with pytest.raises(UserError, match=r"layers\.0\.self_attn\.q_proj: Laplace needs one active, unmerged"):
        lora_weights(merged)


# ---- as a method: trained, kept, loaded, asked


def bench(folder, **options) -> Bench:
    train = TrainConfig(max_steps=3, per_device_train_batch_size=4, learning_rate=0.02)
    return Bench(
        llama(), 0, questions(12), options.pop("calibration", questions(9, seed=1)), train, 3, folder, **options
    )


def ask(method: Laplace, fitted, number: int = 7, **options):
    examples = questions(number, seed=2)
    return method.predict(fitted, examples, ids=[example["id"] for example in examples], pad_token_id=0, **options)


def sizes(**options) -> Laplace:
    return Laplace(**{"rank": 3, "draws": 64, **options})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


def test_it_shares_its_training_with_plain_lora(tmp_path, store):
    charged = []
    plain = bench(tmp_path / "lora", store=store)
    Lora(rank=3).fit(plain)
    sizes().fit(bench(tmp_path / "laplace", store=store, charge=charged.append))
    assert len(charged) == 1
    adapters = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("lora", "laplace")]
    assert adapters[0] == adapters[1]
    assert (tmp_path / "laplace" / "state.safetensors").is_file()


@pytest.mark.parametrize("link", ["mc", "probit", "bridge"])
@pytest.mark.parametrize("scope", ["all", "last_layer"])
def test_a_loaded_run_answers_bit_by_bit_as_when_it_was_fitted(tmp_path, store, link, scope):
    method = sizes(link=link, scope=scope, full_below=8, kfac_rank=2)
    before = ask(method, method.fit(bench(tmp_path, store=store)))
    after = ask(method, method.load(llama(), tmp_path))
    assert np.array_equal(before.logits, after.logits)
    assert before.logits.shape[1] == (64 if link == "mc" else 1)
    assert np.array_equal(before.letter_mass, after.letter_mass)
    np.testing.assert_allclose(before.probabilities.sum(axis=1), 1.0)
    assert (before.epistemic.max() > 0) == (link == "mc")


@pytest.mark.parametrize("link", ["mc", "probit"])
def test_a_very_precise_prior_leaves_loras_answer_and_a_vague_one_less_confidence(tmp_path, store, link):
    lora = Lora(rank=3)
    plain = ask(lora, lora.fit(bench(tmp_path / "lora", store=store)))
    found = {}
    for precision in (1e12, 0.1):
        method = sizes(link=link, prior=precision)
        fitted = method.fit(bench(tmp_path / str(precision), store=store))
        assert fitted.posterior.prior_variance == pytest.approx(1 / precision)
        found[precision] = ask(method, fitted)
    np.testing.assert_allclose(found[1e12].probabilities, plain.probabilities, atol=1e-4)
    np.testing.assert_allclose(found[1e12].letter_mass, plain.letter_mass, atol=1e-5)
    assert found[0.1].confidence.mean() < plain.confidence.mean() - 0.02


def test_the_grid_takes_the_prior_that_predicts_the_calibration_questions_best(tmp_path, store):
    method = sizes(prior="grid", link="probit")
    chosen = method.fit(bench(tmp_path / "grid", store=store)).posterior.prior_variance
    assert np.isclose(1 / PRIORS, chosen).sum() == 1
    examples, losses = questions(9, seed=1), {}
    for precision in PRIORS[::8]:
        other = sizes(prior=float(precision), link="probit")
        fitted = other.fit(bench(tmp_path / f"{precision:.3g}", store=store))
        for name, variance in (("chosen", chosen), (precision, 1 / precision)):
            at = fitted._replace(posterior=fitted.posterior.with_prior(variance))
            found = other.predict(at, examples, ids=[""] * 9, pad_token_id=0)
            losses[name] = -np.log(found.probabilities[np.arange(9), [q["answer"] for q in examples]]).mean()
    assert losses["chosen"] <= min(losses.values()) + 1e-6
    with pytest.raises(UserError, match="prior 'grid' needs a calibration split"):
        method.fit(bench(tmp_path / "none", calibration=()))


def test_marglik_is_the_default_and_is_said(tmp_path, store, capsys):
    fitted = sizes().fit(bench(tmp_path, store=store))
    assert fitted.posterior.prior_variance == fitted.posterior.most_probable_variance()
    said = capsys.readouterr().err
    assert "laplace: curvature 12/12, about 0 s left" in said
    precision = f"{1 / fitted.posterior.prior_variance:.4g}"
    assert f"laplace: prior precision {precision} (marglik), log evidence " in said


def test_a_few_questions_stand_for_all(model, weights, posterior):
    """Each question twice is the curvature of each once, times two; the prior is then chosen for all questions."""
    twice = fit(model, weights, questions(9) * 2, 0)
    torch.testing.assert_close(posterior.times(2).eigenvalues, twice.eigenvalues, rtol=1e-7, atol=1e-12)
    assert posterior.times(2).log_likelihood == pytest.approx(twice.log_likelihood)
    assert posterior.times(2).most_probable_variance() == pytest.approx(twice.most_probable_variance(), rel=1e-6)


def test_the_seed_draws_the_questions_of_the_curvature(tmp_path, store):
    some, more = sizes(curvature_questions=5), sizes(curvature_questions=12)
    one, other = bench(tmp_path / "a", store=store), replace(bench(tmp_path / "b", store=store), seed=4)
    drawn = [[example["id"] for example in some._drawn(each)] for each in (one, one, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 5
    assert more._drawn(one) is one.examples
    fitted = some.fit(one)
    alone = fit(fitted.model, fitted.weights, some._drawn(one), 0)
    assert fitted.posterior.log_likelihood == pytest.approx(12 / 5 * alone.log_likelihood, rel=1e-6)
    torch.testing.assert_close(fitted.posterior.eigenvalues, 12 / 5 * alone.eigenvalues, rtol=1e-4, atol=1e-9)


def test_memory_is_said_before_the_fit():
    (note,) = sizes().notes(llama())
    assert note.startswith("laplace: its Kronecker factors take 0.00 GiB while fitting")
    (of_head,) = sizes(scope="last_layer", target_modules=("q_proj", "lm_head"), full_below=1).notes(llama())
    assert "GiB" in of_head


def test_a_missing_or_damaged_gaussian_is_named(tmp_path, store):
    method = sizes()
    method.fit(bench(tmp_path, store=store))
    state = tmp_path / "state.safetensors"
    content = state.read_bytes()
    for damaged in (content[:100], None):
        state.unlink()
        if damaged:
            state.write_bytes(damaged)
        with pytest.raises(UserError, match=r"state\.safetensors: cannot be used .*restore the run from a copy"):
            method.load(llama(), tmp_path)
        state.write_bytes(content)
    with pytest.raises(UserError, match="belongs to no weight of this adapter"):
        sizes(scope="last_layer").load(llama(), tmp_path)


def test_a_computer_that_would_run_out_of_memory_takes_smaller_batches(model, weights, posterior, monkeypatch):
    expected = gaussian_logits(model, weights, posterior, questions(6), 0)
    sizes, real = [], predictive.Linearised

    def noted(model, weights, batch):
        sizes.append(len(batch["answer"]))
        return real(model, weights, batch)

    monkeypatch.setattr(predictive, "Linearised", noted)
    monkeypatch.setattr(predictive, "GRADIENTS", 2 * predictive._gradient_bytes(weights, questions(6)))
    found = gaussian_logits(model, weights, posterior, questions(6), 0)
    assert sizes == [2, 2, 2]
    assert apart(found.covariance, expected.covariance) < 1e-6


# ---- another library


def test_laplace_torch_finds_the_same_posterior():
    laplace = pytest.importorskip("laplace", reason="install the oracle: pip install uq4ct[oracle]")
    from laplace.curvature import CurvlinopsGGN
    from torch.utils.data import DataLoader

    model = adapted()
    weights = lora_weights(model)
    examples = questions(8, lengths=(7, 7), choices=(4, 4))
    inputs = torch.tensor([example["input_ids"] for example in examples])
    answers = torch.tensor([example["answer"] for example in examples])

    class Choices(torch.nn.Module):
        """The logits of four letters; its only parameters with gradients are the LoRA weights."""

        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids):
            return self.model(input_ids=input_ids).logits[:, -1, 1:5]

    theirs = laplace.Laplace(
        Choices(), "classification", subset_of_weights="all", hessian_structure="kron", backend=CurvlinopsGGN
    )
    theirs.fit(DataLoader(torch.utils.data.TensorDataset(inputs, answers), batch_size=8))
    ours = fit(model, weights, examples, 0, batch_size=3)
    for precision in (0.5, 4.0):
        evidence = theirs.log_marginal_likelihood(prior_precision=torch.tensor(precision, dtype=torch.float64))
        assert ours.log_evidence(1 / precision) == pytest.approx(evidence.item(), rel=1e-6)
        mean, covariance = theirs._glm_predictive_distribution(inputs)
        found = gaussian_logits(model, weights, ours.with_prior(1 / precision), examples, 0)
        torch.testing.assert_close(found.mean, mean.detach())
        torch.testing.assert_close(found.covariance[0], covariance.detach(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("tokens", [2, 40], ids=["few tokens", "many tokens"])
def test_turning_tokens_or_jacobians_gives_the_dense_covariance(tokens):
    generator = torch.Generator().manual_seed(3)
    wide, out, variances = 7, 5, (0.3, 20.0)
    inputs = torch.randn(2, tokens, wide, generator=generator, dtype=torch.float64)
    gradients = torch.randn(2, 3, tokens, out, generator=generator, dtype=torch.float64)
    assert _turn_tokens(inputs, gradients) == (tokens == 2)
    sides = []
    for side in (wide, out):
        rows = torch.randn(9, side, generator=generator, dtype=torch.float64)
        values, basis = torch.linalg.eigh(rows.T @ rows)
        sides.append(Spectrum(basis, values))
    found = Block(*sides).covariance(inputs, gradients, variances)
    dense_in, dense_out = (side.basis * side.values @ side.basis.T for side in sides)
    curvature = torch.kron(dense_out, dense_in)
    jacobian = torch.einsum("nkto,ntw->nkow", gradients, inputs).flatten(2)
    for at, variance in enumerate(variances):
        precision = curvature + torch.eye(len(curvature), dtype=torch.float64) / variance
        expected = jacobian @ torch.linalg.solve(precision, jacobian.mT)
        torch.testing.assert_close(found[at], expected, rtol=1e-9, atol=1e-12)
