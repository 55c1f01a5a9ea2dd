"""Requests as clients of other servers, and programs on other machines, send them."""

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
import zstandard
from tokenizers import Tokenizer

from cluster.models.folder import BUNDLED_FOLDER
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import running_router

CHAT = "/v1/chat/completions"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "3+4?"}]},
    "/v1/completions": {"prompt": "3+4="},
    "/v1/responses": {"input": "3+4?"},
    "/v1/messages": {"messages": [{"role": "user", "content": "3+4?"}], "max_tokens": 16},
}
ORIGIN = "https://bot.example.com"


class OpenRouter(Protocol):
    """Starts a router with these settings and an empty cache, and yields a client of it."""

    def __call__(self, **settings: Any) -> AbstractAsyncContextManager[httpx.AsyncClient]: ...


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[OpenRouter]:
    with redis_server(16) as redis:

        @asynccontextmanager
        async def client_of(**settings: Any) -> AsyncIterator[httpx.AsyncClient]:
            async with (
                running_router(monkeypatch, redis.url, data_dir=tmp_path, **settings) as running,
                httpx.AsyncClient(base_url=running.url, timeout=30) as client,
            ):
                yield client

        yield client_of


def body_of(path: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, **BODIES[path], **fields}


@pytest.mark.parametrize("path", BODIES)
def test_unknown_fields_are_named_and_change_nothing(path: str, router: OpenRouter) -> None:
    async def work() -> None:
        async with router() as client:
            first = await client.post(path, json=body_of(path))
            assert first.status_code == 200 and "x-dray-ignored" not in first.headers
            more = {"num_ctx": 2048, "mirostat": 0, "名 字\r\nX-Evil: 1": None}
            for stream in (False, True):
                answer = await client.post(path, json=body_of(path, stream=stream, **more))
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-dray-cache"] == "hit"
                assert answer.headers["x-dray-ignored"].startswith("num_ctx, mirostat, %E5%90%8D")
                assert "x-evil" not in answer.headers
            many = {f"field{number}" * 20: number for number in range(1000)}
            answer = await client.post(path, json=body_of(path, **many))
            assert answer.headers["x-dray-ignored"].endswith("and 984 more")
            assert len(answer.headers["x-dray-ignored"]) < 4000

    asyncio.run(work())


@pytest.mark.parametrize("path", BODIES)
def test_unknown_fields_can_be_refused(path: str, router: OpenRouter) -> None:
    async def work() -> None:
        async with router(api={"unknown_fields": "refuse"}) as client:
            answer = await client.post(path, json=body_of(path, num_ctx=2048))
            assert answer.status_code == 400 and "num_ctx" in answer.json()["error"]["message"]

    asyncio.run(work())


def _raw_deflate(body: bytes) -> bytes:
    encoder = zlib.compressobj(wbits=-15)
    return encoder.compress(body) + encoder.flush()


COMPRESSED: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", _raw_deflate),
    ("zstd", zstandard.compress),
    ("identity", bytes),
]


def test_bodies_may_be_compressed(router: OpenRouter) -> None:
    async def work() -> None:
        limits = {"body_bytes": 100_000}
        async with router(limits=limits) as client:

            async def send(body: bytes, encoding: str) -> httpx.Response:
                headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
                return await client.post(CHAT, content=body, headers=headers)

            body = json.dumps(body_of(CHAT)).encode()
            for encoding, compress in COMPRESSED:
                assert (await send(compress(body), encoding)).status_code == 200, encoding
            for encoding, compress in COMPRESSED[:-1]:
                bomb = await send(compress(b" " * 50_000_000), encoding)
                assert (bomb.status_code, bomb.json()["error"]["code"]) == (413, "request_too_large"), encoding
                for damaged in (b"no such stream", compress(body)[:-6]):
                    answer = await send(damaged, encoding)
                    assert answer.status_code == 400, encoding
            for encoding in ("br", "gzip, gzip", "x" * 5000):
                answer = await send(body, encoding)
                assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_content_encoding")

    asyncio.run(work())


def test_what_editors_and_cut_texts_do_to_json(router: OpenRouter) -> None:
    async def work() -> None:
        async with router() as client:

            async def send(body: bytes) -> httpx.Response:
                return await client.post(CHAT, content=body, headers={"Content-Type": "application/json"})

            body = json.dumps(body_of(CHAT), ensure_ascii=False).encode()
            assert (await send(b"\xef\xbb\xbf" + body)).status_code == 200
            for damage, words in (
                (b"\\ud83d", "surrogate pair"),
                (b"\xff\xfe", "not valid UTF-8"),
                (b"\xed\xa0\xbd", "not valid UTF-8"),
            ):
                answer = await send(body.replace(b"3+4", damage))
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (400, "invalid_json") and words in error["message"]
            assert (await send(body.replace(b"3+4", b"\\ud83d\\ude00"))).status_code == 200

    asyncio.run(work())


def test_names_and_slashes_of_other_servers(router: OpenRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.api.info.models_without_replicas", lambda engines: [])

    async def work() -> None:
        async with router() as client:
            for path in ("/health", "/ping", "/version", "/v1/models", "/v1/models/"):
                assert (await client.get(path)).status_code == 200, path
            assert (await client.get("/version")).json()["version"]
            results = [
                (await client.post(path, json=body_of(CHAT))).headers["x-dray-cache"] for path in (CHAT, f"{CHAT}/")
            ]
            assert results == ["miss", "hit"]

    asyncio.run(work())


def test_top_p_zero_takes_the_likeliest_token(router: OpenRouter) -> None:
    async def work() -> None:
        async with router() as client:
            greedy = await client.post(CHAT, json=body_of(CHAT, temperature=0))
            same = await client.post(CHAT, json=body_of(CHAT, temperature=1, top_p=0, seed=3))
            assert greedy.headers["x-dray-cache-key"] == same.headers["x-dray-cache-key"]
            assert same.headers["x-dray-cache"] == "hit"

    asyncio.run(work())


@pytest.mark.parametrize("enabled", [True, False], ids=["cached", "uncached"])
def test_named_pages_of_other_sites_may_ask(enabled: bool, router: OpenRouter) -> None:
    settings = {"cors": {"origins": (ORIGIN,)}, "cache": {"enabled": enabled}}

    async def work() -> None:
        async with router(**settings) as client:
            asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
            preflight = await client.options(CHAT, headers={"Origin": ORIGIN, **asks})
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == ORIGIN
            for body, status in ((body_of(CHAT), 200), (body_of(CHAT), 200), ({}, 400)):
                answer = await client.post(CHAT, json=body, headers={"Origin": ORIGIN})
                assert answer.status_code == status
                assert answer.headers["access-control-allow-origin"] == ORIGIN
                assert "x-dray-cache" in answer.headers["access-control-expose-headers"].lower()
            for other in ("https://evil.example.com", "null", f"{ORIGIN}.evil.com"):
                assert (await client.options(CHAT, headers={"Origin": other, **asks})).status_code == 400
                answer = await client.post(CHAT, json=body_of(CHAT), headers={"Origin": other})
                assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers

    asyncio.run(work())


def test_all_pages_may_ask_only_where_keys_are_needed(router: OpenRouter) -> None:
    async def work() -> None:
        async with router(cors={"origins": ("*",)}) as client:
            answer = await client.post(CHAT, json=body_of(CHAT), headers={"Origin": ORIGIN})
            assert answer.status_code == 403

    asyncio.run(work())


SCHEMA = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
JSON_FORMAT = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"enable_thinking": False}, {"reasoning_effort": "none"}),
    ({"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
    ({"thinking": {"type": "enabled"}}, {}),
    ({"enable_thinking": None, "thinking": None, "guided_json": None}, {}),
    ({"max_tokens": -1}, {}),
    ({"max_tokens": None, "max_completion_tokens": -1}, {}),
    ({"guided_json": SCHEMA}, {"response_format": JSON_FORMAT}),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, {"response_format": JSON_FORMAT}),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, {"response_format": JSON_FORMAT}),
]


def test_other_names_mean_the_same(router: OpenRouter) -> None:
    async def work() -> None:
        async with router() as client:
            for theirs, ours in SAME:
                answers = [await client.post(CHAT, json=body_of(CHAT, **fields)) for fields in (theirs, ours)]
                assert [answer.status_code for answer in answers] == [200, 200], (theirs, answers[0].text)
                assert len({answer.headers["x-dray-cache-key"] for answer in answers}) == 1, theirs
                assert all("x-dray-ignored" not in answer.headers for answer in answers)
            for name in ("max_tokens", "max_completion_tokens"):
                answer = await client.post(CHAT, json=body_of(CHAT, **{name: 0}))
                assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)

    asyncio.run(work())


NEUTRAL_FIELDS: dict[str, dict[str, list[Any]]] = {
    "": {
        "use_beam_search": [False, None],
        "length_penalty": [1.0, 1],
        "early_stopping": [False],
        "skip_special_tokens": [True, None],
        "spaces_between_special_tokens": [True],
        "truncate_prompt_tokens": [None],
        "priority": [0],
        "documents": [None, []],
        "logits_processors": [None, []],
        "stop_token_ids": [None, []],
        "include_stop_str_in_output": [False],
        "return_token_ids": [False, None],
        "prompt_logprobs": [None],
        "min_tokens": [0],
        "ignore_eos": [False],
        "logit_bias": [None, {}],
        "best_of": [1, None],
        "echo": [False, None],
    },
    CHAT: {
        "max_tokens": [None, -1],
        "max_completion_tokens": [None],
        "parallel_tool_calls": [None, True],
        "tools": [None, []],
        "tool_choice": [None, "none"],
        "functions": [None],
        "audio": [None],
        "response_format": [None, {"type": "text"}],
        "logprobs": [False, None],
    },
    "/v1/completions": {"suffix": [None, ""], "max_tokens": [None, 16], "logprobs": [None]},
}


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("unknown", ["ignore", "refuse"])
def test_values_that_request_nothing_are_taken(path: str, unknown: str, router: OpenRouter) -> None:
    async def work() -> None:
        async with router(api={"unknown_fields": unknown}) as client:
            await client.post(path, json=body_of(path))
            for name, values in (NEUTRAL_FIELDS[""] | NEUTRAL_FIELDS[path]).items():
                for value in values:
                    answer = await client.post(path, json=body_of(path, **{name: value}))
                    assert answer.status_code == 200, (name, value, answer.text)
                    result = (answer.headers["x-dray-cache"], answer.headers.get("x-dray-ignored"))
                    assert result == ("hit", None), (name, value)
            for name, value in (("use_beam_search", True), ("skip_special_tokens", False), ("priority", False)):
                answer = await client.post(path, json=body_of(path, **{name: value}))
                if unknown == "ignore":
                    assert (answer.status_code, answer.headers["x-dray-ignored"]) == (200, name)
                else:
                    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)

    asyncio.run(work())


def test_many_choices_and_prompts_at_once(router: OpenRouter) -> None:
    async def work() -> None:
        async with router() as client:
            answer = await client.post(CHAT, json=body_of(CHAT, n=16))
            assert [choice["index"] for choice in answer.json()["choices"]] == [*range(16)]
            prompts = [f"{number}+1=" for number in range(20)]
            for stream in (False, True):
                body = {"model": MODEL, "prompt": prompts, "stream": stream}
                answer = await client.post("/v1/completions", json=body)
                assert answer.status_code == 200
                lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
                bodies = [json.loads(line) for line in lines] if stream else [answer.json()]
                ended = [choice["index"] for body in bodies for choice in body["choices"] if choice["finish_reason"]]
                assert sorted(ended) == [*range(20)]

    asyncio.run(work())


PART = {"type": "text", "text": "3+4?", "cache_control": {"type": "ephemeral"}}
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
DOCUMENT = {"type": "text", "media_type": "text/plain", "data": "3+4?"}
NESTED: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": [{"role": "user", "content": [PART, PART]}]}, "messages[].content[].cache_control"),
    (CHAT, {"messages": [{"role": "user", "content": "3+4?", "id": 7}]}, "messages[].id"),
    (CHAT, {"stream": True, "stream_options": {"include_usage": True, "x": 1}}, "stream_options.x"),
    (CHAT, {"response_format": {"type": "json_object", "x": 1}}, "response_format.x"),
    (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}, "x": 1}}},
        "response_format.json_schema.x",
    ),
    (CHAT, {"structured_outputs": {"regex": "7", "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
    (
        CHAT,
        {"tools": [{"type": "function", "function": {"name": "f", "x": 1}, "y": 2}]},
        "tools[].function.x, tools[].y",
    ),
    (CHAT, {"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking.budget_tokens"),
    ("/v1/completions", {"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ("/v1/completions", {"response_format": {"type": "text", "x": 1}}, "response_format.x"),
    (RESPONSES, {"input": [{"role": "user", "content": "3+4?", "x": 1}]}, "input[].x"),
    (
        RESPONSES,
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "3+4?", "x": 1}]}]},
        "input[].content[].x",
    ),
    (RESPONSES, {"text": {"format": {"type": "text", "x": 1}, "y": 2}}, "text.format.x, text.y"),
    (
        RESPONSES,
        {"text": {"format": {"type": "json_schema", "name": "s", "schema": {}, "x": 1}}},
        "text.format.x",
    ),
    (RESPONSES, {"reasoning": {"effort": "low", "x": 1}}, "reasoning.x"),
    (RESPONSES, {"tools": [FUNCTION | {"defer_loading": True}]}, "tools[].defer_loading"),
    (
        RESPONSES,
        {"tools": [{"type": "namespace", "name": "n", "tools": [FUNCTION | {"x": 1}], "y": 2}]},
        "tools[].tools[].x, tools[].y",
    ),
    (
        RESPONSES,
        {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "f", "x": 1}},
        "tool_choice.x",
    ),
    (MESSAGES, {"messages": [{"role": "user", "content": "3+4?", "x": 1}]}, "messages[].x"),
    (MESSAGES, {"messages": [{"role": "user", "content": [PART | {"x": 1}]}]}, "messages[].content[].x"),
    (MESSAGES, {"system": [PART | {"x": 1}]}, "system[].x"),
    (MESSAGES, {"tools": [{"name": "f", "input_schema": {}, "defer_loading": True}]}, "tools[].defer_loading"),
    (MESSAGES, {"thinking": {"type": "disabled", "x": 1}}, "thinking.x"),
    (MESSAGES, {"output_config": {"effort": "low", "x": 1}}, "output_config.x"),
    (
        MESSAGES,
        {"output_config": {"format": {"type": "json_schema", "schema": {}, "x": 1}}},
        "output_config.format.x",
    ),
    (
        MESSAGES,
        {"tools": [{"name": "f", "input_schema": {}}], "tool_choice": {"type": "auto", "x": 1}},
        "tool_choice.x",
    ),
    (
        MESSAGES,
        {"messages": [{"role": "user", "content": [{"type": "document", "source": DOCUMENT | {"x": 1}}]}]},
        "messages[].content[].source.x",
    ),
]


@pytest.mark.parametrize("unknown", ["ignore", "refuse"])
def test_unknown_fields_within_others_are_treated_as_those_at_the_top(unknown: str, router: OpenRouter) -> None:
    async def work() -> None:
        async with router(api={"unknown_fields": unknown}) as client:
            for path, fields, names in NESTED:
                answer = await client.post(path, json=body_of(path, **fields))
                if unknown == "ignore":
                    assert answer.status_code == 200, (names, answer.text)
                    assert answer.headers["x-dray-ignored"] == names
                else:
                    # Anthropic's errors have no code.
                    message = f"Unrecognized request argument supplied: {names.partition(', ')[0]}"
                    assert (answer.status_code, answer.json()["error"]["message"].replace("[0]", "[]")) == (
                        400,
                        message,
                    )
            # What is the client's own has any fields.
            schema = {"type": "object", "x-own": 1, "properties": {"x": {"type": "integer", "own": 2}}}
            own = {"guided_json": schema, "metadata": {"a": "b"}, "logit_bias": {"5": 1}}
            answer = await client.post(CHAT, json=body_of(CHAT, **own))
            assert answer.status_code == 200 and "x-dray-ignored" not in answer.headers

    asyncio.run(work())


HISTORY: list[tuple[str, dict[str, Any]]] = [
    (
        RESPONSES,
        {
            "input": [
                {"role": "user", "content": "3+4?"},
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": None, "status": None},
                {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}", "status": "x"},
                {"type": "function_call_output", "call_id": "c", "output": "7", "caller": {"type": "direct"}},
                {
                    "type": "message",
                    "id": "msg_1",
                    "role": "assistant",
                    "status": "completed",
                    "phase": "final_answer",
                    "content": [{"type": "output_text", "text": "7", "annotations": [], "logprobs": []}],
                },
                {"role": "user", "content": "Sure?"},
            ]
        },
    ),
    (
        MESSAGES,
        {
            "tools": [{"name": "f", "input_schema": {}, "eager_input_streaming": True, "input_examples": [{}]}],
            "messages": [
                {"role": "user", "content": [PART]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                        {"type": "text", "text": "7", "citations": None},
                        {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}, "caller": {"type": "direct"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "t",
                            "content": [{"type": "image", "source": {"type": "url", "url": "x"}}],
                        }
                    ],
                },
            ],
        },
    ),
]


def test_a_history_as_the_apis_write_it_has_no_unknown_fields(router: OpenRouter) -> None:
    async def work() -> None:
        async with router(api={"unknown_fields": "refuse"}) as client:
            for path, fields in HISTORY:
                answer = await client.post(path, json=body_of(path, **fields))
                assert answer.status_code == 200 and "x-dray-ignored" not in answer.headers, answer.text

    asyncio.run(work())


STRANGE_TYPES: list[object] = [["x"], {"x": 1}, 5, None, "\u0000"]


def test_types_of_any_kind_beside_unknown_fields_fail_as_a_wrong_body_does(router: OpenRouter) -> None:
    async def work() -> None:
        async with router() as client:
            for kind in STRANGE_TYPES:
                strange = {"x": 1, "type": kind}
                for path, fields in (
                    (RESPONSES, {"input": [strange]}),
                    (RESPONSES, {"input": [{"role": "user", "content": [strange]}]}),
                    (RESPONSES, {"tools": [strange], "tool_choice": strange}),
                    (MESSAGES, {"tools": [strange]}),
                ):
                    answer = await client.post(path, json=body_of(path, **fields))
                    assert answer.status_code in (200, 400), (kind, fields, answer.text)

    asyncio.run(work())


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
MEDIA: list[tuple[str, dict[str, Any], str]] = [
    (
        CHAT,
        {"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": [PART, IMAGE]}]},
        "messages[1].content[1]",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        "messages[0].content[0]",
    ),
    (
        "/v1/messages",
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        "messages[0].content[0]",
    ),
]


def test_a_refused_image_is_named_with_its_place_and_the_model(router: OpenRouter) -> None:
    async def work() -> None:
        async with router() as client:
            for path, fields, place in MEDIA:
                answer = await client.post(path, json=body_of(path, **fields))
                message = answer.json()["error"]["message"]
                assert answer.status_code == 400
                assert all(words in message for words in (place, f"the model {MODEL} reads text only")), message

    asyncio.run(work())


def test_tokens_as_the_vocabulary_writes_them_and_its_files(router: OpenRouter) -> None:
    tokenizer = Tokenizer.from_file(str(BUNDLED_FOLDER / "tokenizer.json"))

    async def work() -> None:
        async with router() as client:
            body = {"model": MODEL, "prompt": "鸡 and 23", "return_token_strs": True, "add_special_tokens": False}
            answer = await client.post("/tokenize", json=body | {"return_offsets": True})
            assert answer.headers["x-dray-ignored"] == "return_offsets"
            tokens = answer.json()
            assert tokens["token_strs"] == [tokenizer.id_to_token(token) for token in tokens["tokens"]]
            assert tokenizer.decode(tokens["tokens"]) == "鸡 and 23"
            ids = []
            for add in (True, False):
                body = {"model": MODEL, "messages": BODIES[CHAT]["messages"], "add_generation_prompt": add}
                ids.append((await client.post("/tokenize", json=body)).json()["tokens"])
            assert len(ids[1]) < len(ids[0]) and ids[0][: len(ids[1])] == ids[1]
            for query in ("", f"?model={MODEL}"):
                info = (await client.get(f"/tokenizer_info{query}")).json()
                declared = json.loads((BUNDLED_FOLDER / "tokenizer_config.json").read_text())
                assert info.pop("chat_template")
                assert info == declared
            assert (await client.get("/tokenizer_info?model=other")).status_code == 404

    asyncio.run(work())
