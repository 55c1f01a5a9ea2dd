"""Stop tokens, token ids and log probabilities of the prompt, under vLLM's names: whole, streamed and stored."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from cluster.models.folder import BUNDLED_FOLDER
from cluster.redis_server import OwnRedis
from deployments.common.messages import EngineRequest, TokenLogprobs
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import Engines, running_router

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": [{"role": "user", "content": "3+4?"}], "temperature": 0},
    COMPLETIONS: {"model": MODEL, "prompt": "3+4=", "temperature": 0, "max_tokens": 9},
}
TEXT = "7 鸡!"


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(BUNDLED_FOLDER / "tokenizer.json"))


@pytest.fixture
def ids(tokenizer: Tokenizer) -> list[int]:
    """The tokens of TEXT, which engines answer after the end of the thinking."""
    return list(tokenizer.encode(TEXT, add_special_tokens=False).ids)


@asynccontextmanager
async def asking(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, engines: Engines
) -> AsyncIterator[httpx.AsyncClient]:
    cache = {"namespace": f"test{id(engines)}"}
    async with (
        running_router(monkeypatch, server.url, engines=engines, cache=cache) as router,
        httpx.AsyncClient(base_url=router.url, timeout=20) as client,
    ):
        yield client


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]


def text_of(choice: dict[str, Any]) -> str:
    message = choice.get("message") or choice.get("delta") or {}
    return str(choice.get("text") or message.get("content") or "")


def joined(answer: httpx.Response) -> dict[str, Any]:
    """The first choice, whole or put together from its chunks, and what stands beside it."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        body: dict[str, Any] = answer.json()
        [choice] = body["choices"]
        together: dict[str, Any] = body | choice | {"content": text_of(choice)}
        return together
    whole: dict[str, Any] = {"content": "", "token_ids": []}
    for event in events_of(answer):
        for choice in event["choices"]:
            fresh = {"content": whole["content"] + text_of(choice)}
            fresh["token_ids"] = whole["token_ids"] + choice.get("token_ids", [])
            whole |= {**event, **choice, **fresh, **{k: v for k, v in whole.items() if k == "prompt_token_ids"}}
    return whole


async def three_ways(client: httpx.AsyncClient, path: str, **fields: Any) -> list[dict[str, Any]]:
    """An answer as it is generated and streamed, from the cache, and from the cache as a stream."""
    answers = [await client.post(path, json=BODIES[path] | fields | {"stream": n != 1}) for n in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3, answers[0].text
    assert [answer.headers["x-dray-cache"] for answer in answers] == ["miss", "hit", "hit"]
    assert all("x-dray-ignored" not in answer.headers for answer in answers)
    return [joined(answer) for answer in answers]


def check(
    path: str, server: OwnRedis, monkeypatch: pytest.MonkeyPatch, engines: Engines, work: Callable[..., Awaitable[None]]
) -> None:
    async def run() -> None:
        async with asking(server, monkeypatch, engines) as client:
            await work(client)

    asyncio.run(run())


@pytest.mark.parametrize("path", BODIES)
def test_a_stop_token_ends_the_answer(
    path: str, server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, ids: list[int]
) -> None:
    seen: list[EngineRequest] = []
    thought = tokenizer.token_to_id("</think>")

    def answer() -> None:
        seen.append(engines.request)
        engines.tokens = (thought,) if engines.request.sampling.stop_ids == (thought,) else tuple(ids)

    engines = Engines(on_request=answer)

    async def work(client: httpx.AsyncClient) -> None:
        stops = [ids[-1], 5, 5]
        for answer in await three_ways(client, path, stop_token_ids=stops):
            assert (answer["content"], answer["finish_reason"]) == (TEXT[:-1], "stop")
            assert answer["stop_reason"] == answer["matched_stop"] == ids[-1]
        for answer in await three_ways(client, path, stop_token_ids=stops, include_stop_str_in_output=True):
            assert (answer["content"], answer["stop_reason"]) == (TEXT, ids[-1])
        # They end the answer and not the thinking, which is therefore generated apart.
        end = [(thought,)] if path == CHAT else []
        stop_ids = [request.sampling.stop_ids for request in seen]
        assert stop_ids[: len(end) + 1] == [*end, tuple(sorted({*stops}))]
        refused = await client.post(path, json=BODIES[path] | {"stop_token_ids": [10**6]})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stop_token_ids")

    check(path, server, monkeypatch, engines, work)


@pytest.mark.parametrize("path", BODIES)
def test_a_stop_string_may_stay_in_the_answer(
    path: str, server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, ids: list[int]
) -> None:
    thought = [tokenizer.token_to_id("</think>")] if path == CHAT else []
    engines = Engines(tokens=(*thought, *ids))

    async def work(client: httpx.AsyncClient) -> None:
        for answer in await three_ways(client, path, stop=" 鸡"):
            assert (answer["content"], answer["stop_reason"], answer["matched_stop"]) == ("7", " 鸡", " 鸡")
        for answer in await three_ways(client, path, stop=" 鸡", include_stop_str_in_output=True):
            assert (answer["content"], answer["stop_reason"]) == ("7 鸡", " 鸡")
        for answer in await three_ways(client, path):
            assert (answer["content"], answer["stop_reason"], answer["matched_stop"]) == (TEXT, None, None)

    check(path, server, monkeypatch, engines, work)


@pytest.mark.parametrize("path", BODIES)
def test_token_ids_of_prompt_and_answer(
    path: str, server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, ids: list[int]
) -> None:
    tokens = [tokenizer.token_to_id("</think>"), *ids, 1]
    engines = Engines(tokens=tuple(tokens))

    async def work(client: httpx.AsyncClient) -> None:
        for answer in await three_ways(client, path, return_token_ids=True):
            assert answer["token_ids"] == tokens
            assert answer["prompt_token_ids"] == engines.request.prompt_ids
        several = await client.post(path, json=BODIES[path] | {"return_token_ids": True, "n": 2})
        assert [choice["token_ids"] for choice in several.json()["choices"]] == [tokens, tokens]
        plain = await client.post(path, json=BODIES[path])
        assert "token_ids" not in plain.text

    check(path, server, monkeypatch, engines, work)


@pytest.mark.parametrize("path", BODIES)
def test_tokens_of_log_probabilities_as_ids(
    path: str, server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, ids: list[int]
) -> None:
    thought = [tokenizer.token_to_id("</think>")] if path == CHAT else []
    logprobs = tuple(TokenLogprobs(-1.0, ((3, -0.5),)) for _ in (*thought, *ids))
    engines = Engines(tokens=(*thought, *ids), logprobs=logprobs)
    fields = {"logprobs": True, "top_logprobs": 1} if path == CHAT else {"logprobs": 1}

    async def work(client: httpx.AsyncClient) -> None:
        answer = await client.post(path, json=BODIES[path] | fields | {"return_tokens_as_token_ids": True})
        reported = answer.json()["choices"][0]["logprobs"]
        if path == CHAT:
            assert [token["token"] for token in reported["content"]] == [f"token_id:{token}" for token in ids]
            assert reported["content"][0]["top_logprobs"][0]["token"] == "token_id:3"
        else:
            assert reported["tokens"] == [f"token_id:{token}" for token in ids]
            assert reported["top_logprobs"][0] == {"token_id:3": -0.5, f"token_id:{ids[0]}": -1.0}

    check(path, server, monkeypatch, engines, work)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("apart", [False, True])
def test_log_probabilities_of_the_prompt(
    path: str, apart: bool, server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, ids: list[int]
) -> None:
    thought = [tokenizer.token_to_id("</think>")] if path == CHAT else []
    top = ((3, -0.5), (4, -0.75), (5, -0.9))
    seen: list[EngineRequest] = []

    def answer() -> None:
        request = engines.request
        seen.append(request)
        reported = top[: request.sampling.top_logprobs or 0]
        engines.tokens = (*thought, *ids)
        if apart and path == CHAT:
            engines.tokens = tuple(thought if request.sampling.grammar is None else ids)
        engines.logprobs = tuple(TokenLogprobs(-1.0, reported) for _ in engines.tokens)
        wanted = request.prompt_logprobs
        engines.prompt_logprobs = tuple(TokenLogprobs(-2.0, reported) for _ in request.prompt_ids[1:] if wanted)

    engines = Engines(on_request=answer)
    more = {"guided_choice": [TEXT]} if apart else {}
    own = {"logprobs": True, "top_logprobs": 1} if path == CHAT else {"logprobs": 1}

    async def work(client: httpx.AsyncClient) -> None:
        for fields in ({}, own):
            results = []
            for _ in range(2):
                body = BODIES[path] | more | fields | {"prompt_logprobs": 2, "return_token_ids": True, "n": 2}
                whole = await client.post(path, json=body)
                results.append(whole.headers["x-dray-cache"])
                body = whole.json()
                [first, second] = body["choices"]
                assert text_of(first) == text_of(second) == TEXT
                places = [choice["prompt_logprobs"] for choice in ([body] if path == CHAT else [first, second])]
                prompt = body["prompt_token_ids"] if path == CHAT else first["prompt_token_ids"]
                for place in places:
                    assert place[0] is None and len(place) == len(prompt)
                    chosen = place[1].pop(str(prompt[1]))
                    assert (chosen["logprob"], chosen["rank"]) == (-2.0, None)
                    likely = {token: (each["logprob"], each["rank"]) for token, each in place[1].items()}
                    assert likely == {"3": (-0.5, 1), "4": (-0.75, 2)}
                reported = first["logprobs"]
                assert (reported is None) == (not fields)
                if fields and path == CHAT:  # as many alternatives as the request wants of the answer
                    assert [len(token["top_logprobs"]) for token in reported["content"]] == [1] * len(ids)
            assert results == ["miss", "hit"]
        assert [request.prompt_logprobs for request in seen].count(True) == 2
        streamed = await client.post(path, json=BODIES[path] | {"prompt_logprobs": 1, "stream": True})
        assert (streamed.status_code, streamed.json()["error"]["param"]) == (400, "prompt_logprobs")

    check(path, server, monkeypatch, engines, work)


@pytest.mark.parametrize("path", BODIES)
def test_every_chunk_may_report_the_usage(
    path: str, server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, ids: list[int]
) -> None:
    thought = [tokenizer.token_to_id("</think>")] if path == CHAT else []
    engines = Engines(tokens=(*thought, *ids))
    prompts = {"prompt": ["3+4=", "5+6="]} if path == COMPLETIONS else {}

    async def work(client: httpx.AsyncClient) -> None:
        options = {"include_usage": True, "continuous_usage_stats": True}
        for fields in ({}, {}, prompts):
            answer = await client.post(path, json=BODIES[path] | fields | {"stream": True, "stream_options": options})
            *chunks, last = events_of(answer)
            usages = [chunk["usage"] for chunk in chunks if text_of(chunk["choices"][0])]
            assert usages and usages[-1] == last["usage"] and not last["choices"]
            counts = [usage["completion_tokens"] for usage in usages]
            assert counts == sorted(counts) and usages[0]["prompt_tokens"] == last["usage"]["prompt_tokens"]
        options["include_usage"] = False
        answer = await client.post(path, json=BODIES[path] | {"stream": True, "stream_options": options})
        assert not any(event.get("usage") for event in events_of(answer))

    check(path, server, monkeypatch, engines, work)


def test_only_the_allowed_tools_are_offered(server: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("f", "g", "h")]

    def choice(mode: str, *names: str) -> dict[str, Any]:
        allowed = [{"type": "function", "function": {"name": name}} for name in names]
        return {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": allowed}}}

    engines = Engines()

    async def work(client: httpx.AsyncClient) -> None:
        async def key(status: int = 200, **fields: Any) -> str:
            answer = await client.post(CHAT, json=BODIES[CHAT] | fields)
            assert answer.status_code == status, answer.text
            return answer.headers.get("x-dray-cache-key") or str(answer.json()["error"]["param"])

        some = await key(tools=[tools[0], tools[2]])
        assert await key(tools=tools, **choice("auto", "h", "f")) == some
        required = await key(tools=tools, **choice("required", "f"))
        assert required == await key(tools=tools[:1], tool_choice="required")
        assert engines.request.sampling.grammar is not None
        assert await key(400, tools=tools, **choice("auto", "other")) == "tool_choice"
        assert await key(400, tools=tools, **choice("auto")) == "tool_choice"
        assert await key(400, tools=tools, tool_choice={"type": "allowed_tools"}) == "tool_choice"
        assert await key(400, tools=tools, tool_choice={"type": "function"}) == "tool_choice"

    check(CHAT, server, monkeypatch, engines, work)
