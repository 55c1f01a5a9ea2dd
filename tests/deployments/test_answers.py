"""The answer cache against a real server: what is stored comes back, and nothing else ever does."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from cluster.redis import OwnRedis
from cluster.settings import CacheSettings
from deployments.answers import AnswerCache
from deployments.engine.wire import Sampling
from deployments.question import (
    Answer,
    Choice,
    Finish,
    Question,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolChoice,
    Turn,
    Usage,
)

CHOICE = Choice("想" * 500, "23 and 12", "stop", (ToolCall("c", "f", "{}"),), (TokenLogprob((228, 184), -0.5),))
ANSWER = Answer((CHOICE, CHOICE), Usage(10, 20, 5, 0), 1.5)


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


def asked(text: str = "a", sampling: Sampling | None = None, **more: Any) -> Question:
    return Question((Turn("user", text),), sampling or Sampling(5), **more)


def test_stored_is_given_again(server: OwnRedis) -> None:
    async def work() -> None:
        one = cache(server)
        key = one.key("m", asked())
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
    questions = [
        asked(),
        asked("b"),
        asked(sampling=Sampling(6)),
        asked(sampling=Sampling(5, 0.5)),
        asked(sampling=Sampling(5, 0.5, 0.9)),
        asked(sampling=Sampling(5, 0.5, 0.9, 1)),
        asked(sampling=Sampling(5, repetition_penalty=1.1)),
        asked(stop=("x",)),
        asked(tools=(Tool("f", "", "{}"),)),
        asked(tool_choice=ToolChoice("required")),
        asked(schema='{"type":"object"}'),
        asked(template='{"enable_thinking":false}'),
        asked(choices=2),
        asked(thinking_tokens=0),
        Question((Turn("system", "a"),), Sampling(5)),
        Question((Turn("user", "a"), Turn("user", "")), Sampling(5)),
        Question((), Sampling(5), "a"),
        Question((), Sampling(5), (1, 2)),
    ]
    keys = {one.key("m", question) for question in questions}
    keys |= {one.key("m2", asked()), cache(server, namespace="other").key("m", asked())}
    assert len(keys) == len(questions) + 2
    assert one.key("m", asked()) == one.key("m", asked())


@pytest.mark.parametrize(
    "garbage",
    [b"", b"x", b"\x01", b"\x01zgarbage", b"\x01p\xc1", b"\x01p\x93\x01\x02\x03", b"\xffpfuture", b"\x02p\x93\x90\x01"],
)
def test_garbage_is_a_miss(server: OwnRedis, garbage: bytes) -> None:
    with redis.Redis.from_url(server.url) as raw:
        raw.set("dray:answer:garbage", garbage)
    assert asyncio.run(cache(server).get("dray:answer:garbage")) is None


def test_policy(server: OwnRedis) -> None:
    keeps, keeps_all = cache(server).keeps, cache(server, store="all").keeps

    def answer(*finishes: Finish) -> Answer:
        return Answer(tuple(Choice("", "", finish) for finish in finishes), Usage(1, 1, 0, 0), 0)

    greedy, seeded, drawn = asked(), asked(sampling=Sampling(5, 0.7, seed=3)), asked(sampling=Sampling(5, 0.7))
    assert keeps(greedy, answer("stop")) and keeps(seeded, answer("stop", "tool_calls"))
    assert not keeps(drawn, answer("stop")) and keeps_all(drawn, answer("stop"))
    assert not keeps(greedy, answer("stop", "length")) and not keeps_all(greedy, answer("length"))


def test_a_full_server_drops_the_least_used_and_goes_on(server: OwnRedis) -> None:
    async def work() -> None:
        faults: list[None] = []
        one = cache(server, lambda: faults.append(None))
        long = "".join(chr(0x4E00 + n * 7919 % 20_000) for n in range(20_000))
        big = Answer((msgspec.structs.replace(CHOICE, text=long),), ANSWER.usage, 0)
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
