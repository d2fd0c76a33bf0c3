"""Read multiple-choice questions strictly: every bad row is listed with its place, and nothing is ever half-read."""

from uq4ct.data.config import Columns, DataConfig
from uq4ct.data.problems import Rejected
from uq4ct.data.rows import one_question
from uq4ct.data.sources import NoData, QuestionSet, calibration_notes, calibration_split, load, overlap, read_file
from uq4ct.data.splits import split_calibration

__all__ = [
    "Columns",
    "DataConfig",
    "NoData",
    "QuestionSet",
    "Rejected",
    "calibration_notes",
    "calibration_split",
    "load",
    "one_question",
    "overlap",
    "read_file",
    "split_calibration",
]
