"""What agents send to /v1/responses: tools and items of all kinds, and what chat completions take beside."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.models.folder import ServedModel
from cluster.redis_server import OwnRedis
from cluster.settings import LimitSettings
from deployments.api.protocol.chat import chat_generation, read_chat
from deployments.api.protocol.responses import ResponseRequest, read_response, response_generation
from deployments.api.protocol.responses_writer import ResponseWriter
from deployments.api.responses import replay
from deployments.api.unknown_fields import UnknownFields
from deployments.common.errors import ApiError
from deployments.common.types import Choice, GenerationRequest, GenerationResult, Message, ToolCall, ToolChoice, Usage
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import asking

LIMITS = LimitSettings()
EMPTY = {"type": "object", "properties": {}}
FUNCTION = {"type": "function", "name": "shell", "parameters": EMPTY}
LIST, GET = ({"type": "function", "name": name, "parameters": EMPTY} for name in ("list", "get"))
CRM = {"type": "namespace", "name": "crm", "description": "Customers", "tools": [LIST, GET]}
SHOP = {"type": "namespace", "name": "shop", "description": "Orders", "tools": [LIST, {"type": "custom", "name": "x"}]}
HOSTED: list[dict[str, Any]] = [
    {"type": "web_search", "external_web_access": False},
    {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
    {"type": "local_shell"},
    {"type": "mcp", "server_label": "wiki", "server_url": "https://wiki.example.com"},
    {"type": "file_search", "vector_store_ids": ["v"]},
    {"type": "code_interpreter", "container": {"type": "auto"}},
]


def text(kind: str, content: str) -> list[dict[str, str]]:
    return [{"type": kind, "text": content}]


def request_of(**fields: Any) -> ResponseRequest:
    body = json.dumps({"model": MODEL, "input": "hi", **fields}).encode()
    return UnknownFields(ignore=True).read(body, ResponseRequest, lambda known: read_response(known, LIMITS))[0]


def generation(model: ServedModel, **fields: Any) -> GenerationRequest:
    return response_generation(request_of(**fields), model, LIMITS)


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


def test_tools_and_items_that_cannot_be_used_are_named(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    items = [{"role": "user", "content": "hi"}, {"type": "item_reference", "id": "x"}, {"type": "web_search_call"}]
    body = {"model": MODEL, "input": items, "tools": [FUNCTION, *HOSTED, SHOP]}
    named = [*(f"tools.{tool['type']}" for tool in HOSTED), "input.item_reference", "input.web_search_call"]

    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path) as client:
            for stream in (False, True):
                answer = await client.post("/v1/responses", json=body | {"stream": stream})
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-dray-ignored"] == ", ".join(named)
            few = {"model": MODEL, "input": "hi", "tools": [{"type": "local_shell"}], "num_ctx": 1}
            unknown = await client.post("/v1/responses", json=few)
            assert unknown.headers["x-dray-ignored"] == "num_ctx, tools.local_shell"
            forced = await client.post("/v1/responses", json=body | {"tool_choice": {"type": "web_search"}})
            assert "tool_choice.web_search" in forced.headers["x-dray-ignored"]
            assert forced.json()["tool_choice"] == "auto"
            clean = await client.post("/v1/responses", json={"model": MODEL, "input": "hi", "tools": [FUNCTION]})
            assert "x-dray-ignored" not in clean.headers
        async with asking(server, monkeypatch, tmp_path, api={"unknown_fields": "refuse"}) as client:
            refused = (await client.post("/v1/responses", json=body)).json()["error"]
            assert (refused["code"], refused["param"]) == ("unknown_parameter", "tools.web_search")

    asyncio.run(work())


def test_namespaces_are_flattened_and_come_back(bundled: ServedModel) -> None:
    call = {"type": "function_call", "call_id": "a", "name": "list", "namespace": "shop", "arguments": "{}"}
    history = [{"role": "user", "content": "hi"}, call, {"type": "function_call_output", "call_id": "a", "output": "0"}]
    request = request_of(tools=[FUNCTION, CRM, SHOP], input=history)
    flat = response_generation(request, bundled, LIMITS)
    assert [tool.name for tool in flat.tools] == ["shell", "crm__list", "get", "shop__list"]
    assert flat.messages[1].tool_calls == (ToolCall("a", "shop__list", "{}"),)
    calls = tuple(ToolCall(f"call_{name}", name, "{}") for name in ("shell", "get", "shop__list"))
    result = GenerationResult((Choice("", "", "tool_calls", calls),), Usage(1, 1, 0, 0), 0.0)
    whole = json.loads(bytes(replay(result, ResponseWriter(request), False, {}).body))
    expected = [("shell", None), ("get", "crm"), ("list", "shop")]
    assert [(item["name"], item.get("namespace")) for item in whole["output"]] == expected
    stream = bytes(replay(result, ResponseWriter(request), True, {}).body).decode()
    events = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: {")]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [(item["name"], item.get("namespace")) for item in done] == expected
    assert whole["tools"][1] == CRM | {"tools": [tool | {"description": None, "strict": None} for tool in (LIST, GET)]}


@pytest.mark.parametrize(
    ("choice", "names", "mode"),
    [
        ({"type": "function", "name": "get"}, ["shell", "crm__list", "get", "shop__list"], ("required", "get")),
        (
            {"type": "function", "name": "list", "namespace": "shop"},
            ["shell", "crm__list", "get", "shop__list"],
            ("required", "shop__list"),
        ),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "shell"}]},
            ["shell"],
            ("required", ""),
        ),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]}, [], ("none", "")),
        ({"type": "code_interpreter"}, ["shell", "crm__list", "get", "shop__list"], ("auto", "")),
    ],
)
def test_choices_of_tools(bundled: ServedModel, choice: Any, names: list[str], mode: tuple[str, str]) -> None:
    request = generation(bundled, tools=[FUNCTION, CRM, SHOP], tool_choice=choice)
    assert [tool.name for tool in request.tools] == names
    assert (request.tool_choice.mode, request.tool_choice.name) == mode


def test_choices_that_cannot_be_made_are_refused(bundled: ServedModel) -> None:
    for fields in (
        {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "list"}},
        {"tools": [CRM, SHOP], "tool_choice": {"type": "function", "name": "get", "namespace": "shop"}},
        {"tools": HOSTED, "tool_choice": "required"},
        {"tools": [FUNCTION | {"name": "two words"}]},
        {"tools": [CRM | {"tools": [LIST | {"name": f"list_{number}"} for number in range(129)]}]},
    ):
        with pytest.raises(ApiError) as refused:
            generation(bundled, **fields)
        assert refused.value.status == 400


def test_input_items_of_all_kinds_are_folded(bundled: ServedModel) -> None:
    items: list[dict[str, Any]] = [
        {"type": "message", "role": "developer", "content": text("input_text", "Be brief.")},
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "id": "r", "summary": text("summary_text", "hm"), "encrypted_content": "x"},
        {"type": "local_shell_call", "call_id": "a", "id": "i", "action": {"type": "exec", "command": ["ls"]}},
        {"type": "local_shell_call_output", "id": "a", "output": "file"},
        {"type": "custom_tool_call", "call_id": "b", "name": "patch", "input": "*** Begin"},
        {"type": "custom_tool_call_output", "call_id": "b", "output": "done"},
        {"type": "function_call", "call_id": "c", "name": "view", "arguments": "{}", "status": "completed"},
        {
            "type": "function_call_output",
            "call_id": "c",
            "output": [*text("input_text", "seen "), {"type": "input_image", "image_url": "data:"}],
        },
        {"type": "shell_call_output", "call_id": "d", "output": [{"stdout": "x", "outcome": {"exit_code": 0}}]},
        {"type": "mcp_call", "id": "m", "name": "wiki", "arguments": '{"q":1}', "output": "found"},
        {"type": "image_generation_call", "id": "g", "result": "...", "status": "completed"},
        {"type": "compaction", "encrypted_content": "x"},
        {"type": "message", "role": "assistant", "content": [*text("output_text", "ok"), {"type": "refusal"}]},
    ]
    request = generation(bundled, input=items, client_metadata={"session": "s"})
    assert request.messages == (
        Message("system", "Be brief."),
        Message("user", "hi"),
        Message("assistant", "", "hm", (ToolCall("a", "local_shell", '{"action":{"command":["ls"],"type":"exec"}}'),)),
        Message("tool", "file", tool_call_id="a"),
        Message("assistant", "", tool_calls=(ToolCall("b", "patch", '{"input":"*** Begin"}'),)),
        Message("tool", "done", tool_call_id="b"),
        Message("assistant", "", tool_calls=(ToolCall("c", "view", "{}"),)),
        Message("tool", "seen (input_image)", tool_call_id="c"),
        Message("tool", '[{"outcome":{"exit_code":0},"stdout":"x"}]', tool_call_id="d"),
        Message("assistant", "", tool_calls=(ToolCall("m", "wiki", '{"q":1}'),)),
        Message("tool", "found", tool_call_id="m"),
        Message("assistant", "ok"),
    )


def test_items_can_add_tools(bundled: ServedModel) -> None:
    found = {"type": "tool_search_output", "call_id": "s", "status": "completed", "execution": "client"}
    items: list[dict[str, Any]] = [
        {"role": "user", "content": "hi"},
        {"type": "additional_tools", "role": "developer", "tools": [LIST, {"type": "web_search"}]},
        {"type": "tool_search_call", "call_id": "s", "arguments": {"query": "crm"}, "execution": "client"},
        found | {"tools": [CRM, FUNCTION | {"description": "newer"}]},
        {"type": "agent_message", "author": "/root", "content": text("input_text", "done")},
    ]
    request = request_of(input=items, tools=[FUNCTION])
    made = response_generation(request, bundled, LIMITS)
    assert [(tool.name, tool.description) for tool in made.tools] == [
        ("shell", "newer"),
        ("list", ""),
        ("crm__list", ""),
        ("get", ""),
    ]
    assert request.ignored == ("tools.web_search",)
    assert made.messages[1].tool_calls == (ToolCall("s", "tool_search", '{"query":"crm"}'),)
    assert made.messages[-2:] == (Message("tool", "crm, shell", tool_call_id="s"), Message("user", "done"))


def test_an_image_is_refused_by_its_place_and_the_model(bundled: ServedModel) -> None:
    content = [*text("input_text", "What is this?"), {"type": "input_image", "image_url": "data:"}]
    with pytest.raises(ApiError, match=rf"input\[0\].content\[1\] .*input_image.*{MODEL}") as refused:
        generation(bundled, input=[{"role": "user", "content": content}])
    assert refused.value.body.error.param == "input[0].content[1]"


@pytest.mark.parametrize("field", ["output", "action", "arguments", "input", "error", "unknown"])
def test_deep_items_are_refused_or_ignored(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, field: str
) -> None:
    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path) as client:
            for depth in (100, 900, 970, 30_000):
                deep = '{"a":' * depth + "1" + "}" * depth
                call = f'{{"type": "mcp_call", "id": "m", "name": "f", "{field}": {deep}}}'
                items = f'[{{"role": "user", "content": "hi"}}, {call}]'
                body = f'{{"model": "{MODEL}", "input": {items}}}'
                answer = await client.post("/v1/responses", content=body, headers={"Content-Type": "application/json"})
                assert answer.status_code == 400 or field == "unknown", (depth, answer.text)
                assert answer.status_code in (200, 400), (depth, answer.text)

    asyncio.run(work())


def test_what_chat_completions_take_is_taken(bundled: ServedModel) -> None:
    fields = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "seed": 3,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.25,
        "repetition_penalty": 1.1,
        "logit_bias": {"40": 2},
        "min_tokens": 2,
        "ignore_eos": True,
        "stop": ["\n\n", "END"],
        "chat_template_kwargs": {"x": 1},
        "max_thinking_tokens": 7,
    }
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 99, **fields}
    chat = chat_generation(read_chat(json.dumps(body).encode(), LIMITS), bundled, LIMITS)
    assert generation(bundled, max_output_tokens=99, **fields) == chat
    assert chat.stop == ("\n\n", "END") and chat.sampling.seed == 3 and chat.tool_choice == ToolChoice("none")
    assert generation(bundled, max_output_tokens=-1).sampling.max_tokens == LIMITS.output_tokens
    for wrong in ({"stop": [""]}, {"logit_bias": {"x": 1}}, {"max_output_tokens": 0}, {"top_k": -2}):
        with pytest.raises(ApiError):
            generation(bundled, **wrong)


def test_log_probabilities_by_include(bundled: ServedModel) -> None:
    asked = {"include": ["message.output_text.logprobs", "reasoning.encrypted_content"]}
    assert generation(bundled, **asked).sampling.top_logprobs == 0
    assert generation(bundled, **asked, top_logprobs=2).sampling.top_logprobs == 2
    assert generation(bundled, include=["reasoning.encrypted_content"]).sampling.top_logprobs is None
