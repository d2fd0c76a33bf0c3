"""MMLU (Hendrycks et al., 2020): the four groups of subjects of the paper's appendix A.6, all evaluated on test.

The validation files have as few as 9 rows, so the paper's protocol reads test here too.
"""

from uq4ct.tasks.base import Part, Schema, Task

SCHEMA = Schema(name="MMLU", group="subject", marks=("subject",), zero_based=True)


def _group(name: str, summary: str, *subjects: str) -> Task:
    return Task(
        name=f"mmlu-{name}",
        summary=f"MMLU, {summary} (larger shift in Table 2)",
        schema=SCHEMA,
        splits={
            split: tuple(Part(f"mmlu/{subject}/{split}.jsonl", subject, split, subject) for subject in subjects)
            for split in ("dev", "validation", "test")
        },
        hub_id="cais/mmlu",
        paper_split="test",
    )


COMPUTER_SCIENCE = _group(
    "cs",
    "four computer science subjects",
    "college_computer_science",
    "computer_security",
    "high_school_computer_science",
    "machine_learning",
)
ENGINEERING = _group("eng", "electrical engineering", "electrical_engineering")
LAW = _group("law", "three law subjects", "international_law", "jurisprudence", "professional_law")
HEALTH = _group(
    "health",
    "seven health subjects",
    "anatomy",
    "clinical_knowledge",
    "college_medicine",
    "human_aging",
    "nutrition",
    "professional_medicine",
    "virology",
)
