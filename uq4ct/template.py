"""The commented configuration that ``uq4ct init`` writes."""

from __future__ import annotations

import json

from uq4ct.config import Layer, preset_layers, resolve


def commented_config(*, task: str, model: str, method: str, folder: str) -> str:
    """Return a configuration file with every common option, what it is in preset ``product`` and what it means.

    Raises UserError for an unknown method.

    >>> "name: uq4ct+vector" in commented_config(task="tiny", model="tiny", method="uq4ct+vector", folder="runs/a")
    True
    """
    usual = resolve([*preset_layers("product"), Layer.of({"method": {"name": method}}, "--method")])
    options = [f"  name: {method}" + " " * max(1, 26 - len(method)) + "# uq4ct ls methods"]
    for name, value in usual.method.options().items():
        line = f"  {name}: {'null' if value is None else json.dumps(value)}"
        comment = METHOD_COMMENTS.get(name, "")
        options.append(f"{line:<34}# {comment}" if comment else line)
    return TEMPLATE.format(
        task=json.dumps(task, ensure_ascii=False),
        model=json.dumps(model, ensure_ascii=False),
        folder=json.dumps(folder, ensure_ascii=False),
        method="\n".join(options),
        learning_rate=usual.train.learning_rate,
    )


METHOD_COMMENTS = {
    "num_experts": "LoRA experts per layer; a list gives one number per layer",
    "top_k": "experts that a token uses",
    "rank": "rank of each adapter",
    "alpha": "the update is scaled by alpha / rank",
    "dropout": "on the adapter's input, in training only",
    "routing": "ffn_block: one router per block; per_linear: one per linear",
    "mixing": "rescaled: kept probabilities sum to one; raw: as they are",
    "rslora": "scale by alpha / sqrt(rank)",
    "target_modules": "null: attention and FFN, found for the model",
    "answer_loss": "choices: softmax over the letters; vocabulary: over all tokens",
    "balance_weight": "alpha of Eq. 11, weight of the load balance",
    "balance_counts": "first: each token's first choice; top_k: all kept",
    "balance_scope": "layer: balanced in each layer; pooled: over all layers",
    "balance_probabilities": "full softmax, or only the kept values",
    "calibration_weight": "beta of Eq. 11: 0 is MixLoRA",
    "calibration_schedule": "constant, or incremental over 50 steps (Eq. 12)",
    "calibration_target": "indicator (Eq. 10); probability or mixture of the gold answer; shuffled: a control",
    "calibration_questions": "all; rotating or apart: those that the answer loss leaves out",
    "held_out_every": "one question in so many is left out, unless it is all",
    "smoothing": "share of the target spread over the question's own choices",
    "router_temperature": "divides the router's logits: below 1 it is surer, and FEU higher",
    "router_samples": "passes, each with experts drawn by the router; 1: the k most likely",
    "feu_reduction": "mass (Eq. 9), top1 or vector",
    "feu_tokens": "prompt, or last: the answer position only",
}

TEMPLATE = """\
# Check it with `uq4ct validate --config FILE`, run it with `uq4ct train --config FILE`.

model:
  name: {model}                      # tiny (bundled), a folder, or a hub id
  kind: auto                        # causal, multiple_choice, classification; auto: by its architecture
  revision: null                    # commit or tag on the hub
  dtype: auto                       # auto, float32, bfloat16, float16
  quantization: none                # none, nf4, int8 (needs bitsandbytes and a GPU)

data:
  source: {task}                    # task (`uq4ct ls tasks`), file (jsonl, csv, parquet) or hub id
  root: hub                         # where named tasks are read: hub, or a folder <task>/<split>.jsonl
  calibration_fraction: 0.1         # taken from the training questions, never from the evaluation split
  limit: null                       # use so many of the training questions, calibration included
  # columns: {{question: q, choices: options, answer: gold, context: passage}}   # names in your file
  # choices: ["negative", "positive"]                                            # the same choices for every row

prompt:
  pack: plain                       # plain, moe_peft, laplace_lora, chat (the tokenizer's own template)
  scoring: letters                  # letters: one forward pass; options: likelihood of each choice's text
  max_length: 512                   # training only, tokens; only the context is ever shortened
  evaluation_max_length: null       # the same at calibration, evaluation and prediction; null: nothing is shortened

method:
{method}

train:                              # names of transformers.TrainingArguments; any other may be added
  num_train_epochs: 2
  per_device_train_batch_size: 16
  gradient_accumulation_steps: 1
  learning_rate: {learning_rate:<18} # that of preset product; mixtures learn with larger steps
  lr_scheduler_type: constant
  weight_decay: 0.01
  save_steps: 100

eval:
  batch_size: 32
  bins: 15                          # equal-width bins of the expected calibration error
  resamples: 1000                   # of the bootstrap behind every interval

output:
  folder: {folder}
  seed: 1                           # initialisation, data order, dropout
  keep_checkpoints: false
"""
