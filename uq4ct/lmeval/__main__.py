"""The harness's own command line, with our model, metrics and aggregations registered."""

from lm_eval.__main__ import cli_evaluate

import uq4ct.lmeval.metrics
import uq4ct.lmeval.model  # noqa: F401

if __name__ == "__main__":
    cli_evaluate()
