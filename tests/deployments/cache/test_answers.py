"""The answer cache against a real server: it returns the stored answer, and never anything else."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import msgspec
import pytest
import redis

from cluster.redis_server import OwnRedis
from cluster.settings import CacheSettings
from deployments.cache.answers import AnswerCache, CacheControl
from deployments.common.errors import ApiError
from deployments.common.messages import Sampling
from deployments.common.redis import RedisCallbacks, RedisStore
from deployments.common.types import (
    Choice,
    FinishReason,
    GenerationRequest,
    GenerationResult,
    LikelyToken,
    Message,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolChoice,
    Usage,
)
from deployments.routing.queue_class import QueueClass
from tests.conftest import redis_server

T = TypeVar("T")
CHOICE = Choice("想" * 500, "23 and 12", "stop", (ToolCall("c", "f", "{}"),), (TokenLogprob((228, 184), -0.5),))
ANSWER = GenerationResult((CHOICE, CHOICE), Usage(10, 20, 5, 0), 1.5)


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(8) as own:
        yield own


def store_at(url: str, on_fault: Callable[[], None] = lambda: None, timeout_s: float = 1.0) -> RedisStore:
    store = RedisStore("answers", url, timeout_s, RedisCallbacks(on_fault, lambda is_open: None))
    _OPEN.append(store)
    return store


_OPEN: list[RedisStore] = []


async def closing(work: Coroutine[None, None, T]) -> T:
    """Awaits the work, and closes the stores that it opened."""
    _OPEN.clear()  # what others left open belongs to loops that have ended
    try:
        return await work
    finally:
        while _OPEN:
            await _OPEN.pop().close()


def cache(server: OwnRedis, on_fault: Callable[[], None] = lambda: None, **settings: object) -> AnswerCache:
    return AnswerCache(CacheSettings(**settings), store_at(server.url, on_fault))


def request_for(text: str = "a", sampling: Sampling | None = None, **more: Any) -> GenerationRequest:
    return GenerationRequest((Message("user", text),), sampling or Sampling(5), **more)


def test_a_stored_answer_is_returned(server: OwnRedis) -> None:
    async def work() -> None:
        answers = cache(server)
        key = answers.key("m", "s", "n", request_for())
        assert await answers.get(key) is None
        await answers.put(key, ANSWER, CacheControl())
        assert await answers.get(key) == ANSWER

    asyncio.run(closing(work()))
    with redis.Redis.from_url(server.url) as raw:
        [key] = raw.keys("dray:answer:*")
        assert raw.strlen(key) < 500, "long answers are compressed"
        assert 0.89 * 86_400 < raw.ttl(key) <= 86_400


def test_the_key_covers_all_that_the_answer_depends_on(server: OwnRedis) -> None:
    answers = cache(server)
    questions = [
        request_for(),
        request_for("b"),
        request_for(sampling=Sampling(6)),
        request_for(sampling=Sampling(5, 0.5)),
        request_for(sampling=Sampling(5, 0.5, 0.9)),
        request_for(sampling=Sampling(5, 0.5, 0.9, 1)),
        request_for(sampling=Sampling(5, repetition_penalty=1.1)),
        request_for(sampling=Sampling(5, logit_bias=((3, 1.0),))),
        request_for(sampling=Sampling(5, logit_bias=((3, 2.0),))),
        request_for(sampling=Sampling(5, top_logprobs=0)),
        request_for(sampling=Sampling(5, top_logprobs=5)),
        request_for(stop=("x",)),
        request_for(tools=(Tool("f", "", "{}"),)),
        request_for(tool_choice=ToolChoice("required")),
        request_for(schema='{"type":"object"}'),
        request_for(template_args='{"enable_thinking":false}'),
        request_for(num_choices=2),
        request_for(max_thinking_tokens=0),
        GenerationRequest((Message("system", "a"),), Sampling(5)),
        GenerationRequest((Message("user", "a"), Message("user", "")), Sampling(5)),
        GenerationRequest((), Sampling(5), "a"),
        GenerationRequest((), Sampling(5), (1, 2)),
        GenerationRequest((), Sampling(5), (1, 2), prompt_logprobs=True),
    ]
    keys = {answers.key("m", "s", "n", question) for question in questions}
    other_subjects = [("m", "s2", "n"), ("m", "s", "other"), ("m2", "s", "n")]
    keys |= {answers.key(*subject, request_for()) for subject in other_subjects}
    assert len(keys) == len(questions) + 3
    assert answers.key("m", "s", "n", request_for()) == answers.key("m", "s", "n", request_for())


@pytest.mark.parametrize(("tokens", "stored"), [(4000, True), (16_000, False)])
@pytest.mark.parametrize("leads", [False, True])
def test_an_answer_that_takes_long_to_read_is_not_stored(
    server: OwnRedis, tokens: int, stored: bool, leads: bool
) -> None:
    """One whose every token has twenty alternatives."""
    token = TokenLogprob((65,), -0.5, tuple(LikelyToken((65, n), -float(n)) for n in range(20)))
    huge = GenerationResult((Choice("", "A" * tokens, "stop", (), (token,) * tokens),), Usage(1, tokens, 0, 0), 1.0)

    async def work() -> None:
        answers = cache(server)
        key = answers.key("m", "s", f"{leads}{tokens}", request_for())
        lease = await answers.lead(key, QueueClass("t", 1.0, batch=False)) if leads else None
        assert not isinstance(lease, GenerationResult)
        await answers.put(key, huge, CacheControl(), lease)
        assert (await answers.get(key) == huge) is stored

    asyncio.run(closing(work()))


@pytest.mark.parametrize(
    "garbage",
    [b"", b"x", b"\x04", b"\x04zgarbage", b"\x04p\xc1", b"\x04p\x93\x01\x02\x03", b"\xffpfuture", b"\x04p\x93\x90\x01"],
)
def test_garbage_is_a_miss(server: OwnRedis, garbage: bytes) -> None:
    with redis.Redis.from_url(server.url) as raw:
        raw.set("dray:answer:garbage", garbage)
    assert asyncio.run(closing(cache(server).get("dray:answer:garbage"))) is None


def test_only_complete_answers_that_repeat_are_stored(server: OwnRedis) -> None:
    stores, stores_all = cache(server).should_store, cache(server, store="all").should_store

    def answer(*finishes: FinishReason) -> GenerationResult:
        return GenerationResult(tuple(Choice("", "", finish) for finish in finishes), Usage(1, 1, 0, 0), 0)

    greedy, seeded, random = (
        request_for(sampling=sampling) for sampling in (Sampling(5), Sampling(5, 0.7, seed=3), Sampling(5, 0.7))
    )
    assert stores(greedy, answer("stop")) and stores(seeded, answer("stop", "tool_calls"))
    assert not stores(random, answer("stop")) and stores_all(random, answer("stop"))
    assert not stores(greedy, answer("stop", "length")) and not stores_all(greedy, answer("length"))


def test_a_full_server_evicts_the_least_used_answers_and_stores_new_ones(server: OwnRedis) -> None:
    async def work() -> None:
        faults: list[None] = []
        answers = cache(server, lambda: faults.append(None))
        long = "".join(chr(0x4E00 + n * 7919 % 20_000) for n in range(20_000))
        big = GenerationResult((msgspec.structs.replace(CHOICE, text=long),), ANSWER.usage, 0)
        for n in range(400):
            await answers.put(f"dray:answer:{n}", big, CacheControl())
        assert not faults
        assert await answers.get("dray:answer:399") == big

    asyncio.run(closing(work()))
    with redis.Redis.from_url(server.url) as raw:
        info = raw.info()
        assert info["evicted_keys"] > 0 and info["used_memory"] <= 9 * 2**20


def test_without_a_server_every_lookup_is_a_quick_miss() -> None:
    async def work() -> None:
        faults: list[None] = []
        answers = AnswerCache(CacheSettings(), store_at("redis://127.0.0.1:1", lambda: faults.append(None), 0.2))
        start = time.monotonic()
        for _ in range(20):
            assert await answers.get("dray:answer:x") is None
            await answers.put("dray:answer:x", ANSWER, CacheControl())
        assert time.monotonic() - start < 1
        assert len(faults) == 3, "after three faults the circuit is open, and the cache makes no calls"

    asyncio.run(closing(work()))


@pytest.mark.parametrize(
    ("headers", "control"),
    [
        ({}, CacheControl()),
        ({"cache-control": "no-cache"}, CacheControl(reads=False)),
        ({"cache-control": "No-Store, max-age=60"}, CacheControl(stores=False, max_age_s=60)),
        ({"cache-control": "max-age=0"}, CacheControl(reads=False, max_age_s=0)),
        ({"cache-control": "only-if-cached"}, CacheControl(only_if_cached=True)),
        ({"cache-control": "max-stale=5, unknown"}, CacheControl()),
        ({"x-dray-cache-ttl": "10"}, CacheControl(ttl_s=10)),
    ],
)
def test_cache_control_is_read_from_headers(headers: dict[str, str], control: CacheControl) -> None:
    assert CacheControl.from_headers(headers, 100) == control


@pytest.mark.parametrize(
    "headers",
    [
        {"cache-control": "max-age=soon"},
        {"x-dray-cache-ttl": "0"},
        {"x-dray-cache-ttl": "101"},
        {"x-dray-cache-ttl": "²"},
    ],
)
def test_a_header_that_is_no_number_of_seconds_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ApiError) as refused:
        CacheControl.from_headers(headers, 100)
    assert refused.value.status == 400 and refused.value.body.error.param == next(iter(headers))
