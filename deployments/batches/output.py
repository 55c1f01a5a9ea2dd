"""The answers of a batch: a part for each chunk of lines, and the files that are made of all parts at the end."""

import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from cluster.objects.store import ObjectStore, blocks, numbered_lines
from deployments.batches.asking import NOT_RUN, LineError, OutputLine, not_answered
from deployments.batches.batch_store import Batch, chunk_name
from deployments.batches.file_store import object_name
from deployments.batches.input_lines import InputLine, decode_line

PARTS = "parts"
_encode = msgspec.json.Encoder().encode
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Part:
    """An object with the answers to a chunk. answers, errors: bytes of the lines for the output file, which come first,
    and of those for the error file."""

    name: str
    answers: int
    errors: int

    @classmethod
    def write(cls, objects: ObjectStore, task: str, batch_id: str, outputs: Iterable[OutputLine]) -> "Part":
        """Writes a part under a name of its own: who has lost its lease overwrites nothing. Raises OSError."""
        texts: dict[bool, list[bytes]] = {True: [], False: []}
        for output in outputs:
            texts[output.succeeded].append(_encode(output) + b"\n")
        answers, errors = (b"".join(texts[succeeded]) for succeeded in (True, False))
        name = f"{PARTS}/{batch_id}-{task}-{secrets.token_hex(4)}"
        objects.write(name, [answers, errors])
        return cls(name, len(answers), len(errors))

    @classmethod
    def decode(cls, text: str) -> "Part":
        """The part that Redis has as this text."""
        name, answers, errors = text.split(" ")
        return cls(name, int(answers), int(errors))

    def encode(self) -> str:
        """As Redis has it."""
        return f"{self.name} {self.answers} {self.errors}"


def read_chunk(objects: ObjectStore, batch: Batch, number: int) -> list[InputLine]:
    """The lines of a chunk. Raises OSError."""
    places = batch.chunk_places
    lines = numbered_lines(objects, object_name(batch.input_file_id), places[number], places[number + 1])
    return [decode_line(text.removeprefix(_BOM)) for _, text in lines if text.strip()]


@dataclass(frozen=True)
class BatchOutput:
    """What becomes of a batch that has stopped or is complete."""

    objects: ObjectStore
    batch: Batch
    parts: dict[str, str]

    def answers(self) -> Iterator[bytes]:
        """The output file. Raises OSError."""
        for _, part in self._chunks():
            if part is not None:
                yield from blocks(self.objects, part.name, 0, part.answers)

    def errors(self) -> Iterator[bytes]:
        """The error file, with every line that was not asked. Raises OSError."""
        for number, part in self._chunks():
            if part is not None:
                yield from blocks(self.objects, part.name, part.answers, part.answers + part.errors)
            else:
                error = NOT_RUN.get(self.batch.stop, NOT_RUN["cancelled"])
                yield b"".join(_encode(output) + b"\n" for output in self._none(number, error))

    @property
    def part_names(self) -> Sequence[str]:
        """The objects that are no longer needed once the files are written."""
        return [Part.decode(text).name for text in self.parts.values()]

    def _none(self, number: int, error: LineError) -> Iterator[OutputLine]:
        return (not_answered(line.custom_id, error) for line in read_chunk(self.objects, self.batch, number))

    def _chunks(self) -> Iterator[tuple[int, Part | None]]:
        for number in range(len(self.batch.chunk_places) - 1):
            text = self.parts.get(chunk_name(number))
            yield number, Part.decode(text) if text else None
