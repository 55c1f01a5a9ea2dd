"""A bucket of a real S3 server on this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from cluster.ports import free_port
from tests.conftest import wait_for


@dataclass
class Bucket:
    """A bucket. client: boto3's. url: of a folder in it."""

    client: Any
    server: subprocess.Popen[bytes]
    name: str = "ours"
    folder: str = "night/batches"

    @property
    def url(self) -> str:
        return f"s3://{self.name}/{self.folder}"

    def names(self, prefix: str) -> list[str]:
        """The objects below a folder of the folder."""
        found = self.client.list_objects_v2(Bucket=self.name, Prefix=f"{self.folder}/{prefix}")
        return sorted(entry["Key"] for entry in found.get("Contents", []))

    def content(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.name, Key=key)["Body"].read())

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)

    def remove(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)

    def stop(self) -> None:
        """Ends the server: the bucket is away."""
        self.server.terminate()
        self.server.wait()


@contextmanager
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Runs the server, and lets the environment name it."""
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
            made = Bucket(boto3.client("s3", region_name="us-east-1"), server)

            def created() -> bool:
                try:
                    made.client.create_bucket(Bucket=made.name)
                except BotoCoreError:
                    return False
                return True

            wait_for(created, 60)
            yield made
        finally:
            made.stop()
