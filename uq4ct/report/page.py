"""The html report: one page from sections, printed and escaped by the template."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from uq4ct.report.blocks import Section, listed
from uq4ct.report.drawing import DARK, LIGHT, printable, variables
from uq4ct.report.material import Material
from uq4ct.report.sections.verdict import headline, overview

NAMES_IN_TITLE = 4


def render(material: Material, sections: list[Section], absent: list[str], title: str | None = None) -> str:
    """Return the whole page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": _breakable, "tight": _tight}
    return environment.get_template("page.html").render(
        title=title or default_title(material),
        style=Markup(stylesheet()),
        version=metadata.version("uq4ct"),
        headline=headline(material),
        overview=overview(material),
        sections=sections,
        absent=absent,
    )


def default_title(material: Material) -> str:
    """Name the methods; many are counted."""
    labels = material.labels
    named = listed(labels) if len(labels) <= NAMES_IN_TITLE else f"{len(labels)} methods"
    on = f" on {len(material.tasks)} tasks" if len(material.tasks) > 1 else f" on {material.tasks[0]}"
    return f"Calibration report: {named}{on}"


def _breakable(name: str) -> Markup:
    """Let a name break after its joints rather than within a word."""
    parts = [part for part in re.split(r"(?<=[+_/])", printable(name)) if part]
    return Markup("<wbr>").join(map(escape, parts))


def _tight(text: str) -> str:
    """Keep a number with its unit, and the two ends of a range, on one line."""
    return re.sub(r"(?<=\d) – (?=\d)", "\u00a0–\u2060\u00a0", re.sub(r"(?<=\d) %", "\u00a0%", printable(text)))


def stylesheet() -> str:
    """Return the style of the page with its two palettes."""
    light, dark = ("".join(variables(palette)) for palette in (LIGHT, DARK))
    palettes = f":root {{ color-scheme: light dark; {light} }}\n"
    palettes += f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    return palettes + (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
