"""A grid of runs, method x task x seed: planned and checked as a whole, then run here or on a cluster, and continued.

``plan`` turns methods, seeds and sources into cells; ``run_cells`` fits and evaluates those that have no result yet.
"""

from uq4ct.campaign.cells import Cell, Outcome, Status, state
from uq4ct.campaign.estimate import Estimate, estimate
from uq4ct.campaign.planning import Plan, plan
from uq4ct.campaign.running import ENGINES, check_engine, run_cells
from uq4ct.campaign.specs import MethodSpec, parse_methods

__all__ = [
    "ENGINES",
    "Cell",
    "Estimate",
    "MethodSpec",
    "Outcome",
    "Plan",
    "Status",
    "check_engine",
    "estimate",
    "parse_methods",
    "plan",
    "run_cells",
    "state",
]
