"""Answers that continue the last message: Anthropic's prefill, and vLLM's continue_final_message."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from cluster.models.folder import BUNDLED_FOLDER
from cluster.redis_server import OwnRedis
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import Engines, running_router

MESSAGES, CHAT = "/v1/messages", "/v1/chat/completions"
USER, BEGUN = {"role": "user", "content": "3+4?"}, {"role": "assistant", "content": "The sum"}
PREFILLS: dict[str, dict[str, Any]] = {
    MESSAGES: {"max_tokens": 50},
    CHAT: {"add_generation_prompt": False, "continue_final_message": True},
}
PROMPT = "<｜User｜>3+4?<｜Assistant｜>The sum"
REST = " is 7."
TOKENIZER = Tokenizer.from_file(str(BUNDLED_FOLDER / "tokenizer.json"))
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
TOOL = {"name": "f", "input_schema": {"type": "object", "properties": {}}}
FUNCTION = {"type": "function", "function": {"name": "f"}}
USE = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
CALL = {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


@asynccontextmanager
async def asking(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, folder: Path, engines: Engines
) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        running_router(monkeypatch, server.url, engines=engines, data_dir=folder) as router,
        httpx.AsyncClient(base_url=router.url, timeout=30) as client,
    ):
        yield client


def engines_that_go_on() -> Engines:
    return Engines(tokens=tuple(TOKENIZER.encode(REST, add_special_tokens=False).ids))


def body_of(path: str, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "temperature": 0, "messages": messages or [USER, BEGUN], **PREFILLS[path], **fields}


def text_of(answer: httpx.Response) -> str:
    """The answer's text, whole or streamed. It has no thinking."""
    assert answer.status_code == 200, answer.text
    assert "think" not in answer.text and '"reasoning_content":"' not in answer.text
    if not answer.headers["content-type"].startswith("text/event-stream"):
        body = answer.json()
        return str(body["content"][0]["text"] if "content" in body else body["choices"][0]["message"]["content"])
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    deltas = [event["delta"] for event in events if "delta" in event]
    deltas += [choice["delta"] for event in events for choice in event.get("choices", ())]
    return "".join(delta.get("text") or delta.get("content") or "" for delta in deltas)


@pytest.mark.parametrize("path", PREFILLS)
def test_the_answer_goes_on_and_holds_only_what_follows(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str
) -> None:
    """Whole and streamed; generated, stored and joined."""

    async def work() -> None:
        engines = engines_that_go_on()
        async with asking(server, monkeypatch, tmp_path, engines) as client:
            answers = [await client.post(path, json=body_of(path, stream=stream)) for stream in (False, True)]
            fresh = {"Cache-Control": "no-cache, no-store"}
            answers += [await client.post(path, json=body_of(path, stream=True), headers=fresh)]
            assert [text_of(answer) for answer in answers] == [REST] * 3
            assert [answer.headers["x-dray-cache"] for answer in answers] == ["miss", "hit", "bypass"]
            assert TOKENIZER.decode(engines.request.prompt_ids, skip_special_tokens=False).endswith(PROMPT)
            other = {"role": "assistant", "content": "The result"}
            engines.blocked, asked = asyncio.Event(), engines.requests
            first = asyncio.create_task(client.post(path, json=body_of(path, USER, other)))
            async with asyncio.timeout(20):
                while engines.requests == asked:
                    await asyncio.sleep(0.01)
            async with client.stream("POST", path, json=body_of(path, USER, other, stream=True)) as joined:
                engines.blocked.set()
                await joined.aread()
            assert (text_of(await first), text_of(joined), joined.headers["x-dray-cache"]) == (REST, REST, "join")

    asyncio.run(work())


def test_a_continuation_is_another_question_than_its_history(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path, engines_that_go_on()) as client:
            fields: list[dict[str, Any]] = [
                {"add_generation_prompt": False},
                {"add_generation_prompt": True, "continue_final_message": False},
                {"add_generation_prompt": False, "continue_final_message": False},
            ]
            keys = [
                (await client.post(CHAT, json=body_of(CHAT, **more))).headers["x-dray-cache-key"] for more in fields
            ]
            assert len(set(keys)) == 3
            same = await client.post(CHAT, json=body_of(CHAT, add_generation_prompt=None))
            assert same.headers["x-dray-cache-key"] == keys[0]

    asyncio.run(work())


@pytest.mark.parametrize("path", PREFILLS)
def test_an_empty_answer_is_not_continued(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str
) -> None:
    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path, engines_that_go_on()) as client:
            empty = {"role": "assistant", "content": ""}
            answers = [await client.post(path, json=body_of(path, USER, empty))]
            without = {"continue_final_message": None, "add_generation_prompt": None} if path == CHAT else {}
            answers += [await client.post(path, json=body_of(path, USER, **without))]
            assert answers[0].headers["x-dray-cache-key"] == answers[1].headers["x-dray-cache-key"]

    asyncio.run(work())


REFUSED: list[tuple[str, tuple[dict[str, Any], ...], dict[str, Any], str]] = [
    (MESSAGES, (USER, {"role": "assistant", "content": "The sum \n"}), {}, "white space"),
    (MESSAGES, (USER, {"role": "assistant", "content": [USE]}), {}, "results of the calls"),
    (MESSAGES, (USER, BEGUN), {"tools": [TOOL], "tool_choice": {"type": "any"}}, "must call tools"),
    (CHAT, (USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}), {}, "results of the calls"),
    (CHAT, (USER,), {}, "role is not assistant"),
    (CHAT, (USER, BEGUN), {"add_generation_prompt": True}, "send only one"),
    (CHAT, (USER, BEGUN), {"response_format": SCHEMA}, "in a format"),
    (CHAT, (USER, BEGUN), {"tools": [FUNCTION], "tool_choice": "required"}, "must call tools"),
]


def test_what_cannot_be_continued_is_refused(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        async with asking(server, monkeypatch, tmp_path, engines_that_go_on()) as client:
            for path, messages, fields, words in REFUSED:
                answer = await client.post(path, json=body_of(path, *messages, **fields))
                assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text

    asyncio.run(work())
