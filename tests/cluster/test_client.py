"""`dray chat` with different servers: their streams, and failures in the middle of a stream."""

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.client import Delta, ServerError, stream_chat
from cluster.sse import MAX_LINE_BYTES, EventParser, StreamError
from tests.cluster.streams import DONE, END, KINDS, USAGE, delta, event, serving


def received(*pieces: bytes, break_off: bool = False, status: int = 200) -> list[Delta]:
    with serving(*pieces, break_off=break_off, status=status) as url:
        return list(stream_chat(url, "", "m", [{"role": "user", "content": "hi"}]))


def answer(*pieces: bytes) -> tuple[str, str, int]:
    """Thinking, text and tokens."""
    parts = received(*pieces)
    return "".join(part.reasoning for part in parts), "".join(part.text for part in parts), parts[-1].tokens


@pytest.mark.parametrize("kind", KINDS)
def test_thinking_text_and_usage_of_different_servers(kind: str) -> None:
    end = [event(USAGE)] if kind == "without [DONE]" else [event(USAGE), DONE]
    assert answer(*KINDS[kind], *end) == ("hm", "so it", 5)
    whole = b"".join([*KINDS[kind], *end])
    for size in (1, 37):
        assert answer(*(whole[start : start + size] for start in range(0, len(whole), size))) == ("hm", "so it", 5)


def test_missing_usage_is_no_error() -> None:
    text = event(delta('{"content":"a"}'))
    assert answer(text, event('{"choices":[],"usage":null}'), DONE) == ("", "a", 0)
    assert answer(text, event('{"choices":[],"usage":{"completion_tokens":null}}'), DONE) == ("", "a", 0)
    assert answer(text, DONE) == ("", "a", 0)


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([event('{"error":{"message":"engine failed","code":500}}')], "engine failed"),
        ([event('{"error":"out of memory"}'), DONE], "out of memory"),
        ([event('{"choices":[],"error":{"message":"cut"}}'), END, DONE], "cut"),
        ([], "ended the stream before the answer was complete"),
        ([event(USAGE)], "ended the stream before the answer was complete"),
        ([b'data: {"choices":[{"del'], "ended the stream before the answer was complete"),
        ([b"<html>bad gateway</html>"], "ended the stream before the answer was complete"),
        ([event("no json")], "not an answer of this API"),
        ([event('{"choices":{}}')], "not an answer of this API"),
        ([b"data: " + b"x" * (1 << 16)] * 17, "an event of more than 1 MiB"),
    ],
)
def test_a_failure_in_midstream_is_an_error_after_the_text_so_far(pieces: list[bytes], reason: str) -> None:
    parts = []
    with serving(event(delta('{"content":"so"}')), *pieces) as url, pytest.raises(ServerError, match=reason):
        for part in stream_chat(url, "", "m", []):
            parts.append(part.text)
    assert "".join(parts) == "so"


def test_a_lost_connection_is_an_error() -> None:
    with pytest.raises(ServerError, match="broke the stream off"):
        received(event(delta('{"content":"so"}')), break_off=True)
    with pytest.raises(ServerError, match="does not answer"):
        list(stream_chat("http://127.0.0.1:1/v1", "", "m", []))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"all busy"}}', "all busy"),
        (b'{"error":"all busy"}', "all busy"),
        (b"<html>bad gateway</html>", "HTTP 503"),
        (b'{"error":null}', "HTTP 503"),
        (b"[]", "HTTP 503"),
    ],
)
def test_a_refusal_has_the_servers_message(body: bytes, message: str) -> None:
    with pytest.raises(ServerError) as refused:
        received(body, status=503)
    assert str(refused.value) == message


def test_dray_chat_shows_thinking_and_answer_and_continues_after_an_error() -> None:
    good = [*KINDS["content null"], event(USAGE), DONE]
    with serving(*good) as url:
        result = CliRunner().invoke(app, ["chat", "--url", url, "--model", "m"], input="hi\n\n")
    assert result.exit_code == 0 and "hm\nso it\n(5 tokens" in result.stdout
    with serving(event(delta('{"content":"so"}')), event('{"error":{"message":"engine failed"}}')) as url:
        result = CliRunner().invoke(app, ["chat", "--url", url, "--model", "m"], input="hi\nagain\n\n")
    assert result.exit_code == 1 and result.stdout.count("so\n") == 2
    assert result.stderr == "error: engine failed\n" * 2


def test_the_length_of_a_line_is_limited() -> None:
    line = b"data: " + b" " * (MAX_LINE_BYTES - 8) + b"{}"
    assert len(EventParser().feed(line + b"\n" + line + b"\n")) == 2
    for pieces in ([b" " + line + b"\n"], [line, b" "], [b"\n" + line, b" \n"]):
        parser = EventParser()
        with pytest.raises(StreamError, match="more than 1 MiB"):
            for piece in pieces:
                parser.feed(piece)
