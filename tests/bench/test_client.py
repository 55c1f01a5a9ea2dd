"""Single requests: the streams of different servers, and failures."""

import asyncio
from collections.abc import Callable
from contextlib import closing

import pytest

from cluster.bench.client import Outcome, ask, session
from tests.cluster.streams import KINDS

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def event(text: str) -> bytes:
    return b"data: " + text.encode() + b"\n\n"


def outcome_of(*pieces: bytes, stream: bool = True, timeout_s: float = 5.0) -> Outcome:
    """The outcome of a request to a server that sends these pieces in turn and then closes the connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)

    async def send() -> Outcome:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with server, session("", 0, timeout_s) as http:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            return await ask(http, url, {"stream": stream}, text=True)

    return asyncio.run(send())


USAGE = event(
    '{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}}'
)
DONE = event("[DONE]")
ROLE = event('{"choices":[{"delta":{"role":"assistant","content":""},"logprobs":null}]}')


def test_thinking_text_and_usage_are_read_however_the_bytes_are_split() -> None:
    answer = ROLE + event('{"choices":[{"delta":{"reasoning_content":"hm"}}]}')
    answer += event('{"choices":[{"delta":{"content":"so "}}]}') + event('{"choices":[{"delta":{"content":"it"}}]}')
    answer = b": a comment\n\n" + answer.replace(b"\n", b"\r\n") + USAGE + DONE
    whole = outcome_of(_HEAD + answer)
    split = outcome_of(_HEAD, *(answer[start : start + 37] for start in range(0, len(answer), 37)))
    for outcome in (whole, split):
        assert (outcome.error, outcome.text) == ("", "so it")
        assert (outcome.prompt, outcome.completion, outcome.cached, outcome.pieces) == (7, 3, 4, 3)
    assert split.began < split.first < split.last < split.ended
    assert split.tpot_s == (split.last - split.first) / 2


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "without [DONE]"])
def test_streams_of_different_servers_are_read(kind: str) -> None:
    outcome = outcome_of(_HEAD, *KINDS[kind], USAGE + DONE)
    assert (outcome.error, outcome.text, outcome.pieces, outcome.completion) == ("", "so it", 2, 3)


def test_a_cached_answer_counts_as_a_hit() -> None:
    hit = _HEAD.replace(b"Connection", b"X-Dray-Cache: hit\r\nConnection")
    assert outcome_of(hit, ROLE + USAGE + DONE).hit and not outcome_of(_HEAD, ROLE + USAGE + DONE).hit


def test_without_usage_events_are_counted() -> None:
    outcome = outcome_of(_HEAD, ROLE, *[event('{"choices":[{"delta":{"content":"x"},"text":null}]}')] * 5, DONE)
    assert (outcome.error, outcome.completion, outcome.prompt) == ("", 5, 0)


def test_a_token_without_text_counts_by_its_logprobs() -> None:
    silent = event('{"choices":[{"delta":{"content":""},"logprobs":{"content":[{"token":"","logprob":-1.5}]}}]}')
    outcome = outcome_of(_HEAD, ROLE, silent, silent, silent, USAGE + DONE)
    assert outcome.error == "" and outcome.pieces == 3 and outcome.first < outcome.last


def test_completions_and_whole_answers() -> None:
    text = outcome_of(_HEAD, event('{"choices":[{"text":"abc"}]}') + USAGE + DONE)
    assert (text.error, text.text, text.completion) == ("", "abc", 3)
    body = b'{"choices":[{"message":{"content":"abc"}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    whole = outcome_of(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body, stream=False)
    assert (whole.error, whole.text, whole.completion) == ("", "abc", 2) and whole.tpot_s is None


def test_a_connection_closed_between_two_requests_is_no_failure() -> None:
    answer = b'{"choices":[{"text":"abc"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async def send() -> list[Outcome]:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        async with server, session("", 0, 5.0) as http:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            return [await ask(http, url, {}, text=True) for _ in range(2)]

    assert [outcome.error for outcome in asyncio.run(send())] == ["", ""] and connections == 2


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (lambda: outcome_of(_HEAD, ROLE, event('{"choices":[{"delta":{"content":"x"}}]}')), "broke off"),
        (
            lambda: outcome_of(_HEAD, ROLE, event('{"error":{"message":"engine failed"}}'), DONE),
            "in the stream: engine failed",
        ),
        (
            lambda: outcome_of(b'HTTP/1.1 503 X\r\nContent-Length: 32\r\n\r\n{"error":{"message":"all busy"}}'),
            "503: all busy",
        ),
        (lambda: outcome_of(b"HTTP/1.1 502 X\r\nContent-Length: 7\r\n\r\n<html>\n"), "502: <html>"),
        (lambda: outcome_of(_HEAD, event("no json")), "not an answer of this API"),
        (lambda: outcome_of(_HEAD, *[b"data: " + b"x" * (1 << 16)] * 17), "an event of more than 1 MiB"),
        (lambda: outcome_of(_HEAD, ROLE + DONE), "the answer was empty"),
        (lambda: outcome_of(b""), "connection"),
        (lambda: outcome_of(_HEAD, *[b": alive\n\n"] * 60, timeout_s=0.2), "in time"),
    ],
)
def test_failures_are_reported(outcome: Callable[[], Outcome], message: str) -> None:
    assert message in outcome().error
