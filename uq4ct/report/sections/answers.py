"""What else the answers and logs tell: known truth, kinds of questions, abstaining, mistakes, training."""

from __future__ import annotations

from collections.abc import Iterator

from uq4ct.report.blocks import Block, Cell, Drawn, Group, Mistakes, Section, Table, number, said, shortened
from uq4ct.report.figures import router
from uq4ct.report.figures import training as training_figures
from uq4ct.report.material import Json, Material, Member, Series
from uq4ct.report.tables import decimals, percent


def truth(material: Material) -> Section | None:
    """Show the distance to known probabilities, and each kind of question."""
    groups = []
    for task in material.tasks:
        series = material.of_task(task)
        blocks: list[Block] = []
        known = [one for one in series if one.value("truth_gap") is not None]
        if known:
            rows = tuple(
                (said(s.label), number(s.result, "truth_gap", percent), number(s.result, "excess_log_loss", decimals))
                for s in known
            )
            header: tuple[str, ...] = ("method", "gap to the truth, points", "log-loss above the best possible, nats")
            blocks.append(Table(f"Distance to the truth on {task}", header, rows, hidden_caption=True))
        strata = tuple(row for one in series for row in _strata(one))
        if strata:
            header = ("method", "kind of question", "n", "accuracy %", "true probability %", "confidence %", "FEU")
            blocks.append(Table(f"By kind of question, on {task}", header, strata, hidden_caption=True, folded=True))
        if blocks:
            groups.append(Group(task, tuple(blocks)))
    if not groups:
        return None
    intro = (
        "Where the true probability of each answer is known, confidence can be compared with it directly, without "
        "bins: the gap is the mean distance between confidence and the true probability of the chosen answer."
    )
    return Section("truth", "Known truth", "Known truth, and kinds of questions", intro, tuple(groups))


def _strata(series: Series) -> Iterator[tuple[Cell, ...]]:
    shown = (("accuracy", percent), ("truth", percent), ("confidence", percent), ("feu", decimals))
    for name, row in router.strata_of(series).items():
        cells = [Cell("–") if key not in row else Cell(show(row[key])) for key, show in shown]
        yield (said(series.label), said(name), Cell(f"{row['n']:,.0f}"), *cells)


def abstaining(material: Material) -> Section | None:
    """Show what abstain rules let through, each evaluation with the rule that it was made under."""
    present = {(run.label, run.seed): run.rule for run in material.runs}
    groups = []
    for task in material.tasks:
        series = material.of_task(task)
        rows = tuple(row for s in series for m in s.members for row in _answered(s, m, present.get((s.label, m.seed))))
        if rows:
            header = ("method", "answered %", "accuracy % of these", "accuracy % of all", "abstain rule")
            groups.append(Group(task, (Table(f"Abstaining on {task}", header, rows, hidden_caption=True),)))
    if not groups:
        return None
    intro = (
        "What the abstain rule of each evaluation lets through. Its promise holds for questions like those of the "
        "calibration split, not under shift. Where a run was given another rule since, that stands below."
    )
    return Section("abstaining", "Abstaining", "Abstaining", intro, tuple(groups))


def _answered(series: Series, member: Member, present: str | None) -> Iterator[tuple[Cell, ...]]:
    """Yield the row of an evaluation that abstains, or whose run has a rule; ``present`` is None without a run."""
    everything = {"coverage": 1.0, "accuracy": member.metrics["accuracy"], "interval": None}
    answered = member.metrics.get("answered") or everything
    if answered["coverage"] < 1 or member.rule or present:
        name = series.label if len(series.members) == 1 else f"{series.label} seed {member.seed}"
        kept = {"accuracy": answered["accuracy"], "intervals": {"accuracy": answered["interval"]}}
        yield (
            said(name),
            number(answered, "coverage", percent),
            number(kept, "accuracy", percent),
            number(member.metrics, "accuracy", percent),
            _ruled(member.rule, present),
        )


def _ruled(rule: str | None, present: str | None) -> Cell:
    """Print the rule of an evaluation and, where that differs, the one that its run has now."""
    words = "not told" if rule is None else rule or "none"
    if present is None or rule == present:
        return said(words)
    return said(words, f"the run's rule now: {present or 'none'}")


def mistakes(material: Material) -> Section | None:
    """Show the wrong answers that were given with the highest confidence."""
    groups = []
    for task in material.tasks:
        blocks = [
            Mistakes(one.label, tuple(map(_mistake, one.members[0].surest_mistakes)))
            for one in material.of_task(task)
            if one.members[0].surest_mistakes
        ]
        if blocks:
            groups.append(Group(task, tuple(blocks), folded=True))
    first = " (of the first seed)" if material.has_seeds else ""
    intro = (
        f"Wrong answers with the highest confidence{first}: worth reading, for they are a model's blind spots or the "
        "data's wrong labels."
    )
    return Section("mistakes", "Surest mistakes", "Surest mistakes", intro, tuple(groups)) if groups else None


def _mistake(row: Json) -> Json:
    return {
        "question": shortened(row.get("question") or f"id {row['id']}", 280),
        "given": _choice(row, row["prediction"]),
        "gold": _choice(row, row["label"]),
        "confidence": percent(row["confidence"]),
    }


def _choice(row: Json, label: str) -> str:
    labels = list(row["probabilities"])
    text = row["choices"][labels.index(label)] if len(row.get("choices") or ()) == len(labels) else label
    return label if text == label else f"{label}. {shortened(text, 100)}"


def training(material: Material) -> Section | None:
    """Show what trainings logged."""
    groups = []
    for label in (name for name in material.labels if not material.is_variant(name)):
        figure = training_figures.training(label, [run for run in material.runs if run.label == label])
        if figure is not None:
            groups.append(Group(label, (Drawn(figure),)))
    several = ", a line per seed" if material.has_seeds else ""
    suffix = " A suffix, as +temperature, trains nothing." if material.has_variants else ""
    intro = f"What was logged over the steps of a training{several}.{suffix}"
    return Section("training", "Training", "Training", intro, tuple(groups)) if groups else None
