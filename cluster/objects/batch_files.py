"""The files of batches, as `dray forget` and `dray privacy reseal` change them while routers work on them.

A changed file is a new object, and its record changes only if nobody has changed or deleted it meanwhile. Routers that
have read the old one find that out when they commit what they made of it: the batch's count of changes is another.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from msgspec.structs import replace

from cluster.objects.sealed import SealedStore, new_name
from cluster.records.batches import (
    OPEN,
    OWNERS,
    FileRecord,
    Part,
    batch_key,
    decode_file,
    encode_file,
    new_version,
    object_name,
    owner_key,
    part_name,
)
from cluster.records.client import BlockingRedis
from cluster.records.sealing import Unreadable

_ATTEMPTS = 20
"""How often a change is tried that others keep making impossible."""
_BLOCK_BYTES = 1 << 20

# KEYS: the owner's files, their sizes, the open batches. ARGV: id, the record as it was, the new one, its bytes, and 1
# if a batch may be reading the file.
_REPLACE_FILE = """
local now = redis.call('HGET', KEYS[1], ARGV[1])
if now == ARGV[3] then return 1 end -- the reply was lost
if now ~= ARGV[2] then return 0 end
if ARGV[5] == '0' then
  for _, value in ipairs(redis.call('HVALS', KEYS[3])) do
    if value:sub(-#ARGV[1] - 1) == '\\n' .. ARGV[1] then return 0 end
  end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[4])
return 1
"""
# KEYS: a hash. ARGV: field, its value as it was, the new one.
_REPLACE_FIELD = """
local now = redis.call('HGET', KEYS[1], ARGV[1])
if now == ARGV[3] then return 1 end -- the reply was lost
if now ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""
# KEYS: a batch.
_COUNT_CHANGE = """
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HINCRBY', KEYS[1], 'changes', 1) end
return 1
"""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of an owner. stored: its record, as Redis has it."""

    owner: str
    stored: bytes
    record: FileRecord


class BatchFiles:
    """The files of all owners. Remove what was replaced at the end. Methods raise OSError and Unreadable, and what the
    Redis client does."""

    def __init__(self, client: BlockingRedis, objects: SealedStore) -> None:
        """client: of the teams."""
        self.objects = objects
        self.client = client
        self._replaced: list[str] = []

    def owners(self) -> list[str]:
        """Every owner that has had a file."""
        return sorted(owner.decode() for owner in self.client.smembers(OWNERS))

    def ids(self, owner: str) -> list[str]:
        """The owner's files."""
        return [name.decode() for name in self.client.hgetall(owner_key("files", owner))]

    def get(self, owner: str, file_id: str) -> StoredFile | None:
        """A file; None if there is none."""
        stored = self.client.hget(owner_key("files", owner), file_id)
        return StoredFile(owner, stored, decode_file(stored)) if stored is not None else None

    def batches(self, owner: str) -> list[str]:
        """The owner's batches."""
        return [name.decode() for name in self.client.zrange(owner_key("of", owner), 0, -1)]

    def open_batches(self, owner: str) -> dict[str, str]:
        """The owner's batches that have not ended, each with its input file."""
        pairs = ((name.decode(), value.decode().partition("\n")) for name, value in self.client.hgetall(OPEN).items())
        return {batch_id: file_id for batch_id, (of, _, file_id) in pairs if of == owner}

    def parts(self, batch_id: str) -> dict[str, Part]:
        """The answers to chunks of an open batch, by chunk."""
        stored = self.client.hgetall(batch_key("parts", batch_id))
        parts = {task.decode(): Part.decode(text.decode()) for task, text in stored.items()}
        return {task: part for task, part in parts.items() if part.answered}

    def replace_file(
        self, old: StoredFile, new: FileRecord, content: Iterable[bytes], *, in_use: bool, plain: bool = False
    ) -> bool:
        """Gives a file other bytes. False if its record is another one by now, or a batch has begun that reads it.

        in_use: an open batch may read the file, as all lines keep their places. plain: the object is not encrypted,
        even if that is on.
        """
        name = object_name(new.id, new_version())
        name = name if plain else new_name(name)
        new = replace(new, bytes=self.objects.write(name, content), stored_as=name)
        keys = (owner_key("files", old.owner), owner_key("sizes", old.owner), OPEN)
        arguments = (new.id, old.stored, encode_file(new), str(new.bytes), "1" if in_use else "0")
        done = self.client.eval(_REPLACE_FILE, len(keys), *keys, *arguments)
        return self._settle(bool(done), old.record.object_name, name)

    def replace_part(
        self, batch_id: str, task: str, old: Part, answers: bytes, errors: bytes, *, plain: bool = False
    ) -> bool:
        """Gives a chunk other answers. False if they are others by now, or the batch has ended."""
        name = part_name(batch_id, task)
        new = Part.of(name if plain else new_name(name), answers, errors)
        self.objects.write(new.name, [answers, errors])
        return self._settle(
            self.replace_field(batch_key("parts", batch_id), task, old.encode(), new.encode()), old.name, new.name
        )

    def replace_field(self, key: str, field: str, old: str, new: str) -> bool:
        """Changes a field of a hash. False if it is another by now."""
        return bool(self.client.eval(_REPLACE_FIELD, 1, key, field, old, new))

    def count_change(self, owner: str) -> None:
        """Lets routers read the files of the owner's open batches again before they commit."""
        for batch_id in self.open_batches(owner):
            self.client.eval(_COUNT_CHANGE, 1, batch_key("batch", batch_id))

    def remove_replaced(self) -> None:
        """Removes the objects in whose place there are others."""
        while self._replaced:
            self.objects.remove(self._replaced[-1])
            self._replaced.pop()

    def _settle(self, done: bool, old: str, new: str) -> bool:
        if done:
            self._replaced.append(old)
        else:
            self.objects.remove(new)
        return done


@dataclass(slots=True)
class Tally:
    """What was changed. fault: the first thing that could not be changed, and why; empty: all was."""

    count: int = 0
    fault: str = ""

    def until_done(self, name: str, change: Callable[[], int | None]) -> None:
        """Makes a change, until nobody else makes one at the same time.

        change: returns how much it has changed; None: it must be tried again.
        """
        fault = "others keep changing it"
        for _ in range(_ATTEMPTS):
            try:
                if (count := change()) is not None:
                    self.count += count
                    return
            except FileNotFoundError as error:  # it was replaced meanwhile, or is lost
                fault = str(error)
            except (OSError, Unreadable) as error:
                fault = str(error)
                break
        self.fault = self.fault or f"{name}: {fault}"


@contextmanager
def removing_replaced(files: BatchFiles, tally: Tally) -> Iterator[None]:
    """Removes at the end what was replaced, whatever has happened."""
    try:
        yield
    finally:
        try:
            files.remove_replaced()
        except OSError as error:
            tally.fault = tally.fault or f"what was replaced cannot be removed: {error}"


def joined(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines in blocks of some size, as stores want them."""
    block = bytearray()
    for line in lines:
        block += line
        if len(block) >= _BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    yield bytes(block)
