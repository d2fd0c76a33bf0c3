"""How good the answers and their confidences are: pure NumPy functions in float64, one file per kind."""

from uq4ct.metrics.answers import Answers, Metric, Settings, Undefined
from uq4ct.metrics.summary import METRICS, list_metrics, summarize

__all__ = ["METRICS", "Answers", "Metric", "Settings", "Undefined", "list_metrics", "summarize"]
