"""Encrypted objects: any part is read as it was written, and whatever is done to what is stored is an error."""

import base64
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.objects import sealed
from cluster.objects.folder import FolderStore
from cluster.objects.scratch import scratch_file
from cluster.objects.sealed import CHUNK_BYTES, SealedStore, is_sealed, new_name
from cluster.objects.store import DamagedObject, blocks, numbered_lines
from cluster.records.sealing import OVERHEAD, Unreadable
from cluster.settings import PRIVACY_KEYS

FIRST, SECOND = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
STORED_BYTES = CHUNK_BYTES + OVERHEAD
CONTENT = b"".join(b"line %d of the zebrafink\n" % number for number in range(8000))
"""Three whole chunks, and a part of one."""
NAME, OTHER = "files/a-sealed", "files/b-sealed"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SealedStore:
    monkeypatch.setenv(PRIVACY_KEYS, FIRST)
    return SealedStore(FolderStore(tmp_path / "objects"))


@pytest.fixture
def small(store: SealedStore, monkeypatch: pytest.MonkeyPatch) -> SealedStore:
    """A store with chunks of 16 bytes."""
    monkeypatch.setattr(sealed, "CHUNK_BYTES", 16)
    monkeypatch.setattr(sealed, "_STORED_BYTES", 16 + OVERHEAD)
    return store


def read_all(store: SealedStore, name: str = NAME) -> bytes:
    return b"".join(blocks(store, name, 0, len(CONTENT)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(0, 330), st.integers(0, 330))
def test_any_part_is_read_as_it_was_written(small: SealedStore, written: list[bytes], start: int, end: int) -> None:
    whole = b"".join(written)
    assert small.write("files/x-sealed", written) == len(whole)
    start = min(start, len(whole))
    assert small.read("files/x-sealed", start, min(end, len(whole))) == whole[start:end]
    assert b"".join(blocks(small, "files/x-sealed", 0, len(whole))) == whole
    if start < len(whole):
        assert small.read("files/x-sealed", start, len(whole) + 1000) == whole[start:], "fewer where it ends before"


def test_no_word_is_stored_and_lines_and_sizes_are_those_that_were_written(store: SealedStore, tmp_path: Path) -> None:
    assert store.write(NAME, [CONTENT[:100_000], CONTENT[100_000:]]) == len(CONTENT)
    stored = (tmp_path / "objects" / NAME).read_bytes()
    assert b"zebrafink" not in stored and len(stored) == len(CONTENT) + 4 * OVERHEAD
    assert read_all(store) == CONTENT
    lines = [*numbered_lines(store, NAME, 0, len(CONTENT))]
    assert len(lines) == 8000 and lines[7000][1] == b"line 7000 of the zebrafink"
    assert store.names("files") == [NAME]
    store.remove(NAME)
    with pytest.raises(FileNotFoundError):
        store.read(NAME, 0, 1)


def test_a_whole_number_of_chunks_and_an_empty_object(store: SealedStore) -> None:
    for size in (0, CHUNK_BYTES, 2 * CHUNK_BYTES):
        content = os.urandom(size)
        assert store.write(NAME, [content]) == size
        assert b"".join(blocks(store, NAME, 0, size)) == content
        assert store.read(NAME, 0, size + 1) == content


def swapped(stored: bytes) -> bytes:
    chunks = [stored[place : place + STORED_BYTES] for place in range(0, len(stored), STORED_BYTES)]
    return b"".join([chunks[1], chunks[0], *chunks[2:]])


TAMPERED: dict[str, Callable[[bytes], bytes]] = {
    "two chunks swapped": swapped,
    "a chunk in place of another": lambda stored: stored[:STORED_BYTES] * 2 + stored[2 * STORED_BYTES :],
    "a chunk left out": lambda stored: stored[:STORED_BYTES] + stored[2 * STORED_BYTES :],
    "cut off after a chunk": lambda stored: stored[: 2 * STORED_BYTES],
    "cut off within a chunk": lambda stored: stored[:-100],
    "one byte less": lambda stored: stored[:-1],
    "one byte more": lambda stored: stored + b"x",
    "the last chunk twice": lambda stored: stored + stored[3 * STORED_BYTES :],
    "the first byte changed": lambda stored: b"x" + stored[1:],
    "not encrypted": lambda stored: CONTENT,
    "a byte changed": lambda stored: stored[:1000] + bytes([stored[1000] ^ 1]) + stored[1001:],
    "the last byte changed": lambda stored: stored[:-1] + bytes([stored[-1] ^ 1]),
    "empty": lambda stored: b"",
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
def test_whatever_is_changed_is_an_error(store: SealedStore, tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    store.write(NAME, [CONTENT])
    path = tmp_path / "objects" / NAME
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DamagedObject, match=NAME):
        read_all(store)


def test_what_is_moved_is_an_error(store: SealedStore, tmp_path: Path) -> None:
    store.write(NAME, [CONTENT])
    store.write(OTHER, [CONTENT])
    path, other = tmp_path / "objects" / NAME, tmp_path / "objects" / OTHER
    whole = path.read_bytes()
    path.write_bytes(whole[:STORED_BYTES] + other.read_bytes()[STORED_BYTES:])
    with pytest.raises(DamagedObject):
        read_all(store)
    other.write_bytes(whole)
    with pytest.raises(DamagedObject):
        read_all(store, OTHER)


def test_a_plain_object_does_not_pass_for_an_encrypted_one(store: SealedStore, tmp_path: Path) -> None:
    store.write(NAME, [CONTENT])
    (tmp_path / "objects" / NAME).write_bytes(CONTENT)
    with pytest.raises(DamagedObject, match="not encrypted"):
        read_all(store)


def test_plain_objects_are_read_and_keys_change(store: SealedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert new_name("files/x") == "files/x-sealed" and is_sealed("files/x-sealed") and not is_sealed("files/x")
    store.write("files/x", [b"before"])
    assert store.read("files/x", 1, 4) == b"efo" and not store.is_current("files/x")
    store.write(NAME, [CONTENT])
    monkeypatch.setenv(PRIVACY_KEYS, f"{SECOND},{FIRST}")
    assert read_all(store) == CONTENT and not store.is_current(NAME)
    store.write(OTHER, [CONTENT])
    assert store.is_current(OTHER)
    monkeypatch.setenv(PRIVACY_KEYS, SECOND)
    assert read_all(store, OTHER) == CONTENT
    with pytest.raises(Unreadable, match=f"{NAME}.*{PRIVACY_KEYS}"):
        read_all(store)
    monkeypatch.delenv(PRIVACY_KEYS)
    assert new_name("files/x") == "files/x"
    for call in (lambda: read_all(store), lambda: store.write(NAME, [CONTENT])):
        with pytest.raises(Unreadable, match=PRIVACY_KEYS):
            call()


def test_no_object_is_ever_whole_in_memory(store: SealedStore) -> None:
    block = os.urandom(1 << 20)
    tracemalloc.start()
    try:
        assert store.write(NAME, (block for _ in range(40))) == 40 << 20
        assert sum(map(len, blocks(store, NAME, 0, 40 << 20))) == 40 << 20
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_a_scratch_file_is_read_as_it_was_written_and_no_word_is_on_the_disk() -> None:
    with scratch_file() as file:
        for start in range(0, len(CONTENT), 1001):
            file.write(CONTENT[start : start + 1001])
        file.flush()
        stored = os.pread(file.fileno(), len(CONTENT), 0)
        assert len(stored) == len(CONTENT) and b"zebrafink" not in stored
        file.seek(0)
        assert file.readline() == b"line 0 of the zebrafink\n" and file.read() == CONTENT[24:]
        file.seek(12_345)
        assert file.read(10_000) == CONTENT[12_345:22_345]
