"""Addresses in object storage come from settings only: what clients send never becomes one, nor a path."""

import asyncio
from pathlib import Path

import pytest

from tests.conftest import redis_server
from tests.deployments.routers import asking
from tests.models.bucket_server import bucket_server

NAMES = ("s3://models/folder", "gs://models/folder", "oss://models/folder", "/etc", "../models", "file:///etc/passwd")


def test_a_clients_model_name_is_only_looked_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with bucket_server() as bucket, redis_server(16) as redis:
        for name in ("AWS_ENDPOINT_URL", "OSS_ENDPOINT", "GOOGLE_BASE_URL"):
            monkeypatch.setenv(name, bucket.url)
        models = tmp_path / "models"

        async def ask() -> None:
            async with asking(redis, monkeypatch, tmp_path, models_dir=models) as client:
                for name in NAMES:
                    message = {"role": "user", "content": name}
                    bodies = {
                        "/v1/chat/completions": {"model": name, "messages": [message]},
                        "/v1/completions": {"model": name, "prompt": name},
                        "/v1/responses": {"model": name, "input": name},
                        "/v1/messages": {"model": name, "messages": [message], "max_tokens": 5},
                        "/v1/embeddings": {"model": name, "input": name},
                        "/v1/rerank": {"model": name, "query": name, "documents": [name]},
                    }
                    for path, body in bodies.items():
                        answered = await client.post(path, json=body)
                        assert answered.status_code == 404, (path, answered.text)

        asyncio.run(ask())
        assert bucket.asked == [] and not models.exists()
