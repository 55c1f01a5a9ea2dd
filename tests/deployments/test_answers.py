"""The answer cache against a real server: what is stored comes back, and nothing else ever does."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import redis

from cluster.redis import OwnRedis
from cluster.settings import CacheSettings
from deployments.answers import Answer, AnswerCache
from deployments.engine.wire import Sampling
from deployments.protocol import ChatRequest, Message, Usage

ANSWER = Answer("想" * 500, "23 and 12", "stop", Usage(10, 20, 5, 0), 1.5)


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with tempfile.TemporaryDirectory(prefix="dray-r-") as folder:
        own = OwnRedis(Path(folder), memory_mb=8)
        own.start()
        yield own
        own.stop()


def cache(server: OwnRedis, on_fault: Callable[[], None] = lambda: None, **settings: object) -> AnswerCache:
    chosen = CacheSettings(**({"timeout_s": 1} | settings))
    return AnswerCache(chosen, server.url, on_fault)


def request(text: str = "hi", **more: object) -> ChatRequest:
    return ChatRequest(model="m", messages=[Message("user", text)], **more)  # type: ignore[arg-type]


def test_stored_is_given_again(server: OwnRedis) -> None:
    async def work() -> None:
        one = cache(server)
        key = one.key("m", request("a"), Sampling(5))
        assert await one.get(key) is None
        await one.put(key, ANSWER)
        assert await one.get(key) == ANSWER
        await one.close()

    asyncio.run(work())
    with redis.Redis.from_url(server.url) as raw:
        [key] = raw.keys("dray:answer:*")
        assert raw.strlen(key) < 500, "long answers are compressed"
        assert 0.89 * 86_400 < raw.ttl(key) <= 86_400


def test_the_key_covers_all_that_the_answer_depends_on(server: OwnRedis) -> None:
    one = cache(server)
    keys = {
        one.key("m", request("a"), Sampling(5)),
        one.key("m", request("b"), Sampling(5)),
        one.key("m", request("a"), Sampling(6)),
        one.key("m", request("a"), Sampling(5, 0.5)),
        one.key("m", request("a"), Sampling(5, 0.5, 0.9)),
        one.key("m", request("a"), Sampling(5, 0.5, 0.9, 1)),
        one.key("m", request("a", stop="x"), Sampling(5)),
        one.key("m", ChatRequest("m", [Message("system", "a")]), Sampling(5)),
        one.key("m", ChatRequest("m", [Message("user", "a"), Message("user", "")]), Sampling(5)),
        one.key("m2", request("a"), Sampling(5)),
        cache(server, namespace="other").key("m", request("a"), Sampling(5)),
    }
    assert len(keys) == 11
    assert one.key("m", request("a", user="u"), Sampling(5)) == one.key("m", request("a", stop=[]), Sampling(5))


@pytest.mark.parametrize(
    "garbage", [b"", b"x", b"\x01", b"\x01zgarbage", b"\x01p\xc1", b"\x01p\x93\x01\x02\x03", b"\x02pfuture"]
)
def test_garbage_is_a_miss(server: OwnRedis, garbage: bytes) -> None:
    with redis.Redis.from_url(server.url) as raw:
        raw.set("dray:answer:garbage", garbage)
    assert asyncio.run(cache(server).get("dray:answer:garbage")) is None


def test_policy(server: OwnRedis) -> None:
    keeps, keeps_all = cache(server).keeps, cache(server, store="all").keeps
    assert keeps(Sampling(5), "stop") and keeps(Sampling(5, 0.7, 1.0, 3), "stop")
    assert not keeps(Sampling(5, 0.7), "stop") and keeps_all(Sampling(5, 0.7), "stop")
    assert not keeps(Sampling(5), "length") and not keeps_all(Sampling(5), "length")


def test_a_full_server_drops_the_least_used_and_goes_on(server: OwnRedis) -> None:
    async def work() -> None:
        faults: list[None] = []
        one = cache(server, lambda: faults.append(None))
        big = msgspec.structs.replace(ANSWER, text="".join(chr(0x4E00 + n * 7919 % 20_000) for n in range(20_000)))
        for n in range(400):
            await one.put(f"dray:answer:{n}", big)
        assert not faults
        assert await one.get("dray:answer:399") == big
        await one.close()

    asyncio.run(work())
    with redis.Redis.from_url(server.url) as raw:
        info = raw.info()
        assert info["evicted_keys"] > 0 and info["used_memory"] <= 9 * 2**20


def test_no_server_is_a_miss_and_quick() -> None:
    async def work() -> None:
        chosen = CacheSettings(timeout_s=0.2)
        faults: list[None] = []
        gone = AnswerCache(chosen, "redis://127.0.0.1:1", lambda: faults.append(None))
        began = time.monotonic()
        assert await gone.get("dray:answer:x") is None
        await gone.put("dray:answer:x", ANSWER)
        assert time.monotonic() - began < 5
        assert len(faults) == 2
        await gone.close()

    asyncio.run(work())
