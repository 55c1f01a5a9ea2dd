"""Encrypts the files of batches anew (`dray privacy reseal`), also while routers work on them."""

from functools import partial

from msgspec.structs import replace

from cluster.objects.batch_files import BatchFiles, Tally, removing_replaced
from cluster.objects.sealed import SealedStore, is_sealed
from cluster.objects.store import blocks
from cluster.records.batches import TEXTS, batch_key, field_place, filename_place
from cluster.records.client import BlockingRedis
from cluster.records.sealing import Unreadable, seal_text, unseal_text


def reseal_files(client: BlockingRedis, objects: SealedStore, *, plain: bool = False) -> Tally:
    """Writes all files that the first key has not encrypted anew, encrypted with it; plain: all that are encrypted, not
    encrypted. Also the answers of open batches, and what Redis has of their clients' texts. Counts the files.

    client: of the teams.
    """
    files, tally = BatchFiles(client, objects), Tally()
    for owner in files.owners():
        _Resealing(files, owner, tally, plain=plain).run()
    return tally


class _Resealing:
    def __init__(self, files: BatchFiles, owner: str, tally: Tally, *, plain: bool) -> None:
        self._files = files
        self._owner = owner
        self._tally = tally
        self._plain = plain

    def run(self) -> None:
        files, owner, until_done = self._files, self._owner, self._tally.until_done
        with removing_replaced(files, self._tally):
            for file_id in files.ids(owner):
                until_done(f"file {file_id}", partial(self._reseal_file, file_id))
            for batch_id in files.open_batches(owner):
                for task in files.parts(batch_id):
                    until_done(f"part {task} of {batch_id}", partial(self._reseal_part, batch_id, task))
            files.count_change(owner)  # who misses an old object looks for the new one
        for batch_id in files.batches(owner):
            for field in TEXTS:
                until_done(f"{field} of {batch_id}", partial(self._reseal_text, batch_id, field))

    def _reseal_file(self, file_id: str) -> int | None:
        if (file := self._files.get(self._owner, file_id)) is None or self._is_right(file.record.object_name):
            return 0
        record = file.record
        new = replace(record, filename=self._resealed(record.filename, filename_place(file_id)))
        content = blocks(self._files.objects, record.object_name, 0, record.bytes)
        return 1 if self._files.replace_file(file, new, content, in_use=True, plain=self._plain) else None

    def _reseal_part(self, batch_id: str, task: str) -> int | None:
        if (part := self._files.parts(batch_id).get(task)) is None or self._is_right(part.name):
            return 0
        content = b"".join(blocks(self._files.objects, part.name, 0, part.answers + part.errors))
        answers, errors = content[: part.answers], content[part.answers :]
        return 0 if self._files.replace_part(batch_id, task, part, answers, errors, plain=self._plain) else None

    def _reseal_text(self, batch_id: str, field: str) -> int | None:
        key = batch_key("batch", batch_id)
        if not (stored := (self._files.client.hget(key, field) or b"").decode()):
            return 0
        new = self._resealed(stored, field_place(batch_id, field))
        return 0 if self._files.replace_field(key, field, stored, new) else None

    def _is_right(self, name: str) -> bool:
        return not is_sealed(name) if self._plain else self._files.objects.is_current(name)

    def _resealed(self, stored: str, place: str) -> str:
        if (text := unseal_text(stored, place)) is None:
            raise Unreadable.record(place)
        return text if self._plain else seal_text(text, place)
