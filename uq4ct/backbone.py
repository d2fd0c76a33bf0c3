"""The frozen base model and its tokenizer: found, checked and loaded, or refused with a sentence on what to do."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from uq4ct.encoders import (
    Kind,
    complete_head,
    head_for,
    head_modules,
    kind_for,
    loader_of,
    note_new_modules,
    positions_taken,
    weights_of,
)
from uq4ct.errors import UserError
from uq4ct.manifest import sha256

_BUNDLED = Path(__file__).parent / "tiny" / "model"
_WEIGHTS = "model*.safetensors"  # some hub models carry a second copy under another name
_SAMPLED_ABOVE = 1 << 30  # bytes; larger weight files are sampled for the fingerprint, not read in full
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 20


class ModelConfig(BaseModel):
    """Name the base model: the ``model`` section of a configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str = Field(default="tiny", description="tiny (bundled), a folder, or a hub id")
    kind: Literal["auto", "causal", "multiple_choice", "classification"] = Field(
        default="auto", description="How it answers; auto: by its architecture, and by data.choices for an encoder"
    )
    revision: str | None = Field(default=None, description="Commit, tag or branch on the hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "nf4", "int8"] = "none"
    trust_remote_code: bool = Field(default=False, description="Run code that comes with the model; needs a revision")
    attn_implementation: str | None = Field(default=None, description="eager, sdpa or flash_attention_2")
    device: str | None = Field(default=None, description="cpu, cuda, cuda:1, mps; null: a GPU where there is one")


@dataclass(frozen=True)
class Backbone:
    """A frozen base model and its tokenizer, with what identifies them.

    ``kind`` says how it answers; ``classes`` are what the head of a classifier tells apart, in the head's order.
    ``name`` is the hub id, the folder or "tiny"; ``revision`` the hub's commit, None for a folder; ``dtype`` that of
    the computation; ``context_length`` the most tokens the model takes, None where its configuration does not say.
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str | None
    dtype: str
    quantization: str
    parameters: int
    context_length: int | None
    files: tuple[Path, ...]
    kind: Kind = "causal"
    classes: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the configuration and the weight files, whatever folder they lie in.

        Weight files over 1 GiB are sampled (their size and 64 MiB spread over them): this tells models apart, and is no
        protection against someone who wants to deceive.
        """
        return _fingerprint(self.files)

    @property
    def description(self) -> dict[str, Any]:
        """What a run records of its base model, in plain values."""
        return {
            "name": self.name,
            "revision": self.revision,
            "dtype": self.dtype,
            "quantization": self.quantization,
            "parameters": self.parameters,
            "context_length": self.context_length,
            "fingerprint": self.fingerprint,
            "kind": self.kind,
            "classes": list(self.classes),
        }


@dataclass(frozen=True)
class Outline:
    """A base model without its weights: ``model`` has every shape, on the meta device, and no number.

    ``identity`` is the fingerprint of a folder, and the commit of a hub model, whose weights need not be here yet.
    """

    model: Any
    tokenizer: Any
    identity: str
    parameters: int
    context_length: int | None
    kind: Kind = "causal"
    classes: tuple[str, ...] = ()


def kind(config: ModelConfig, fixed_choices: bool = False) -> Kind:
    """Return how the base model of a configuration answers; only its config.json is read.

    An encoder is a classifier where ``fixed_choices`` says that every question has the same ones (``data.choices``), or
    where it was saved as one; else it scores pairs of question and choice. Raises UserError for a model that cannot
    answer, or not in the way that ``model.kind`` asks for.
    """
    _check_quantization(config)
    source = _source(config)
    return kind_for(source, _settings(source, config)[0], config.kind, fixed_choices)


def outline(config: ModelConfig, classes: Sequence[str] = ()) -> Outline:
    """Read all of a base model but its weights: enough to check a method, prompts and cost in a second.

    ``classes`` as in ``load``. Raises UserError as ``load`` does, where the weights are not needed to see it.
    """
    import torch

    _check_quantization(config)
    source = _source(config)
    settings, commit = _settings(source, config)
    kind = _known_kind(source, settings, config, bool(classes))
    tokenizer = _tokenizer(source, commit, config)
    classes, trained = head_for(settings, kind, classes)
    if kind == "classification":
        settings.num_labels = len(classes)
    with torch.device("meta"):
        model = loader_of(kind).from_config(settings, trust_remote_code=config.trust_remote_code)
    _check_tokenizer_fits(source, tokenizer, model)
    if kind != "causal" and not trained:
        note_new_modules(model, weights_of(model, head_modules(model)))
    return Outline(
        model=model.eval(),
        tokenizer=tokenizer,
        identity=_fingerprint(_files(source, commit, config)) if Path(source).is_dir() else f"{source}@{commit}",
        parameters=model.num_parameters(),
        context_length=_context_length(settings),
        kind=kind,
        classes=tuple(classes),
    )


def load(config: ModelConfig | None = None, classes: Sequence[str] = ()) -> Backbone:
    """Load the base model and tokenizer of a configuration, frozen and in evaluation mode.

    ``classes`` are the choices that a classifier's head tells apart; where the checkpoint has a head that was trained
    on the same names, in whatever order, that head is kept. What an encoder's head lacks is drawn, always the same.
    Only safetensors are read. Raises UserError where the model cannot be found, is neither a causal language model nor
    a known encoder, lacks weights, or does not fit its tokenizer.
    """
    config = config or ModelConfig()
    _check_quantization(config)
    source = _source(config)
    settings, commit = _settings(source, config)
    kind = _known_kind(source, settings, config, bool(classes))
    files = _files(source, commit, config)
    tokenizer = _tokenizer(source, commit, config)
    classes, trained = head_for(settings, kind, classes)
    model = _model(source, commit, config, settings, kind, None if trained else len(classes))
    _check_tokenizer_fits(source, tokenizer, model)
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token  # always masked, so no new token is needed
    return Backbone(
        model=model,
        tokenizer=tokenizer,
        name=config.name,
        revision=commit,
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=config.quantization,
        parameters=model.num_parameters(),
        context_length=_context_length(settings),
        files=files,
        kind=kind,
        classes=tuple(classes),
    )


def _known_kind(source: str, settings: Any, config: ModelConfig, fixed_choices: bool) -> Kind:
    kind = kind_for(source, settings, config.kind, fixed_choices)
    if kind != "causal" and config.quantization != "none":
        raise UserError(
            f"model.quantization: {config.quantization} is for causal language models; an encoder's head is trained in "
            "full, and encoders are small; set model.quantization: none"
        )
    return kind


def _check_quantization(config: ModelConfig) -> None:
    if config.quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization: {config.quantization} needs the package bitsandbytes (pip install bitsandbytes); "
            "or set model.quantization: none"
        )
    if config.trust_remote_code and not Path(config.name).is_dir() and config.revision is None:
        raise UserError(
            "model.trust_remote_code runs code that comes with the model: name the commit that you have read with "
            "model.revision"
        )


def _source(config: ModelConfig) -> str:
    """Return the folder or hub id that a name stands for."""
    if config.name == "tiny":
        return str(_BUNDLED)
    if not config.name.strip() or "\0" in config.name:
        raise UserError(f"model.name: expected tiny, a folder or a hub id, got {config.name!r}")
    folder = Path(config.name).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return str(folder)
    if folder.exists():
        raise UserError(f"model.name: {config.name} is a file, expected a folder with config.json and safetensors")
    if config.name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", config.name):
        raise UserError(f"model.name: no such folder: {config.name}")
    return config.name


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"model.name: {folder} holds an adapter, not a base model; a run is evaluated with uq4ct evaluate, and "
                "its base model is named in adapter_config.json"
            )
        raise UserError(f"model.name: {folder} has no config.json, so it is not a model folder")
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{folder / 'config.json'}: not readable as JSON ({error}); copy the model again") from error
    if not list(folder.glob(_WEIGHTS)):
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
        raise UserError(_no_safetensors(str(folder), pickled))


def _no_safetensors(where: str, pickled: list[str]) -> str:
    if not pickled:
        return f"model.name: {where} has no weights in safetensors; expected {_WEIGHTS}"
    return (
        f"model.name: {where} has its weights only as pickle ({', '.join(pickled[:3])}), which can run code and is not "
        "read; convert them: load the model with transformers where you trust it, then save_pretrained"
    )


def _settings(source: str, config: ModelConfig) -> tuple[Any, str | None]:
    """Read the model's configuration and resolve a branch or tag to its commit."""
    from transformers import AutoConfig

    try:
        settings = AutoConfig.from_pretrained(
            source, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except Exception as error:
        raise _explained(source, config, error) from error
    return settings, getattr(settings, "_commit_hash", None)


def _files(source: str, commit: str | None, config: ModelConfig) -> tuple[Path, ...]:
    """Return the configuration and weight files, downloading them where the source is a hub id."""
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        patterns = ["config.json", _WEIGHTS, "model*.safetensors.index.json"]
        try:
            folder = Path(snapshot_download(source, revision=commit or config.revision, allow_patterns=patterns))
        except Exception as error:
            raise _explained(source, config, error) from error
        if not list(folder.glob(_WEIGHTS)):
            raise UserError(_no_safetensors(source, []))
    return (folder / "config.json", *sorted(folder.glob(_WEIGHTS)))


def _tokenizer(source: str, commit: str | None, config: ModelConfig) -> Any:
    from transformers import AutoTokenizer

    known = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
    folder = Path(source)
    if folder.is_dir() and not config.trust_remote_code and not any((folder / name).is_file() for name in known):
        raise UserError(
            f"model.name: {source} has no tokenizer (looked for {', '.join(known)}); copy the tokenizer's files there"
        )
    options: dict[str, Any] = {"revision": commit or config.revision, "padding_side": "left"}
    try:
        found = AutoTokenizer.from_pretrained(source, trust_remote_code=config.trust_remote_code, **options)
        return _as_its_file_says(found, source, options)
    except Exception as error:
        reason = _first_line(error)
        raise UserError(f"model.name: the tokenizer of {source} cannot be read ({reason}); copy it again") from error


# Where tokenizers part: digits, contractions, capitals, spaces and line breaks in a row, accents, other scripts.
_PROBE = "Question: in 2024  he'd got 12345.6 m\n\nA. Ünïté e\u0301 (naïve)\nB. 東京, Москва\tX_y\nAnswer: A"


def _as_its_file_says(tokenizer: Any, source: str, options: dict[str, Any]) -> Any:
    """Return the tokenizer that ``tokenizer.json`` describes where transformers built another one.

    For some model types (Qwen2 among them) transformers takes only the vocabulary from the file and splits text by the
    type's own rules; a model of that type that was trained with another tokenizer would get other tokens, unnoticed.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import cached_file

    if type(tokenizer) is PreTrainedTokenizerFast or not getattr(tokenizer, "is_fast", False):
        return tokenizer
    missing_is_fine = {"_raise_exceptions_for_missing_entries": False}
    if cached_file(source, "tokenizer.json", revision=options["revision"], **missing_is_fine) is None:
        return tokenizer
    own = PreTrainedTokenizerFast.from_pretrained(source, **options)
    return tokenizer if own(_PROBE)["input_ids"] == tokenizer(_PROBE)["input_ids"] else own


def _model(
    source: str, commit: str | None, config: ModelConfig, settings: Any, kind: Kind, new_head: int | None
) -> Any:
    """Load the weights, freeze them, and refuse a model of which a part is missing; ``new_head`` counts its classes."""
    import torch

    device, loader = _device(config), loader_of(kind)
    options: dict[str, Any] = {"dtype": _dtype(config, settings, kind, device), "use_safetensors": True}
    if config.attn_implementation:
        options["attn_implementation"] = config.attn_implementation
    if config.quantization != "none":
        options |= {"quantization_config": _quantization(config, options["dtype"]), "device_map": {"": device}}
    if new_head is not None:
        options |= {"ignore_mismatched_sizes": True, **({"num_labels": new_head} if new_head else {})}
    try:
        model, report = loader.from_pretrained(
            source,
            revision=commit or config.revision,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            **options,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _explained(source, config, error) from error
    absent = {*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])}
    if kind != "causal":
        absent = complete_head(model, absent, renew=new_head is not None)
    if absent:
        raise UserError(
            f"model.name: {source} lacks {len(absent)} of the model's weights, among them "
            f"{', '.join(sorted(absent)[:3])}; they would be random numbers. Copy the model again"
        )
    if config.quantization == "none":
        model = model.to(device)
    return model.requires_grad_(False).eval()


def _device(config: ModelConfig) -> str:
    import torch

    if config.device is None:
        if torch.cuda.is_available():
            return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if not is_there(config.device):
        numbered = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        usable = [name for name in ("cpu", *numbered, "mps") if is_there(name)]
        raise UserError(f"model.device: {config.device} is not available here; available: {', '.join(usable)}")
    return config.device


def is_there(device: str) -> bool:
    """Tell whether this machine has a device.

    >>> [is_there(name) for name in ("cpu", "cpu:0", "cpu:", "cpu:x", "warp", "cuda:99")]
    [True, True, False, False, False, False]
    """
    import torch

    kind, colon, number = device.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    else:
        count = int(kind == "cpu" or (kind == "mps" and torch.backends.mps.is_available()))
    return count > 0 and (not colon or number in map(str, range(count)))


def _dtype(config: ModelConfig, settings: Any, kind: Kind, device: str) -> Any:
    """Return the dtype of the computation: auto is the checkpoint's on a GPU, bfloat16 for half, and float32 elsewhere.

    Training in float16 without loss scaling overflows, so a float16 checkpoint is computed in bfloat16. The head of an
    encoder is trained itself, which takes float32, and with it the encoder, as small as one is.
    """
    import torch

    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    if kind != "causal" or not device.startswith("cuda"):
        return torch.float32
    saved = getattr(settings, "dtype", None) or torch.float32
    if saved in (torch.float16, torch.bfloat16):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return saved


def _quantization(config: ModelConfig, dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig

    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _check_tokenizer_fits(source: str, tokenizer: Any, model: Any) -> None:
    largest, rows = max(tokenizer.get_vocab().values(), default=0), model.get_input_embeddings().num_embeddings
    if largest >= rows:
        raise UserError(
            f"model.name: the tokenizer of {source} has token ids up to {largest}, but the model has only {rows} "
            "embeddings; they do not belong together, use the tokenizer that the model was trained with"
        )


def _context_length(settings: Any) -> int | None:
    text = settings.get_text_config() if hasattr(settings, "get_text_config") else settings
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"):
        if isinstance(length := getattr(text, name, None), int) and length > 0:
            return length - positions_taken(text)
    return None


def _fingerprint(files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        digest.update(f"{path.name}\0{_identity(path)}\n".encode())
    return digest.hexdigest()


def _identity(path: Path) -> str:
    """Return a hash of one file's content; a configuration's is taken without what changes between equal models."""
    if path.suffix == ".json":
        values = json.loads(path.read_text(encoding="utf-8"))
        for key in ("_name_or_path", "transformers_version"):
            values.pop(key, None)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    if path.stat().st_size <= _SAMPLED_ABOVE:
        return sha256(path)
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    for block in _spread(path):
        digest.update(block)
    return digest.hexdigest()


def _spread(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        for number in range(_SAMPLES):
            file.seek(number * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            yield file.read(_SAMPLE_BYTES)


def _explained(source: str, config: ModelConfig, error: Exception) -> UserError:
    """Turn an exception of the libraries below into a sentence that says what to do."""
    reason = _first_line(error)
    if "trust_remote_code" in str(error):
        return UserError(
            f"model.name: {source} needs code that comes with the model; read that code, then set "
            "model.trust_remote_code: true and its commit as model.revision"
        )
    if Path(source).is_dir():
        return UserError(f"model.name: {source} cannot be loaded ({reason}); copy the model again if it is damaged")
    version = f" at revision '{config.revision}'" if config.revision else ""
    return UserError(
        f"model.name: no folder '{source}' here, and the hub model {source}{version} cannot be read ({reason}). Check "
        "the name, log in if it is gated, go online, or download it and give the folder"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
