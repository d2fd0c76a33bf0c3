"""Write docs/errors.md: what `uq4ct` says to bad input, taken from real runs of the command line (`make docs-errors`).

Every case must exit with code 2 and leave all files as they were. Hashes and measured numbers, which differ between
machines, are written as <hash> and <number>.
"""

from __future__ import annotations

import contextlib
import html
import io
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
PAGE = Path(__file__).with_name("errors.md")


class Case(NamedTuple):
    """One mistake: what was wrong, in Markdown, and the command that meets it."""

    wrong: str
    command: str


class Outcome(NamedTuple):
    """What a command did: exit code, error lines, and the files that it changed."""

    code: int
    message: tuple[str, ...]
    changed: tuple[str, ...]


# ------------------------------------------------------------------------------------------------ inputs

ROWS = [
    {
        "id": f"q{number}",
        "question": f"Which is number {number} ?",
        "choices": ["red", "green", "blue"],
        "answer": "ABC"[number % 3],
    }
    for number in range(1, 41)
]
GOOD = json.dumps(ROWS[0])

ENCODER = "train --model encoder --data questions.jsonl --output new"

# Name of a question file -> its content; the bad row is always the second.
QUESTIONS = {
    "cut.jsonl": '{"id": "q2", "question": "Which',
    "letter.jsonl": '{"question": "Which ?", "choices": ["red", "green", "blue"], "answer": "E"}',
    "missing-answer.jsonl": '{"question": "Which ?", "choices": ["red", "green", "blue"]}',
    "hidden-answer.jsonl": '{"question": "Which ?", "choices": ["red", "green", "blue"], "answer": -1}',
    "one-choice.jsonl": '{"question": "Which ?", "choices": ["red"], "answer": "A"}',
    "empty-choice.jsonl": '{"question": "Which ?", "choices": ["red", ""], "answer": "A"}',
    "null-question.jsonl": '{"question": null, "choices": ["red", "green"], "answer": "A"}',
    "number-question.jsonl": '{"question": 17, "choices": ["red", "green"], "answer": "A"}',
    "nan.jsonl": '{"question": "Which ?", "choices": ["red", NaN], "answer": "A"}',
    "twice.jsonl": '{"question": "Which ?", "question": "What ?", "choices": ["red", "green"], "answer": "A"}',
    "same-id.jsonl": '{"id": "q1", "question": "Which ?", "choices": ["red", "green", "blue"], "answer": "A"}',
    "python.jsonl": "{'question': 'Which ?', 'choices': ['red', 'green'], 'answer': 'A'}",
    "list-row.jsonl": '["Which ?", ["red", "green"], "A"]',
    "many-answers.jsonl": '{"question": "Which ?", "choices": ["red", "green", "blue"], "answer": ["A", "B"]}',
    "equal-gold.jsonl": '{"question": "Which ?", "choices": ["red", "red", "blue"], "answer": "A"}',
    "mixed.jsonl": '{"question": "Which ?", "choices": {"A": "red", "B": "green"}, "answer": "A"}',
    "surrogate.jsonl": '{"question": "Which \\ud83d ?", "choices": ["red", "green", "blue"], "answer": "A"}',
    "eleven.jsonl": json.dumps({"question": "Which ?", "choices": [f"c{n}" for n in range(11)], "answer": "A"}),
    "long.jsonl": json.dumps({"question": "Which ? " * 300, "choices": ["red", "green", "blue"], "answer": "A"}),
}


def _sample(target: str, responses: list[list[str]], **metrics: float) -> str:
    """Return one line as lm-evaluation-harness writes it."""
    names = ("red", "green", "blue")[: len(responses)]
    arguments = {f"gen_args_{k}": {"arg_0": "Which ?", "arg_1": f" {name}"} for k, name in enumerate(names)}
    row = {"doc_id": 0, "doc": {}, "target": target, "arguments": arguments, "filtered_resps": responses}
    return json.dumps(row | metrics)


FILES: dict[str, str | bytes] = {
    "empty.jsonl": "",
    "array.json": json.dumps(ROWS[:2]),
    "utf16.jsonl": GOOD.encode("utf-16"),
    "latin1.csv": "question,choices,answer\nWho is José?,red|green,A\n".encode("latin-1"),
    "semicolon.csv": "question;choices;answer\nWhich ?;red|green;A\n",
    "unquoted.csv": "question,a,b,answer\nWhich, of these ?,red,green,A\n",
    "columns.jsonl": '{"query": "Which ?", "options": ["red", "green"], "label": "A"}\n',
    "notes.txt": "Which ?",
    "broken.parquet": b"PAR1 and nothing more",
    "predictions-sum.jsonl": '{"id": "1", "probabilities": {"A": 0.7, "B": 0.7}, "label": "A"}\n',
    "predictions-logits.jsonl": '{"id": "1", "probabilities": {"A": 3.1, "B": -2.0}, "label": "A"}\n',
    "predictions-label.jsonl": '{"id": "1", "probabilities": {"A": 0.7, "B": 0.3}, "label": "C"}\n',
    "predictions-unlabelled.jsonl": '{"id": "1", "probabilities": {"A": 0.7, "B": 0.3}}\n',
    "predictions-no-column.csv": "id,confidence\n1,0.7\n",
    "predictions-percent.csv": "confidence,correct\n93,1\n",
    "predictions-unlabelled.csv": "p_A,p_B,label,correct\n0.9,0.1,A,1\n0.9,0.1,,0\n",
    "predictions-two.csv": "p_yes,p_no,gold,target\n0.7,0.3,yes,no\n",
    "predictions-vocabulary.csv": "logprob_A,logprob_B,label\n-1.2,-3.4,A\n",
    "predictions-many.csv": "id,p_A,p_B,label\n1,0.7,0.7,A\n2,nan,0.5,B\n3,0.5,0.5,C\n4,0.5,0.5,A\n4,0.5,0.5,A\n",
    "samples_generated.jsonl": _sample("red", [["some text", "x"]]),
    "samples_several.jsonl": _sample("[0, 2]", [["-1.5", "True"], ["-2.5", "False"], ["-2.0", "False"]]),
    "samples_other.jsonl": _sample("1", [["-1.5", "True"], ["-2.5", "False"], ["-2.0", "False"]], acc=1.0),
    "run.yaml": "method:\n  name: uq4ct\n",
    "option.yaml": "train:\n  learing_rate: 1e-4\n",
    "section.yaml": "optimizer:\n  lr: 1e-4\n",
    "flat.yaml": "method: uq4ct\n",
    "list.yaml": "- method\n- train\n",
    "indent.yaml": "method:\n  name: uq4ct\n rank: 4\n",
    "tab.yaml": "method:\n\trank: 4\n",
    "double.yaml": "method:\n  rank: 4\n  rank: 8\n",
    "alias.yaml": "method: &m\n  rank: 4\ntrain: *m\n",
    "type.yaml": "method:\n  rank: many\n  dropout: 1.5\ntrain:\n  max_steps: 2.5\n",
    "choice.yaml": "prompt:\n  pack: fancy\n  max_length: 4\n",
    "ours.yaml": "train:\n  seed: 3\n",
    "foreign.yaml": "method:\n  name: lora\n  top_k: 2\n",
    "yes-no.yaml": "data:\n  choices: [no, yes]\n",
    "columns.yaml": "data:\n  source: questions.jsonl\n  columns: {question: sentence}\n",
    "latin1.yaml": "# für Anna\nmethod:\n  rank: 4\n".encode("latin-1"),
}


def make_inputs(root: Path) -> None:
    """Write every bad input below a folder: files, base models, and runs made from one trained run."""
    for name, content in FILES.items():
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for name, bad in QUESTIONS.items():
        (root / name).write_bytes(f"{GOOD}\n{bad}".encode())
    (root / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (root / "thesis").mkdir()
    (root / "thesis" / "thesis.tex").write_text("precious", encoding="utf-8")
    _make_model(root / "base")
    _make_encoder(root / "encoder")
    _make_bad_models(root)
    train = "train --model base --data questions.jsonl --max-steps 1 --set method.rank=2 --output run"
    outcome = run(train, root)
    if outcome.code:
        raise RuntimeError(f"the run that the bad runs are made from failed: {outcome}")
    _make_bad_runs(root)


def _make_model(folder: Path) -> None:
    """Write a small random Llama with a word tokenizer that knows the letters A to J."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=2048, **sizes)).save_pretrained(folder)
    words = ["<unk>", "<s>", "</s>", "Question", ":", "Answer", *"ABCDEFGHIJ"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def _make_encoder(folder: Path) -> None:
    """Write a small random BERT without a head, with a word tokenizer that puts [SEP] between two texts."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=40, max_position_embeddings=64, **sizes)).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "red", "green", "blue"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def _make_bad_models(root: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(root / "base" / "model.safetensors")
    weights = "model.safetensors"
    (_copy(root, "base", "no-config") / "config.json").unlink()
    (_copy(root, "base", "no-tokenizer") / "tokenizer.json").unlink()
    (_copy(root, "base", "no-weights") / weights).unlink()
    (_copy(root, "base", "broken-config") / "config.json").write_text('{"model_type": ', encoding="utf-8")
    pickled = _copy(root, "base", "pickled")
    (pickled / weights).rename(pickled / "pytorch_model.bin")
    _edit(_copy(root, "base", "albert") / "config.json", model_type="albert", architectures=["AlbertForMaskedLM"])
    _edit(_copy(root, "base", "own-code") / "config.json", model_type="mine", auto_map={"AutoConfig": "code.Mine"})
    lacking = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.up_proj" not in name}
    save_file(lacking, _copy(root, "base", "lacking") / weights, metadata={"format": "pt"})
    moved = {name: tensor + torch.ones_like(tensor) for name, tensor in tensors.items()}
    save_file(moved, _copy(root, "base", "other-base") / weights, metadata={"format": "pt"})
    large = _copy(root, "base", "large-tokenizer") / "tokenizer.json"
    tokenizer = json.loads(large.read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"]["zebra"] = 40
    large.write_text(json.dumps(tokenizer), encoding="utf-8")
    swapped = _copy(root, "base", "other-tokenizer") / "tokenizer.json"
    tokenizer["model"]["vocab"] |= {"zebra": 16, "A": 7, "B": 6}
    swapped.write_text(json.dumps(tokenizer), encoding="utf-8")


def _make_bad_runs(root: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = "adapter_model.safetensors"
    flipped = _copy(root, "run", "run-flipped") / adapter
    content = bytearray(flipped.read_bytes())
    content[-5] ^= 1
    flipped.write_bytes(content)
    (_copy(root, "run", "run-missing") / "adapter_config.json").unlink()
    short = _copy(root, "run", "run-short") / adapter
    short.write_bytes(short.read_bytes()[:1000])
    (_copy(root, "run", "run-unfinished") / "manifest.json").unlink()
    (_copy(root, "run", "run-broken-manifest") / "manifest.json").write_text('{"files": ', encoding="utf-8")
    _edit(_copy(root, "run", "run-odd-manifest") / "manifest.json", files={"config.yaml": "fine"})
    outside = _copy(root, "run", "run-outside") / "manifest.json"
    _edit(outside, files={"../questions.jsonl": {"bytes": 1, "sha256": "0"}})
    _edit(_copy(root, "run", "run-edited") / "adapter_config.json", top_k=1)
    for name, text in {"text": "0.5", "high": '{"threshold": 1.5}', "field": '{"threshold": 0.5, "n": "ten"}'}.items():
        (_copy(root, "run", f"run-abstain-{name}") / "abstain.json").write_text(text, encoding="utf-8")

    tensors = load_file(root / "run" / adapter)
    changed = _copy(root, "run", "run-replaced")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, changed / adapter, metadata={"format": "pt"})
    _sign(changed)
    cut = _copy(root, "run", "run-other-rank")
    _edit(cut / "adapter_config.json", r=4)
    _sign(cut)
    part = _copy(root, "run", "run-part")
    first = dict(list(tensors.items())[: len(tensors) // 2])
    save_file(first, part / adapter, metadata={"format": "pt"})
    _sign(part)
    pickled = _copy(root, "run", "run-pickled")
    (pickled / adapter).rename(pickled / "adapter_model.bin")
    _sign(pickled)
    newer = _copy(root, "run", "run-newer")
    text = (newer / "config.yaml").read_text(encoding="utf-8")
    (newer / "config.yaml").write_text(text.replace("prompt:\n", "prompt:\n  colour: red\n"), encoding="utf-8")
    _sign(newer)
    foreign = root / "peft-adapter"
    foreign.mkdir()
    for name in ("adapter_config.json", adapter):
        shutil.copy(root / "run" / name, foreign / name)


def _copy(root: Path, source: str, name: str) -> Path:
    return Path(shutil.copytree(root / source, root / name))


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def _sign(folder: Path) -> None:
    """Write a manifest that fits the files that are there: the work of someone who hides a change."""
    from uq4ct.manifest import write_manifest
    from uq4ct.runs import FIT_FILES

    write_manifest(folder, [name for name in (*FIT_FILES, "adapter_model.bin") if (folder / name).is_file()])


# ------------------------------------------------------------------------------------------------ cases

_TRAIN = "train --model base --data questions.jsonl --output new"
_COMPARE = "compare --model base --data questions.jsonl --eval-data questions.jsonl"


def _escaped(text: str) -> str:
    """Return a text for a cell of a Markdown table."""
    special = {"|": "&#124;", "`": "&#96;", "*": "&#42;", "[": "&#91;"}
    return "".join(special.get(character, character) for character in html.escape(text, quote=False))


def _row(name: str, wrong: str) -> Case:
    """A bad row of a question file, quoted where it is short."""
    bad = QUESTIONS[name]
    shown = f"<br><code>{_escaped(bad)}</code>" if len(bad) <= 100 else ""
    return Case(f"{wrong}{shown}", f"train --data {name} --output new")


def _config(name: str, wrong: str) -> Case:
    content = FILES[name]
    text = content.decode("latin-1") if isinstance(content, bytes) else content
    lines = "<br>".join(f"<code>{_escaped(line)}</code>" for line in text.splitlines())
    return Case(f"{wrong}<br>{lines}", f"train --config {name} --output new")


CASES: dict[str, tuple[Case, ...]] = {
    "Commands and flags": (
        Case("Misspelt verb", "trian"),
        Case("Misspelt flag", "train --modle base"),
        Case("Misspelt method", "train --method uq4tc --output new"),
        Case("Misspelt preset", "train --preset papr --output new"),
        Case("No output folder", "train --data questions.jsonl"),
        Case("No steps", f"{_TRAIN} --max-steps 0"),
        Case("Fewer than no steps", f"{_TRAIN} --set train.max_steps=-5"),
        Case("Seed that is no number", f"{_TRAIN} --seed one"),
        Case("`--set` without a section", f"{_TRAIN} --set rank=3"),
        Case("`--set` with an unknown option", f"{_TRAIN} --set method.rnk=3"),
        Case("More experts per token than experts", f"{_TRAIN} --set method.top_k=9"),
        Case("Experts for three layers, the model has two", f"{_TRAIN} --set method.num_experts=[2,2,2]"),
        Case(
            "A calibration target that FEU as a vector cannot follow",
            f"{_TRAIN} --set method.calibration_target=mixture --set method.feu_reduction=vector",
        ),
        Case(
            "Too few questions to hold some out",
            f"{_TRAIN} --set method.calibration_questions=apart --set method.held_out_every=60",
        ),
        Case("Modules that the model does not have", f"{_TRAIN} --set method.target_modules=[q_prj]"),
        Case("Chat prompts for a model without a chat template", f"{_TRAIN} --set prompt.pack=chat"),
        Case("Every question kept for calibration", f"{_TRAIN} --set data.calibration_fraction=1"),
        Case("Calibration by FEU of a method without a router", f"{_TRAIN} --method lora+feu"),
        Case("Vector scaling on four questions", f"{_TRAIN} --method uq4ct+vector"),
        Case(
            "A prior chosen on a calibration split that is not kept",
            f"{_TRAIN} --method laplace --preset paper --set method.prior=grid",
        ),
        Case(
            "The default method without a calibration split",
            "train --model base --data questions.jsonl --output new --set data.calibration_fraction=0",
        ),
        Case("Optimizer that transformers does not know", f"{_TRAIN} --set train.optim=foo"),
        Case("Evaluation while training", f"{_TRAIN} --set train.eval_strategy=steps"),
        Case("Evaluation without data", "evaluate run"),
        Case("The same data twice", "evaluate run --data questions.jsonl questions.jsonl"),
        Case("Revision of a task that comes with the package", "evaluate run --data tiny@validation"),
        Case("Split that a task does not have", "evaluate run --data tiny:valid"),
        Case("Part of a task's name that is empty", "evaluate run --data tiny:"),
        Case("Split of a file", "evaluate run --data questions.jsonl --split test"),
        Case("Confidence above 1", "evaluate run --data questions.jsonl --abstain-below 1.5"),
        Case("Two abstain rules", "evaluate run --data questions.jsonl --abstain-below 0.5 --target-accuracy 0.9"),
        Case("Target accuracy in per cent", "evaluate run --data questions.jsonl --target-accuracy 90"),
        Case("Too few answers for a guarantee", "evaluate run --data questions.jsonl --target-accuracy 0.9"),
        Case("A rule for data that is not there", "evaluate run --data none.jsonl --abstain-below 0.5"),
        Case("Predictions as csv", "predict run questions.jsonl -o out.csv"),
        Case("Predictions into a folder that is not there", "predict run questions.jsonl -o none/out.jsonl"),
        Case("Predictions over their own input", "predict run questions.jsonl -o questions.jsonl"),
        Case("One choice", "ask run -q Which? -c red"),
        Case("Option of one method that all have in common", f"{_COMPARE} --methods lora[eval.bins=5] -o new"),
        Case("Method that its calibration split cannot serve", f"{_COMPARE} --methods lora,lora+feu -o new"),
        Case("Engine that is not there", f"{_COMPARE} --methods lora -o new --engine slurm --dry-run"),
        Case("Comparison below a file", f"{_COMPARE} --methods lora -o notes.txt/new"),
        Case("Comparison on nothing", "compare --model base --data '' --methods lora -o new"),
        Case("Configuration over another file", "init -o run.yaml"),
        Case("Configuration into a folder that is not there", "init -o none/run.yaml"),
        Case("Misspelt method of a new configuration", "init -o new.yaml --method uq4tc"),
        Case("Listing of something unknown", "ls task"),
        Case("Report that is no page", "report run -o report.pdf"),
        Case("Report on nothing", "report thesis -o report.html"),
        Case("Report on a run that was not evaluated", "report run -o report.html"),
    ),
    "Configuration files": (
        Case("No such file", "train --config none.yaml --output new"),
        _config("option.yaml", "Misspelt option"),
        _config("section.yaml", "Unknown section"),
        _config("flat.yaml", "Section without options"),
        _config("list.yaml", "A list"),
        _config("indent.yaml", "Broken indentation"),
        _config("tab.yaml", "Tab"),
        _config("double.yaml", "Option given twice"),
        _config("alias.yaml", "YAML alias"),
        _config("type.yaml", "Three wrong values"),
        _config("choice.yaml", "Unknown prompt, and a cut-off that holds none"),
        _config("ours.yaml", "Option that belongs elsewhere"),
        _config("foreign.yaml", "Option of another method"),
        _config("yes-no.yaml", "`no` and `yes`, which YAML reads as false and true"),
        _config("columns.yaml", "Column that the file does not have"),
        _config("latin1.yaml", "Not UTF-8"),
    ),
    "Question files": (
        Case("No such file", "train --data question.jsonl --output new"),
        Case("Misspelt task", "train --data openbokqa --output new"),
        Case("Commas between tasks", "evaluate run --data tiny,tiny-near"),
        Case("Task that is not below the data root", "train --data openbookqa --data-root thesis --output new"),
        Case("Folder without questions", "predict run thesis -o out.jsonl"),
        Case("Empty file", "train --data empty.jsonl --output new"),
        Case("Unknown kind of file", "train --data notes.txt --output new"),
        Case("One JSON array", "train --data array.json --output new"),
        Case("UTF-16", "train --data utf16.jsonl --output new"),
        Case("Latin-1", "train --data latin1.csv --output new"),
        Case("Columns separated by semicolons", "train --data semicolon.csv --output new"),
        Case("Comma in an unquoted field", "train --data unquoted.csv --output new"),
        Case("Columns of other names", "train --data columns.jsonl --output new"),
        _row("cut.jsonl", "Cut-off last line"),
        _row("python.jsonl", "Python instead of JSON"),
        _row("list-row.jsonl", "Row that is no object"),
        _row("twice.jsonl", "Key given twice"),
        _row("nan.jsonl", "NaN"),
        _row("surrogate.jsonl", "Half a character"),
        _row("null-question.jsonl", "No question"),
        _row("number-question.jsonl", "Question that is a number"),
        _row("one-choice.jsonl", "One choice"),
        _row("empty-choice.jsonl", "Empty choice"),
        _row("mixed.jsonl", "Choices in another form than before"),
        _row("letter.jsonl", "Answer that is no choice"),
        _row("many-answers.jsonl", "Two answers"),
        _row("missing-answer.jsonl", "No answer"),
        _row("hidden-answer.jsonl", "Hidden answer of a public test split"),
        _row("equal-gold.jsonl", "Right answer that stands at two letters"),
        _row("same-id.jsonl", "Id used twice"),
        Case("More choices than the tokenizer has letters", "train --model base --data eleven.jsonl --output new"),
        Case(
            "Question over the training cut-off",
            "train --model base --data long.jsonl --method uq4ct --set data.calibration_fraction=0 --output new",
        ),
    ),
    "Base models": (
        Case("No such folder", "train --model ./none --output new"),
        Case("A file", "train --model base/config.json --output new"),
        Case("Folder without config.json", "train --model no-config --output new"),
        Case("Broken config.json", "train --model broken-config --output new"),
        Case("An adapter", "train --model peft-adapter --output new"),
        Case("No tokenizer", "train --model no-tokenizer --output new"),
        Case("Tokenizer of a larger model", "train --model large-tokenizer --output new"),
        Case("No weights", "train --model no-weights --output new"),
        Case("Weights as pickle", "train --model pickled --output new"),
        Case("A weight is missing", "train --model lacking --output new"),
        Case("An encoder of an unknown family", "train --model albert --output new"),
        Case("An encoder as a causal model", "train --model encoder --output new --set model.kind=causal"),
        Case("A causal model as a classifier", "train --model base --output new --set model.kind=classification"),
        Case("Model that brings its own code", "train --model own-code --output new"),
        Case(
            "Code from the hub that nobody has read",
            "train --model someone/model --set model.trust_remote_code=true --output new",
        ),
    ),
    "Encoders": (
        Case("Loss over a vocabulary", f"{ENCODER} --set method.answer_loss=vocabulary"),
        Case("FEU at the last token", f"{ENCODER} --set method.feu_tokens=last"),
        Case("Wording for causal models", f"{ENCODER} --set prompt.pack=chat prompt.scoring=options"),
        Case("New head that nobody trains", f"{ENCODER} --method zero_shot"),
        Case(
            "Classifier, and a row with other choices",
            "train --model encoder --data eleven.jsonl --set model.kind=classification --output new",
        ),
        Case("Sequence over the model's context", "train --model encoder --data long.jsonl --output new"),
    ),
    "Runs and adapters": (
        Case("No such run", "ask none -q Which? -c red -c green"),
        Case("Folder that is no run", "ask thesis -q Which? -c red -c green"),
        Case("A file", "ask questions.jsonl -q Which? -c red -c green"),
        Case("Adapter without its run", "ask peft-adapter -q Which? -c red -c green"),
        Case("Training was interrupted", "ask run-unfinished -q Which? -c red -c green"),
        Case("One bit of the adapter changed", "ask run-flipped -q Which? -c red -c green"),
        Case("Adapter cut off", "ask run-short -q Which? -c red -c green"),
        Case("File missing", "ask run-missing -q Which? -c red -c green"),
        Case("Adapter options edited", "ask run-edited -q Which? -c red -c green"),
        Case("Manifest cut off", "ask run-broken-manifest -q Which? -c red -c green"),
        Case("Manifest of another form", "ask run-odd-manifest -q Which? -c red -c green"),
        Case("Manifest that names a file outside", "ask run-outside -q Which? -c red -c green"),
        Case("Another base model", "ask run --base other-base -q Which? -c red -c green"),
        Case("The base model with another tokenizer", "ask run --base other-tokenizer -q Which? -c red -c green"),
        Case("Adapter replaced, and the manifest with it", "ask run-replaced -q Which? -c red -c green"),
        Case("Half of an adapter, and a manifest that fits", "ask run-part -q Which? -c red -c green"),
        Case("Adapter of another rank, and a manifest that fits", "ask run-other-rank -q Which? -c red -c green"),
        Case("Adapter as pickle, and a manifest that fits", "ask run-pickled -q Which? -c red -c green"),
        Case("Run of another version", "ask run-newer -q Which? -c red -c green"),
        Case("Abstain rule that is a number", "ask run-abstain-text -q Which? -c red -c green"),
        Case("Abstain threshold above 1", "ask run-abstain-high -q Which? -c red -c green"),
        Case("Abstain rule with a wrong field", "evaluate run-abstain-field --data questions.jsonl"),
        Case("Training into another run", "train --model base --data questions.jsonl --output run --max-steps 2"),
        Case(
            "Training into an interrupted run without `--resume`",
            "train --model base --data questions.jsonl --max-steps 1 --set method.rank=2 --output run-unfinished",
        ),
        Case("Training into a foreign folder", "train --model base --data questions.jsonl --output thesis"),
        Case("Training into a file", "train --model base --data questions.jsonl --output notes.txt"),
    ),
    "Prediction files": (
        Case("No such file", "metrics none.jsonl"),
        Case("Unknown kind of file", "metrics notes.txt"),
        Case("Probabilities that sum to 1.4", "metrics predictions-sum.jsonl"),
        Case("Logits instead of probabilities", "metrics predictions-logits.jsonl"),
        Case("Label that is no choice", "metrics predictions-label.jsonl"),
        Case("No labels", "metrics predictions-unlabelled.jsonl"),
        Case("Confidence without correctness", "metrics predictions-no-column.csv"),
        Case("Correctness without a label", "metrics predictions-unlabelled.csv"),
        Case("Question file", "metrics questions.jsonl"),
        Case("Confidence in per cent", "metrics predictions-percent.csv"),
        Case("Log-probabilities of a larger vocabulary", "metrics predictions-vocabulary.csv"),
        Case("Five rows, four mistakes", "metrics predictions-many.csv"),
        Case("Two columns that could be the label", "metrics predictions-two.csv"),
        Case("Misspelt field", "metrics predictions-two.csv --columns labels=gold"),
        Case("Misspelt column", "metrics predictions-two.csv --columns label=golf"),
        Case("A run", "metrics run"),
        Case("Folder without samples of lm-eval", "metrics thesis"),
        Case("lm-eval: generated text", "metrics samples_generated.jsonl"),
        Case("lm-eval: several right answers", "metrics samples_several.jsonl"),
        Case("lm-eval: scored in another way", "metrics samples_other.jsonl"),
        Case("lm-eval: unknown kind of likelihood", "metrics samples_other.jsonl --likelihood norm"),
    ),
}


# ------------------------------------------------------------------------------------------------ running and writing


def run(command: str, root: Path) -> Outcome:
    """Run one command line in a folder; return its exit code, its error lines and what it changed."""
    from uq4ct import cli

    before = _state(root)
    error, output = io.StringIO(), io.StringIO()
    with contextlib.chdir(root), contextlib.redirect_stderr(error), contextlib.redirect_stdout(output):
        code = cli.invoke(shlex.split(command))
    lines = error.getvalue().splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith(("error: ", "Error: "))), len(lines))
    after = _state(root)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return Outcome(code, tuple(_steady(line) for line in lines[first:]), tuple(changed))


def _state(root: Path) -> dict[str, tuple[int, int]]:
    return {
        path.relative_to(root).as_posix(): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in root.rglob("*")
        if path.is_file()
    }


def _steady(line: str) -> str:
    """Replace what differs between machines."""
    line = re.sub(r"\b[0-9a-f]{12,16}\b", "<hash>", line)
    return re.sub(r"up to 0\.\d+ away", "up to <number> away", line)


def rows() -> Iterator[tuple[str, Case, Outcome]]:
    """Run every case in a fresh folder; yield section, case and outcome."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "work"  # a data set takes part of its name from its folder
        root.mkdir()
        make_inputs(root)
        for section, cases in CASES.items():
            for case in cases:
                yield section, case, run(case.command, root)


def page(outcomes: list[tuple[str, Case, Outcome]]) -> str:
    """Return the page as Markdown. Raises RuntimeError where a case was not refused, or not without a trace."""
    wrong = [
        f"{case.command}: exit code {outcome.code}, changed {list(outcome.changed)}, said {list(outcome.message)}"
        for _, case, outcome in outcomes
        if outcome.code != 2 or outcome.changed or not outcome.message
    ]
    if wrong:
        raise RuntimeError("\n".join(wrong))
    parts = [_HEAD.format(count=len(outcomes))]
    for section in CASES:
        parts.append(f"\n## {section}\n\n| What was wrong | Command | Message |\n| --- | --- | --- |\n")
        for name, case, outcome in outcomes:
            if name == section:
                message = "<br>".join(f"<code>{_escaped(line)}</code>" for line in outcome.message)
                parts.append(f"| {case.wrong} | <code>uq4ct {_escaped(case.command)}</code> | {message} |\n")
    return "".join(parts)


_HEAD = """# Error messages

What `uq4ct` says to {count} kinds of bad input. Each of these commands exits with code 2 and changes no file. A message
names the place, what was expected, what was found and what to do; all problems of a file or configuration come at once.

`make docs-errors` writes this page from real runs, in a folder with the inputs of `docs/errors.py`; a test compares the
two. `<hash>` and `<number>` stand for values that differ between machines.
"""


if __name__ == "__main__":
    PAGE.write_text(page(list(rows())), encoding="utf-8")
    print("wrote docs/errors.md", file=sys.stderr)
