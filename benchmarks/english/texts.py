"""Read the corpus: documents are lines between empty lines; files that give a benchmark away are left out."""

from __future__ import annotations

import gzip
from pathlib import Path

# The facts that OpenBookQA's questions were written on, facts that its writers added, and sentences that explain ARC's
# questions, tests among them: a model that is evaluated on either must not have read them.
GIVEN_AWAY = ("openbookqa_core_science_facts", "openbookqa_crowdsourced_facts", "worldtree_sentences")
DICTIONARY = "open_english_wordnet"


def read_corpus(folder: Path) -> dict[str, list[list[str]]]:
    """Return the documents of each file that is read, each a list of lines.

    Raises FileNotFoundError when the folder has no text.
    """
    files = sorted(path for path in folder.glob("*.txt.gz") if path.name.removesuffix(".txt.gz") not in GIVEN_AWAY)
    if not files:
        raise FileNotFoundError(f"{folder}: no *.txt.gz here")
    return {path.name.removesuffix(".txt.gz"): _documents(path) for path in files}


def _documents(path: Path) -> list[list[str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        text = file.read()
    return [lines for part in text.split("\n\n") if (lines := [line for line in part.split("\n") if line.strip()])]
