"""Noise that belongs to a token and not to a batch, for methods that sample at test time.

A pseudo-random number generator deals its numbers out in the order of a tensor's entries, so a question would meet
other numbers in another batch, behind other padding or in another order. Here every number is a hash of what it is
for (Salmon et al. 2011 call such generators counter-based): the seed, the sample, the site in the model, the token
with all tokens before it, and the channel. The options of one question share their prompt's noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from uq4ct.errors import UserError

MIX_1, MIX_2, STEP = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15  # splitmix64 (Steele et al. 2014)


def token_positions(mask: Bool[Tensor, "batch token"]) -> Int[Tensor, "batch token"]:
    """Return each real token's index counted from its row's first real token; 0 or the last index on padding.

    >>> token_positions(torch.tensor([[False, True, True], [True, True, False]])).tolist()
    [[0, 0, 1], [0, 1, 1]]
    """
    return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def token_keys(
    input_ids: Int[Tensor, "batch token"], mask: Bool[Tensor, "batch token"] | None = None
) -> Int[Tensor, "batch token"]:
    """Return a 64-bit hash of each real token, its position and all real tokens before it; padding never counts.

    >>> padded = torch.tensor([[0, 5, 6], [5, 6, 7]])
    >>> keys = token_keys(padded, torch.tensor([[False, True, True], [True, True, True]]))
    >>> bool((keys[0, 1:] == keys[1, :2]).all()), bool(keys[1, 2] == keys[0, 2])
    (True, False)
    """
    mask = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    placed = _mix(_mix(input_ids.long() + _signed(STEP)) + token_positions(mask))
    return _mix(placed.masked_fill(~mask, 0).cumsum(dim=-1))


Sample = int | tuple[int, ...]  # a number, or one for each row of a batch


def uniform(
    keys: Int[Tensor, "*tokens"], channels: int, *, seed: int = 0, sample: Sample = 0, site: int = 0
) -> Float[Tensor, "*tokens channel"]:
    """Return one number of (0, 1), never its ends, for each token and channel.

    The same seed, sample, site, token key and channel give the same number on every device; a change of any gives an
    independent one. ``site`` numbers the places in the model that draw noise. Where ``sample`` has a number for each
    row, a row gets what it would get alone with its own.

    >>> keys = token_keys(torch.tensor([[5, 6, 7]]))
    >>> uniform(keys, 4, sample=1).shape, bool((uniform(keys, 4)[:, :2] == uniform(keys[:, :2], 4)).all())
    (torch.Size([1, 3, 4]), True)
    """
    x = _words(keys, channels, seed, sample, site)
    # 23 bits and a half are exact in float32; with 24 the largest would round to 1
    return _shifted(x, 41).float().add_(0.5).mul_(2.0**-23)


def keep(
    keys: Int[Tensor, "*tokens"], channels: int, probability: float, *, seed: int = 0, sample: Sample = 0, site: int = 0
) -> Bool[Tensor, "*tokens channel"]:
    """Return a dropout mask, true where a channel stays; each is dropped with ``probability``, to 1 in 65,536.

    Four channels share the 64 bits of one hash, which is what makes it cheap; the rest is as for ``uniform``.

    >>> mask = keep(token_keys(torch.arange(200)[None]), 64, 0.25)
    >>> mask.shape, abs(mask.float().mean().item() - 0.75) < 0.02
    (torch.Size([1, 200, 64]), True)
    """
    x = _words(keys, -(-channels // 4), seed, sample, site)
    x = x.bitwise_xor_(_shifted(x, 32))  # a product's low bits hang on the factors' low bits alone
    return x.view(torch.int16)[..., :channels] >= round(probability * 2**16) - 2**15


def _words(
    keys: Int[Tensor, "*tokens"], number: int, seed: int, sample: Sample, site: int
) -> Int[Tensor, "*tokens word"]:
    """Return so many hashes of 64 bits for each token, the high ones the best mixed."""
    if isinstance(sample, tuple):
        return _words_of_rows(keys, number, seed, sample, site)
    # two rounds are enough, as both terms are well mixed; the sum must not stay linear in them
    return _finished(keys[..., None] + _word(keys, number, seed, sample, site))


def _words_of_rows(
    keys: Int[Tensor, "*tokens"], number: int, seed: int, samples: tuple[int, ...], site: int
) -> Int[Tensor, "*tokens word"]:
    """Return the hashes of rows with a sample each; their tokens may be flattened."""
    word = torch.stack([_word(keys, number, seed, sample, site) for sample in samples])
    return _finished(keys.reshape(len(samples), -1, 1) + word[:, None]).view(*keys.shape, number)


def _word(keys: Tensor, number: int, seed: int, sample: int, site: int) -> Int[Tensor, " word"]:
    stream = 0
    for part in (seed, sample, site):
        stream = _mix_number(stream + part + STEP)
    return _mix(torch.arange(number, device=keys.device) * _signed(STEP) + _signed(stream))


def _finished(x: Int[Tensor, "*tokens word"]) -> Int[Tensor, "*tokens word"]:
    x = x.bitwise_xor_(_shifted(x, 32)).mul_(_signed(MIX_1))
    return x.bitwise_xor_(_shifted(x, 29)).mul_(_signed(MIX_2))


class Watched:
    """Hold the token keys of the forward pass that is running."""

    _keys: Int[Tensor, "batch token"] | None = None

    def keys_for(self, tokens: tuple[int, ...], sample: Sample = 0) -> Int[Tensor, "*tokens"]:
        """Return the keys in the shape of a layer's tokens: (batch, token), flattened, or the last tokens of each row.

        A head computes the last ones alone where no others are asked for (``logits_to_keep``). Raises ValueError where
        ``sample`` has a number for each row of another batch.
        """
        if self._keys is None:
            raise RuntimeError("noise by token needs a forward pass of the watched model itself, with its input_ids")
        if isinstance(sample, tuple) and len(sample) != len(self._keys):
            raise ValueError(f"expected a sample for each of {len(self._keys)} rows, got {len(sample)}")
        if len(tokens) == 2 and tokens[0] == len(self._keys) and tokens[1] < self._keys.shape[1]:
            return self._keys[:, -tokens[1] :]
        if prod(tokens) != self._keys.numel():
            raise UserError(
                "noise by token: an adapter sits on a linear that reads something other than the tokens, such as "
                "DeBERTa's relative positions; leave it out of method.target_modules"
            )
        return self._keys.reshape(tokens)


@contextmanager
def watch_tokens(model: nn.Module) -> Iterator[Watched]:
    """Note the tokens of every forward pass of ``model`` inside the context, wrapped or not; nothing is left behind."""
    watched = Watched()

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids = args[0] if args else kwargs.get("input_ids")
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        watched._keys = None if input_ids is None else token_keys(input_ids, mask)

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield watched
    finally:
        handle.remove()


def _mix(x: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
    """Return splitmix64's finaliser of every number: each bit in changes half of the bits out."""
    x = (x ^ _shifted(x, 30)) * _signed(MIX_1)
    x = (x ^ _shifted(x, 27)) * _signed(MIX_2)
    return x ^ _shifted(x, 31)


def _mix_number(x: int) -> int:
    x &= 2**64 - 1
    x = ((x ^ (x >> 30)) * MIX_1) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * MIX_2) & (2**64 - 1)
    return x ^ (x >> 31)


def _shifted(x: Int[Tensor, "*any"], places: int) -> Int[Tensor, "*any"]:
    """Shift right as if int64 had no sign."""
    return (x >> places).bitwise_and_(2 ** (64 - places) - 1)


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
