"""Log probabilities with alternatives, biases and priorities: what engines get, and what clients get back."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer

from cluster.models.folder import BUNDLED_FOLDER
from cluster.redis_server import OwnRedis
from deployments.common.messages import TokenLogprobs
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import Engines, running_router

HI = [{"role": "user", "content": "hi"}]
VOCABULARY = 2050
END = 1
TEXT = "鸡a12"


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(16) as own:
        yield own


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(BUNDLED_FOLDER / "tokenizer.json"))


@asynccontextmanager
async def asking(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, engines: Engines
) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        running_router(monkeypatch, server.url, engines=engines) as router,
        httpx.AsyncClient(base_url=router.url, timeout=20) as client,
    ):
        yield client


def engines_for(tokenizer: Tokenizer) -> Engines:
    """Engines whose every answer is TEXT, with two alternatives for each token: itself, and the last one."""
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    logprobs = [TokenLogprobs(-0.25 * n, ((token, -0.25 * n), (ids[-1], -9.5))) for n, token in enumerate(ids)]
    thought = tokenizer.token_to_id("</think>")
    return Engines(tokens=(thought, *ids), logprobs=(TokenLogprobs(-3.0), *logprobs))


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]


def chat_tokens(body: dict[str, Any]) -> list[dict[str, Any]]:
    tokens: list[dict[str, Any]] = body["choices"][0]["logprobs"]["content"]
    return tokens


def streamed_chat_tokens(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    choices = [choice for event in events for choice in event["choices"] if choice["logprobs"]]
    return [token for choice in choices for token in choice["logprobs"]["content"]]


def response_tokens(body: dict[str, Any]) -> list[dict[str, Any]]:
    tokens: list[dict[str, Any]] = body["output"][-1]["content"][0]["logprobs"]
    return tokens


def streamed_response_tokens(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    tokens = [token for event in deltas for token in event["logprobs"]]
    assert response_tokens(events[-1]["response"]) == tokens
    return tokens


@dataclass(frozen=True)
class Api:
    """Where an API reports tokens: in a whole answer, and in a stream. other: changes the question."""

    path: str
    body: dict[str, Any]
    other: dict[str, Any]
    whole: Callable[[dict[str, Any]], list[dict[str, Any]]]
    streamed: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


APIS = [
    Api(
        "/v1/chat/completions",
        {"messages": HI, "logprobs": True, "top_logprobs": 2},
        {"messages": HI * 2},
        chat_tokens,
        streamed_chat_tokens,
    ),
    Api(
        "/v1/responses",
        {"input": "a question", "top_logprobs": 2},
        {"input": "another question"},
        response_tokens,
        streamed_response_tokens,
    ),
]


@pytest.mark.parametrize("api", APIS, ids=[api.path for api in APIS])
def test_alternatives_are_the_same_in_every_answer(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, api: Api
) -> None:
    """Whole or streamed; generated, stored, or joined."""

    async def work() -> None:
        engines = engines_for(tokenizer)
        async with asking(server, monkeypatch, engines) as client:
            body = {"model": MODEL, "temperature": 0, **api.body}
            whole = await client.post(api.path, json=body)
            tokens = api.whole(whole.json())
            assert "".join(bytes(token["bytes"]).decode(errors="replace") for token in tokens).endswith("a12")
            assert bytes(byte for token in tokens for byte in token["bytes"]).decode() == TEXT
            for n, token in enumerate(tokens):
                first, last = token["top_logprobs"]
                assert first == {name: token[name] for name in ("token", "logprob", "bytes")}
                assert (token["logprob"], last["token"], last["logprob"]) == (-0.25 * n, tokens[-1]["token"], -9.5)
            assert engines.request.sampling.top_logprobs == 2

            hit = await client.post(api.path, json=body)
            stream_hit = await client.post(api.path, json=body | {"stream": True})
            fresh = {"Cache-Control": "no-cache, no-store"}
            streamed = await client.post(api.path, json=body | {"stream": True}, headers=fresh)
            engines.blocked = asyncio.Event()
            asked = asyncio.create_task(client.post(api.path, json=body | api.other))
            async with asyncio.timeout(20):
                while engines.requests < 3:
                    await asyncio.sleep(0.01)
            async with client.stream("POST", api.path, json=body | api.other | {"stream": True}) as joined:
                engines.blocked.set()
                await joined.aread()
            answers = (whole, hit, stream_hit, streamed, await asked, joined)
            came = [answer.headers["x-dray-cache"] for answer in answers]
            assert came == ["miss", "hit", "hit", "bypass", "miss", "join"]
            assert api.whole(hit.json()) == tokens
            for answer in (stream_hit, streamed, joined):
                assert api.streamed(events_of(answer)) == tokens

    asyncio.run(work())


def test_completions_report_alternatives_by_their_texts(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    async def work() -> None:
        a, b, c = (tokenizer.token_to_id(text) for text in "abc")
        engines = Engines(
            tokens=(a, b), logprobs=(TokenLogprobs(-3.0, ((c, -0.5), (b, -2.0))), TokenLogprobs(-0.5, ((b, -0.5),)))
        )
        async with asking(server, monkeypatch, engines) as client:
            body = {"model": MODEL, "prompt": "x", "temperature": 0, "logprobs": 2}
            expected = {
                "tokens": ["a", "b"],
                "token_logprobs": [-3.0, -0.5],
                "top_logprobs": [{"c": -0.5, "b": -2.0, "a": -3.0}, {"b": -0.5}],
                "text_offset": [0, 1],
            }
            for _ in range(2):
                whole = (await client.post("/v1/completions", json=body)).json()
                assert whole["choices"][0]["logprobs"] == expected
            events = events_of(await client.post("/v1/completions", json=body | {"stream": True}))
            assert [e["choices"][0]["logprobs"] for e in events if e["choices"]] == [expected]
            none = (await client.post("/v1/completions", json=body | {"logprobs": 0})).json()
            assert none["choices"][0]["logprobs"]["top_logprobs"] is None
            assert engines.request.sampling.top_logprobs == 0

    asyncio.run(work())


def test_an_echo_has_the_log_probabilities_of_the_prompt(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    async def work() -> None:
        prompt = tokenizer.encode("鸡1 2", add_special_tokens=False).ids
        a, b = (tokenizer.token_to_id(text) for text in "ab")
        of_prompt = tuple(TokenLogprobs(-float(n), ((a, -0.5),)) for n in range(1, len(prompt)))
        engines = Engines(tokens=(b,), logprobs=(TokenLogprobs(-9.0, ((b, -9.0),)),), prompt_logprobs=of_prompt)
        async with asking(server, monkeypatch, engines) as client:
            body = {"model": MODEL, "prompt": "鸡1 2", "temperature": 0, "logprobs": 1, "echo": True}
            whole = (await client.post("/v1/completions", json=body)).json()["choices"][0]
            assert whole["text"] == "鸡1 2b" and engines.request.prompt_logprobs
            reported = whole["logprobs"]
            assert reported["token_logprobs"] == [None, *(-float(n) for n in range(1, len(prompt))), -9.0]
            assert reported["top_logprobs"][0] is None and reported["top_logprobs"][1]["a"] == -0.5
            assert reported["text_offset"][0] == 0 and reported["text_offset"][-1] == len("鸡1 2")
            hit = (await client.post("/v1/completions", json=body)).json()["choices"][0]
            ids = (await client.post("/v1/completions", json=body | {"prompt": prompt})).json()["choices"][0]
            assert hit == whole and ids == whole
            events = events_of(await client.post("/v1/completions", json=body | {"stream": True}))
            parts = [event["choices"][0] for event in events if event["choices"]]
            assert "".join(part["text"] for part in parts) == whole["text"]
            for name, values in reported.items():
                assert [v for part in parts if part["logprobs"] for v in part["logprobs"][name]] == values
            engines.tokens = (END,)
            ended = (await client.post("/v1/completions", json=body | {"seed": 3, "temperature": 1})).json()["choices"][
                0
            ]
            assert ended["text"] == "鸡1 2" and len(ended["logprobs"]["tokens"]) == len(prompt) + 1, "the end counts"
            many = await client.post("/v1/completions", json=body | {"logprobs": 6})
            assert (many.status_code, many.json()["error"]["param"]) == (400, "logprobs")
            engines.tokens = (b,)
            plain = (await client.post("/v1/completions", json=body | {"echo": False})).json()["choices"][0]
            assert plain["logprobs"]["tokens"] == ["b"] and not engines.request.prompt_logprobs

    asyncio.run(work())


def test_a_prompt_is_scored_alone_where_no_token_is_wanted(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    """What programs send that compare models: `max_tokens: 0` with `echo`, prompts as texts or ids, 20 in a request."""

    async def work() -> None:
        prompt = tokenizer.encode("鸡1 2", add_special_tokens=False).ids
        of_prompt = tuple(TokenLogprobs(-float(n), ((prompt[n], -0.5),)) for n in range(1, len(prompt)))
        engines = Engines(tokens=(END,), logprobs=(TokenLogprobs(-9.0),), prompt_logprobs=of_prompt)
        async with asking(server, monkeypatch, engines) as client:
            body = {"model": MODEL, "prompt": "鸡1 2", "temperature": 0, "logprobs": 1, "echo": True, "max_tokens": 0}
            answer = (await client.post("/v1/completions", json=body)).json()
            [choice] = answer["choices"]
            assert (choice["text"], choice["finish_reason"]) == ("鸡1 2", "length")
            assert choice["logprobs"]["token_logprobs"] == [None, *(-float(n) for n in range(1, len(prompt)))]
            assert {len(values) for values in choice["logprobs"].values()} == {len(prompt)}
            assert answer["usage"]["completion_tokens"] == 0 and answer["usage"]["prompt_tokens"] == len(prompt)
            assert engines.request.sampling.max_tokens == 1, "an engine is never asked for nothing"
            events = events_of(await client.post("/v1/completions", json=body | {"stream": True}))
            parts = [event["choices"][0] for event in events if event["choices"]]
            assert "".join(part["text"] for part in parts) == "鸡1 2" and parts[-1]["finish_reason"] == "length"
            assert [v for p in parts if p["logprobs"] for v in p["logprobs"]["tokens"]] == choice["logprobs"]["tokens"]
            many = (await client.post("/v1/completions", json=body | {"prompt": [prompt] * 20})).json()
            assert many["choices"] == [choice | {"index": index} for index in range(20)]
            bare = (await client.post("/v1/completions", json=body | {"logprobs": None})).json()["choices"][0]
            assert (bare["text"], bare["logprobs"]) == ("鸡1 2", None)
            refused = await client.post("/v1/completions", json=body | {"echo": False})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")
            too_many = await client.post("/v1/completions", json=body | {"prompt": [prompt] * 21})
            assert (too_many.status_code, too_many.json()["error"]["param"]) == (400, "n")

    asyncio.run(work())


@pytest.mark.parametrize("missing", [0, 1], ids=["whole", "cut"])
def test_tokens_that_are_parts_of_a_character_come_once_in_responses(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer, missing: int
) -> None:
    """With the character's text, or at the end of an answer that is cut within it."""

    async def work() -> None:
        ids = tokenizer.encode("a🐰", add_special_tokens=False).ids
        assert len(ids) > 2
        ids = [tokenizer.token_to_id("</think>"), *ids[: len(ids) - missing]]
        engines = Engines(tokens=tuple(ids), logprobs=(TokenLogprobs(-1.0),) * len(ids))
        async with asking(server, monkeypatch, engines) as client:
            body = {"model": MODEL, "input": f"cut {missing}", "include": ["message.output_text.logprobs"]}
            whole = response_tokens((await client.post("/v1/responses", json=body)).json())
            events = events_of(await client.post("/v1/responses", json=body | {"stream": True}))
            assert response_tokens(events[-1]["response"]) == whole
            assert len(whole) == len(ids) - 1 and not any(token["top_logprobs"] for token in whole)
            assert engines.request.sampling.top_logprobs == 0
            await client.post("/v1/responses", json=body | {"include": []})
            assert engines.request.sampling.top_logprobs is None

    asyncio.run(work())


BIASED = [
    ("/v1/chat/completions", {"messages": HI}),
    ("/v1/completions", {"prompt": "x"}),
]


@pytest.mark.parametrize(("path", "more"), BIASED, ids=[path for path, _ in BIASED])
def test_biases_reach_the_engines_and_wrong_ones_are_refused(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, path: str, more: dict[str, Any]
) -> None:
    async def work() -> None:
        engines = Engines()
        async with asking(server, monkeypatch, engines) as client:
            body = {"model": MODEL, "temperature": 0, **more}
            biased = await client.post(path, json=body | {"logit_bias": {"40": -100, "7": 2.5, "8": 0}})
            assert biased.status_code == 200
            assert engines.request.sampling.logit_bias == ((7, 2.5), (40, -100.0))
            same = await client.post(path, json=body | {"logit_bias": {"7": 2.5, "40": -100.0}})
            other = await client.post(path, json=body | {"logit_bias": {"7": 2.5}})
            assert [answer.headers["x-dray-cache"] for answer in (biased, same, other)] == ["miss", "hit", "miss"]
            last = await client.post(path, json=body | {"logit_bias": {str(VOCABULARY - 1): 1}})
            assert last.status_code == 200
            many = {str(token): 1 for token in range(1025)}
            wrong = [{str(VOCABULARY): 1}, {"1" * 12: 1}, {"-1": 1}, {"a": 1}, {"": 1}, {"\u0665": 1}, {"1.0": 1}]
            for biases in (*wrong, {"5": 100.5}, {"5": -101}, {"5": "x"}, {"5": None}, many, [5], "5"):
                refused = await client.post(path, json=body | {"logit_bias": biases})
                error = refused.json()["error"]
                assert (refused.status_code, error["param"]) == (400, "logit_bias"), biases
            assert engines.requests == 3

    asyncio.run(work())


@pytest.mark.parametrize(("tier", "priority"), [("default", 0), ("flex", 1)])
def test_engines_know_batch_work_from_people(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tier: str, priority: int
) -> None:
    async def work() -> None:
        engines = Engines()
        async with asking(server, monkeypatch, engines) as client:
            body = {"model": MODEL, "messages": HI, "service_tier": tier, "temperature": 0}
            answer = await client.post("/v1/chat/completions", json=body, headers={"Cache-Control": "no-cache"})
            assert (answer.status_code, engines.request.priority) == (200, priority)

    asyncio.run(work())
