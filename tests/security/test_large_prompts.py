"""One request with megabytes of text: it is refused before it is tokenized, or stops nobody else while it is."""

import asyncio
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
import redis
from tokenizers import Tokenizer

from cluster.models.folder import ServedModel
from cluster.records.team_records import Quota, Team
from cluster.records.teams import add_team, create_key
from cluster.redis_server import OwnRedis
from deployments.common.errors import ApiError
from deployments.common.text_encoder import LARGE_CHARACTERS, TextEncoder
from deployments.generation.large_texts import LargeTexts
from deployments.routing.queue_class import QueueClass
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import Engines, chat, running_router
from tests.security.test_grammars import memory_mb
from tests.service.test_embeddings import make_model

WORD = "1+1? "
HUGE = WORD * 60_000
"""More than the bundled model's context can hold, if each token were its longest."""
SCHEMA = {"type": "object", "description": HUGE}
JSON = {"Content-Type": "application/json"}
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(64) as own:
        yield own


@pytest.fixture(scope="module")
def teams() -> Iterator[OwnRedis]:
    """With teams, requests without a key are refused: a Redis of their own."""
    with redis_server(16) as own:
        yield own


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the texts that are tokenized from now on."""
    lengths: list[int] = []
    original = TextEncoder.encode

    def recorded(self: TextEncoder, texts: list[str], **options: Any) -> list[list[int]]:
        lengths.extend(map(len, texts))
        return original(self, texts, **options)

    monkeypatch.setattr(TextEncoder, "encode", recorded)
    return lengths


async def longest_gap(work: Callable[[], Awaitable[object]]) -> float:
    """The longest time in seconds for which the event loop did nothing else while it waited for this work."""
    task, longest, last = asyncio.ensure_future(work()), 0.0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    await task
    return longest


def test_the_event_loop_goes_on_while_a_huge_prompt_is_tokenized(bundled: ServedModel) -> None:
    tokenizer = Tokenizer.from_file(str(bundled.folder / "tokenizer.json"))
    text, encoder = WORD * 60_000, TextEncoder(tokenizer, 10**6)

    async def gaps() -> tuple[float, float]:
        plain = await longest_gap(lambda: asyncio.to_thread(tokenizer.encode, text))
        return plain, await longest_gap(lambda: asyncio.to_thread(encoder.encode, [text]))

    plain, ours = min((asyncio.run(gaps()) for _ in range(2)), key=lambda pair: pair[1] / pair[0])
    assert ours < plain / 3, (plain, ours)
    assert encoder.encode([text]) == [tokenizer.encode(text, add_special_tokens=False).ids]


CASES: list[tuple[str, dict[str, object]]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": HUGE}]}),
    ("/v1/chat/completions", {"messages": [{"role": "system", "content": HUGE}, USER], "stream": True}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": HUGE}]}]}),
    (
        "/v1/chat/completions",
        {"messages": [USER], "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]},
    ),
    ("/v1/completions", {"prompt": HUGE}),
    ("/v1/completions", {"prompt": ["a", HUGE]}),
    ("/v1/completions", {"prompt": [40] * 3000, "echo": True}),
    ("/v1/responses", {"input": HUGE}),
    ("/v1/responses", {"input": "hi", "instructions": HUGE}),
    ("/v1/responses", {"input": "hi", "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}]}),
    ("/v1/messages", {"messages": [{"role": "user", "content": HUGE}], "max_tokens": 9}),
    ("/v1/messages", {"messages": [USER], "system": HUGE, "max_tokens": 9}),
    ("/v1/messages", {"messages": [USER], "tools": [{"name": "f", "input_schema": SCHEMA}], "max_tokens": 9}),
    ("/v1/embeddings", {"model": "vectors", "input": HUGE}),
    ("/v1/embeddings", {"model": "vectors", "input": ["a", HUGE]}),
    ("/v1/responses/input_tokens", {"input": HUGE}),
    ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": HUGE}]}),
    ("/tokenize", {"prompt": HUGE}),
    ("/tokenize", {"messages": [{"role": "user", "content": HUGE}]}),
    ("/detokenize", {"tokens": [40] * 3000}),
]


def test_a_text_that_cannot_fit_the_context_is_refused_before_it_is_tokenized(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoded: list[int]
) -> None:
    make_model(tmp_path / "tiny")
    models = [{"name": MODEL}, {"name": "vectors", "task": "embed", "source": str(tmp_path / "tiny")}]

    async def work() -> None:
        async with (
            running_router(monkeypatch, server.url, models=models) as router,
            httpx.AsyncClient(base_url=router.url, timeout=20) as client,
        ):
            for path, body in CASES:
                response = await client.post(path, json={"model": MODEL, **body})
                error = response.json()["error"]
                assert response.status_code == 400, (path, response.text[:200])
                if path.startswith("/v1/messages"):
                    assert "context" in error["message"]
                else:
                    assert error["code"] == "context_length_exceeded", (path, error)
                assert len(response.content) < 1000
            assert router.engines.requests == 0

    asyncio.run(work())
    assert sum(encoded) < 10


def with_long_context(bundled: ServedModel, folder: Path) -> str:
    """The bundled model in a folder that claims a context in which a megabyte fits."""
    shutil.copytree(bundled.folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 10**6}))
    return str(folder)


async def round_is_good(client: httpx.AsyncClient, number: int) -> bool:
    """Whether health checks are answered soon while two huge prompts are tokenized."""
    texts = [f"{number} {half} {WORD * 150_000}" for half in range(2)]
    asking = asyncio.gather(*(client.post("/v1/chat/completions", content=chat(text, max_tokens=9)) for text in texts))
    started, slowest = time.perf_counter(), 0.0
    while not asking.done():
        before = time.perf_counter()
        assert (await client.get("/health/live")).status_code == 200
        slowest = max(slowest, time.perf_counter() - before)
    assert [response.status_code for response in await asking] == [200, 200]
    return slowest < (time.perf_counter() - started) / 4


def test_health_is_answered_while_huge_prompts_that_fit_are_tokenized(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundled: ServedModel
) -> None:
    models = [{"name": MODEL, "source": with_long_context(bundled, tmp_path / "long")}]

    async def work() -> None:
        async with (
            running_router(monkeypatch, server.url, models=models) as router,
            httpx.AsyncClient(base_url=router.url, headers=JSON, timeout=120) as client,
        ):
            await client.post("/v1/chat/completions", content=chat("the first request imports modules"))
            # Once of three times: a busy machine also stops the event loop, but not each time.
            assert await round_is_good(client, 0) or await round_is_good(client, 1) or await round_is_good(client, 2)

    asyncio.run(work())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_team_without_tokens_left_has_nothing_tokenized(
    server: OwnRedis, teams: OwnRedis, monkeypatch: pytest.MonkeyPatch, encoded: list[int], path: str
) -> None:
    long = WORD * 2 * (LARGE_CHARACTERS // 8)
    name = f"poor{len(path)}"

    async def work() -> None:
        with redis.Redis.from_url(teams.url) as store:
            # A month's quota is never exceeded: a request for more than what is left is refused.
            add_team(store, Team(name, 0.0, quota=Quota(tokens_per_month=1000)))
            headers = {"Authorization": f"Bearer {create_key(store, name).secret}"}
        async with (
            running_router(monkeypatch, server.url, teams.url) as router,
            httpx.AsyncClient(base_url=router.url, headers=headers, timeout=20) as client,
        ):
            body = json.loads(chat(long))
            if path == "/v1/completions":
                body = {"model": MODEL, "prompt": [long, "a"]}
            response = await client.post(path, json=body)
            assert response.json()["error"]["code"] == "insufficient_quota", response.text

    asyncio.run(work())
    assert not encoded


def test_a_large_prompt_is_not_tokenized_where_the_engines_queue_is_full(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, encoded: list[int]
) -> None:
    async def work() -> None:
        engines = Engines(blocked=asyncio.Event())
        models, limits = [{"name": MODEL, "max_num_seqs": 1}], {"max_queued": 1}
        async with (
            running_router(monkeypatch, server.url, engines=engines, models=models, limits=limits) as router,
            httpx.AsyncClient(base_url=router.url, headers=JSON, timeout=60) as client,
        ):
            [queue] = {share._queue for share in router.router._shares._shares.values()}
            before = [
                asyncio.create_task(client.post("/v1/chat/completions", content=chat(f"full {n}"))) for n in range(2)
            ]
            async with asyncio.timeout(20):
                while not queue.queued:
                    await asyncio.sleep(0.01)
            encoded.clear()
            response = await client.post("/v1/chat/completions", content=chat(WORD * 5000))
            assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
            assert not encoded
            assert engines.blocked is not None
            engines.blocked.set()
            assert [(await task).status_code for task in before] == [200, 200]

    asyncio.run(work())


def test_the_memory_of_large_texts_goes_back_to_the_system(bundled: ServedModel) -> None:
    encoder = TextEncoder(Tokenizer.from_file(str(bundled.folder / "tokenizer.json")), 10**6)
    team = QueueClass("a", 1.0, batch=False)

    async def run() -> None:
        texts = LargeTexts()
        for number in range(3):
            text = f"{number} {WORD * 80_000}"
            assert await texts.run(team, len(text), lambda text=text: len(encoder.encode([text])[0])) > 300_000  # type: ignore[misc]
        texts.close()

    before = memory_mb()
    asyncio.run(run())
    assert memory_mb() - before < 80, "without giving back: 170"


def test_few_large_texts_are_handled_at_once_and_further_ones_are_refused() -> None:
    first, second = QueueClass("first", 1.0, batch=False), QueueClass("second", 1.0, batch=False)
    running, most, finish = 0, 0, Event()
    order: list[str] = []

    def work(name: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(name)
        finish.wait(30)
        running -= 1

    async def run() -> None:
        texts = LargeTexts(at_once=1, max_waiting=3)
        tasks = [asyncio.create_task(texts.run(first, 10**6, lambda: work("first"))) for _ in range(3)]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(texts.run(second, 10**6, lambda: work("second"))))
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as refused:
            await texts.run(first, 10**6, lambda: work("first"))
        assert refused.value.status == 503
        assert await texts.run(first, LARGE_CHARACTERS, lambda: "at once") == "at once", "short texts wait for nothing"
        finish.set()
        await asyncio.gather(*tasks)
        texts.close()

    asyncio.run(asyncio.wait_for(run(), 60))
    assert most == 1
    assert order.index("second") <= 1, "the other team's goes before the rest of the first team's"
