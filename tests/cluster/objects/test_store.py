"""Objects in a folder and in a bucket: the same, seen from outside."""

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.models.bucket_url import BucketUrlError
from cluster.objects.folder import FolderStore
from cluster.objects.sealed import SealedStore
from cluster.objects.store import ObjectStore, blocks, numbered_lines, object_store
from cluster.ports import free_port
from cluster.settings import PRIVACY_KEYS, Settings
from tests.conftest import wait_for


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    if request.param == "folder":
        yield FolderStore(tmp_path / "objects")
        return
    for package in ("obstore", "moto"):
        pytest.importorskip(package, reason="needs the extras `buckets` and `test`")
    import boto3
    from botocore.exceptions import BotoCoreError

    port = free_port()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            client = boto3.client("s3", region_name="us-east-1")

            def created() -> bool:
                try:
                    client.create_bucket(Bucket="ours")
                except BotoCoreError:
                    return False
                return True

            wait_for(created, 60)
            settings = Settings(batches={"url": "s3://ours/night/batches"})
            chosen = object_store(settings, tmp_path)
            assert chosen is not None and not list(tmp_path.iterdir())
            yield chosen
        finally:
            server.terminate()


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
    store.write("files/small", [b"new"])
    assert store.read("files/small", 0, 3) == b"new"
    for _ in range(2):
        store.remove("files/small")
    with pytest.raises(FileNotFoundError):
        store.read("files/small", 0, 3)
    with pytest.raises(OSError, match=r"ends|Range"):
        [*blocks(store, "parts/p", 0, 2)]
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
