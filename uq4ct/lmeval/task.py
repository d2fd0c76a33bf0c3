"""A multiple-choice task of lm-evaluation-harness that fills our metrics: ``class: !function`` in the task's yaml."""

from __future__ import annotations

from typing import Any

from lm_eval.api.task import ConfigurableTask

from uq4ct.lmeval.metrics import NAMES


class CalibratedTask(ConfigurableTask):
    """Read the same yaml as any task, and give ``uq4ct_ece``, ``uq4ct_nll``, ``uq4ct_brier``, ``uq4ct_auroc`` values.

    The harness itself fills only the metrics that it knows by name.
    """

    def __init__(self, data_dir: Any = None, cache_dir: Any = None, download_mode: Any = None, config: Any = None):
        plain = {key: value for key, value in dict(config or {}).items() if key != "class"}
        super().__init__(data_dir, cache_dir, download_mode, config=plain)
        if self.OUTPUT_TYPE != "multiple_choice":
            raise ValueError(f"CalibratedTask is for multiple_choice, got output_type {self.OUTPUT_TYPE}")
        self._shows_likelihood = "likelihood" in self._metric_fn_list
        self._metric_fn_list.setdefault("likelihood", None)

    def process_results(self, doc: Any, results: Any) -> dict[str, Any]:
        """Return the harness's own metrics of a document, and for each of ours the gold answer and log-likelihoods."""
        found = super().process_results(doc, results)
        gold, likelihoods = found["likelihood"] if self._shows_likelihood else found.pop("likelihood")
        pair = (gold, [float(x) for x in likelihoods])
        return found | {name: pair for name in NAMES if name in self._metric_fn_list}
