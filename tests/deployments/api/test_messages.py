"""The messages API, as Anthropic's own types read it."""

import json
from functools import partial
from typing import Any

import msgspec
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from cluster.models.folder import ServedModel
from cluster.settings import LimitSettings
from deployments.api.protocol.messages import MessagesRequest, messages_generation, read_messages
from deployments.api.protocol.messages_writer import MessagesWriter
from deployments.api.responses import replay
from deployments.api.unknown_fields import UnknownFields
from deployments.common.errors import ApiError
from deployments.common.types import Choice, Delta, GenerationResult, ToolCall, ToolDelta, Usage

EVENTS: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
ANSWER = Choice("hm, hm", "Look:", "tool_calls", (ToolCall("call_a", "weather", '{"city": "北京"}'),))
STREAMED = (
    Delta(reasoning="hm, "),
    Delta(reasoning="hm"),
    Delta(text="Look:"),
    Delta(tool_calls=(ToolDelta(0, '{"city": ', "call_a", "weather"), ToolDelta(0, '"北京"}'))),
    Delta(finish_reason="tool_calls"),
)

USAGE = Usage(7, 0, 0, 3)


def request_of(**fields: Any) -> MessagesRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, **fields}
    unknown = UnknownFields(ignore=True)
    return unknown.read(json.dumps(body).encode(), MessagesRequest, partial(read_messages, limits=LimitSettings()))[0]


def result(choice: Choice) -> GenerationResult:
    return GenerationResult((choice,), Usage(7, 5, 2, 3), 0.0)


def whole(writer: MessagesWriter, choice: Choice) -> dict[str, Any]:
    body = bytes(replay(result(choice), writer, False, {}).body)
    Message.model_validate_json(body)
    message: dict[str, Any] = json.loads(body)
    return message


def blocks_of(stream: bytes) -> list[dict[str, Any]]:
    """The blocks that the events of a stream add up to."""
    blocks: list[dict[str, Any]] = []
    for event in stream.decode().strip().split("\n\n"):
        kind, data = event.split("\n")
        EVENTS.validate_json(data.removeprefix("data: "))
        fields = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {fields['type']}"
        if fields["type"] == "content_block_start":
            assert fields["index"] == len(blocks)
            blocks.append(fields["content_block"] | {"json": ""})
        elif fields["type"] == "content_block_delta":
            assert fields["index"] == len(blocks) - 1
            delta = fields["delta"]
            name = {"input_json_delta": "json"}.get(delta["type"], delta["type"].removesuffix("_delta"))
            blocks[-1][name] += delta.get("partial_json", delta.get(name))
    for block in blocks:
        if written := block.pop("json"):
            block["input"] = json.loads(written)
    return blocks


@pytest.mark.parametrize("shows_thinking", [True, False])
def test_a_stream_adds_up_to_the_whole_message(shows_thinking: bool) -> None:
    request = request_of()
    message = whole(MessagesWriter(request, shows_thinking), ANSWER)
    assert [block["type"] for block in message["content"]] == ["thinking"] * shows_thinking + ["text", "tool_use"]
    live = MessagesWriter(request, shows_thinking)
    generated = live.start(USAGE) + b"".join(map(live.delta, STREAMED)) + live.end(result(ANSWER))
    stored = bytes(replay(result(ANSWER), MessagesWriter(request, shows_thinking), True, {}).body)
    assert blocks_of(generated) == blocks_of(stored) == message["content"]


def test_thinking_is_signed_and_comes_back() -> None:
    message = whole(MessagesWriter(request_of(), shows_thinking=True), ANSWER)
    assert message["content"][0]["signature"]
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": message["content"][:2]}]
    request_of(messages=[*history, {"role": "user", "content": "and?"}])


@pytest.mark.parametrize(
    ("thinking", "shown"),
    [
        (None, False),
        ({"type": "disabled"}, False),
        ({"type": "enabled", "budget_tokens": 1024}, True),
        ({"type": "adaptive"}, True),
        ({"type": "adaptive", "display": "omitted"}, False),
    ],
)
def test_thinking_is_shown_to_who_asks(thinking: dict[str, Any] | None, shown: bool) -> None:
    assert request_of(thinking=thinking).shows_thinking is shown


def test_the_stop_sequence_is_named() -> None:
    stopped = whole(MessagesWriter(request_of(), False), Choice("", "one", "stop", stop="\n\n"))
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "\n\n")
    ended = whole(MessagesWriter(request_of(), False), Choice("", "one", "stop"))
    assert (ended["stop_reason"], ended["stop_sequence"]) == ("end_turn", None)
    end = MessagesWriter(request_of(), False).end(result(Choice("", "one", "stop", stop="\n\n"))).decode()
    assert '"stop_reason":"stop_sequence","stop_sequence":"\\n\\n"' in end


def test_what_agents_send_is_taken(bundled: ServedModel) -> None:
    document = {
        "type": "document",
        "title": "Notes",
        "source": {"type": "text", "media_type": "text/plain", "data": "D"},
    }
    use = {"type": "tool_use", "id": "t", "name": "search", "input": {}}
    found = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "tool_reference", "tool_name": "grep"}]}
    messages = [
        {"role": "user", "content": [document, {"type": "text", "text": "What do they say?"}]},
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, use]},
        {"role": "user", "content": [found]},
    ]
    generation = messages_generation(request_of(messages=messages), bundled, LimitSettings())
    texts = [(message.role, message.content.split()) for message in generation.messages]
    assert texts == [
        ("user", ["Notes", "D", "What", "do", "they", "say?"]),
        ("system", ["Be", "brief."]),
        ("assistant", []),
        ("tool", ["grep"]),
    ]
    image = {"type": "image", "source": {}}
    with pytest.raises(ApiError, match=r"messages\[0\].content\[1\] is an image, but the model m "):
        messages = [{"role": "user", "content": [{"type": "text", "text": "this?"}, image]}]
        messages_generation(request_of(messages=messages), bundled, LimitSettings())


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"user_id": "u"}},
        {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
        {"diagnostics": {"enabled": True}},
        {"container": "container_1"},
        {"container": {"skills": []}},
        {"output_config": {}},
        {"output_config": {"effort": "high"}, "thinking": {"type": "adaptive", "display": "summarized"}},
        {"service_tier": "standard_only", "inference_geo": "eu", "speed": "fast"},
        {"system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}]},
    ],
)
def test_what_has_no_effect_is_taken(bundled: ServedModel, fields: dict[str, Any]) -> None:
    with_them = messages_generation(request_of(**fields), bundled, LimitSettings())
    same = {"system": "Be brief."} if "system" in fields else {}
    plain = messages_generation(request_of(**same), bundled, LimitSettings())
    effort = {"template_args": '{"reasoning_effort":"high"}'} if "thinking" in fields else {}
    assert with_them == msgspec.structs.replace(plain, **effort)


def test_effort_and_format_are_honoured(bundled: ServedModel) -> None:
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    answer_format = {"type": "json_schema", "schema": schema}
    formats: list[dict[str, Any]] = [{"output_config": {"format": answer_format}}, {"output_format": answer_format}]
    for fields in formats:
        assert json.loads(messages_generation(request_of(**fields), bundled, LimitSettings()).schema) == schema
    efforts: list[tuple[dict[str, Any], int | None]] = [
        ({"output_config": {"effort": "low"}}, 1024),
        ({"output_config": {"effort": "max"}}, None),
        ({"output_config": {"effort": "low"}, "thinking": {"type": "enabled", "budget_tokens": 2000}}, 2000),
        ({"output_config": {"effort": "low"}, "thinking": {"type": "disabled"}}, 0),
    ]
    for fields, limit in efforts:
        assert messages_generation(request_of(**fields), bundled, LimitSettings()).max_thinking_tokens == limit


def test_tools_that_cannot_be_called_here_are_named(bundled: ServedModel) -> None:
    tools: list[dict[str, Any]] = [
        {"type": "bash_20250124", "name": "bash"},
        {"type": "mcp_toolset", "mcp_server_name": "wiki"},
        {"type": "custom", "name": "m" * 128, "input_schema": {"type": "object"}, "eager_input_streaming": True},
        {"name": "plain", "input_schema": {"type": "object"}, "defer_loading": True, "input_examples": [{}]},
    ]
    request = request_of(tools=tools)
    assert request.ignored == ("tools.bash_20250124", "tools.mcp_toolset")
    tools_left = messages_generation(request, bundled, LimitSettings()).tools
    assert [tool.name for tool in tools_left] == ["m" * 128, "plain"]
    with pytest.raises(ApiError, match="name"):
        request_of(tools=[{"name": "m" * 129, "input_schema": {}}])
    with pytest.raises(ApiError, match="input_schema"):
        messages_generation(request_of(tools=[{"name": "plain"}]), bundled, LimitSettings())


def test_what_tools_and_searches_return_is_text(bundled: ServedModel) -> None:
    found = {"type": "search_result", "source": "https://a", "title": "T", "content": [{"type": "text", "text": "x"}]}
    content = {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "D"}]}}
    use = {"type": "tool_use", "id": "t", "name": "read", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "is_error": False}
    messages = [
        {"role": "user", "content": [content, {"type": "text", "text": "read"}]},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result | {"content": [found, {"type": "image", "source": {"type": "base64"}}]}]},
    ]
    generation = messages_generation(request_of(messages=messages), bundled, LimitSettings())
    assert generation.messages[0].content.split() == ["D", "read"]
    assert generation.messages[-1].content.split() == ["T", "https://a", "x", "(image)"]
