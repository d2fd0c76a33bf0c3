"""IVON: its updates are Algorithm 1's, one draw per update however it is cut up, and a resumed run repeats it."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_blob import EXAMPLES, bench, logits, lora, predict
from training_runs import At, digests, flat, run
from training_toys import llama, questions

from uq4ct.losses.objective import Objective
from uq4ct.methods.ivon import Ivon as IvonMethod
from uq4ct.training import Interrupted
from uq4ct.variational.ivon import Ivon, IvonTrainer

SETTINGS = {"lr": 0.5, "ess": 1e4, "hess_init": 1e-2, "beta2": 0.99, "weight_decay": 1e-3, "clip_radius": 1e-1}
IVON = partial(IvonTrainer, ivon=SETTINGS)
PLAIN = Objective()


def parameters():
    generator = torch.Generator().manual_seed(1)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in [(2, 3), (4,)]
    ]


def vector(tensors):
    return np.concatenate([tensor.detach().numpy().ravel() for tensor in tensors])


def test_five_updates_are_those_of_algorithm_1():
    weights = parameters()
    centre, curvature = np.linspace(-1, 1, 10), np.linspace(0.5, 3, 10)
    ess, delta, beta1, beta2, rate, radius = 50.0, 0.1, 0.8, 0.9, 0.3, 0.4
    optimizer = Ivon(weights, rate, ess=ess, hess_init=0.7, beta1=beta1, beta2=beta2, weight_decay=delta,
                     clip_radius=radius, seed=3)  # fmt: skip
    mean, hess, momentum = vector(weights), np.full(10, 0.7), np.zeros(10)
    clipped = False
    for step in range(1, 6):
        with optimizer.sampled():
            drawn = vector(weights)
            gradient = curvature * (drawn - centre)
            weights[0].grad = torch.tensor(gradient[:6]).view(2, 3)
            weights[1].grad = torch.tensor(gradient[6:])
        optimizer.step()
        variance = 1 / (ess * (hess + delta))
        estimate = gradient * (drawn - mean) / variance
        momentum = beta1 * momentum + (1 - beta1) * gradient
        hess = beta2 * hess + (1 - beta2) * estimate + 0.5 * (1 - beta2) ** 2 * (hess - estimate) ** 2 / (hess + delta)
        change = (momentum / (1 - beta1**step) + delta * mean) / (hess + delta)
        clipped |= bool((abs(change) > radius).any() and (abs(change) < radius).any())
        mean = mean - rate * np.clip(change, -radius, radius)
        np.testing.assert_allclose(vector(weights), mean, rtol=1e-9)
        np.testing.assert_allclose(vector(optimizer.stds()), 1 / np.sqrt(ess * (hess + delta)), rtol=1e-9)
    assert clipped


def test_on_a_parabola_it_finds_the_minimum_and_the_curvature():
    weight = torch.nn.Parameter(torch.zeros(400, dtype=torch.float64))
    optimizer = Ivon([weight], 0.1, ess=100.0, hess_init=1.0, beta2=0.995, clip_radius=10.0)
    for _ in range(1500):
        with optimizer.sampled():
            weight.grad = 4.0 * (weight.detach() - 1.5)
        optimizer.step()
    assert abs(weight.mean() - 1.5) < 0.01
    hessian = 1 / (100 * optimizer.stds()[0] ** 2)
    assert abs(hessian.mean() - 4.0) < 0.25  # in expectation; its estimate of one entry is noisy


def test_a_draw_has_the_posteriors_spread_lasts_for_one_update_and_leaves_the_means_bit_for_bit():
    weight = torch.nn.Parameter(torch.randn(5000))
    mean = weight.detach().clone()
    optimizer = Ivon([weight], 0.1, ess=100.0, hess_init=0.25, seed=1)
    draws = []
    for _ in range(2):
        with optimizer.sampled():
            draws.append(weight.detach().clone())
        assert torch.equal(weight, mean)
    assert torch.equal(*draws), "two micro-batches of an update meet the same weights"
    assert (draws[0] - mean).std().item() == pytest.approx(1 / (100 * 0.25) ** 0.5, rel=0.05)
    weight.grad = torch.zeros(5000)
    optimizer.step()
    with optimizer.sampled():
        assert not torch.allclose(weight - mean, draws[0] - mean), "the next update meets others"


def test_its_state_continues_in_another_optimizer():
    def train(optimizer, weights, steps):
        for _ in range(steps):
            with optimizer.sampled():
                for weight in weights:
                    weight.grad = weight.detach() ** 3
            optimizer.step()

    make = partial(Ivon, lr=0.1, ess=50.0, hess_init=0.3, beta2=0.9, clip_radius=1.0, seed=4)
    whole, first = parameters(), parameters()
    train(make(whole), whole, 6)
    before = make(first)
    train(before, first, 3)
    after = make(first)
    after.load_state_dict(before.state_dict())
    train(after, first, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole, first, strict=True))


# ---- with the trainer


def test_an_update_does_not_depend_on_how_it_is_cut_into_micro_batches(tmp_path):
    moves = []
    for accumulation in (1, 2, 4):
        model = lora(dtype=torch.float64)
        before = flat(model)
        run(
            tmp_path / str(accumulation),
            model,
            questions(19),
            PLAIN,
            trainer=IVON,
            per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=1,
        )
        moves.append(flat(model) - before)
    assert moves[0].norm() > 1e-3
    for move in moves[1:]:
        torch.testing.assert_close(move, moves[0], rtol=1e-6, atol=1e-10)


def test_training_learns_and_leaves_the_base_alone(tmp_path):
    model = lora(trained=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {**SETTINGS, "lr": 0.3, "ess": 1e5, "hess_init": 0.1}
    trainer = run(tmp_path, model, questions(22), PLAIN, trainer=partial(IvonTrainer, ivon=settings), max_steps=60)
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "lora_" in name}
    losses = [entry["ce"] for entry in trainer.state.log_history if "ce" in entry]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.1
    stds = load_file(tmp_path / "state.safetensors")
    assert stds.keys() == {name.replace(".default", "") for name in moved}
    initial = 1 / (settings["ess"] * (settings["hess_init"] + settings["weight_decay"])) ** 0.5
    assert all(std.isfinite().all() and not torch.allclose(std, torch.tensor(initial)) for std in stds.values())


def test_gradients_are_taken_at_one_draw_per_update(tmp_path):
    model, seen = lora(), []
    weight = next(parameter for name, parameter in model.named_parameters() if "lora_B" in name)
    mean = weight.detach().clone()
    model.register_forward_pre_hook(lambda *_: seen.append(weight.detach().clone()))
    trainer = run(tmp_path, model, questions(8), PLAIN, trainer=IVON, num_train_epochs=1)
    assert (trainer.state.global_step, len(seen)) == (2, 4)
    spread = 1 / (SETTINGS["ess"] * (SETTINGS["hess_init"] + SETTINGS["weight_decay"])) ** 0.5
    assert (seen[0] - mean).std().item() == pytest.approx(spread, rel=0.3)
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])


def test_the_norm_of_the_gradient_is_not_clipped(tmp_path):
    ends = []
    for norm in (0.0, 1e-6):
        model = lora()
        run(tmp_path / str(norm), model, questions(8), PLAIN, trainer=IVON, max_steps=2, max_grad_norm=norm)
        ends.append(flat(model))
    assert torch.equal(*ends)


def test_by_default_no_entry_moves_further_in_a_step_than_the_learning_rate(tmp_path):
    model = lora(dtype=torch.float64)
    before = flat(model)
    settings = {"ess": 1e4, "hess_init": 1e-3, "clip_radius": 1e-3}
    run(tmp_path, model, objective=PLAIN, trainer=partial(IvonTrainer, ivon=settings), max_steps=1, learning_rate=0.02,
        lr_scheduler_type="constant")  # fmt: skip
    assert (flat(model) - before).abs().max() == pytest.approx(0.02)


def test_an_interrupted_and_resumed_run_ends_at_the_same_bits(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    train = partial(run, examples=questions(14), objective=PLAIN, trainer=IVON, **options)
    whole = train(tmp_path / "whole", lora(dropout=0.2))
    last = f"checkpoint-{whole.state.global_step}"
    with pytest.raises(Interrupted):
        train(tmp_path / "cut", lora(dropout=0.2), callbacks=[At(3, lambda _: os.kill(os.getpid(), 15))])
    for _ in ("resumed", "finished already"):
        train(tmp_path / "cut", lora(dropout=0.2), resume=True)
        assert digests(tmp_path / "whole" / last) == digests(tmp_path / "cut" / last)
        same = [(tmp_path / folder / "state.safetensors").read_bytes() for folder in ("whole", "cut")]
        assert same[0] == same[1]
        (tmp_path / "cut" / "state.safetensors").unlink()


# ---- the method


def test_a_saved_and_reloaded_ivon_predicts_the_same_bits_whatever_the_batches(tmp_path):
    method = IvonMethod(rank=2, learning_rate=1.0, ess=1e3, samples=3)
    fitted = method.fit(bench(tmp_path))
    expected = predict(method, fitted)
    assert expected.logits.shape[:2] == (9, 3)
    assert expected.epistemic.max() > 0.01
    again = method.load(llama(), tmp_path)
    assert (predict(method, again).logits == expected.logits).all()
    backwards = predict(method, again, EXAMPLES[::-1], batch_size=1)
    assert abs(backwards.probabilities[::-1] - expected.probabilities).max() < 1e-6
    means = predict(method.model_copy(update={"samples": 0}), again)
    assert (means.logits == logits(again.model)).all()
