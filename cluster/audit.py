"""The audit log: who changed what. Each entry contains the hash of the one before it, so a gap or a change shows.

`audit.jsonl` in the folder grows until it is rotated; `audit-000001.jsonl` and so on are the older files. `audit.head`
names the entry that was written last, so that entries missing at the end show too. Several processes of one machine
write to one folder, one after another.
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import msgspec

from cluster.private_files import private_folder, read_private, write_private

Value = str | int | float | bool | None | list[str]

AUDIT_FOLDER = "audit"
"""In data_dir."""
_CURRENT, _HEAD, _LOCK = "audit.jsonl", "audit.head", "audit.lock"
_OLD = re.compile(r"audit-(\d{6,12})\.jsonl")
_ROTATE_BYTES = 10 * 2**20
_NOTHING = "0" * 64
"""Stands for the entry before the first one."""
_MAX_LINE = 2**20


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that somebody did. time: UTC. actor: `key:ID` of an admin key, or `user:NAME` of this machine.
    previous: the hash of the entry before it."""

    number: int
    time: str
    actor: str
    action: str
    target: str
    details: dict[str, Value]
    previous: str
    hash: str = ""


class _Head(msgspec.Struct, frozen=True):
    """The last entry."""

    number: int = 0
    hash: str = _NOTHING


@dataclass(frozen=True, slots=True)
class Fault:
    """Where the log is not as it was written. line: of the file, from 1."""

    file: str
    line: int
    reason: str


@dataclass(slots=True)
class Verified:
    """What a check found. entries: their number."""

    entries: int = 0
    faults: list[Fault] = field(default_factory=list)


_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(Entry).decode
_decode_head = msgspec.json.Decoder(_Head).decode


def line_of(entry: Entry) -> str:
    """The line of the log that holds an entry."""
    return _encode(entry).decode()


class AuditLog:
    """The audit log in a folder."""

    def __init__(self, folder: Path, rotate_bytes: int = _ROTATE_BYTES) -> None:
        """folder: private to this user; made when the first entry is written."""
        self._folder = folder
        self._rotate_bytes = rotate_bytes

    def record(self, actor: str, action: str, target: str, details: dict[str, Value]) -> Entry:
        """Appends an entry, on disk before it returns. Raises OSError; then nothing was appended."""
        with self._locked(), _append_private(self._folder / _CURRENT) as file:
            end = _cut_partial_line(file.fileno())
            last = self._last(end)
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            entry = _hashed(Entry(last.number + 1, time, actor, action, target, details, last.hash))
            try:
                file.write(line_of(entry).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    os.ftruncate(file.fileno(), end)
                raise
            with suppress(OSError):  # the next entry's write makes up for it
                write_private(self._folder / _HEAD, _encode(_Head(entry.number, entry.hash)).decode())
            if file.tell() >= self._rotate_bytes:
                old = [int(found[1]) for path in self._folder.iterdir() if (found := _OLD.fullmatch(path.name))]
                (self._folder / _CURRENT).rename(self._folder / f"audit-{max(old, default=0) + 1:06d}.jsonl")
        return entry

    def verify(self) -> Verified:
        """Checks every entry of all files. Raises OSError."""
        found = Verified()
        if not self._folder.exists():
            return found
        with self._locked():
            last, place = _Head(), (_CURRENT, 0)
            for file, line, content in self._lines():
                place = (file, line)
                entry = _read(content)
                if entry is None:
                    found.faults.append(Fault(file, line, "this line is no entry of the log"))
                    continue
                found.entries += 1
                if (reason := _fault(entry, content, last)) is not None:
                    found.faults.append(Fault(file, line, reason))
                last = _Head(entry.number, entry.hash)
            head = self._head()
            if head.number > last.number:
                found.faults.append(Fault(*place, f"{_entries(last.number + 1, head.number)} missing after this line"))
            elif head.number == last.number and head.hash != last.hash:
                found.faults.append(Fault(*place, "this is not the entry that was written last"))
        return found

    def _last(self, end: int) -> _Head:
        """The entry that the next one follows. If some were removed, the next one follows those, so that it shows.

        end: size of the current file.
        """
        head = self._head()
        with (self._folder / _CURRENT).open("rb") as file:
            file.seek(max(0, end - _MAX_LINE))
            lines = file.read().splitlines()
        # Written, but the process died before it wrote the head.
        entry = _read(lines[-1]) if lines else None
        return _Head(entry.number, entry.hash) if entry is not None and entry.number > head.number else head

    def _head(self) -> _Head:
        try:
            return _decode_head(read_private(self._folder / _HEAD))
        except (FileNotFoundError, msgspec.MsgspecError):
            return _Head()

    def _lines(self) -> Iterator[tuple[str, int, bytes]]:
        old = sorted(path.name for path in self._folder.iterdir() if _OLD.fullmatch(path.name))
        for name in (*old, _CURRENT):
            with suppress(FileNotFoundError), (self._folder / name).open("rb") as file:
                for number, line in enumerate(file, 1):
                    yield name, number, line.rstrip(b"\n")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        private_folder(self._folder)
        with _append_private(self._folder / _LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _append_private(path: Path) -> BinaryIO:
    """A file that only this user can read, made if it is not there, to read and to append to."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600), "ab+")


def _cut_partial_line(descriptor: int) -> int:
    """Removes what a process had written of an entry when it died. Returns the file's size."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, _MAX_LINE, max(0, size - _MAX_LINE))
    if tail and not tail.endswith(b"\n"):
        size -= len(tail) - (tail.rfind(b"\n") + 1)
        os.ftruncate(descriptor, size)
    return size


def _hashed(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, hash=hashlib.sha256(_encode(entry)).hexdigest())


def _read(line: bytes) -> Entry | None:
    try:
        return _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _fault(entry: Entry, line: bytes, last: _Head) -> str | None:
    """What is wrong with an entry after this one."""
    if _encode(entry) != line or _hashed(msgspec.structs.replace(entry, hash="")) != entry:
        return f"entry {entry.number} was changed: its hash does not fit"
    if entry.number > last.number + 1:
        return f"{_entries(last.number + 1, entry.number - 1)} missing before this line"
    if entry.number <= last.number:
        return f"entry {entry.number} is out of order: it stands after entry {last.number}"
    if entry.previous != last.hash:
        return f"entry {last.number} is not the one that stood before entry {entry.number}"
    return None


def _entries(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"
