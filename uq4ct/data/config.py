"""The options of reading data: the ``data`` section of a configuration."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

Counting = Literal["index", "position"]  # what numeric answers count from: 0 or 1


class Columns(BaseModel):
    """Name the columns of your file where they are not called question, choices, answer, context, id and group.

    >>> Columns(question="q", choices=["first", "second"]).given()
    {'question': 'q', 'choices': ('first', 'second')}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str | None = None
    choices: str | tuple[str, ...] | None = None  # one column, or one column per choice
    answer: str | None = None
    context: str | None = None
    id: str | None = None
    group: str | None = None

    def given(self) -> dict[str, Any]:
        """Return the columns that were named."""
        return {name: value for name, value in self if value is not None}


def _no_yaml_booleans(value: Any) -> Any:
    """Refuse ``choices: [no, yes]``, which YAML reads as ``[False, True]``."""
    if isinstance(value, (list, tuple)) and any(isinstance(choice, bool) for choice in value):
        raise ValueError(
            f"YAML reads unquoted no/yes/off/on/false/true as booleans: got {list(value)}. Quote them: "
            f"[{', '.join(_quoted(choice) for choice in value)}]"
        )
    if isinstance(value, (list, tuple)):
        return tuple(str(choice) if isinstance(choice, (int, float)) else choice for choice in value)
    return value


def _quoted(choice: Any) -> str:
    return f'"{"yes" if choice else "no"}"' if isinstance(choice, bool) else f'"{choice}"'


class DataConfig(BaseModel):
    """Say how question files are read.

    >>> DataConfig(columns={"question": "q"}).columns.question
    'q'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: Columns = Columns()
    choices: Annotated[tuple[str, ...] | None, BeforeValidator(_no_yaml_booleans)] = Field(
        default=None, description="The same choices for every row, for label tasks: [neg, pos]"
    )
    choice_delimiter: str | None = Field(
        default=None, min_length=1, description="What separates the choices where they are one string, for example '|'"
    )
    answers: Literal["auto", "index", "position"] = Field(
        default="auto", description="Whole numbers as answers: index, from 0; position, from 1; auto: as the rows say"
    )
    calibration_fraction: float = Field(default=0.1, ge=0.0, lt=1.0, description="Share of train, for post-hoc fits")
    limit: int | None = Field(
        default=None, ge=1, description="Use so many training questions, calibration included; the seed draws them"
    )
    skip_bad_rows: bool = Field(default=False, description="Set bad rows aside instead of stopping")
    subset: str | None = Field(default=None, description="Configuration of a hub data set")
    revision: str | None = Field(default=None, description="Commit, tag or branch of a hub data set")
    splits: dict[str, str] = Field(
        default={}, description="Names of the splits in a hub source where they differ: {validation: dev}"
    )

    def for_others(self, counted: Counting | None = None) -> Self:
        """Return the options for other files than the one trained on, whose numeric answers were counted like this.

        Bad rows of a file that is asked are never set aside.

        >>> DataConfig().for_others("position").answers, DataConfig(skip_bad_rows=True).for_others().skip_bad_rows
        ('position', False)
        """
        return self.model_copy(update={"skip_bad_rows": False, **({"answers": counted} if counted else {})})

    @field_validator("choices")
    @classmethod
    def _distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and not 2 <= len(value) <= 26:
            raise ValueError(f"expected 2 to 26 choices, got {len(value)}")
        if value is not None and len({choice.strip() for choice in value}) < len(value):
            raise ValueError(f"the choices must be distinct, got {list(value)}")
        if value is not None and not all(choice.strip() for choice in value):
            raise ValueError("a choice is empty")
        return value
