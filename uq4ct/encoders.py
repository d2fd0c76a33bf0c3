"""Encoders as base models: which families are known, what their head answers, and how it is trained with an adapter.

An encoder has no next token to read a letter from. It gets a head behind its last layer: one score for a pair of
question and choice (``multiple_choice``), or one score for each of a data set's fixed choices (``classification``). The
head is trained in full and saved with the adapter; everything before it stays frozen.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from uq4ct.errors import UserError

Kind = Literal["causal", "multiple_choice", "classification"]

# Model type -> whether the position of a text's first token is pad_token_id + 1 instead of 0. The tests train, save and
# load every family; others may call a layer twice, flatten their tokens or read positions, and are refused.
FAMILIES = {
    "bert": False,
    "roberta": True,
    "xlm-roberta": True,
    "camembert": True,
    "distilbert": False,
    "electra": False,
    "deberta": False,
    "deberta-v2": False,  # and DeBERTa-v3, which has the same code
    "mpnet": True,
    "modernbert": False,
}
_ENDINGS: dict[Kind, str] = {"multiple_choice": "ForMultipleChoice", "classification": "ForSequenceClassification"}
_ENCODER_ENDINGS = (
    *("ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForTokenClassification", "ForMultipleChoice"),
    "ForQuestionAnswering",
)
# Families with a causal class in transformers that look both ways unless is_decoder is set.
_ENCODERS = (
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer"),
    *("xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod"),
)


def kind_of(model: Any) -> Kind:
    """Tell what a model, unwrapped, answers by: the next token, or one of the two heads of an encoder."""
    return next((kind for kind, ending in _ENDINGS.items() if type(model).__name__.endswith(ending)), "causal")


def architecture_of(settings: Any, kind: Kind) -> bool:
    """Tell whether a checkpoint was saved with the head of a kind."""
    return any(str(name).endswith(_ENDINGS[kind]) for name in settings.architectures or ())


_READS_PADDING = ("rwkv",)  # a recurrent state that takes in padding, too


def kind_for(source: str, settings: Any, asked: str, fixed_choices: bool) -> Kind:
    """Choose how the model of a configuration answers; raise UserError with what it is where it cannot.

    ``asked`` is a kind or "auto": then an encoder is a classifier where the questions have ``fixed_choices`` or the
    checkpoint is one, and scores pairs of question and choice otherwise.
    """
    names = [str(name) for name in settings.architectures or ()]
    what = f"model.name: {source} is a {settings.model_type} model ({', '.join(names) or 'no architecture named'})"
    if getattr(settings, "is_encoder_decoder", False):
        raise UserError(f"{what}: an encoder-decoder; give a causal language model such as Llama, Mistral or Qwen")
    if settings.model_type in _READS_PADDING:
        raise UserError(
            f"{what}: it ignores the attention mask, and answers would hang on their batch; give another causal "
            "language model such as Llama, Mistral or Qwen"
        )
    causal = _is_causal(settings, names)
    if asked == "causal" or (asked == "auto" and causal):
        if not causal:
            raise UserError(f"{what}: not a causal language model; leave model.kind out, or give one such as Llama")
        return "causal"
    if causal:
        raise UserError(f"{what}: a causal language model answers by its next token; set model.kind: causal")
    if settings.model_type not in FAMILIES:
        raise UserError(
            f"{what}: neither a causal language model nor an encoder of a known family; give one such as Llama, "
            f"Mistral or Qwen, or an encoder ({', '.join(FAMILIES)})"
        )
    is_classifier = fixed_choices or architecture_of(settings, "classification")
    kind: Kind = "multiple_choice" if asked == "auto" else cast(Kind, asked)
    if asked == "auto" and is_classifier:
        kind = "classification"
    if type(settings) not in _mapping(kind):
        raise UserError(f"{what}: transformers has no {kind} head for it; use another encoder or another model.kind")
    return kind


def _is_causal(settings: Any, architectures: Sequence[str]) -> bool:
    """Tell whether the answer can be read after the prompt, from a model that only looks back."""
    custom = "AutoModelForCausalLM" in (getattr(settings, "auto_map", None) or {})
    headless = architectures and all(name.endswith(_ENCODER_ENDINGS) for name in architectures)
    return (type(settings) in _mapping("causal") or custom) and not looks_both_ways(settings) and not headless


def looks_both_ways(settings: Any) -> bool:
    """Tell whether a family with a causal class in transformers looks both ways, as its configuration stands.

    >>> from transformers import BertConfig
    >>> looks_both_ways(BertConfig()), looks_both_ways(BertConfig(is_decoder=True))
    (True, False)
    """
    return settings.model_type in _ENCODERS and not getattr(settings, "is_decoder", False)


def _mapping(kind: Kind) -> Any:
    import transformers

    names = {
        "causal": "MODEL_FOR_CAUSAL_LM_MAPPING",
        "multiple_choice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING",
        "classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    }
    return getattr(transformers, names[kind])


def loader_of(kind: Kind) -> Any:
    """Return the class of transformers that loads models of a kind."""
    import transformers

    names = {
        "causal": "AutoModelForCausalLM",
        "multiple_choice": "AutoModelForMultipleChoice",
        "classification": "AutoModelForSequenceClassification",
    }
    return getattr(transformers, names[kind])


def head_for(settings: Any, kind: Kind, classes: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """Return the classes in the order of the head, and whether the checkpoint has a head that was trained for them."""
    if kind != "classification":
        return (), kind == "causal" or architecture_of(settings, kind)
    if len(classes) < 2:
        raise UserError(
            "model.kind: a classifier needs the choices that every question has; set data.choices, or "
            "model.kind: multiple_choice"
        )
    labels = [str(settings.id2label[index]).strip().casefold() for index in sorted(settings.id2label)]
    ours = {choice.strip().casefold(): choice for choice in classes}
    if architecture_of(settings, kind) and sorted(labels) == sorted(ours):
        return tuple(ours[label] for label in labels), True
    return tuple(classes), False


def weights_of(model: Any, modules: Sequence[str]) -> set[str]:
    """Return the names of all weights in some modules."""
    return {f"{name}.{weight}" for name in modules for weight, _ in model.get_submodule(name).named_parameters()}


def positions_taken(settings: Any) -> int:
    """Return how many of ``max_position_embeddings`` no token can have: RoBERTa's count starts behind the padding's.

    >>> from transformers import RobertaConfig
    >>> positions_taken(RobertaConfig(pad_token_id=1, max_position_embeddings=514))
    2
    """
    return (settings.pad_token_id or 0) + 1 if FAMILIES.get(settings.model_type) else 0


def has_segments(settings: Any) -> bool:
    """Tell whether an encoder was pre-trained to tell the second of two texts from the first (``token_type_ids``)."""
    return getattr(settings, "type_vocab_size", 0) > 1


def tokens_of(example: Mapping[str, Any], prompt_once: bool = False) -> int:
    """Count the tokens that a model sees of an encoded question: the prompt for every option of its own, or once.

    >>> tokens_of({"input_ids": [5, 6], "option_ids": [[7], [8, 9]]}), tokens_of({"input_ids": [5, 6]})
    (7, 2)
    >>> tokens_of({"input_ids": [5, 6], "option_ids": [[7], [8, 9]]}, prompt_once=True)
    5
    """
    options = example.get("option_ids", [[]])
    return (1 if prompt_once else len(options)) * len(example["input_ids"]) + sum(map(len, options))


def head_modules(model: Any) -> list[str]:
    """Return the modules behind an encoder's last layer, the pooler included: what is trained in full."""
    inner = model.base_model_prefix
    names = [name for name, child in model.named_children() if name != inner and _has_weights(child)]
    if _has_weights(getattr(getattr(model, inner), "pooler", None)):
        names.append(f"{inner}.pooler")
    return names


def new_modules(model: Any) -> tuple[str, ...]:
    """Return the layers of the head that the checkpoint does not have, and that mean nothing before training."""
    return getattr(model, "uq4ct_new_head", ())


def note_new_modules(model: Any, absent: set[str]) -> list[str]:
    """Note which layers of the head have weights among ``absent``; return those absent weights that are no head's."""
    inside = tuple(f"{name}." for name in head_modules(model))
    new = sorted({name.rpartition(".")[0] for name in absent if name.startswith(inside)})
    model.uq4ct_new_head = tuple(new)
    return sorted(name for name in absent if not name.startswith(inside))


def complete_head(model: Any, absent: set[str], renew: bool) -> set[str]:
    """Draw what the checkpoint lacks of the head, or all of it but the pooler; return what else it lacks."""
    if renew:
        inner = f"{model.base_model_prefix}."
        absent = absent | weights_of(model, [name for name in head_modules(model) if not name.startswith(inner)])
    others = note_new_modules(model, absent)
    draw_head(model, seed=0)
    return set(others)


def draw_head(model: Any, seed: int) -> None:
    """Draw the new layers of the head as a function of the seed alone: normal weights, biases 0, norms 1.

    The standard deviation is the family's own ``initializer_range``.
    """
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(seed)
    std = getattr(model.config, "initializer_range", 0.02)
    with torch.no_grad():
        for path in new_modules(model):
            layer = model.get_submodule(path)
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(std * torch.randn(layer.weight.shape, generator=generator))
            elif isinstance(layer, nn.LayerNorm):
                layer.weight.fill_(1.0)
            else:
                raise UserError(f"model.name: the head's {path}, a {type(layer).__name__}, cannot be drawn anew")
            if layer.bias is not None:
                layer.bias.zero_()


def with_head(adapter_config: Any, model: Any) -> Any:
    """Return an adapter's PEFT configuration that also trains and saves the head, where the model is an encoder.

    Raises UserError for a PEFT method that cannot.
    """
    if kind_of(model) == "causal":
        return adapter_config
    if not hasattr(adapter_config, "modules_to_save"):
        raise UserError(
            f"{type(adapter_config).__name__} has no modules_to_save, so the head of an encoder cannot be trained with "
            "it; use another method or a causal language model"
        )
    config = copy.deepcopy(adapter_config)
    config.modules_to_save = sorted({*(config.modules_to_save or ()), *head_modules(model)})
    config.task_type = None  # PEFT's own tasks expect other arguments and rename the head
    return config


def without_adapters(model: Any) -> Any:
    """Return the base of a PEFT model without its adapters; PEFT would leave the trained head in it."""
    from peft.utils import ModulesToSaveWrapper

    every = model.get_base_model().named_modules()
    heads = {path: module.original_module for path, module in every if isinstance(module, ModulesToSaveWrapper)}
    base = model.unload()
    for path, module in heads.items():
        base.set_submodule(path, module)
    return base


def _has_weights(module: Any) -> bool:
    return module is not None and any(True for _ in module.parameters())
