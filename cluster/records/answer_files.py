"""Files of curated answers: JSON Lines, or CSV as spreadsheets write it. What is exported can be imported again."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import msgspec

from cluster.records.curated import CuratedAnswer, CuratedError, new_answer

FIELDS = ("question", "answer", "namespace", "model", "valid-until", "author")


def read_answers(file: Path, namespace: str, author: str) -> list[CuratedAnswer]:
    """The answers in a file, which may be a pipe. namespace, author: of those that name none.

    Raises CuratedError that names the line; OSError.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"{file} is not UTF-8 (byte {error.start}). In a spreadsheet, save it as CSV UTF-8."
        raise CuratedError(message) from None
    suffix = file.suffix.lower()
    is_json = suffix in (".jsonl", ".json") or (suffix != ".csv" and text.lstrip().startswith("{"))
    rows = _json_rows(text) if is_json else _csv_rows(text)
    answers = []
    try:
        for number, row in rows:
            try:
                answers.append(_answer(row, namespace, author))
            except CuratedError as error:
                raise _Unreadable(number, str(error)) from None
    except _Unreadable as error:
        raise CuratedError(f"{file}, line {error.line}: {error}") from None
    return answers


def jsonl(answers: Iterable[CuratedAnswer]) -> str:
    """The answers as JSON Lines."""
    lines = []
    for answer in answers:
        row: dict[str, Any] = {name: getattr(answer, name.replace("-", "_")) for name in FIELDS}
        row["valid-until"] = datetime.fromtimestamp(answer.valid_until, UTC).isoformat() if answer.valid_until else ""
        lines.append(msgspec.json.encode({name: value for name, value in row.items() if value}).decode() + "\n")
    return "".join(lines)


def unix_time(text: str) -> float:
    """The Unix time of an ISO date (its end) or time, in UTC if it names no zone; 0 for none. Raises CuratedError."""
    text = text.strip()
    if not text:
        return 0.0
    try:
        if len(text) <= len("2026-12-31"):
            when = datetime.combine(date.fromisoformat(text) + timedelta(days=1), time(), UTC)
        else:
            when = datetime.fromisoformat(text)
            when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return when.timestamp()
    except (ValueError, OverflowError):
        message = f"valid-until {text[:40]!r} is no date: write 2026-12-31 or 2026-12-31T18:00:00+08:00"
        raise CuratedError(message) from None


class _Unreadable(Exception):
    """A line that is not in the format. line: its number."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def _json_rows(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise _Unreadable(number, f"not a JSON object: {error}") from None


def _csv_rows(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, restkey="", restval="")
    try:
        for row in reader:
            if "" in row and any(row.pop("")):
                raise _Unreadable(reader.line_num, "it has more fields than the first line names")
            if any(row.values()):
                yield reader.line_num, row
    except csv.Error as error:
        raise _Unreadable(reader.line_num + 1, str(error)) from None


def _answer(row: Mapping[str, Any], namespace: str, author: str) -> CuratedAnswer:
    fields: dict[str, str] = {}
    for name, value in row.items():
        known = name.strip().lower().replace("_", "-").replace(" ", "-")
        if known not in FIELDS:
            raise CuratedError(f"unknown field {name[:64]!r}; the fields are {', '.join(FIELDS)}")
        if value is not None and not isinstance(value, str):
            raise CuratedError(f"{known} must be a text")
        fields[known] = (value or "").strip()
    return new_answer(
        fields.get("namespace") or namespace,
        fields.get("question", ""),
        fields.get("answer", ""),
        model=fields.get("model", ""),
        author=fields.get("author") or author,
        valid_until=unix_time(fields.get("valid-until", "")),
    )
