"""A stream that joins a generation whose large prompt is still being prepared begins with the prompt's size."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.models.folder import ServedModel
from deployments.common.text_encoder import LARGE_CHARACTERS
from deployments.routing.queue_class import QueueClass
from tests.conftest import redis_server
from tests.deployments.routers import running_router
from tests.deployments.waiting import until

LONG = "word " * (LARGE_CHARACTERS // 4)


def test_a_joiners_message_start_has_the_prompts_tokens(
    monkeypatch: pytest.MonkeyPatch, bundled: ServedModel, tmp_path: Path
) -> None:
    shutil.copytree(bundled.folder, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 100_000}))
    models = [{"name": "bot", "source": str(tmp_path / "model")}]
    body = {"model": "bot", "messages": [{"role": "user", "content": LONG}], "max_tokens": 9, "temperature": 0}

    async def work(url: str) -> None:
        prepared = asyncio.Event()
        async with (
            running_router(monkeypatch, url, models=models, data_dir=tmp_path) as router,
            httpx.AsyncClient(base_url=router.url, timeout=30) as client,
        ):
            texts, jobs = router.router._large_texts, router.router._inference._answers._jobs
            run = texts.run

            async def run_when_prepared(queue_class: QueueClass, characters: int, work: Callable[[], Any]) -> Any:
                if characters > LARGE_CHARACTERS:
                    await prepared.wait()
                return await run(queue_class, characters, work)

            async def are_waiting(number: int) -> bool:
                return [len(job.broadcast._subscribers) for job in jobs.values()] == [number]

            monkeypatch.setattr(texts, "run", run_when_prepared)
            first = asyncio.create_task(client.post("/v1/messages", json=body))
            await until(lambda: are_waiting(1))
            joining = asyncio.create_task(client.post("/v1/messages", json=body | {"stream": True}))
            await until(lambda: are_waiting(2))
            # Longer than a stream waits for its first token before it begins.
            done, _ = await asyncio.wait({joining}, timeout=1)
            prepared.set()
            whole, stream = (await first).json(), await joining
            assert not done and stream.headers["x-dray-cache"] == "join"
            start = json.loads(stream.text.splitlines()[1][6:])["message"]
            assert start["usage"]["input_tokens"] == whole["usage"]["input_tokens"] > len(LONG) // 8

    with redis_server(16) as redis:
        asyncio.run(work(redis.url))
