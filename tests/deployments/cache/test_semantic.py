"""Questions in other words over a real server: one row for one question, however many routers add it at once."""

import asyncio
import secrets
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import redis

from cluster.redis_server import OwnRedis
from cluster.settings import CacheSettings
from deployments.cache import semantic
from deployments.cache.answers import AnswerCache
from deployments.cache.semantic import SemanticCache, SemanticQuery
from tests.conftest import redis_server
from tests.deployments.cache.test_answers import request_for, store_at

SIZE = 8


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(64) as own:
        yield own


class Alike:
    """An embedder to which all texts are alike, so that only their words decide."""

    async def embed(self, text: str, timeout_s: float) -> bytes:
        return array("f", [1.0] + [0.0] * (SIZE - 1)).tobytes()


class Router:
    """A router's two caches. Each test has its own namespace, and so its own contexts."""

    def __init__(self, url: str, namespace: str) -> None:
        self.store = store_at(url)
        self.answers = AnswerCache(CacheSettings(), self.store)
        self.semantic = SemanticCache(CacheSettings(), self.store, Alike())
        self._namespace = namespace

    async def query(self, text: str) -> SemanticQuery:
        query = await self.semantic.query("s", self._namespace, request_for(text))
        assert query is not None
        return query

    def key(self, text: str) -> str:
        return self.answers.key("m", "s", self._namespace, request_for(text))

    async def add(self, text: str) -> None:
        await self.semantic.add(await self.query(text), self.key(text))

    async def find(self, text: str) -> str | None:
        return await self.semantic.find(await self.query(text))

    def copied(self) -> list[str]:
        """The questions that this router has copied, one for each row."""
        return [text for context in self.semantic._contexts.values() for text in context.texts]


@asynccontextmanager
async def routers(server: OwnRedis, count: int) -> AsyncIterator[list[Router]]:
    namespace = secrets.token_hex(4)
    several = [Router(server.url, namespace) for _ in range(count)]
    yield several
    for router in several:
        await router.store.close()


def run(work: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))


def rows(server: OwnRedis, query: SemanticQuery) -> list[str]:
    with redis.Redis.from_url(server.url) as raw:
        return [fields[b"text"].decode() for _, fields in raw.xrange(f"dray:near:{{{query.context}}}")]


def test_one_question_has_one_row_whoever_adds_it(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 3) as several:
            await asyncio.gather(*(router.add("What is 27 + 48?") for router in several for _ in range(5)))
            query = await several[0].query("What is 27 + 48?")
            assert rows(server, query) == ["What is 27 + 48?"]
            await several[1].add("What is 1 + 1?")
            await several[2].add("What is 27 + 48?")
            assert rows(server, query) == ["What is 27 + 48?", "What is 1 + 1?"]
            for router in several:
                assert await router.find("Please tell me, what's 27 + 48?") == router.key("What is 27 + 48?")
                assert await router.find("What is 48 + 27?") is None

    run(work)


def test_concurrent_searches_read_each_row_once(server: OwnRedis) -> None:
    async def work() -> None:
        async with routers(server, 2) as (writer, reader):
            for number in range(3):
                await writer.add(f"What is {number} + 1?")
                await asyncio.gather(*(reader.find("What is 5 + 5?") for _ in range(10)))
            assert reader.copied() == [f"What is {number} + 1?" for number in range(3)]

    run(work)


@pytest.mark.parametrize("evicted", ["near", "near-rows"])
def test_a_row_that_redis_evicted_is_added_again(server: OwnRedis, evicted: str) -> None:
    async def work() -> None:
        async with routers(server, 1) as [router]:
            await router.add("What is 27 + 48?")
            query = await router.query("What is 27 + 48?")
            with redis.Redis.from_url(server.url) as raw:
                assert raw.delete(f"dray:{evicted}:{{{query.context}}}") == 1
            await router.add("What is 27 + 48?")
            await router.add("What is 27 + 48?")
            assert set(rows(server, query)) == {"What is 27 + 48?"}
            assert len(rows(server, query)) == (1 if evicted == "near" else 2), "after an eviction at most once"

    run(work)


def test_the_oldest_rows_go_first_and_may_come_back(server: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "_MAX_QUESTIONS", 3)

    async def work() -> None:
        async with routers(server, 2) as (writer, reader):
            for number in range(5):
                await writer.add(f"What is {number} + 1?")
                await reader.find("What is 7 + 7?")
            query = await writer.query("What is 1 + 1?")
            assert rows(server, query) == reader.copied() == [f"What is {number} + 1?" for number in (2, 3, 4)]
            await writer.add("What is 0 + 1?")
            await writer.add("What is 0 + 1?")
            assert rows(server, query) == [f"What is {number} + 1?" for number in (3, 4, 0)]
            assert await reader.find("What's 0 + 1?") == reader.key("What is 0 + 1?")
            with redis.Redis.from_url(server.url) as raw:
                assert raw.hlen(f"dray:near-rows:{{{query.context}}}") == 3

    run(work)


def test_rows_are_read_in_pages(server: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "_PAGE", 2)

    async def work() -> None:
        async with routers(server, 2) as (writer, reader):
            for number in range(5):
                await writer.add(f"What is {number} + 1?")
            assert await reader.find("What's 4 + 1?") == reader.key("What is 4 + 1?")
            assert reader.copied() == [f"What is {number} + 1?" for number in range(5)]

    run(work)


def test_a_router_keeps_the_copies_that_it_used_last(server: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "_MAX_COPIED", 3)

    async def work() -> None:
        async with routers(server, 1) as [first], routers(server, 1) as [second]:
            second.semantic = first.semantic
            for number in range(2):
                for router in (first, second):
                    await router.add(f"What is {number} + 1?")
                    assert await router.find(f"What's {number} + 1?") == router.key(f"What is {number} + 1?")
            assert len(first.copied()) == 2, "of the second namespace"

    run(work)


def test_a_question_that_the_model_finds_different_is_none(server: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with routers(server, 1) as [router]:
            await router.add("What is 27 + 48?")
            query = await router.query("What's 27 + 48?")
            other = array("f", [0.0, 1.0] + [0.0] * (SIZE - 2)).tobytes()
            assert await router.semantic.find(query) is not None
            assert await router.semantic.find(replace(query, vector=other)) is None
            assert await router.semantic.find(replace(query, vector=other[:4])) is None

    run(work)
