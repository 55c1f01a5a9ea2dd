"""An answer has the same fields and the same text however it comes about: generated alone, joined while it is being
generated (on the same router and on another), from the cache, or carried on by other replicas; whole and streamed.

With a real engine on the bundled model, real routers and a real Redis; only Ray is left out.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import jsonschema
import msgspec
import pytest

from cluster.models.folder import ServedModel
from deployments.api.fast_path import CacheFastPath
from deployments.common.messages import Arithmetic, TokenBatch, decode_request, encode
from deployments.engine.model import config_for
from deployments.engine.process import EngineProcess
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import Engines, RunningRouter, running_router
from tests.deployments.waiting import until
from tests.judges.judge import JudgedApp

T = TypeVar("T")
ALONE = {"Cache-Control": "no-cache, no-store"}
_TOKENS_UNTIL_DEATH = 4
_PATIENCE_S = 60
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 99}, "unit": {"enum": ["apples", "pears"]}},
    "required": ["sum", "unit"],
    "additionalProperties": False,
}
QUESTION = "3 apples and 4 apples, how many apples?"
MESSAGES = [{"role": "user", "content": QUESTION}]
CHAT, COMPLETIONS, RESPONSES, ANTHROPIC = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
FORMAT = {"type": "json_schema", "json_schema": {"name": "sum", "schema": SCHEMA}}
REPORTS = {"return_token_ids": True, "logprobs": True, "top_logprobs": 2}
BOUNDED = {"temperature": 0, "max_thinking_tokens": 12}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat, schema": (CHAT, {"messages": MESSAGES, "response_format": FORMAT, **REPORTS, **BOUNDED}),
    "chat, stop": (CHAT, {"messages": MESSAGES, "stop": ["a"], **REPORTS, **BOUNDED}),
    "completions, schema": (
        COMPLETIONS,
        {"prompt": QUESTION, "guided_json": SCHEMA, "temperature": 0, "logprobs": 2} | {"return_token_ids": True},
    ),
    "responses, schema": (
        RESPONSES,
        {"input": QUESTION, "text": {"format": {"type": "json_schema", "name": "sum", "schema": SCHEMA}}, **BOUNDED}
        | {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    ),
    "messages, schema": (
        ANTHROPIC,
        {
            "messages": MESSAGES,
            "max_tokens": 120,
            "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
        }
        | {"temperature": 0, "thinking": {"type": "enabled", "budget_tokens": 12}},
    ),
    "messages, stop": (
        ANTHROPIC,
        {"messages": MESSAGES, "stop_sequences": ["a"], "temperature": 0}
        | {"thinking": {"type": "enabled", "budget_tokens": 12}},
    ),
}
ONLY_WHOLE: dict[str, dict[str, Any]] = {CHAT: {"prompt_logprobs": 2}, COMPLETIONS: {"prompt_logprobs": 2}}
_OWN = ("id", "created", "created_at", "item_id", "call_id", "store", "service_tier")
"""Fields in which two answers to one request differ."""


class MortalEngines(Engines):
    """A handle of replicas with one real engine. dying: each call is lost after a few tokens. gate: while it is closed,
    calls wait after their first tokens."""

    def __init__(self, process: EngineProcess) -> None:
        super().__init__()
        self.process = process
        self.dying = False
        self.gate = asyncio.Event()

    def remote(self, payload: bytes) -> "Stream":  # type: ignore[override]
        self.requests += 1
        return Stream(self, payload)


class Stream:
    """A call through the handle."""

    def __init__(self, engines: MortalEngines, payload: bytes) -> None:
        self._engines = engines
        self._batches = engines.process.generate(decode_request(payload))

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        yield encode(TokenBatch([], replica="one"))
        tokens = 0
        try:
            async for batch in self._batches:
                yield encode(batch)
                tokens += len(batch.ids)
                if self._engines.dying and tokens >= _TOKENS_UNTIL_DEATH and not batch.finish_reason:
                    return  # as a replica that dies: the stream ends without a reason
                await self._engines.gate.wait()
        finally:
            await self._batches.aclose()

    def cancel(self) -> None:
        """Serve ends the generator in the replica."""
        asyncio.get_running_loop().create_task(self._batches.aclose())


@dataclass
class Service:
    """Two routers with one engine and one cache."""

    runner: asyncio.Runner
    engines: MortalEngines
    routers: list[RunningRouter]
    apps: list[JudgedApp]
    """The routers' applications, past the fast path, of which a process has only one."""

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def ask(self, path: str, body: dict[str, Any], router: int = 0, *, alone: bool = False) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.apps[router])
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            answer = await client.post(path, json={"model": MODEL, **body}, headers=ALONE if alone else {})
        assert answer.status_code == 200, answer.text
        return answer

    async def carried_on(self, path: str, body: dict[str, Any]) -> httpx.Response:
        self.engines.dying = True
        before = self.engines.requests
        try:
            answer = await self.ask(path, body, alone=True)
        finally:
            self.engines.dying = False
        assert self.engines.requests > before + 1
        return answer

    async def joined(self, path: str, body: dict[str, Any]) -> list[httpx.Response]:
        """The answer to the request that is generated, and to those that join it here and on the other router."""
        self.engines.gate.clear()
        before = self.engines.requests
        first = asyncio.create_task(self.ask(path, body))

        async def generates() -> bool:
            return self.engines.requests > before

        async def is_followed() -> bool:
            jobs = [[*router.router._inference._answers._jobs.values()] for router in self.routers]
            return bool(jobs[1]) and any(len(job.broadcast._subscribers) > 1 for job in jobs[0])

        try:
            await until(generates, _PATIENCE_S)
            others = [asyncio.create_task(self.ask(path, body, router)) for router in (0, 1)]
            await until(is_followed, _PATIENCE_S)
        finally:
            self.engines.gate.set()
        answers = [await first, *[await other for other in others]]
        assert [answer.headers["x-dray-cache"] for answer in answers] == ["miss", "join", "join"]
        return answers


@pytest.fixture(scope="module")
def service(bundled: ServedModel) -> Iterator[Service]:
    # In full precision and without guesses, where texts do not depend on what an engine computes beside them.
    config = msgspec.structs.replace(
        config_for(bundled, tuple(sorted(os.sched_getaffinity(0)))), guess_tokens=False, graphs=(Arithmetic("f32"),)
    )
    with redis_server(16) as redis, asyncio.Runner() as runner, pytest.MonkeyPatch.context() as patch:
        stack = AsyncExitStack()

        async def start() -> Service:
            process, _ = await EngineProcess.start(config, timeout_s=120)
            stack.push_async_callback(process.stop)
            engines = MortalEngines(process)
            engines.gate.set()
            routers = [
                await stack.enter_async_context(running_router(patch, redis.url, engines=engines)) for _ in range(2)
            ]
            patch.setattr(CacheFastPath, "api", None)
            return Service(runner, engines, routers, [JudgedApp(router.app) for router in routers])

        try:
            yield (started := runner.run(start()))
            assert not [fault for app in started.apps for fault in app.faults]
        finally:
            runner.run(stack.aclose())


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]


def joined_chunks(answer: httpx.Response) -> dict[str, Any]:
    """A stream of chat completions or completions as the whole answer would be."""
    events = events_of(answer)
    whole: dict[str, Any] = {"usage": events[-1]["usage"], "choices": [{"index": 0}]}
    choice = whole["choices"][0]
    message: dict[str, Any] = {}
    for event in events:
        if "prompt_token_ids" in event:
            whole["prompt_token_ids"] = event["prompt_token_ids"]
        for chunk in event["choices"]:
            for name, value in {**chunk.get("delta", {}), "text": chunk.get("text")}.items():
                message[name] = value if name == "role" else (message.get(name) or "") + (value or "")
            choice["token_ids"] = choice.get("token_ids", []) + chunk.get("token_ids", [])
            for name, value in (chunk.get("logprobs") or {}).items():
                choice.setdefault("logprobs", {}).setdefault(name, []).extend(value or [])
            choice |= {
                name: chunk[name] for name in ("finish_reason", "stop_reason", "matched_stop") if chunk.get(name)
            }
    return whole | {"message": message}


def seen(path: str, answer: httpx.Response) -> Any:
    """What a client gets of an answer, in one form whether it is streamed or not."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        body = answer.json()
        if path in (RESPONSES, ANTHROPIC):
            return comparable(body)
        [choice] = body["choices"]
        logprobs = {name: value for name, value in (choice["logprobs"] or {}).items() if value is not None}
        kept = {name: choice[name] for name in ("finish_reason", "stop_reason", "matched_stop") if choice.get(name)}
        message = choice.get("message") or {"text": choice["text"]}
        kept |= {"logprobs": logprobs, "token_ids": choice.get("token_ids", []), "index": 0}
        found = {"usage": body["usage"], "choices": [kept], "message": message}
        found |= {name: body[name] for name in ("prompt_token_ids", "prompt_logprobs") if name in body}
        return comparable(found)
    events = events_of(answer)
    if path == RESPONSES:
        deltas = [event for event in events if event["type"] == "response.output_text.delta"]
        response = events[-1]["response"]
        [message] = [item for item in response["output"] if item["type"] == "message"]
        assert "".join(delta["delta"] for delta in deltas) == message["content"][0]["text"]
        assert [token for delta in deltas for token in delta["logprobs"]] == message["content"][0]["logprobs"]
        return comparable(response)
    if path == ANTHROPIC:
        return comparable(message_of(events))
    return comparable(joined_chunks(answer))


def message_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    """A stream of messages as the whole answer would be."""
    message: dict[str, Any] = dict(events[0]["message"])
    assert message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"] > 10
    for event in events:
        if event["type"] == "content_block_start":
            message["content"].append(event["content_block"])
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][-1], event["delta"]
            for name in ("text", "thinking", "signature"):
                if name in delta:
                    block[name] += delta[name]
        elif event["type"] == "message_delta":
            message |= {**event["delta"], "usage": event["usage"]}
    return message


def comparable(value: Any) -> Any:
    """Without what differs between equal answers."""
    if isinstance(value, dict):
        kept = {name: comparable(member) for name, member in value.items() if name not in _OWN}
        for name in ("cached_tokens", "cache_read_input_tokens", "input_tokens"):
            kept.pop(name, None)  # how much of the prompt the engine's prefix cache had
        return {name: member for name, member in kept.items() if member not in (None, [], {}, "")}
    if isinstance(value, list):
        return [comparable(member) for member in value]
    return value


def numberless(value: Any) -> Any:
    """Without numbers that another replica, which computes the text so far again, rounds differently; and without the
    likely tokens, whose order that can change."""
    if isinstance(value, dict):
        return {
            name: len(member) if name == "top_logprobs" and isinstance(member, list) else numberless(member)
            for name, member in value.items()
            if name not in ("token_logprobs", "logprob")
        }
    return [numberless(member) for member in value] if isinstance(value, list) else value


def text_of(path: str, answer: dict[str, Any]) -> str:
    if path == ANTHROPIC:
        return "".join(block["text"] for block in answer["content"] if block["type"] == "text")
    if path == RESPONSES:
        return "".join(
            part["text"] for item in answer["output"] if item["type"] == "message" for part in item["content"]
        )
    return str(answer["message"].get("content") or answer["message"].get("text"))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", BODIES)
def test_an_answer_is_the_same_however_it_comes_about(name: str, stream: bool, service: Service) -> None:
    path, body = BODIES[name]
    # The two ways to ask share no stored answer.
    body = body | {"max_output_tokens" if path == RESPONSES else "max_tokens": 90 + stream}
    body |= {"stream": stream} if stream else ONLY_WHOLE.get(path, {})
    if stream and path in (CHAT, COMPLETIONS):
        body["stream_options"] = {"include_usage": True}

    async def work() -> dict[str, list[httpx.Response]]:
        await service.ask(path, body, alone=True)  # computes the prompt, which then is cached for all ways alike
        ways = {"alone": [await service.ask(path, body, alone=True)], "joined": await service.joined(path, body)}
        ways["cached"] = [await service.ask(path, body, router) for router in (0, 1)]
        assert [answer.headers["x-dray-cache"] for answer in ways["cached"]] == ["hit", "hit"]
        ways["carried on"] = [await service.carried_on(path, body)]
        if stream:
            whole = {field: value for field, value in body.items() if field not in ("stream", "stream_options")}
            ways["whole"] = [await service.ask(path, whole)]
        return ways

    ways = service.run(work())
    [alone] = ways.pop("alone")
    expected = seen(path, alone)
    for way, answers in ways.items():
        for answer in answers:
            if way == "carried on":
                assert numberless(seen(path, answer)) == numberless(expected)
            else:
                assert seen(path, answer) == expected, way
    if "schema" in name:
        jsonschema.validate(json.loads(text_of(path, expected)), SCHEMA)
    if "stop" in name:
        assert "a" in json.dumps(expected.get("stop_sequence") or expected["choices"][0]["stop_reason"])


@pytest.mark.parametrize("top", [None, 0, 3])
def test_responses_report_log_probabilities_as_openai_documents_them(top: int | None, service: Service) -> None:
    """The judge has their schema; here is what they say."""
    body = {"input": QUESTION, "max_output_tokens": 60, "include": ["message.output_text.logprobs"], **BOUNDED}
    body |= {} if top is None else {"top_logprobs": top}

    async def work() -> list[httpx.Response]:
        ways = [await service.ask(RESPONSES, body | {"stream": stream}) for stream in (False, True, False)]
        return [*ways, await service.ask(RESPONSES, body | {"include": []})]

    whole, streamed, cached, plain = service.run(work())
    events = events_of(streamed)
    done = [event for event in events if event["type"] == "response.output_text.done"]
    expected = message_part(whole.json())
    for part in (message_part(cached.json()), message_part(events[-1]["response"]), done[0]):
        assert (part["text"], part["logprobs"]) == (expected["text"], expected["logprobs"])
    assert b"".join(bytes(token["bytes"]) for token in expected["logprobs"]).decode() == expected["text"]
    assert all(token["logprob"] <= 0 for token in expected["logprobs"])
    assert {len(token["top_logprobs"]) for token in expected["logprobs"]} == {top or 0}
    # As OpenAI does, top_logprobs alone reports them too.
    assert bool(message_part(plain.json())["logprobs"]) is bool(top)


def message_part(response: dict[str, Any]) -> dict[str, Any]:
    [part] = [part for item in response["output"] if item["type"] == "message" for part in item["content"]]
    return dict(part)
