"""BLoB: the evidence bound and its gradients are exact, draws belong to questions, and what is saved is what predicts."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from training_runs import At, digests, flat, run
from training_toys import llama, questions

from uq4ct.adapting import Bench, TrainConfig
from uq4ct.errors import UserError
from uq4ct.losses.objective import Objective
from uq4ct.methods.blob import Blob
from uq4ct.methods.lora import Lora
from uq4ct.scoring import score_all
from uq4ct.training import Interrupted
from uq4ct.variational.backprop import (
    BackpropTrainer,
    GaussianLinear,
    gaussian_linears,
    kl_divergence,
    make_gaussian,
    take_stds,
)
from uq4ct.variational.posterior import Posterior

PLAIN = Objective()
SETTINGS = {"epsilon": 0.3, "prior_std": 0.2, "kl_weight": 1.0, "std_learning_rate": 0.05}
BLOB = partial(BackpropTrainer, **SETTINGS)
EXAMPLES = questions(9)


def lora(dtype: torch.dtype = torch.float32, dropout: float = 0.0, trained: bool = True):
    """Return a tiny Llama with a LoRA of rank 2 whose B is not zero."""
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=4, lora_dropout=dropout, target_modules=["q_proj", "down_proj"]
    )
    base = llama(dtype=dtype)
    transformers.set_seed(5)
    model = peft.get_peft_model(base, config, autocast_adapter_dtype=False)
    if trained:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def logits(model):
    return score_all(model, EXAMPLES, 0, 4)[0]


# ---- the layer


def test_the_kl_divergence_is_that_of_torch_distributions():
    mean, std = torch.randn(3, 5, dtype=torch.float64), torch.rand(3, 5, dtype=torch.float64) + 0.01
    normal = torch.distributions.Normal
    prior = normal(torch.zeros_like(mean), torch.full_like(std, 0.2))
    expected = torch.distributions.kl_divergence(normal(mean, std), prior).sum()
    assert torch.isclose(kl_divergence(mean, std, 0.2), expected, rtol=1e-12)
    assert kl_divergence(torch.zeros(4), torch.full((4,), 0.2), 0.2).abs() < 1e-6


def test_the_gradients_of_mean_and_std_are_those_of_finite_differences():
    layer = GaussianLinear(torch.nn.Linear(4, 2, bias=False, dtype=torch.float64), 0.5)
    inputs, target = torch.randn(3, 6, 4, dtype=torch.float64), torch.randn(3, 6, 2, dtype=torch.float64)

    def bound(mean, root_std):
        torch.manual_seed(7)
        output = torch.func.functional_call(layer, {"weight": mean, "root_std": root_std}, (inputs,))
        return ((output - target) ** 2).sum() + 0.1 * kl_divergence(mean, root_std**2, 0.2)

    assert torch.autograd.gradcheck(bound, (layer.weight, layer.root_std))


def test_in_training_each_question_has_one_draw_of_the_weights_for_all_of_its_tokens():
    layer = GaussianLinear(torch.nn.Linear(4, 2, bias=False, dtype=torch.float64), 0.5)
    inputs = torch.randn(5, 6, 4, dtype=torch.float64)
    output = layer(inputs)
    found = torch.linalg.lstsq(inputs, output).solution.mT  # six tokens determine each question's A
    assert torch.allclose(inputs @ found.mT, output)
    off = (found - layer.weight) / layer.root_std**2
    assert torch.allclose(off.abs(), off[0].abs().expand_as(off)), "the questions share the size of the noise"
    assert len({tuple(question.sign().flatten().tolist()) for question in off}) > 1, "and not its signs"


def opt():
    """OPT calls its FFN's linears on (row x token, width)."""
    sizes = {"vocab_size": 50, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 24}
    config = transformers.OPTConfig(**sizes, num_attention_heads=2, num_hidden_layers=1)
    adapted = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["fc1", "q_proj"])
    return peft.get_peft_model(transformers.OPTForCausalLM(config), adapted)


def test_a_layer_that_flattens_its_tokens_has_one_draw_for_each_question_too():
    model = opt()
    make_gaussian(model, 0.5)
    layers = dict(gaussian_linears(model))
    (flat_one,) = [layer for path, layer in layers.items() if ".fc1." in path]
    assert [layer.flattened for layer in layers.values()].count(True) == 1
    rows = torch.randn(2, 16)
    flat_one.item = torch.arange(2)
    found = flat_one.train()(rows.repeat_interleave(5, dim=0)).unflatten(0, (2, 5))
    assert torch.equal(found, found[:, :1].expand_as(found))  # the same token in one question, five times


def test_training_tells_such_a_layer_its_questions(tmp_path, monkeypatch):
    seen = []
    ask = GaussianLinear._item_of
    monkeypatch.setattr(GaussianLinear, "_item_of", lambda self, x: seen.append((self, x, ask(self, x))) or seen[-1][2])
    run(tmp_path, opt(), questions(4), PLAIN, trainer=BLOB, max_steps=1)
    flat_ones = [(x, item) for layer, x, item in seen if layer.flattened]
    assert flat_ones
    assert all(x.dim() == 2 and len(item) == len(x) for x, item in flat_ones)
    assert {len(item.unique()) for _, item in flat_ones} == {2}, "two questions a micro-batch"
    assert {item for layer, _, item in seen if not layer.flattened} == {None}, "a row each, as it is"


def test_draws_in_training_have_the_posteriors_mean_and_spread():
    torch.manual_seed(0)
    layer = GaussianLinear(torch.nn.Linear(3, 2, bias=False, dtype=torch.float64), 0.5)
    one = torch.eye(3, dtype=torch.float64)  # as one question of three tokens, its output is its A
    draws = torch.stack([layer(one[None])[0].mT for _ in range(4000)])
    std = layer.root_std**2
    assert ((draws.mean(0) - layer.weight).abs() < 5 * std / 4000**0.5).all()
    assert torch.allclose(draws.std(0), std, rtol=0.08)


def test_in_evaluation_the_mean_predicts_as_a_plain_lora():
    plain, gaussian = lora(), lora()
    make_gaussian(gaussian, 0.3)
    assert (logits(plain) == logits(gaussian)).all()


def test_an_untrained_blob_is_the_base_model_in_training_too():
    model = lora(trained=False)
    make_gaussian(model, 0.3)
    ids = torch.arange(10, 20)[None]
    assert torch.equal(model.train()(ids).logits, llama()(ids).logits)


# ---- training


def test_training_moves_means_and_stds_and_leaves_the_base_alone(tmp_path):
    model = lora(trained=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(tmp_path, model, questions(22), PLAIN, trainer=BLOB, num_train_epochs=2)
    after = model.state_dict()
    assert before.keys() == after.keys(), "the model is a plain LoRA again"
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "lora_" in name}
    stds = load_file(tmp_path / "state.safetensors")
    assert stds.keys() == {name.replace(".default", "") for name in before if "lora_A" in name}
    assert all(not ((std >= 0.3**2 / 2) & (std <= 0.3**2)).all() for std in stds.values())


def test_the_logged_kl_is_that_of_the_weights_over_the_number_of_questions(tmp_path):
    model = lora(trained=False)
    transformers.set_seed(11)
    expected = {}

    def note(model):
        kl = sum(kl_divergence(layer.weight, layer.root_std**2, 0.2) for _, layer in gaussian_linears(model))
        expected["kl"] = kl.item() / 22

    trainer = run(tmp_path, model, questions(22), PLAIN, trainer=BLOB, callbacks=[At(0, note)], num_train_epochs=1)
    first = trainer.state.log_history[0]
    assert first["kl"] == pytest.approx(expected["kl"], rel=1e-6)
    assert first["loss"] == pytest.approx(first["ce"] + first["kl"], rel=1e-5)


def test_without_data_the_posterior_becomes_the_prior(tmp_path):
    model = lora(dtype=torch.float64)
    run(
        tmp_path,
        model,
        questions(8),
        PLAIN,
        trainer=partial(BackpropTrainer, **{**SETTINGS, "kl_weight": 1e6, "std_learning_rate": 0.02}),
        max_steps=50,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        learning_rate=0.02,
        max_grad_norm=0.0,
        logging_steps=50,
    )
    for name, std in load_file(tmp_path / "state.safetensors").items():
        assert torch.allclose(std, torch.full_like(std, 0.2), rtol=0.1)
        mean = model.get_parameter(name.replace("lora_A", "lora_A.default"))
        assert mean.abs().max() < 0.05


def test_gradient_checkpointing_recomputes_with_the_same_draw(tmp_path):
    ends = []
    for checkpointing in (False, True):
        model = lora(dtype=torch.float64)
        run(tmp_path / str(checkpointing), model, questions(8), PLAIN, trainer=BLOB, max_steps=3, optim="sgd",
            gradient_checkpointing=checkpointing)  # fmt: skip
        ends.append(flat(model))
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-12)


def test_an_interrupted_and_resumed_run_ends_at_the_same_bits(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2}
    train = partial(run, examples=questions(14), objective=PLAIN, trainer=BLOB, **options)
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


# ---- the posterior


@pytest.fixture
def posterior():
    model = lora()
    make_gaussian(model, 0.3)
    return Posterior(model, take_stds(model))


def test_a_draw_is_the_means_plus_std_times_noise_and_the_means_come_back_bit_for_bit(posterior):
    before = {name: value.clone() for name, value in posterior.model.state_dict().items()}
    with posterior.sampled(0):
        drawn = {name: value.clone() for name, value in posterior.model.state_dict().items()}
    after = posterior.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    noise = torch.cat([
        ((drawn[name] - before[name]) / posterior.std[name.replace(".default", "")]).flatten()
        for name in before if "lora_A" in name
    ])  # fmt: skip
    assert abs(noise.mean()) < 4 / len(noise) ** 0.5
    assert abs(noise.std() - 1) < 4 / (2 * len(noise)) ** 0.5
    assert all(torch.equal(before[name], drawn[name]) for name in before if "lora_A" not in name)


def test_the_draws_of_a_run_will_be_the_same_in_years(posterior):
    stream = torch.Generator().manual_seed(int(np.random.SeedSequence((1, 2)).generate_state(1, np.uint64)[0]))
    drawn = Posterior(posterior.model, {name: torch.ones_like(std) for name, std in posterior.std.items()})
    before = {name: value.clone() for name, value in posterior.model.state_dict().items()}
    with drawn.sampled(2):
        for name, value in sorted(posterior.model.state_dict().items()):
            if "lora_A" in name:
                noise = torch.randn(value.shape, generator=stream)
                torch.testing.assert_close(value, before[name] + noise, rtol=0, atol=0)


def test_the_means_come_back_after_an_error_too(posterior):
    before = logits(posterior.model)
    with pytest.raises(RuntimeError), posterior.sampled(0):
        raise RuntimeError
    assert (logits(posterior.model) == before).all()


def test_draws_differ_from_each_other_and_are_the_same_every_time(posterior):
    first, second, again = [], [], []
    for sample, found in ((0, first), (1, second), (0, again)):
        with posterior.sampled(sample):
            found.append(logits(posterior.model))
    assert (first[0] == again[0]).all()
    assert not (first[0] == second[0]).all()


def test_without_spread_every_draw_is_the_mean(posterior):
    means = logits(posterior.model)
    certain = Posterior(posterior.model, {name: torch.zeros_like(std) for name, std in posterior.std.items()})
    with certain.sampled(3):
        assert (logits(certain.model) == means).all()


def test_a_missing_damaged_or_foreign_state_is_named(tmp_path, posterior):
    with pytest.raises(UserError, match=r"state\.safetensors: the standard deviations"):
        Posterior.load(posterior.model, tmp_path)
    (tmp_path / "state.safetensors").write_bytes(b"none")
    with pytest.raises(UserError, match=r"state\.safetensors: the standard deviations"):
        Posterior.load(posterior.model, tmp_path)
    save_file({name: std[:1].contiguous() for name, std in posterior.std.items()}, tmp_path / "state.safetensors")
    with pytest.raises(UserError, match="no tensor of this adapter, or has another size"):
        Posterior.load(posterior.model, tmp_path)
    save_file(dict(posterior.std), tmp_path / "state.safetensors")
    again = Posterior.load(posterior.model, tmp_path)
    assert all(torch.equal(again.std[name], std) for name, std in load_file(tmp_path / "state.safetensors").items())


# ---- the method


def bench(folder, model=None, **options):
    settings = {"num_train_epochs": 1.0, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_steps": 2}
    return Bench(
        model=model or llama(),
        pad_token_id=0,
        examples=questions(18),
        calibration=[],
        train=TrainConfig(**settings),
        seed=3,
        folder=folder,
        **options,
    )


def predict(method, fitted, examples=EXAMPLES, batch_size=4):
    return method.predict(fitted, examples, ids=[e["id"] for e in examples], pad_token_id=0, batch_size=batch_size)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blob")
    method = Blob(rank=2, epsilon=0.5, samples=4)
    return method, method.fit(bench(folder)), folder


def test_a_saved_and_reloaded_blob_predicts_the_same_bits(fitted):
    method, model, folder = fitted
    expected = predict(method, model)
    again = predict(method, method.load(llama(), folder))
    assert expected.logits.shape[:2] == (9, 4)
    assert (expected.logits == again.logits).all()
    assert expected.epistemic.max() > 0
    assert method.trainable_parameters(folder) == 2 * (2 * in_width() + out_width())


def in_width():
    return sum(module.in_features for path, module in llama().named_modules() if path.endswith("_proj"))


def out_width():
    return sum(module.out_features for path, module in llama().named_modules() if path.endswith("_proj"))


def test_predictions_depend_on_neither_batch_nor_order_and_leave_the_weights(fitted):
    method, model, _ = fitted
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    expected = predict(method, model)
    backwards = predict(method, model, EXAMPLES[::-1], batch_size=1)
    assert abs(backwards.probabilities[::-1] - expected.probabilities).max() < 1e-6
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())


def test_without_draws_it_is_the_plain_lora_of_its_means(fitted):
    method, model, folder = fitted
    means = method.model_copy(update={"samples": 0})
    assert (means.passes, method.passes) == (1, 4)
    plain = peft.PeftModel.from_pretrained(llama(), str(folder)).eval()
    assert (predict(means, model).logits == predict(Lora(rank=2), plain).logits).all()


def test_the_same_seed_gives_the_same_answers_and_other_draws_share_the_training(fitted, tmp_path):
    method, model, _ = fitted
    first = method.fit(bench(tmp_path / "first", store=tmp_path / "store"))
    seconds = []
    means = method.model_copy(update={"samples": 0})
    second = means.fit(bench(tmp_path / "second", store=tmp_path / "store", charge=seconds.append))
    expected = predict(method, model).logits
    assert (predict(method, first).logits == expected).all()
    assert (predict(method, second).logits == expected).all()
    assert len(seconds) == 1, "found in the store, not trained again"
    Blob(rank=2, epsilon=0.4).fit(bench(tmp_path / "third", store=tmp_path / "store", charge=seconds.append))
    assert len(seconds) == 1, "another posterior is another training"


def test_its_rank_is_matched_by_the_parameters_of_means_and_stds():
    base, method = llama(), Blob()
    per_rank, mixture = method._counts(base)
    assert per_rank == 2 * in_width() + out_width()
    rank = method.adapter_config(base).r
    assert all(abs(rank * per_rank - mixture) <= abs(other * per_rank - mixture) for other in (rank - 1, rank + 1))
    assert rank < Lora().adapter_config(base).r
