"""Files and batches as the teams' Redis holds them: how keys are named.

All keys share one node of a cluster ({batches}), because a step of a batch changes several of them at once. The bytes
of files and answers are not here but in objects (cluster.objects). An owner is `team.NAME`, or the namespace of all
callers while no key is needed.

- `dray:{batches}:files:OWNER`: a hash of the owner's files, by id; `sizes:OWNER`: the bytes of each. A file whose bytes
  change gets another object: objects never change, and whoever reads an old one finds no mixture.
- `dray:{batches}:owners`: a set of the owners that have files.
- `dray:{batches}:of:OWNER`: a sorted set of the ids of the owner's batches, by the time of their creation.
- `dray:{batches}:batch:ID`: a hash of the fields of a batch. `changes` counts how often its files were changed while it
  was open: who has read them before must read them again.
- `dray:{batches}:open`: a hash of the batches that have not ended, by id: the owner, and the input file.
- `dray:{batches}:todo:ID`: a sorted set of the batch's tasks that are left, by the time (in ms) until which a router
  holds a lease on each; `holders:ID`: who holds it; `parts:ID`: by chunk of lines, the object with the answers to them.
"""

import secrets
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

import msgspec

from cluster.records.sealing import seal_text, unseal_text

OPEN = "dray:{batches}:open"
OWNERS = "dray:{batches}:owners"
TEXTS = ("metadata", "errors")
"""Fields of a batch with text of its client, as `seal_text` returns it."""
PARTS = "parts"
"""Folder of the objects with the answers to chunks."""
SWEEPING = "dray:{batches}:sweeping"
"""Who removes what has expired takes this key for a while; one that ends in a Ray cluster's name, if no other cluster
reaches its objects."""


def owner_key(kind: Literal["files", "sizes", "of"], owner: str) -> str:
    """A key of an owner: its files, their sizes, or the ids of its batches."""
    return f"dray:{{batches}}:{kind}:{owner}"


def batch_key(kind: Literal["batch", "todo", "holders", "parts"], batch_id: str) -> str:
    """A key of a batch."""
    return f"dray:{{batches}}:{kind}:{batch_id}"


class FileRecord(msgspec.Struct, frozen=True):
    """A file. bytes: of its content, also where that is encrypted. expires_at: Unix time. lines: that are not blank.
    stored_as: the object with its bytes. filename: as `seal_text` returns it."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int
    lines: int = 0
    stored_as: str = ""

    @property
    def object_name(self) -> str:
        """The object with the file's bytes."""
        return self.stored_as or object_name(self.id)

    @property
    def shown_filename(self) -> str:
        """What its client calls it; empty if that cannot be decrypted."""
        return unseal_text(self.filename, filename_place(self.id)) or ""


encode_file = msgspec.json.Encoder().encode
decode_file = msgspec.json.Decoder(FileRecord).decode


class Checksum:
    """Tells bytes from what a damaged disk has made of them: not from what somebody has made of them on purpose."""

    def __init__(self, *parts: bytes) -> None:
        self._number = 0
        for part in parts:
            self.add(part)

    def add(self, part: bytes) -> None:
        """Takes the bytes that follow."""
        self._number = crc32(part, self._number)

    @property
    def text(self) -> str:
        """Of all bytes until now."""
        return f"{self._number:08x}"


@dataclass(frozen=True, slots=True)
class Part:
    """An object with the answers to a chunk of lines. answers, errors: bytes of the lines for the output file, which
    come first, and of those for the error file. checksum: of them all; empty: of an earlier version, which made none.
    """

    name: str
    answers: int
    errors: int
    checksum: str = ""

    @classmethod
    def of(cls, name: str, answers: bytes, errors: bytes) -> "Part":
        """The part with these answers."""
        return cls(name, len(answers), len(errors), Checksum(answers, errors).text)

    @classmethod
    def decode(cls, text: str) -> "Part":
        """The part that Redis has as this text."""
        name, answers, errors, *sums = text.split(" ")
        return cls(name, int(answers), int(errors), *sums)

    def encode(self) -> str:
        """As Redis has it."""
        return f"{self.name} {self.answers} {self.errors} {self.checksum}".rstrip()

    @property
    def answered(self) -> bool:
        """Whether there are answers; a chunk whose lines could not be read has none."""
        return self.name != _NO_OBJECT


_NO_OBJECT = "-"
UNREAD = Part(_NO_OBJECT, 0, 0)
"""The part of a chunk whose lines cannot be read any more."""


def object_name(file_id: str, version: str = "") -> str:
    """The object with a file's bytes. version: of a file that was changed."""
    return f"files/{file_id}{version and '-'}{version}"


def part_name(batch_id: str, task: str) -> str:
    """A name of its own for the answers to a chunk: who has lost its lease overwrites nothing."""
    return f"{PARTS}/{batch_id}-{task}-{new_version()}"


def new_version() -> str:
    """What tells a new object from all others of the same file or chunk."""
    return secrets.token_hex(4)


def filename_place(file_id: str) -> str:
    """Where the filename of a file is, for its encryption."""
    return f"{file_id} filename"


def sealed_filename(file_id: str, filename: str) -> str:
    """The filename as a record has it."""
    return seal_text(filename, filename_place(file_id))


def field_place(batch_id: str, field: str) -> str:
    """Where a field of a batch is, for its encryption."""
    return f"{batch_id} {field}"
