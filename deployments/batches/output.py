"""The answers of a batch: a part for each chunk of lines, and the files that are made of all parts at the end."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cluster.objects.sealed import new_name
from cluster.objects.store import ObjectStore, blocks, numbered_lines
from cluster.records.batch_lines import OutputLine, encode_output, forgotten
from cluster.records.batches import Part, part_name
from deployments.batches.asking import NOT_RUN, not_answered
from deployments.batches.batch_store import Batch, chunk_name
from deployments.batches.input_lines import InputLine, decode_line

_BOM = b"\xef\xbb\xbf"


def write_part(objects: ObjectStore, task: str, batch_id: str, outputs: Iterable[OutputLine]) -> Part:
    """Writes the answers to a chunk. Raises OSError."""
    texts: dict[bool, list[bytes]] = {True: [], False: []}
    for output in outputs:
        texts[output.succeeded].append(encode_output(output) + b"\n")
    answers, errors = (b"".join(texts[succeeded]) for succeeded in (True, False))
    name = new_name(part_name(batch_id, task))
    objects.write(name, [answers, errors])
    return Part(name, len(answers), len(errors))


def read_chunk(objects: ObjectStore, name: str, batch: Batch, number: int) -> list[InputLine]:
    """The lines of a chunk. name: of the input file's object. Raises OSError, Unreadable."""
    places = batch.chunk_places
    lines = numbered_lines(objects, name, places[number], places[number + 1])
    return [decode_line(text.removeprefix(_BOM)) for _, text in lines if text.strip()]


@dataclass(frozen=True)
class BatchOutput:
    """What becomes of a batch that has stopped or is complete. input_name: of the input file's object."""

    objects: ObjectStore
    batch: Batch
    input_name: str
    parts: dict[str, str]

    def answers(self) -> Iterator[bytes]:
        """The output file. Raises OSError, Unreadable."""
        for _, part in self._chunks():
            if part is not None:
                yield from blocks(self.objects, part.name, 0, part.answers)

    def errors(self) -> Iterator[bytes]:
        """The error file, with every line that was not asked. Raises OSError, Unreadable."""
        for number, part in self._chunks():
            if part is not None:
                yield from blocks(self.objects, part.name, part.answers, part.answers + part.errors)
            else:
                yield b"".join(encode_output(output) + b"\n" for output in self._none(number))

    @property
    def part_names(self) -> Sequence[str]:
        """The objects that are no longer needed once the files are written."""
        return [Part.decode(text).name for text in self.parts.values()]

    def _none(self, number: int) -> Iterator[OutputLine]:
        stopped = NOT_RUN.get(self.batch.stop, NOT_RUN["cancelled"])
        for line in read_chunk(self.objects, self.input_name, self.batch, number):
            yield forgotten(line.custom_id) if line.forgotten else not_answered(line, self.batch.owner, stopped)

    def _chunks(self) -> Iterator[tuple[int, Part | None]]:
        for number in range(len(self.batch.chunk_places) - 1):
            text = self.parts.get(chunk_name(number))
            yield number, Part.decode(text) if text else None
