"""Chunks of chat completions, as strict clients read them."""

import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from deployments.api.protocol.chat import ChatRequest
from deployments.api.protocol.chat_messages import UserMessage
from deployments.api.protocol.chat_writer import ChatWriter
from deployments.api.responses import replay
from deployments.common.types import Choice, Delta, GenerationResult, ToolCall, ToolDelta, Usage

CALLS = (ToolCall("call_a", "weather", '{"city": "北京"}'), ToolCall("call_b", "time", "{}"))
STREAMED = (
    Delta(reasoning="hm"),
    Delta(text="Let me look."),
    Delta(tool_calls=(ToolDelta(0, "", "call_a", "weather"), ToolDelta(0, '{"city"'))),
    Delta(
        tool_calls=(ToolDelta(0, ': "北'), ToolDelta(0, '京"}'), ToolDelta(1, "", "call_b", "time"), ToolDelta(1, "{}"))
    ),
    Delta(finish_reason="tool_calls"),
)
USAGE = Usage(1, 0, 0, 0)
STORED = GenerationResult((Choice("hm", "Let me look.", "tool_calls", CALLS),), Usage(1, 2, 0, 0), 0.0)


def writer(fields: tuple[str, ...] = ("reasoning_content",)) -> ChatWriter:
    return ChatWriter(ChatRequest("m", [UserMessage("hi")]), "fp", fields)


def deltas_of(stream: bytes) -> list[dict[str, Any]]:
    """The delta of each chunk, after OpenAI's own types have taken it."""
    lines = [line.removeprefix("data: ") for line in stream.decode().split("\n") if line.startswith("data: {")]
    for line in lines:
        ChatCompletionChunk.model_validate_json(line, strict=True)
    return [json.loads(line)["choices"][0]["delta"] for line in lines]


def streams() -> list[bytes]:
    """The answer as it is generated, and as it is replayed from the cache."""
    live = writer()
    stored = bytes(replay(STORED, writer(), True, {}).body)
    return [live.start(USAGE) + b"".join(map(live.delta, STREAMED)) + live.end(STORED), stored]


@pytest.mark.parametrize("stream", streams(), ids=["generated", "stored"])
def test_a_chunk_has_one_piece_of_one_call_and_the_first_has_its_name(stream: bytes) -> None:
    pieces = [delta["tool_calls"] for delta in deltas_of(stream) if "tool_calls" in delta]
    assert all(len(piece) == 1 for piece in pieces)
    calls: dict[int, dict[str, Any]] = {}
    for [piece] in pieces:
        if piece["index"] not in calls:
            assert piece["function"]["arguments"] == "" and piece["type"] == "function"
            calls[piece["index"]] = {"id": piece["id"], **piece["function"]}
        else:
            assert piece.keys() == {"index", "function"} and piece["function"].keys() == {"arguments"}
            calls[piece["index"]]["arguments"] += piece["function"]["arguments"]
    assert [ToolCall(call["id"], call["name"], call["arguments"]) for call in calls.values()] == list(CALLS)


@pytest.mark.parametrize("stream", streams(), ids=["generated", "stored"])
def test_each_chunk_says_whether_it_has_thinking(stream: bytes) -> None:
    deltas = deltas_of(stream)
    assert "".join(delta["reasoning_content"] or "" for delta in deltas) == "hm"
    assert all(delta["content"] is None for delta in deltas if delta["reasoning_content"] or "tool_calls" in delta)
    assert "".join(delta.get("content") or "" for delta in deltas) == "Let me look."


def test_a_whole_answer_says_whether_it_has_thinking() -> None:
    for reasoning in ("hm", ""):
        answer = GenerationResult((Choice(reasoning, "text", "stop"),), Usage(1, 2, 0, 0), 0.0)
        body = bytes(replay(answer, writer(), False, {}).body)
        ChatCompletion.model_validate_json(body)
        assert json.loads(body)["choices"][0]["message"]["reasoning_content"] == (reasoning or None)
        body = bytes(replay(answer, writer(()), False, {}).body)
        assert "reasoning_content" not in json.loads(body)["choices"][0]["message"]
