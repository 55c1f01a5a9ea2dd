"""The chat page's client at a real HTTP server: how the answer grows, and what breaks it off."""

import asyncio

import pytest

from deployments.pages.client import ApiRefused, ChatClient, ChatQuery, Progress, ServerUnreachable
from tests.cluster.streams import DONE, END, KINDS, delta, event, serving

USAGE = event('{"choices":[],"usage":{"completion_tokens":5,"completion_tokens_details":{"reasoning_tokens":2}}}')
START = event(delta('{"content":"so"}'))


def asked(*pieces: bytes, status: int = 200) -> Progress:
    """The last progress of an answer."""

    async def last(url: str) -> Progress:
        return [progress async for progress in ChatClient(url).ask(ChatQuery("m", ()), "key")][-1]

    with serving(*pieces, status=status) as url:
        return asyncio.run(last(url))


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_read_however_its_fields_are_written(kind: str) -> None:
    progress = asked(*KINDS[kind], USAGE, DONE)
    assert (progress.thinking, progress.text, progress.finish) == ("hm", "so it", "stop")
    assert (progress.tokens, progress.reasoning_tokens) == (5, 2)
    assert 0 < progress.first_s <= progress.thought_s <= progress.took_s


def test_the_replica_is_named() -> None:
    assert asked(event('{"choices":[],"replica":"r1"}'), START, END, DONE).replica == "r1"


@pytest.mark.parametrize(
    "pieces", [[], [DONE], [event("no json")], [b"data: " + b"x" * (1 << 16)] * 17], ids=["end", "done", "json", "long"]
)
def test_an_answer_that_breaks_off_is_told_as_such(pieces: list[bytes]) -> None:
    with pytest.raises(ServerUnreachable) as broken:
        asked(START, *pieces)
    assert broken.value.begun


def test_errors_keep_the_apis_words() -> None:
    with pytest.raises(ApiRefused, match="engine failed"):
        asked(START, event('{"error":{"message":"engine failed"}}'))
    with pytest.raises(ApiRefused, match="too long") as refused:
        asked(b'{"error":{"message":"too long"}}', status=400)
    assert refused.value.status == 400
    with pytest.raises(ServerUnreachable):
        asked(b"<html>bad gateway</html>", status=502)
