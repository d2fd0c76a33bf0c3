"""The bundled benchmark: sparse training questions, a test and five shifted tests, with known probabilities."""

from uq4ct.tasks.base import Part, Task
from uq4ct.tasks.own import OWN


def _bundled(name: str, summary: str, **files: str) -> Task:
    splits = {split: (Part(f"{file}.jsonl"),) for split, file in files.items()}
    return Task(name=name, summary=summary, schema=OWN, splits=splits, paper_split="test")


TINY = _bundled(
    "tiny",
    "bundled world: questions like those it was trained on",
    train="train",
    calibration="calibration",
    validation="validation",
    test="test",
)
NEAR = _bundled("tiny-near", "bundled world, shifted: new phrasings and a new relation", test="near")
RELATION = _bundled("tiny-relation", "bundled world, shifted: a new relation, known phrasings", test="relation")
WORDING = _bundled("tiny-wording", "bundled world, shifted: new phrasings, known relations", test="wording")
FAR = _bundled("tiny-far", "bundled world, shifted: another kind of entity", test="far")
UNANSWERABLE = _bundled("tiny-unanswerable", "bundled world: facts that were never stated", test="unanswerable")
