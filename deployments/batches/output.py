"""The answers of a batch: a part for each chunk of lines, and the files that are made of all parts at the end."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from cluster.objects.sealed import new_name
from cluster.objects.store import DamagedObject, ObjectStore, blocks, numbered_lines
from cluster.records.batch_lines import UNREADABLE, LineError, OutputLine, encode_output, forgotten
from cluster.records.batches import Checksum, Part, part_name
from cluster.records.sealing import Unreadable
from deployments.api.protocol.batches import BatchError
from deployments.batches.asking import NOT_RUN, not_answered
from deployments.batches.batch_store import Batch, chunk_name
from deployments.batches.input_lines import CHUNK_LINES, InputLine, LineChecksum, decode_line

_BOM = b"\xef\xbb\xbf"
_MAX_PROBLEMS = 100
LOST_FOR_GOOD = (FileNotFoundError, DamagedObject)
"""What is raised for an object that no later attempt can read."""
_ANSWER_LOST = LineError(
    "answer_lost", "The answer to this request was damaged or removed where it was stored. Ask it again."
)
_DAMAGED = "it was changed, cut off or removed where it is stored"
_AWAY = "until the time for this batch was over, its storage did not answer, or the key that encrypted it was missing"


class AnswersDamaged(Exception):
    """Answers were read for the output file, and now cannot be: both files must be written again."""


def write_part(objects: ObjectStore, task: str, batch_id: str, outputs: Iterable[OutputLine]) -> Part:
    """Writes the answers to a chunk. Raises OSError."""
    texts: dict[bool, list[bytes]] = {True: [], False: []}
    for output in outputs:
        texts[output.succeeded].append(encode_output(output) + b"\n")
    answers, errors = (b"".join(texts[succeeded]) for succeeded in (True, False))
    part = Part.of(new_name(part_name(batch_id, task)), answers, errors)
    objects.write(part.name, [answers, errors])
    return part


def read_chunk(objects: ObjectStore, name: str, batch: Batch, number: int) -> list[InputLine]:
    """The lines of a chunk. name: of the input file's object.

    Raises FileNotFoundError and DamagedObject, after which it cannot be read any more, OSError, Unreadable.
    """
    places, lines, checksum = batch.chunk_places, list[bytes](), LineChecksum()
    for _, text in numbered_lines(objects, name, places[number], places[number + 1]):
        checksum.add(text)
        if text.strip():
            lines.append(text.removeprefix(_BOM))
    if name == batch.checked and checksum.text != batch.chunk_checksums[number]:
        raise DamagedObject(f"chunk {number} of lines in object {name} was changed")
    try:
        return [decode_line(text) for text in lines]
    except UNREADABLE:
        raise DamagedObject(f"chunk {number} of lines in object {name} has a line that is none") from None


@dataclass
class BatchOutput:
    """What becomes of a batch that has stopped or is complete. input_name: of the input file's object. may_wait:
    whether there is time for what may be read later. answered: lines in the output file.

    A chunk that cannot be read is left out, and named in `problems`.
    """

    objects: ObjectStore
    batch: Batch
    input_name: str
    parts: Mapping[str, str]
    may_wait: bool
    answered: int = 0
    reason: str = ""
    """The first error of what cannot be read."""
    _lost: dict[int, str] = field(default_factory=dict)
    """Chunks whose answers cannot be read, and why."""
    _unread: dict[int, str] = field(default_factory=dict)
    """Chunks whose lines cannot be read."""

    def answers(self) -> Iterator[bytes]:
        """The output file. Raises OSError and Unreadable, after which it may be read later."""
        self.answered = 0
        for number, part in self._chunks():
            if part is not None and (content := self._content(number, part)) is not None:
                answers = content[: part.answers]
                self.answered += answers.count(b"\n")
                yield answers

    def errors(self) -> Iterator[bytes]:
        """The error file, with every line that was not asked. Raises as `answers`, and AnswersDamaged."""
        for number, part in self._chunks():
            if part is None or number in self._lost:
                yield b"".join(encode_output(output) + b"\n" for output in self._none(number))
            elif (content := self._content(number, part)) is not None:
                yield content[part.answers :]
            elif number in self._lost:
                raise AnswersDamaged

    @property
    def problems(self) -> list[BatchError]:
        """What could not be read; empty: all could."""
        found = [
            *_problems(self._unread, self.batch.total, "the file", "have no line in the output file or the error file"),
            *_problems(self._lost, self.batch.total, "the file of these", "have a line each in the error file"),
        ]
        return found[:_MAX_PROBLEMS]

    @property
    def answers_lost(self) -> bool:
        """Whether answers cannot be read."""
        return bool(self._lost)

    @property
    def part_names(self) -> Sequence[str]:
        """The objects that are no longer needed once the files are written."""
        return [part.name for _, part in self._chunks() if part is not None and part.answered]

    def _none(self, number: int) -> Iterator[OutputLine]:
        """Errors in place of the lines of a chunk, as far as they can be read."""
        error = _ANSWER_LOST if number in self._lost else NOT_RUN.get(self.batch.stop, NOT_RUN["cancelled"])
        try:
            lines = read_chunk(self.objects, self.input_name, self.batch, number)
        except (OSError, Unreadable) as fault:
            self._note(self._unread, number, fault)
            return
        for line in lines:
            yield forgotten(line.custom_id) if line.forgotten else not_answered(line, self.batch.owner, error)

    def _content(self, number: int, part: Part) -> bytes | None:
        """All answers to a chunk; None: they cannot be read, which is noted."""
        if not part.answered:
            self._unread.setdefault(number, _DAMAGED)
            return None
        try:
            content = b"".join(blocks(self.objects, part.name, 0, part.answers + part.errors))
            if part.checksum and part.checksum != Checksum(content).text:
                raise DamagedObject(f"object {part.name} was changed")
        except (OSError, Unreadable) as fault:
            self._note(self._lost, number, fault)
            return None
        return content

    def _note(self, chunks: dict[int, str], number: int, fault: Exception) -> None:
        """Remembers what cannot be read. Raises the fault again if it can be read later."""
        for_good = isinstance(fault, LOST_FOR_GOOD)
        if self.may_wait and not for_good:
            raise fault
        chunks[number] = _DAMAGED if for_good else _AWAY
        self.reason = self.reason or str(fault)

    def _chunks(self) -> Iterator[tuple[int, Part | None]]:
        for number in range(len(self.batch.chunk_places) - 1):
            text = self.parts.get(chunk_name(number))
            yield number, Part.decode(text) if text else None


def _problems(chunks: Mapping[int, str], total: int, what: str, so: str) -> Iterator[BatchError]:
    """An error for each row of chunks that cannot be read for the same reason. what, so: of these chunks."""
    # Numbers that follow each other are as far from their places in this order.
    rows = groupby(enumerate(sorted(chunks)), lambda item: (item[1] - item[0], chunks[item[1]]))
    for (_, reason), row in rows:
        numbers = [number for _, number in row]
        first, last = numbers[0] * CHUNK_LINES + 1, min(total, (numbers[-1] + 1) * CHUNK_LINES)
        message = (
            f"Requests {first} to {last} of the input file have no answers, because {what} cannot be read: {reason}. "
            f"They {so}. Upload these requests again in a new file, and create a batch of it."
        )
        yield BatchError("file_damaged" if reason == _DAMAGED else "file_unreadable", message, first)
