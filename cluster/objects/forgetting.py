"""Removes a user's lines from the files of batches (`dray forget`), also while routers work on them.

First the uploaded files: while an open batch reads one, each line keeps its place, and one of the user's loses its
body; otherwise the line is removed. From then on no router starts on such a line. What routers have begun before is
refused at its commit, because the batch counts a change. Then the answers of open batches, then another change, as an
output may have been made of the old answers, and at last the files that batches have left behind.
"""

from collections.abc import Callable, Iterator
from functools import partial

from msgspec.structs import replace

from cluster.objects.batch_files import BatchFiles, Tally, joined, removing_replaced
from cluster.objects.sealed import SealedStore
from cluster.objects.store import numbered_lines
from cluster.records.batch_lines import forgotten_input, forgotten_output, is_output_of, user_of_line
from cluster.records.batches import FileRecord
from cluster.records.client import BlockingRedis
from cluster.records.forget import user_tag

_UPLOADED = "batch"


def forget_lines(client: BlockingRedis, objects: SealedStore, owner: str, user: str) -> Tally:
    """Removes the lines of a user of an owner from all files of batches; counts them. client: of the teams."""
    return _Forgetting(BatchFiles(client, objects), owner, user).run()


class _Forgetting:
    def __init__(self, files: BatchFiles, owner: str, user: str) -> None:
        self._files = files
        self._owner = owner
        self._user = user
        self._tag = user_tag(owner, user)
        self._tally = Tally()

    def run(self) -> Tally:
        files, owner = self._files, self._owner
        with removing_replaced(files, self._tally):
            self._change_files(uploaded=True)
            files.count_change(owner)
            for batch_id in files.open_batches(owner):
                for task in files.parts(batch_id):
                    self._tally.until_done(f"part {task} of {batch_id}", partial(self._change_part, batch_id, task))
            files.count_change(owner)
            self._change_files(uploaded=False)
        return self._tally

    def _change_files(self, *, uploaded: bool) -> None:
        for file_id in self._files.ids(self._owner):
            self._tally.until_done(f"file {file_id}", partial(self._change_file, file_id, uploaded=uploaded))

    def _change_file(self, file_id: str, *, uploaded: bool) -> int | None:
        file = self._files.get(self._owner, file_id)
        if file is None or (file.record.purpose == _UPLOADED) != uploaded:
            return 0
        record = file.record
        matches: Callable[[bytes], bool] = self._is_users if uploaded else partial(is_output_of, tag=self._tag)
        if not (count := sum(matches(line) for line, _ in self._lines_of(record))):
            return 0
        in_use = file_id in self._files.open_batches(self._owner).values()

        def changed() -> Iterator[bytes]:
            for line, end in self._lines_of(record):
                if not matches(line):
                    yield line + end
                elif in_use:
                    yield forgotten_input(line) + end

        new = replace(record, lines=max(0, record.lines - (0 if in_use else count)))
        return count if self._files.replace_file(file, new, joined(changed()), in_use=in_use) else None

    def _change_part(self, batch_id: str, task: str) -> int | None:
        if (part := self._files.parts(batch_id).get(task)) is None:
            return 0
        end = part.answers + part.errors
        lines = [line for _, line in numbered_lines(self._files.objects, part.name, 0, end)]
        count = sum(is_output_of(line, self._tag) for line in lines)
        if not count:
            return 0
        answers, errors, place = list[bytes](), list[bytes](), 0
        for line in lines:
            kept = answers if place < part.answers else errors
            place += len(line) + 1
            if is_output_of(line, self._tag):
                errors.append(forgotten_output(line))
            else:
                kept.append(line + b"\n")
        done = self._files.replace_part(batch_id, task, part, b"".join(answers), b"".join(errors))
        return count if done else None

    def _is_users(self, line: bytes) -> bool:
        return user_of_line(line) == self._user

    def _lines_of(self, record: FileRecord) -> Iterator[tuple[bytes, bytes]]:
        """The lines of a file, each with the line feed behind it, if there is one."""
        for place, line in numbered_lines(self._files.objects, record.object_name, 0, record.bytes):
            yield line, b"\n" if place + len(line) < record.bytes else b""
