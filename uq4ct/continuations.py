"""Option texts as continuations: a prompt is computed once, and its options read the keys and values kept of it.

The numbers are those of whole texts, a row per option, up to rounding; ``why_whole_texts`` says for which models that
does not hold, and ``uq4ct.scoring`` gives those a row per option.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from uq4ct.adapters.router import LayerRouting
from uq4ct.encoders import looks_both_ways
from uq4ct.forward import forward, unwrapped

FEWEST_ROWS = 8  # a pass over fewer rows is not worth its overhead
# Families whose layers keep (row, token) and draw the same noise for the end of a text alone; the tests hold each
# against whole texts. OPT flattens its tokens, so that which text a token ends is lost.
DRAWS_BY_TOKEN = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
    *("phi", "phi3", "gpt2", "gpt_neox"),
)


class Texts(NamedTuple):
    """The texts of a batch, each prompt once: prompts padded on the left, options on the right."""

    prompts: Int[Tensor, "item prompt"]
    prompt_mask: Bool[Tensor, "item prompt"]
    options: Int[Tensor, "item choice option"]
    option_mask: Bool[Tensor, "item choice option"]


def why_whole_texts(model: nn.Module) -> str | None:
    """Say why a model needs every option's whole text, or None where a prompt's keys and values serve all its options.

    >>> why_whole_texts(nn.Linear(2, 2))
    'its forward takes no attention_mask, position_ids, past_key_values'
    """
    *wrappers, base = unwrapped(model)
    takes = inspect.signature(type(base).forward).parameters
    if missing := [name for name in ("attention_mask", "position_ids", "past_key_values") if name not in takes]:
        return f"its forward takes no {', '.join(missing)}"
    if not isinstance(getattr(base, "config", None), PretrainedConfig):
        return "it has no configuration of transformers"
    return _why_by_family(base) or _why_by_adapter(wrappers) or _why_by_noise(wrappers, base)


def _why_by_family(base: Any) -> str | None:
    config = base.config.get_text_config(decoder=True)
    ahead = getattr(config, "use_bidirectional_attention", None) or not getattr(config, "is_causal", True)
    if ahead or looks_both_ways(config):
        return f"{config.model_type} lets a prompt see what follows"
    if getattr(base, "_is_stateful", False) or base.config.is_encoder_decoder:
        return f"{config.model_type} keeps something else of a text than keys and values"
    if kinds := _layer_types(config) - {"full_attention", "sliding_attention"}:
        return f"{config.model_type} has layers of the kind {', '.join(sorted(kinds))}"
    if kinds := _rope_types(config) & {"dynamic", "longrope"}:
        return f"its rotary positions ({', '.join(sorted(kinds))}) hang on the length of the whole text"
    return None


def _why_by_adapter(wrappers: Sequence[Any]) -> str | None:
    for adapter in (one for wrapper in wrappers for one in getattr(wrapper, "peft_config", {}).values()):
        if adapter.is_prompt_learning or getattr(adapter, "alora_invocation_tokens", None):
            return "its adapter reads the tokens itself, or puts some in front of them"
    return None


def _why_by_noise(wrappers: Sequence[nn.Module], base: Any) -> str | None:
    """Noise by token is drawn by hooks on the model that is called; only that one's see whole texts."""
    outermost, *inner = [*wrappers, base]
    if any(module._forward_pre_hooks for module in inner):
        return "hooks inside its wrappers read its input"
    family = base.config.get_text_config(decoder=True).model_type
    if outermost._forward_pre_hooks and family not in DRAWS_BY_TOKEN:
        return f"noise by token is drawn, and {family} may flatten its tokens"
    return None


def option_logits(
    model: nn.Module, batch: Mapping[str, Tensor]
) -> tuple[Float[Tensor, "item choice"], tuple[LayerRouting, ...], Bool[Tensor, "item prompt"]]:
    """Return each option's log-likelihood after its prompt, the prompts' routing and their mask; no gradients.

    Options run in groups of similar length, of as many rows as there are prompts, so that neither padding nor memory
    grows with the longest of them.
    """
    texts = split(batch)
    cache = DynamicCache()  # without a configuration every layer keeps all keys, sliding windows are the mask's matter
    logits, routing = forward(model, texts.prompts, texts.prompt_mask, 1, cache)
    first = logits[:, -1].log_softmax(dim=-1).gather(-1, texts.options[..., 0])
    total = first.masked_fill(~texts.option_mask[..., 0], 0.0)
    for rows in _similar(texts.option_mask.sum(dim=-1).masked_fill(~batch["choice_mask"], 0)):
        total.view(-1)[rows] += _rest(model, texts, cache, rows)
    return total.masked_fill(~batch["choice_mask"], -torch.inf), routing, texts.prompt_mask


def _similar(lengths: Int[Tensor, "item choice"]) -> Iterator[Int[Tensor, " row"]]:
    """Group the options of two tokens or more, longest first; a row is an option's place in the flattened batch."""
    number = int((lengths > 1).sum())
    rows = lengths.flatten().argsort(descending=True, stable=True)[:number]
    size = max(len(lengths), FEWEST_ROWS)
    return (rows[start : start + size] for start in range(0, number, size))


def _rest(model: nn.Module, texts: Texts, cache: DynamicCache, rows: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    """Return the log-likelihood of what follows each option's first token."""
    items, tokens = rows // texts.options.shape[1], texts.options.flatten(0, 1)[rows]
    real = texts.option_mask.flatten(0, 1)[rows]
    width = int(real.sum(dim=-1).max())
    tokens, following = tokens[:, :width], real[:, 1:width]
    # nothing is asked after an option's last token, so that it is not run
    ids = torch.cat([texts.prompts[items], tokens[:, :-1]], dim=-1)
    mask = torch.cat([texts.prompt_mask[items], following], dim=-1)
    own = DynamicCache([(keys[items], values[items]) for keys, values, *_ in cache])
    logits, _ = forward(model, ids, mask, width - 1, own)
    log_probs = logits.log_softmax(dim=-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return log_probs.masked_fill(~following, 0.0).sum(dim=-1)


def split(batch: Mapping[str, Tensor]) -> Texts:
    """Return the prompts and options of a batch collated with padding on either side.

    >>> from uq4ct.scoring import collate
    >>> texts = split(collate([{"input_ids": [5], "option_ids": [[1, 2], [3]], "answer": 0},
    ...                        {"input_ids": [6, 7], "option_ids": [[4]], "answer": 0}], pad_token_id=0))
    >>> (texts.prompts * texts.prompt_mask).tolist(), (texts.options * texts.option_mask).tolist()
    ([[0, 5], [6, 7]], [[[1, 2], [3, 0]], [[4, 0], [4, 0]]])
    """
    input_ids, option_mask = batch["input_ids"], batch["option_mask"]
    prompts = (batch["attention_mask"].bool() & ~option_mask)[:, 0]
    width, widest = torch.stack([prompts.sum(dim=-1).max(), option_mask.sum(dim=-1).max()]).tolist()
    behind = prompts.int().argsort(dim=-1, stable=True)[:, -width:]
    ahead = (~option_mask).int().argsort(dim=-1, stable=True)[..., :max(widest, 1)]
    return Texts(
        input_ids[:, 0].gather(-1, behind),
        prompts.gather(-1, behind),
        input_ids.gather(-1, ahead),
        option_mask.gather(-1, ahead),
    )


def _layer_types(config: Any) -> set[str]:
    """Return what kinds of layers a configuration names, and what else the cache made for it holds."""
    named = set(getattr(config, "layer_types", None) or ())
    if getattr(config, "attention_chunk_size", None):
        named.add("chunked_attention")
    if named <= {"full_attention", "sliding_attention"}:
        others = {type(layer) for layer in DynamicCache(config=config).layers}
        named |= {kind.__name__ for kind in others - {DynamicLayer, DynamicSlidingWindowLayer}}
    return named


def longest_by_short_factors(config: Any) -> float:
    """Return how long a text may be and leave its batch's other rows their rotary positions: infinite but for longrope.

    That has two sets of factors, and one text beyond the original length turns the whole batch to the long ones.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if "longrope" not in _rope_types(text):
        return math.inf
    original = (text.rope_parameters or {}).get("original_max_position_embeddings")
    return original or getattr(text, "original_max_position_embeddings", None) or math.inf


def _rope_types(config: Any) -> set[str]:
    """Return the kinds of rotary positions, which may differ between kinds of layers."""
    settings = getattr(config, "rope_parameters", None) or {}
    each = [settings, *(part for part in settings.values() if isinstance(part, Mapping))]
    return {part["rope_type"] for part in each if "rope_type" in part}
