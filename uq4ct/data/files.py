"""Files to raw rows. A row that cannot be read carries its reason; a file that cannot be read raises.

``datasets.load_dataset`` is not used for people's own files: it turns missing answers and NaN into None, mixes strings
and lists, and re-reads one-row files as columns, all without a word.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from uq4ct.errors import UserError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_LARGEST_FIELD = 1 << 24
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RawRow:
    """One row as it stands in a file: its values, or the reason why there are none."""

    place: str
    values: dict[str, Any]
    problem: str = ""
    text: str = ""
    typed: bool = True  # False where every value is text, as in csv


def read_rows(path: Path, what: str = "question") -> list[RawRow]:
    """Read a jsonl, csv, tsv or parquet file.

    Raises UserError when the file as a whole cannot be read. Blank lines, a byte-order mark and CRLF are accepted.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of file '{path.suffix}'; expected {', '.join(SUFFIXES)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not content.strip():
        raise UserError(f"{path}: the file is empty; expected one {what} a row")
    if suffix == ".parquet":
        rows = _read_parquet(path, content)
    elif content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: the file is UTF-16, expected UTF-8; convert it: iconv -f UTF-16 -t UTF-8 {path.name}")
    else:
        read = _read_table if suffix in (".csv", ".tsv") else _read_json_lines
        rows = list(read(path, content))
    if not rows:
        raise UserError(f"{path}: no rows; expected one {what} a row")
    return rows


def parse_json(text: str) -> Any:
    """Parse JSON strictly: duplicate keys, NaN and infinities raise ValueError."""
    return json.loads(text, object_pairs_hook=_distinct_keys, parse_constant=_no_constant)


class _NotStrict(ValueError):
    """Valid for a lax JSON parser, but ambiguous or not a value."""


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise _NotStrict(f"the key '{repeated}' is given twice; keep one")
    return values


def _no_constant(name: str) -> NoReturn:
    raise _NotStrict(f"{name} is not a value; write null or a number")


def _read_json_lines(path: Path, content: bytes) -> Iterator[RawRow]:
    if content.lstrip().startswith(b"[") and _is_array(content):
        raise UserError(
            f"{path}: the file is one JSON array, expected one object a line; convert it: "
            f"jq -c '.[]' {path.name} > {path.stem}-lines.jsonl"
        )
    offset, count = 0, 0
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if line.removeprefix(_BYTE_ORDER_MARK).strip():
            yield _json_row(f"{path}:{number}", line, offset, count, is_last=number == len(lines))
            count += 1
        offset += len(line) + 1


def _is_array(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), list) and content.count(b"{") > 0
    except (ValueError, RecursionError):
        return False


def _json_row(place: str, line: bytes, offset: int, rows_before: int, is_last: bool) -> RawRow:
    text = line.decode("utf-8-sig", errors="backslashreplace").strip()
    try:
        values = parse_json(line.decode("utf-8-sig").strip())
    except UnicodeDecodeError as error:
        return RawRow(place, {}, _not_utf8(line, error, offset), text)
    except RecursionError:
        return RawRow(place, {}, "nested too deeply", text)
    except json.JSONDecodeError as error:
        return RawRow(place, {}, _broken_json(error, text, rows_before, is_last), text)
    except ValueError as error:  # our own strictness, or a number with thousands of digits
        return RawRow(place, {}, str(error) if isinstance(error, _NotStrict) else "a number has too many digits", text)
    if not isinstance(values, dict):
        return RawRow(place, {}, f"expected a JSON object {{...}}, got {kind_of(values)}", text)
    return RawRow(place, values, "", text)


def _broken_json(error: json.JSONDecodeError, text: str, rows_before: int, is_last: bool) -> str:
    cut_off = (
        f" (the file may be cut off; {rows_before} row{'s' * (rows_before != 1)} read before it)" if is_last else ""
    )
    if "\x00" in text:
        return "contains a NUL character; the file is damaged or not a text file"
    if error.msg.startswith("Unterminated string"):
        return f"line ends inside a string{cut_off}"
    if error.pos >= len(text):
        return f"line ends inside an object{cut_off}"
    if error.msg == "Extra data":
        return f"more than one JSON value on the line (the second starts at column {error.colno}); write one a line"
    return f"not valid JSON at column {error.colno}: {error.msg}"


def _not_utf8(content: bytes, error: UnicodeDecodeError, offset: int) -> str:
    return (
        f"not UTF-8: byte 0x{content[error.start]:02x} at byte offset {offset + error.start} of the file; "
        "if it was saved as Windows-1252 or Latin-1, convert it: iconv -f WINDOWS-1252 -t UTF-8"
    )


def _read_table(path: Path, content: bytes) -> Iterator[RawRow]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: {_not_utf8(content, error, 0)}") from error
    if "\x00" in text:
        line = text.count("\n", 0, text.index("\x00")) + 1
        raise UserError(f"{path}:{line}: contains a NUL character; the file is damaged or not a text file")
    records = _records(path, text, "\t" if path.suffix.lower() == ".tsv" else ",")
    _, header = next(records, (0, []))
    _check_header(path, header)
    for line, fields in records:
        place = f"{path}:{line}"
        if len(fields) == len(header):
            values = {name: field for name, field in zip(header, fields, strict=True) if name}
            yield RawRow(place, values, "", json.dumps(values, ensure_ascii=False), typed=False)
        else:
            problem = (
                f"{len(fields)} fields, but the header names {len(header)}; a field that contains a separator or a "
                "line break needs double quotes around it"
            )
            yield RawRow(place, {}, problem, json.dumps(fields, ensure_ascii=False), typed=False)


def _records(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record of a table with the number of the line it starts on; blank lines are left out."""
    previous_limit = csv.field_size_limit(_LARGEST_FIELD)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        while True:
            line = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                reason = "a quoted field is never closed" if "unexpected end of data" in str(error) else str(error)
                raise UserError(f"{path}:{line}: not valid csv: {reason}") from error
            if fields:
                yield line, fields
    finally:
        csv.field_size_limit(previous_limit)


def _check_header(path: Path, header: list[str]) -> None:
    names = [name for name in header if name]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}:1: the column '{repeated}' is named twice in the header; rename one")
    other = next((sign for sign in ";\t," if len(names) == 1 and sign in names[0]), None)
    if other:
        wanted = "name the file .tsv" if other == "\t" else "save it with commas"
        raise UserError(f"{path}:1: the columns seem to be separated by {other!r}; {wanted}")


def _read_parquet(path: Path, content: bytes) -> list[RawRow]:
    import pyarrow.parquet

    try:
        values = pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except Exception as error:  # pyarrow raises many kinds on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a readable parquet file ({reason})") from error
    return [RawRow(f"{path}:row {n}", row, "", str(row)) for n, row in enumerate(values, start=1)]


def kind_of(value: Any) -> str:
    """Name a JSON value's kind in words.

    >>> kind_of([1]), kind_of(None), kind_of(2)
    ('a list', 'null', 'a number')
    """
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), f"a value of type {type(value).__name__}")
