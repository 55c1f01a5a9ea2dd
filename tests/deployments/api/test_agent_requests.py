"""Requests as Claude Code 2.1 and Codex 0.171 send them, in short: a question, a call, and the call's result."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic.types import RawMessageStreamEvent
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter
from tokenizers import Tokenizer

from cluster.models.folder import BUNDLED_FOLDER
from cluster.redis_server import OwnRedis
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import Engines, RunningRouter, running_router

TOKENIZER = Tokenizer.from_file(str(BUNDLED_FOLDER / "tokenizer.json"))
CACHED = {"cache_control": {"type": "ephemeral"}}
CLAUDE: dict[str, Any] = {
    "model": MODEL,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.197; cc_entrypoint=sdk-cli;"},
        {"type": "text", "text": "You are an agent.", **CACHED},
        {"type": "text", "text": "CWD: /tmp", **CACHED},
    ],
    "tools": [
        {
            "name": "Bash",
            "description": "Runs a command",
            "input_schema": {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "properties": {"command": {"type": "string"}, "timeout": {"type": "number"}},
                "required": ["command"],
                "additionalProperties": False,
            },
            "eager_input_streaming": True,
        }
    ],
    "metadata": {"user_id": '{"device_id": "d", "account_uuid": "", "session_id": "s"}'},
    "max_tokens": 32000,
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "temperature": 0,
    "stream": True,
}
BETA = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219,effort-2025-11-24", "x-app": "cli"}
REMINDER = {"type": "text", "text": "<system-reminder>\nToday is Friday.\n</system-reminder>\n\n"}
ASKED = {"role": "user", "content": [REMINDER, {"type": "text", "text": "Say hi by echo", **CACHED}]}
USE = {"type": "tool_use", "id": "call_1", "name": "Bash", "input": {"command": "echo hi"}}
RESULT = {"type": "tool_result", "tool_use_id": "call_1", "content": "hi", "is_error": False, **CACHED}


def instructions(*texts: str) -> dict[str, Any]:
    content = [{"type": "input_text", "text": text} for text in texts]
    return {"type": "message", "id": f"msg_{len(texts)}", "role": "developer", "content": content}


def function(name: str, *required: str) -> dict[str, Any]:
    properties = {each: {"type": "string", "description": each} for each in (*required, "justification")}
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    return {"type": "function", "name": name, "description": name, "strict": False, "parameters": schema}


QUESTION = {"type": "message", "id": "msg_9", "role": "user", "content": [{"type": "input_text", "text": "Say hi"}]}
CODEX: dict[str, Any] = {
    "model": MODEL,
    "stream": True,
    "input": [instructions("You are an agent."), instructions("<skills>", "<permissions>"), QUESTION],
    "tools": [
        function("exec_command", "cmd"),
        {"type": "namespace", "name": "multi_agent_v1", "description": "Agents", "tools": [function("wait_agent")]},
        {"type": "web_search", "external_web_access": False},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"summary": "auto"},
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "k",
    "client_metadata": {"session_id": "s", "x-codex-turn-metadata": "{}"},
    "temperature": 0,
}
CALL = {"type": "function_call", "status": "completed", "id": "fc_1", "call_id": "call_1"}
CALLED = [
    CALL | {"name": "exec_command", "arguments": '{"cmd": "echo hi"}'},
    {"type": "function_call_output", "id": "fco_1", "call_id": "call_1", "output": "Process exited with code 0\nhi\n"},
]


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


@asynccontextmanager
async def asking(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> AsyncIterator[tuple[RunningRouter, httpx.AsyncClient]]:
    async with (
        running_router(monkeypatch, server.url, engines=Engines(), data_dir=folder) as router,
        httpx.AsyncClient(base_url=router.url, timeout=30) as client,
    ):
        yield router, client


def says(router: RunningRouter, text: str) -> None:
    """Engines answer this, without thinking."""
    router.engines.tokens = tuple(TOKENIZER.encode(f"</think>{text}", add_special_tokens=False).ids)


def prompt_of(router: RunningRouter) -> str:
    return str(TOKENIZER.decode(router.engines.request.prompt_ids, skip_special_tokens=False))


def events_of(answer: httpx.Response, kinds: TypeAdapter[Any]) -> list[Any]:
    """The events of a stream, each read by the client's own types."""
    assert answer.status_code == 200, answer.text
    lines = (line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {"))
    return [kinds.validate_json(line) for line in lines]


def call(name: str, **arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def test_claude_code_calls_and_answers(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kinds: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)

    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path) as (router, client):

            async def send(*messages: dict[str, Any]) -> list[Any]:
                answer = await client.post("/v1/messages?beta=true", json=CLAUDE | {"messages": messages}, headers=BETA)
                assert "x-dray-ignored" not in answer.headers
                return events_of(answer, kinds)

            says(router, f"I look. {call('Bash', command='echo hi')}")
            events = await send(ASKED)
            blocks = [event.content_block for event in events if event.type == "content_block_start"]
            assert [(block.type, getattr(block, "name", "")) for block in blocks] == [
                ("text", ""),
                ("tool_use", "Bash"),
            ]
            deltas = [event.delta for event in events if event.type == "content_block_delta"]
            arguments = "".join(delta.partial_json for delta in deltas if delta.type == "input_json_delta")
            assert json.loads(arguments) == {"command": "echo hi"}
            assert events[-2].delta.stop_reason == "tool_use"
            prompt = prompt_of(router)
            # Each block of the system prompt is complete by itself; those of a message are one text.
            assert "You are an agent.\n\nCWD: /tmp" in prompt and "</system-reminder>\n\nSay hi by echo" in prompt

            says(router, "It says hi.")
            answered = [{"role": "assistant", "content": [USE]}, {"role": "user", "content": [RESULT]}]
            events = await send(ASKED, *answered)
            texts = [event.delta.text for event in events if event.type == "content_block_delta"]
            assert ("".join(texts), events[-2].delta.stop_reason) == ("It says hi.", "end_turn")
            assert events[0].message.usage.input_tokens == len(router.engines.request.prompt_ids)
            assert "echo hi" in prompt_of(router)

    asyncio.run(work())


def test_codex_calls_and_answers(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kinds: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path) as (router, client):

            async def send(*more: dict[str, Any]) -> Any:
                answer = await client.post("/v1/responses", json=CODEX | {"input": [*CODEX["input"], *more]})
                assert answer.headers["x-dray-ignored"] == "tools.web_search"
                last = events_of(answer, kinds)[-1]
                assert last.type == "response.completed" and last.response.store is False
                return last.response

            says(router, call("exec_command", cmd="echo hi"))
            [item] = (await send()).output
            assert (item.type, item.name, json.loads(item.arguments)) == (
                "function_call",
                "exec_command",
                {"cmd": "echo hi"},
            )
            prompt = prompt_of(router)
            assert "<skills>\n\n<permissions>" in prompt and "wait_agent" in prompt and "web_search" not in prompt

            says(router, call("wait_agent"))
            [item] = (await send(*CALLED)).output
            assert (item.name, item.namespace) == ("wait_agent", "multi_agent_v1")
            assert "Process exited with code 0" in prompt_of(router)

            says(router, "It says hi.")
            waited = CALL | {"name": "wait_agent", "namespace": "multi_agent_v1", "arguments": "{}", "call_id": "c2"}
            [item] = (await send(*CALLED, waited, CALLED[1] | {"call_id": "c2"})).output
            assert item.content[0].text == "It says hi."

    asyncio.run(work())
