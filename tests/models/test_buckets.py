"""Models from object storage: complete, verified and atomic, whatever fails."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.models.bucket_url import BucketUrl
from cluster.models.buckets import CHECKSUMS, Bucket
from cluster.models.export import Compression
from cluster.models.fetch import FetchError
from cluster.models.folder import BUNDLED_FOLDER, open_model, store_folder
from cluster.models.hubs import HubError, NotOnHub, RemoteFile
from cluster.models.identity import MANIFEST, StoredWeights, stored_weights
from cluster.models.paths import UnsafeNameError
from cluster.models.store import obtain, remove
from cluster.ports import free_port
from cluster.settings import ModelSettings
from tests.conftest import wait_for
from tests.models.bucket_server import BucketServer, bucket_server

pytest.importorskip("obstore", reason="needs the extra `buckets`")

SOURCE = "s3://models/bots/qwen3-0.6b"
BIN, PREFIX = "openvino_model.bin", "bots/qwen3-0.6b"
CONVERTED = StoredWeights.INT8_SYMMETRIC_SMOOTHED
VARIABLES = {
    "s3": {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_ENDPOINT_URL": "{url}"},
    "oss": {"OSS_ACCESS_KEY_ID": "id", "OSS_ACCESS_KEY_SECRET": "secret", "OSS_ENDPOINT": "{url}"},
    "gs": {"GOOGLE_SKIP_SIGNATURE": "true", "GOOGLE_BASE_URL": "{url}"},
}


class Silent:
    """Progress that nobody watches. bytes: how many have arrived, of each file."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}

    def begin(self, files: Sequence[RemoteFile]) -> None:
        return

    def advance(self, path: str, size: int) -> None:
        self.bytes[path] = self.bytes.get(path, 0) + size

    def check(self, path: str) -> None:
        return


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketServer]:
    for name in os.environ:
        if name.startswith(("AWS_", "OSS_", "GOOGLE_")):
            monkeypatch.delenv(name)
    with bucket_server() as running:
        for variables in VARIABLES.values():
            for name, value in variables.items():
                monkeypatch.setenv(name, value.format(url=running.url))
        running.put(BUNDLED_FOLDER, PREFIX)
        # As a folder has it whose weights `dray models pull` has converted already.
        record = json.loads(running.objects[f"{PREFIX}/{MANIFEST}"])
        running.objects[f"{PREFIX}/{MANIFEST}"] = json.dumps(record | {"weights": CONVERTED}).encode()
        yield running


def checksums(server: BucketServer, prefix: str = PREFIX) -> bytes:
    """What `sha256sum` would write about a folder."""
    found = {key.removeprefix(f"{prefix}/"): body for key, body in server.objects.items() if key.startswith(prefix)}
    return "".join(f"{hashlib.sha256(body).hexdigest()}  ./{name}\n" for name, body in found.items()).encode()


def pull(source: str, models_dir: Path, on_stage: Callable[[str], None] = print, *, convert: bool = True) -> Path:
    """As `dray models pull`, in this process."""
    bucket = Bucket(BucketUrl.parse(source))
    return obtain(source, Compression("int8"), models_dir, bucket, Silent(), on_stage, convert=convert, wait=True)


def is_whole(folder: Path) -> bool:
    """Whether a folder holds an exact copy of the bundled model."""
    names = [file.name for file in BUNDLED_FOLDER.iterdir() if file.name != "dray-model.json"]
    return all((folder / name).read_bytes() == (BUNDLED_FOLDER / name).read_bytes() for name in names)


def visible(models_dir: Path) -> list[str]:
    return [path.name for path in models_dir.glob("[!.]*")]


@pytest.mark.parametrize("scheme", ["s3", "oss", "gs"])
def test_a_folder_in_a_bucket_is_a_model(server: BucketServer, tmp_path: Path, scheme: str) -> None:
    source = SOURCE.replace("s3", scheme)
    server.objects[f"{PREFIX}/README.md"] = b"not needed"
    server.objects["bots/qwen3-0.6b-old/config.json"] = b"another model's"
    server.objects[f"{PREFIX}/1_Pooling/config.json"] = b"{}"
    folder = pull(source, tmp_path)
    assert is_whole(folder) and not (folder / "README.md").exists() and not (folder / ".cache").exists()
    assert (folder / "1_Pooling" / "config.json").read_bytes() == b"{}"
    assert visible(tmp_path) == [folder.name]
    record = json.loads((folder / MANIFEST).read_text())
    assert record["source"] == source
    assert record["versions"], "what is recorded about the weights stays with them"
    assert stored_weights(folder) is CONVERTED
    opened = open_model(ModelSettings(source=source, task="embed"), tmp_path)
    assert (opened.name, opened.folder) == ("qwen3-0.6b", folder.resolve())
    requests = len(server.asked)
    assert pull(source, tmp_path) == folder
    assert len(server.asked) == requests, "a model that is here is not requested again"
    assert remove(source, "int8", tmp_path) == folder
    assert visible(tmp_path) == []


def test_dropped_connections_and_a_killed_download_resume(
    server: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.models.buckets._CHUNK_BYTES", 1 << 20)
    key = f"{PREFIX}/{BIN}"
    server.objects[key] = os.urandom(4 << 20)
    server.dropped[key] = 1000
    with pytest.raises(HubError):
        pull(SOURCE, tmp_path)
    assert visible(tmp_path) == []
    server.dropped[key] = 0
    partial = tmp_path / ".partial" / store_folder(SOURCE, "int8", tmp_path).name / BIN
    # As a download that was killed leaves it.
    partial.write_bytes(server.objects[key][: 2 << 20])
    server.asked.clear()
    server.dropped[key] = 1
    assert (pull(SOURCE, tmp_path) / BIN).read_bytes() == server.objects[key]
    assert min(server.downloads(key)) == 2 << 20 and len(server.downloads(key)) >= 3


def test_bytes_of_an_object_that_was_replaced_meanwhile_are_not_mixed(
    server: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.models.buckets._CHUNK_BYTES", 1 << 20)
    key = f"{PREFIX}/{BIN}"
    old, new = os.urandom(2 << 20), os.urandom(2 << 20)
    server.objects[key] = old
    server.replaced = {key: new}
    with pytest.raises(HubError, match="changed while it was read"):
        pull(SOURCE, tmp_path)
    assert visible(tmp_path) == []
    server.replaced = {}
    partial = tmp_path / ".partial" / store_folder(SOURCE, "int8", tmp_path).name / BIN
    partial.write_bytes(old[: 1 << 20])
    server.asked.clear()
    assert (pull(SOURCE, tmp_path) / BIN).read_bytes() == new
    assert min(server.downloads(key)) == 0, "what was here is of the old object"


def test_content_is_held_against_the_folders_checksums(server: BucketServer, tmp_path: Path) -> None:
    stages: list[str] = []
    folder = pull(SOURCE, tmp_path, stages.append)
    assert [line for line in stages if "not verified" in line and CHECKSUMS in line]
    remove(SOURCE, "int8", tmp_path)
    server.objects[f"{PREFIX}/{CHECKSUMS}"] = checksums(server)
    stages.clear()
    assert pull(SOURCE, tmp_path, stages.append) == folder
    assert not [line for line in stages if "not verified" in line]
    remove(SOURCE, "int8", tmp_path)
    body = server.objects[f"{PREFIX}/{BIN}"]
    server.objects[f"{PREFIX}/{BIN}"] = body[:-1] + bytes([body[-1] ^ 1])
    with pytest.raises(FetchError, match="wrong checksum 2 times"):
        pull(SOURCE, tmp_path)
    assert visible(tmp_path) == []


def test_a_folder_that_is_being_uploaded_is_refused(server: BucketServer, tmp_path: Path) -> None:
    server.objects[f"{PREFIX}/{CHECKSUMS}"] = checksums(server)
    del server.objects[f"{PREFIX}/generation_config.json"]
    with pytest.raises(HubError, match=r"lacks generation_config\.json, which its SHA256SUMS lists"):
        pull(SOURCE, tmp_path)
    del server.objects[f"{PREFIX}/{CHECKSUMS}"], server.objects[f"{PREFIX}/{BIN}"]
    with pytest.raises(FetchError, match=f"lacks {BIN}"):
        pull(SOURCE, tmp_path)
    assert visible(tmp_path) == []


def test_keys_that_lead_out_of_the_folder_write_nothing(
    server: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    for key in ("../../evil.json", "..", "/evil.json"):
        with bucket_server() as hostile:
            hostile.objects = server.objects | {f"{PREFIX}/{key}": b"{}"}
            monkeypatch.setenv("AWS_ENDPOINT_URL", hostile.url)
            with pytest.raises((HubError, FetchError, UnsafeNameError)):
                pull(SOURCE, models)
        assert not list(tmp_path.rglob("evil.json")) and visible(models) == []


def test_what_a_bucket_lists_is_bounded(server: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.objects[f"{PREFIX}/{CHECKSUMS}"] = b"x" * 2**21
    with pytest.raises(HubError, match="more than a list of checksums has"):
        pull(SOURCE, tmp_path)
    server.objects[f"{PREFIX}/{CHECKSUMS}"] = b"not a checksum\n"
    with pytest.raises(HubError, match="is not what `sha256sum` writes"):
        pull(SOURCE, tmp_path)
    server.objects |= {f"{PREFIX}/{number}.json": b"{}" for number in range(1001)}
    with pytest.raises(HubError, match="holds more than 1000 files"):
        pull(SOURCE, tmp_path)
    del server.objects[f"{PREFIX}/{CHECKSUMS}"]
    monkeypatch.setattr("cluster.models.buckets._MAX_FILES", 5000)
    server.listed[f"{PREFIX}/{BIN}"] = 2**60
    with pytest.raises(FetchError, match="free some space"):
        pull(SOURCE, tmp_path)
    server.listed[f"{PREFIX}/{BIN}"] = 10 << 20  # more than it has
    with pytest.raises((HubError, FetchError)):
        pull(SOURCE, tmp_path)
    assert visible(tmp_path) == []


def test_refusals_say_what_to_set(server: BucketServer, tmp_path: Path) -> None:
    server.refused = 403
    with pytest.raises(HubError, match=r"403.*AWS_SECRET_ACCESS_KEY"):
        pull(SOURCE, tmp_path)
    server.refused = 0
    with pytest.raises(NotOnHub, match="s3://models/none does not exist, or is empty"):
        pull("s3://models/none", tmp_path)
    with pytest.raises(HubError, match="OSS_REGION"):
        Bucket(BucketUrl.parse("oss://models/a"), {})
    with pytest.raises(HubError, match="SSL_CERT_FILE"):
        Bucket(BucketUrl.parse(SOURCE), {"SSL_CERT_FILE": "/nowhere"})


def test_of_two_at_once_one_fetches(server: BucketServer, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(lambda _: pull(SOURCE, tmp_path), range(2)))
    assert len(folders) == 1 and len(server.downloads(f"{PREFIX}/{BIN}")) == 1


def test_the_command_pulls_and_keeps_secrets_to_itself(server: BucketServer, tmp_path: Path) -> None:
    environment = {**os.environ, "DRAY_MODELS_DIR": str(tmp_path), "HOME": str(tmp_path), "COLUMNS": "250"}
    command = [sys.executable, "-m", "cluster.cli", "models", "pull"]
    done = subprocess.run([*command, SOURCE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"dray up --model {SOURCE}" in done.stdout
    secret = "s3://id:hidden@models/a?token=hidden"
    refused = subprocess.run([*command, secret], env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 1 and refused.stderr.startswith("error: s3://models/a is not the address")
    assert "hidden" not in refused.stderr + refused.stdout and "Traceback" not in refused.stderr


@pytest.mark.slow
def test_a_server_of_s3s_own_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto's server checks what the stand-in above does not: names, signatures' form, paging."""
    pytest.importorskip("moto", reason="needs the package moto, of the extra `test`")
    import boto3
    from botocore.exceptions import BotoCoreError

    port = free_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            client = boto3.client("s3", region_name="eu-central-1")

            def created() -> bool:
                try:
                    client.create_bucket(
                        Bucket="models", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
                    )
                except BotoCoreError:
                    return False
                return True

            wait_for(created)
            for file in BUNDLED_FOLDER.iterdir():
                client.upload_file(str(file), "models", f"{PREFIX}/{file.name}")
            assert is_whole(pull(SOURCE, tmp_path, convert=False))
            with pytest.raises(NotOnHub, match="does not exist"):
                pull("s3://models/none", tmp_path)
            with pytest.raises(HubError, match="404"):
                pull("s3://nobucket/none", tmp_path)
        finally:
            process.terminate()
