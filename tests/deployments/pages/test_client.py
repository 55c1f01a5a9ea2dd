"""The chat page's client with a real HTTP server: growing answers, and failures."""

import asyncio

import pytest

from deployments.pages.client import ApiRefused, ChatClient, ChatQuery, Progress, ServerUnreachable
from tests.cluster.streams import DONE, END, KINDS, delta, event, serving

USAGE = event('{"choices":[],"usage":{"completion_tokens":5,"completion_tokens_details":{"reasoning_tokens":2}}}')
START = event(delta('{"content":"so"}'))


def answer(*pieces: bytes, status: int = 200) -> Progress:
    """The last progress of an answer."""

    async def last(url: str) -> Progress:
        return [progress async for progress in ChatClient(url).ask(ChatQuery("m", ()), "key")][-1]

    with serving(*pieces, status=status) as url:
        return asyncio.run(last(url))


@pytest.mark.parametrize("kind", KINDS)
def test_streams_of_different_servers_are_read(kind: str) -> None:
    progress = answer(*KINDS[kind], USAGE, DONE)
    assert (progress.thinking, progress.text, progress.finish) == ("hm", "so it", "stop")
    assert (progress.tokens, progress.reasoning_tokens) == (5, 2)
    assert 0 < progress.first_s <= progress.thought_s <= progress.took_s


def test_the_replica_is_named() -> None:
    assert answer(event('{"choices":[],"replica":"r1"}'), START, END, DONE).replica == "r1"


@pytest.mark.parametrize(
    "pieces", [[], [DONE], [event("no json")], [b"data: " + b"x" * (1 << 16)] * 17], ids=["end", "done", "json", "long"]
)
def test_a_stream_that_ends_early_is_an_error(pieces: list[bytes]) -> None:
    with pytest.raises(ServerUnreachable) as broken:
        answer(START, *pieces)
    assert broken.value.mid_answer


def test_only_retry_asks_past_the_cache() -> None:
    sent: list[dict[str, str]] = []

    async def ask(url: str) -> None:
        for fresh in (False, True):
            assert [progress async for progress in ChatClient(url).ask(ChatQuery("m", (), fresh=fresh), "key")]

    with serving(START, END, DONE, headers=sent) as url:
        asyncio.run(ask(url))
    assert [each.get("cache-control") for each in sent] == [None, "no-cache"]
    assert {each["authorization"] for each in sent} == {"Bearer key"}


def test_errors_have_the_apis_message() -> None:
    with pytest.raises(ApiRefused, match="engine failed"):
        answer(START, event('{"error":{"message":"engine failed"}}'))
    with pytest.raises(ApiRefused, match="too long") as refused:
        answer(b'{"error":{"message":"too long"}}', status=400)
    assert refused.value.status == 400
    with pytest.raises(ServerUnreachable):
        answer(b"<html>bad gateway</html>", status=502)
