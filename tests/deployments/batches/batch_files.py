"""What the tests of batches share: input files, a client of a router, and what comes out."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from cluster.redis_server import OwnRedis
from tests.conftest import MODEL
from tests.deployments.routers import Engines, RunningRouter, running_router

CHAT = "/v1/chat/completions"


def line(custom_id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    body = {"model": MODEL, "temperature": 0, **body}
    if url == CHAT:
        body.setdefault("messages", [{"role": "user", "content": f"What is {custom_id}?"}])
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


@asynccontextmanager
async def batch_router(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, folder: Path, **settings: Any
) -> AsyncIterator[tuple[RunningRouter, openai.AsyncOpenAI]]:
    """A router whose files are in the folder, and a client of it."""
    monkeypatch.setenv("DRAY_DATA_DIR", str(folder))
    engines = settings.pop("engines", None) or Engines()
    async with (
        running_router(monkeypatch, server.url, engines=engines, **settings) as router,
        openai.AsyncOpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield router, client


async def submit(client: openai.AsyncOpenAI, content: bytes, url: Any = CHAT, **more: Any) -> Batch:
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    window = more.pop("window", "24h")
    return await client.batches.create(input_file_id=file.id, endpoint=url, completion_window=window, **more)


async def status(client: openai.AsyncOpenAI, batch_id: str, *wanted: str) -> Batch:
    """The batch, once it has one of these statuses."""
    async with asyncio.timeout(60):
        while (batch := await client.batches.retrieve(batch_id)).status not in wanted:
            await asyncio.sleep(0.05)
    return batch


async def ended(client: openai.AsyncOpenAI, batch: Batch) -> Batch:
    return await status(client, batch.id, "completed", "failed", "expired", "cancelled")


async def lines_of(client: openai.AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of an output file or an error file; none where there is no such file."""
    if file_id is None:
        return []
    return [json.loads(text) for text in (await client.files.content(file_id)).text.splitlines()]


def objects(folder: Path) -> Iterator[str]:
    """The names of all objects."""
    return (str(path.relative_to(folder / "batches")) for path in (folder / "batches").rglob("*") if path.is_file())
