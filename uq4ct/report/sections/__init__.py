"""The sections of a report in their order; what has no data is left out and said in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from uq4ct.report.blocks import Section
from uq4ct.report.material import Material
from uq4ct.report.sections.answers import abstaining, mistakes, training, truth
from uq4ct.report.sections.between import differences, scaling, shift
from uq4ct.report.sections.panels import confidence, letters, reliability, risk
from uq4ct.report.sections.provenance import cost, provenance
from uq4ct.report.sections.router import feu
from uq4ct.report.sections.verdict import verdict

BUILDERS: Sequence[Callable[[Material], Section | str | None]] = (
    verdict,
    differences,
    reliability,
    risk,
    confidence,
    scaling,
    shift,
    feu,
    letters,
    truth,
    abstaining,
    mistakes,
    training,
    cost,
    provenance,
)


def build(material: Material) -> tuple[list[Section], list[str]]:
    """Return the sections that have something to show, and a line for each that is missed."""
    built = [builder(material) for builder in BUILDERS]
    return [one for one in built if isinstance(one, Section)], [one for one in built if isinstance(one, str)]
