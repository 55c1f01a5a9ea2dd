"""The log files of the Dray on this machine, in the order of time: its own, Redis' and Ray's."""

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

_LOG_FILE = re.compile(r"\.(?:log|err|out)(?:\.\d{1,3})?$")
_STAMP_CHARS = 64
"""A line's time stands within so many characters of its start."""
_STAMP = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d{1,6})?Z?")
_REDIS_STAMP = re.compile(r"\d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d\.\d{3}")
_MAX_LINE = 1 << 20


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of a log file. at: Unix time, that of the line before where it has none. fields: of a line of JSON, as
    Dray's own are."""

    at: float
    file: str
    text: str
    fields: dict[str, Any] | None = None


@dataclass(slots=True)
class _Place:
    """How far a file was read. at: the time of its last line."""

    inode: int
    offset: int = 0
    at: float = 0.0


@dataclass(slots=True)
class LogReader:
    """Reads the log files below a state folder, and later what was added."""

    folder: Path
    _places: dict[Path, _Place] = field(default_factory=dict)

    def lines(self) -> Iterator[LogLine]:
        """The lines that were not read yet, in the order of time."""
        return heapq.merge(*(self._new(path) for path in log_files(self.folder)), key=lambda line: line.at)

    def _new(self, path: Path) -> Iterator[LogLine]:
        try:
            file = path.open("rb")
        except OSError:
            return  # rotated, or removed with its Dray
        with file:
            inode = path.stat().st_ino if path.exists() else 0
            size = file.seek(0, 2)
            place = self._places.get(path)
            if place is None or place.inode != inode or size < place.offset:
                place = self._places[path] = _Place(inode)
            file.seek(place.offset)
            name = str(path.relative_to(self.folder))
            unstamped: list[str] = []
            for data in iter(lambda: file.readline(_MAX_LINE), b""):
                if not data.endswith(b"\n") and len(data) < _MAX_LINE:
                    break  # still being written
                place.offset += len(data)
                text = data.decode(errors="replace").rstrip("\r\n")
                fields = _fields(text)
                at = _time(fields, text)
                if at is None and not place.at:
                    unstamped.append(text)
                    continue
                place.at = at or place.at
                yield from (LogLine(place.at, name, earlier) for earlier in unstamped)
                unstamped.clear()
                yield LogLine(place.at, name, text, fields)
            if unstamped:
                place.at = path.stat().st_mtime if path.exists() else 0.0
                yield from (LogLine(place.at, name, earlier) for earlier in unstamped)


def log_files(folder: Path) -> list[Path]:
    """The log files below a state folder, those that were rotated too."""
    return sorted(path for path in folder.rglob("*") if _LOG_FILE.search(path.name) and path.is_file())


def _fields(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return None


def _time(fields: dict[str, Any] | None, text: str) -> float | None:
    start = str(fields.get("time", "")) if fields is not None else text[:_STAMP_CHARS]
    if found := _STAMP.search(start[:_STAMP_CHARS]):
        stamp = found[0].replace(",", ".")
        # Dray's own times are in UTC, Ray's in this machine's zone.
        when = datetime.fromisoformat(stamp.removesuffix("Z"))
        return (when.replace(tzinfo=UTC) if stamp.endswith("Z") else when).timestamp()
    if found := _REDIS_STAMP.search(start):
        return datetime.strptime(found[0], "%d %b %Y %H:%M:%S.%f").timestamp()
    return None
