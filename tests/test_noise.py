"""Noise by token: the same numbers whatever the batch, and numbers as good as a generator's."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
from scipy import stats
from torch import nn
from training_toys import llama

from uq4ct.adapters.dropout import adapter_dropout
from uq4ct.adapters.noise import token_keys, token_positions, uniform, watch_tokens

ROWS = [[5, 9, 3, 3, 7], [5, 9, 3], [8, 1, 5, 9, 3, 3, 7, 2]]


def padded(rows: list[list[int]], side: str, width: int, pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    def fill(row: list[int], value: int) -> list[int]:
        blank = [value] * (width - len(row))
        return blank + row if side == "left" else row + blank

    ids, mask = [fill(row, pad) for row in rows], [fill([1] * len(row), 0) for row in rows]
    return torch.tensor(ids), torch.tensor(mask, dtype=torch.bool)


def noise_of_rows(rows: list[list[int]], side: str = "left", width: int = 8, pad: int = 0, **place: int) -> list:
    ids, mask = padded(rows, side, width, pad)
    noise = uniform(token_keys(ids, mask), 6, **place)
    return [noise[number][mask[number]] for number in range(len(rows))]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_batch_and_order_change_no_bit(side):
    alone = [noise_of_rows([row], width=len(row), seed=3, sample=2, site=4)[0] for row in ROWS]
    together = noise_of_rows(ROWS, side, width=11, pad=9, seed=3, sample=2, site=4)
    reversed_ = noise_of_rows(ROWS[::-1], side, width=8, pad=5, seed=3, sample=2, site=4)[::-1]
    for one, two, three in zip(alone, together, reversed_, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


def test_the_noise_of_a_token_does_not_depend_on_what_follows():
    long, short, _ = noise_of_rows(ROWS)
    assert torch.equal(long[:3], short)


def test_every_coordinate_makes_another_number():
    base = noise_of_rows(ROWS[:1])[0]
    others = [
        noise_of_rows(ROWS[:1], seed=1)[0],
        noise_of_rows(ROWS[:1], sample=1)[0],
        noise_of_rows(ROWS[:1], site=1)[0],
        noise_of_rows([[6, 9, 3, 3, 7]])[0],  # another first token, the same others
        noise_of_rows([[9, 5, 3, 3, 7]])[0],  # the same tokens in another order
    ]
    for other in others:
        assert not (other[-1] == base[-1]).any()
    assert len({*base.flatten().tolist()}) == base.numel()
    assert not (base[2] == base[3]).any()  # the same token twice in a row


def test_seed_sample_and_site_do_not_stand_in_for_each_other():
    keys = token_keys(torch.tensor([ROWS[0]]))
    places = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1), (1, 1, 0), (2, 0, 0), (0, 2, 0)]
    seen = {uniform(keys, 1, seed=a, sample=b, site=c)[0, 0, 0].item() for a, b, c in places}
    assert len(seen) == len(places)


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    """Numbers of (sample, site, row, token, channel), rows that differ in one small token."""
    ids = torch.arange(100)[:, None].repeat(1, 20)
    ids[:, 1:] = 7
    keys = token_keys(ids)
    drawn = [[uniform(keys, 64, sample=sample, site=site) for site in range(3)] for sample in range(3)]
    return torch.stack([torch.stack(row) for row in drawn]).double().numpy()


def test_numbers_are_uniform_and_inside_the_interval(many):
    assert many.min() > 0
    assert many.max() < 1
    assert stats.kstest(many.ravel()[:200_000], "uniform").pvalue > 1e-3
    assert stats.chisquare(np.histogram(many, bins=256, range=(0, 1))[0]).pvalue > 1e-3
    assert len(np.unique(many)) > 0.9 * many.size  # 23 bits: some numbers meet by chance
    for axis in range(5):  # no slice has a mean of its own
        means = np.moveaxis(many, axis, 0).reshape(many.shape[axis], -1)
        z = (means.mean(axis=1) - 0.5) * np.sqrt(12 * means.shape[1])
        assert np.abs(z).max() < 4.5


@pytest.mark.parametrize("axis", range(5), ids=["sample", "site", "row", "token", "channel"])
@pytest.mark.parametrize("distance", [1, 2])
def test_neighbours_are_independent(many, axis, distance):
    moved = np.moveaxis(many, axis, 0)
    one, two = moved[:-distance].ravel(), moved[distance:].ravel()
    assert abs(np.corrcoef(one, two)[0, 1]) * np.sqrt(one.size) < 4.5
    joint = np.histogram2d(one, two, bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(joint.ravel()).pvalue > 1e-4  # also what correlation does not see
    difference = np.histogram((one - two) % 1, bins=64, range=(0, 1))[0]
    assert stats.chisquare(difference).pvalue > 1e-4


def test_the_ends_of_the_interval_are_never_reached():
    keys = torch.arange(200_000)
    drawn = uniform(keys, 16)
    assert 0 < drawn.min() < 1e-5
    assert 1 - 1e-5 < drawn.max() < 1
    assert drawn.dtype == torch.float32


def test_positions_count_from_the_first_real_token():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]], dtype=torch.bool)
    assert token_positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


def test_watching_notes_each_forward_pass_and_leaves_nothing_behind():
    class Model(nn.Module):
        def forward(self, input_ids, attention_mask=None):
            return watched.keys_for((input_ids.numel(),))

    model = Model()
    with watch_tokens(model) as watched:
        ids, mask = padded(ROWS[:2], "left", 6)
        assert torch.equal(model(input_ids=ids, attention_mask=mask.long()), token_keys(ids, mask).flatten())
        assert torch.equal(model(ids), token_keys(ids).flatten())
    assert not model._forward_pre_hooks


def test_a_head_that_computes_the_last_tokens_alone_drops_what_it_drops_among_all():
    config = peft.LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    model = peft.get_peft_model(llama(), config).eval()
    ids, mask = padded(ROWS, "left", 9, pad=1)
    with adapter_dropout(model, sample=0):
        every = model(input_ids=ids, attention_mask=mask.long()).logits
        last = model(input_ids=ids, attention_mask=mask.long(), logits_to_keep=2).logits
    torch.testing.assert_close(last, every[:, -2:])
    with adapter_dropout(model, sample=1):
        assert not torch.allclose(last, model(input_ids=ids, attention_mask=mask.long(), logits_to_keep=2).logits)


def test_noise_without_tokens_is_refused():
    with watch_tokens(nn.Identity()) as watched, pytest.raises(RuntimeError, match="input_ids"):
        watched.keys_for((1,))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_gpu_makes_the_same_numbers():
    keys = token_keys(*padded(ROWS, "left", 9))
    on_gpu = token_keys(*(part.cuda() for part in padded(ROWS, "left", 9)))
    assert torch.equal(keys, on_gpu.cpu())
    assert torch.equal(uniform(keys, 333, seed=1, site=2), uniform(on_gpu, 333, seed=1, site=2).cpu())
