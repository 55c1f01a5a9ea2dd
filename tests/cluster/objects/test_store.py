"""Objects in a folder and in a bucket: the same, seen from outside."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.models.bucket_url import BucketUrlError
from cluster.objects.folder import FolderStore
from cluster.objects.sealed import SealedStore
from cluster.objects.store import DamagedObject, ObjectStore, blocks, numbered_lines, object_store
from cluster.settings import PRIVACY_KEYS, Settings
from tests.cluster.objects.buckets import bucket


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    if request.param == "folder":
        yield FolderStore(tmp_path / "objects")
        return
    with bucket(monkeypatch) as ours:
        chosen = object_store(Settings(batches={"url": ours.url}), tmp_path)
        assert chosen is not None and not list(tmp_path.iterdir())
        yield chosen


def test_objects_are_written_read_listed_and_removed(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    content = [b"0123456789" * 20_000 for _ in range(60)]
    assert store.write("files/large", content) == 12_000_000
    assert store.write("files/small", [b"one\ntwo\n", b"three"]) == 13
    assert store.write("files/empty", []) == 0
    assert store.write("parts/p", [b"x"]) == 1
    assert sorted(store.names("files")) == ["files/empty", "files/large", "files/small"]
    assert store.read("files/large", 11_999_995, 99_999_999) == b"56789"
    assert store.read("files/large", 5, 5) == b""
    assert b"".join(blocks(store, "files/large", 7, 12_000_000)) == b"".join(content)[7:]
    assert [*numbered_lines(store, "files/small", 0, 13)] == [(0, b"one"), (4, b"two"), (8, b"three")]
    assert store.write("files/copy", blocks(store, "files/large", 0, 12_000_000)) == 12_000_000, "of another object"
    assert b"".join(blocks(store, "files/copy", 0, 12_000_000)) == b"".join(content)
    store.remove("files/copy")
    store.write("files/small", [b"new"])
    assert store.read("files/small", 0, 3) == b"new"
    for _ in range(2):
        store.remove("files/small")
    with pytest.raises(FileNotFoundError):
        store.read("files/small", 0, 3)
    for start, end in ((0, 2), (1, 2), (50, 90)):
        with pytest.raises(DamagedObject, match="cut off"):
            [*blocks(store, "parts/p", start, end)]
    with pytest.raises(FileNotFoundError):
        [*blocks(store, "parts/q", 0, 2)]
    assert store.names("none") == []
    sealed = store if isinstance(store, SealedStore) else SealedStore(store)
    monkeypatch.setenv(PRIVACY_KEYS, base64.b64encode(bytes(32)).decode())
    assert sealed.write("files/s-sealed", content) == 12_000_000
    assert b"".join(blocks(sealed, "files/s-sealed", 7, 12_000_000)) == b"".join(content)[7:]
    assert sealed.is_current("files/s-sealed") and "files/s-sealed" in store.names("files")


def test_a_failing_writer_leaves_nothing(store: ObjectStore) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise FileNotFoundError("a part was removed")

    with pytest.raises(FileNotFoundError):
        store.write("files/a", broken())
    assert store.names("files") == []


def test_a_wrong_address_is_refused_and_several_machines_share_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BucketUrlError):
        object_store(Settings(batches={"url": "s3://ours"}), tmp_path)
    assert object_store(Settings(cluster={"head": True}), tmp_path) is None


def test_a_bucket_that_is_away_is_no_damage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with bucket(monkeypatch) as ours:
        store = object_store(Settings(batches={"url": ours.url}), tmp_path)
        assert store is not None
        store.write("files/a", [b"one"])
        ours.stop()
        with pytest.raises(OSError, match="s3://") as away:
            store.read("files/a", 0, 3)
        assert not isinstance(away.value, (FileNotFoundError, DamagedObject))
