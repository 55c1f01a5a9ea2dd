"""Batches from the upload to the output, through OpenAI's own client; with a real router and a real Redis."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from cluster.redis_server import OwnRedis
from tests.conftest import MODEL, redis_server
from tests.deployments.batches.batch_files import (
    CHAT,
    batch_router,
    ended,
    jsonl,
    line,
    lines_of,
    objects,
    status,
    submit,
)
from tests.deployments.routers import Engines, Response
from tests.deployments.waiting import until
from tests.service.test_embeddings import make_model


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(32) as own:
        yield own


def test_a_batch_is_answered_line_by_line(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        async with batch_router(server, monkeypatch, tmp_path) as (router, client):
            content = jsonl(*(line(f"q{number}") for number in range(70))).rstrip(b"\n")
            content += b"\n\n" + jsonl(line("wrong", top_p=7), line("absent", model="gpt-4o"))
            batch = await submit(client, content, metadata={"night": "7"})
            assert (batch.status, batch.object, batch.metadata) == ("validating", "batch", {"night": "7"})
            assert batch.expires_at == batch.created_at + 86_400
            batch = await ended(client, batch)
            assert batch.status == "completed" and batch.request_counts is not None and batch.completed_at
            counts = batch.request_counts
            assert (counts.total, counts.completed, counts.failed) == (72, 70, 2)
            answers = await lines_of(client, batch.output_file_id)
            assert [answer["custom_id"] for answer in answers] == [f"q{number}" for number in range(70)]
            for answer in answers:
                assert answer["error"] is None and answer["response"]["status_code"] == 200
                assert answer["response"]["body"]["choices"][0]["message"]["content"] is not None
                assert answer["response"]["request_id"]
            errors = {answer["custom_id"]: answer for answer in await lines_of(client, batch.error_file_id)}
            assert errors["wrong"]["response"]["status_code"] == 400
            assert errors["wrong"]["response"]["body"]["error"]["param"] == "top_p"
            assert errors["absent"]["response"]["body"]["error"]["code"] == "model_not_found"
            assert len({answer["id"] for answer in answers}) == 70
            # Nothing is left of the parts.
            assert all(name.startswith("files/") for name in objects(tmp_path))
            assert router.counted()[CHAT, "200"] == 70
            # They are not among what administrators see of people's last requests and errors.
            activity = router.router._recorder._activity
            assert not activity._requests and not activity._errors

    asyncio.run(work())


def test_the_answers_are_of_the_same_path_as_requests(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Cached answers count, and batch work goes after that of people."""

    async def work() -> None:
        engines = Engines()
        async with batch_router(server, monkeypatch, tmp_path, engines=engines) as (router, client):
            asked = line("known", messages=[{"role": "user", "content": "Is it the same path?"}])
            await client.chat.completions.create(**asked["body"])
            assert engines.request.priority == 0
            assert (await ended(client, await submit(client, jsonl(asked)))).status == "completed"
            assert engines.requests == 1
            new = line("new", messages=[{"role": "user", "content": "And a new one?"}])
            assert (await ended(client, await submit(client, jsonl(new)))).status == "completed"
            assert engines.requests == 2 and engines.request.priority == 1 and not engines.request.scales
            # How long people wait is not told by batches.
            metrics = router.router._metrics
            for histogram in (metrics.queue_time, metrics.time_to_first_token):
                assert sum(bucket.get() for bucket in histogram[MODEL, ""]._buckets) == 1

    asyncio.run(work())


def test_lines_of_every_endpoint(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        make_model(tmp_path / "tiny")
        vectors = {"name": "vectors", "task": "embed", "source": str(tmp_path / "tiny"), "scorer": "cosine"}
        settings: dict[str, Any] = {"models": [{"name": MODEL}, vectors]}
        async with batch_router(server, monkeypatch, tmp_path, engines=Both(), **settings) as (_, client):
            for url, body in (
                ("/v1/completions", {"prompt": "1 + 1 ="}),
                ("/v1/responses", {"input": "1 + 1 ="}),
                ("/v1/embeddings", {"model": "vectors", "input": "a text"}),
                ("/v1/rerank", {"model": "vectors", "query": "a", "documents": ["b", "c"]}),
            ):
                if "model" in body:
                    asked = {"custom_id": "one", "method": "POST", "url": url, "body": body}
                else:
                    asked = line("one", url, **body)
                batch = await ended(client, await submit(client, jsonl(asked), url))
                [answer] = await lines_of(client, batch.output_file_id or batch.error_file_id)
                assert answer["response"]["status_code"] == 200, answer
            streamed = jsonl(line("s", stream=True), line("b"))
            batch = await ended(client, await submit(client, streamed))
            [error] = await lines_of(client, batch.error_file_id)
            assert error["response"]["body"]["error"]["param"] == "stream"

    asyncio.run(work())


class Both(Engines):
    """Engines of both kinds: a call of one method streams, of the other gives vectors."""

    def remote(self, payload: bytes) -> Response:
        return super().remote(payload)


WRONG_FILES: list[tuple[bytes, str, int | None]] = [
    (b"not json\n", "invalid_json_line", 1),
    (jsonl(line("a")) + b"\n" + jsonl({"custom_id": "b", "method": "POST", "url": CHAT}), "missing_required", 3),
    (jsonl(line("a"), line("b"), line("a")), "duplicate_custom_id", 3),
    (jsonl(line("a") | {"url": "/v1/embeddings"}), "invalid_url", 1),
    (jsonl(line("a") | {"method": "GET"}), "invalid_method", 1),
    (jsonl(line("a") | {"custom_id": 7}), "invalid_custom_id", 1),
    (jsonl(line("a") | {"body": []}), "invalid_type", 1),
    (b'{"custom_id": "a", "body": ' + b"[" * 5000 + b"\n", "invalid_json_line", 1),
    (b"\xff\xfe\n", "invalid_json_line", 1),
    (b"\n \n", "empty_file", None),
]
"""Files that no batch can have, the code of the error, and the line that it names."""


def test_a_wrong_file_fails_with_the_line(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        async with batch_router(server, monkeypatch, tmp_path) as (router, client):
            for content, code, number in WRONG_FILES:
                batch = await ended(client, await submit(client, content))
                assert (batch.status, batch.output_file_id) == ("failed", None) and batch.failed_at
                assert batch.errors is not None and batch.errors.data
                [problem] = batch.errors.data
                assert (problem.code or "").startswith(code) and problem.line == number and problem.message, content
            assert (CHAT, "200") not in router.counted()

    asyncio.run(work())


def test_a_cancelled_batch_keeps_what_was_answered(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        engines = Engines(blocked=asyncio.Event())
        async with batch_router(server, monkeypatch, tmp_path, engines=engines) as (_, client):
            known = line("q0", messages=[{"role": "user", "content": "Known beforehand?"}])
            assert engines.blocked is not None
            engines.blocked.set()
            await client.chat.completions.create(**known["body"])
            engines.blocked.clear()
            batch = await submit(client, jsonl(known, *(line(f"c{number}") for number in range(200))))
            before = engines.requests
            await until(lambda: engines.requests > before)
            batch = await client.batches.cancel(batch.id)
            assert batch.status == "cancelling" and batch.cancelling_at
            batch = await ended(client, batch)
            assert batch.status == "cancelled" and batch.request_counts is not None
            assert (batch.request_counts.total, batch.request_counts.completed) == (201, 1)
            assert [each["custom_id"] for each in await lines_of(client, batch.output_file_id)] == ["q0"]
            errors = await lines_of(client, batch.error_file_id)
            assert {each["error"]["code"] for each in errors} == {"batch_cancelled"} and len(errors) == 200
            assert all(each["response"] is None for each in errors)
            with pytest.raises(openai.ConflictError):
                await client.batches.cancel(batch.id)

    asyncio.run(work())


def test_what_is_not_answered_within_the_window_expires(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        engines = Engines(blocked=asyncio.Event())
        async with batch_router(server, monkeypatch, tmp_path, engines=engines) as (router, client):
            batch = await submit(client, jsonl(*(line(f"e{number}") for number in range(100))), window="1m")
            await until(lambda: engines.requests)
            # A minute is the shortest window.
            await router.router._teams.execute("HSET", f"dray:{{batches}}:batch:{batch.id}", "expires_at", 1)
            batch = await ended(client, batch)
            assert batch.status == "expired" and batch.expired_at and batch.output_file_id is None
            errors = await lines_of(client, batch.error_file_id)
            assert [each["custom_id"] for each in errors] == [f"e{number}" for number in range(100)]
            assert {each["error"]["code"] for each in errors} == {"batch_expired"}

    asyncio.run(work())


def test_batches_are_listed_page_by_page(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        async with batch_router(server, monkeypatch, tmp_path, cache={"namespace": "pages"}) as (_, client):
            ids = []
            for number in range(5):
                batch = await submit(client, jsonl(line(f"l{number}")))
                ids.append(batch.id)
                await ended(client, batch)
            assert [batch.id async for batch in client.batches.list(limit=2)] == ids[::-1]
            page = await client.batches.list(limit=2)
            assert page.has_more and [batch.id for batch in page.data] == ids[:2:-1]
            with pytest.raises(openai.BadRequestError):
                await client.batches.list(after="batch_none")

    asyncio.run(work())


WRONG_BATCHES: list[tuple[dict[str, Any], str]] = [
    ({"endpoint": "/v1/images"}, "endpoint"),
    ({"completion_window": "24"}, "completion_window"),
    ({"completion_window": "8d"}, "completion_window"),
    ({"metadata": {f"k{number}": "v" for number in range(17)}}, "metadata"),
    ({"input_file_id": "file-none"}, "input_file_id"),
    ({"input_file_id": "../../etc/passwd"}, "input_file_id"),
]
"""Changes of a body that creates a batch, and the field that the refusal names."""


def test_a_wrong_batch_is_refused(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def work() -> None:
        async with batch_router(server, monkeypatch, tmp_path) as (_, client):
            file = await client.files.create(file=("in.jsonl", jsonl(line("a"))), purpose="batch")
            for change, param in WRONG_BATCHES:
                body: dict[str, Any] = {
                    "input_file_id": file.id,
                    "endpoint": CHAT,
                    "completion_window": "24h",
                    **change,
                }
                with pytest.raises(openai.APIStatusError) as refused:
                    await client.batches.create(**body)
                assert refused.value.status_code in (400, 404), change
                assert refused.value.body["param"] == param, change  # type: ignore[index]

    asyncio.run(work())


def test_too_many_batches_are_refused_and_ended_ones_make_room(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        engines = Engines(blocked=asyncio.Event())
        settings = {"batches": {"batches_per_team": 2}, "cache": {"namespace": "few"}}
        async with batch_router(server, monkeypatch, tmp_path, engines=engines, **settings) as (_, client):
            batches = [await submit(client, jsonl(line(f"m{number}"))) for number in range(2)]
            with pytest.raises(openai.RateLimitError):
                await submit(client, jsonl(line("m2")))
            await client.batches.cancel(batches[0].id)
            await status(client, batches[0].id, "cancelled")
            third = await submit(client, jsonl(line("m3")))
            assert [batch.id async for batch in client.batches.list()] == [third.id, batches[1].id]

    asyncio.run(work())
