"""What one team makes, another never sees, hits, joins or reads, unless both share answers.

Whatever answers are kept by has a way here: each is tried with teams that keep to themselves, with one that shares and
one that does not, and with two that share.
"""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from cluster.records.curated import VERSION, new_answer, put_answers
from cluster.records.team_records import Quota, Team
from cluster.records.teams import add_team, create_key, remove_team
from cluster.redis_server import OwnRedis
from deployments.api.protocol.openapi import OPERATIONS, Operation
from deployments.cache.single_flight import SingleFlight
from deployments.common.messages import decode_request
from deployments.routing.queue_class import QueueClass
from tests.conftest import MODEL, redis_server
from tests.deployments.routers import Engines, Response, RunningRouter, running_router
from tests.service.test_embeddings import make_model

PAIRS = [("ann", "ben", False), ("ann", "cleo", False), ("cleo", "ann", False), ("cleo", "dan", True)]
"""Who asks first, who asks then, and whether the second may have what the first one got."""
SHARING = {"cleo", "dan"}
_numbers = itertools.count(100)


@dataclass
class RecordingEngines(Engines):
    """Keeps the namespaces of the requests that it got."""

    namespaces: list[str] = field(default_factory=list)
    vectors: Engines = field(default_factory=Engines)

    def remote(self, payload: bytes) -> Response:
        self.namespaces.append(decode_request(payload).namespace)
        return super().remote(payload)

    @property
    def run(self) -> Engines:
        return self.vectors


@dataclass(frozen=True)
class Teams:
    """Routers of one service, and the keys of its teams. flights: what single flight has said so far."""

    keys: dict[str, str]
    engines: RecordingEngines
    routers: list[RunningRouter]
    flights: list[object]
    store: Any
    """The teams' Redis."""

    def is_followed(self) -> bool:
        """Whether a router has two requests for one generation."""
        jobs = [job for router in self.routers for job in router.router._inference._answers._jobs.values()]
        return any(len(job.broadcast._subscribers) > 1 for job in jobs)

    async def post(self, team: str, path: str, body: dict[str, Any], router: int = 0, **headers: str) -> httpx.Response:
        """router: which of them is asked. headers: with _ for -."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        given["Authorization"] = f"Bearer {self.keys[team]}"
        transport = httpx.ASGITransport(app=self.routers[router].app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=20) as client:
            return await client.post(path, json={"model": MODEL, "temperature": 0, **body}, headers=given)

    async def chat(self, team: str, question: str, router: int = 0, **headers: str) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": question}]}
        return await self.post(team, "/v1/chat/completions", body, router, **headers)

    async def get(self, team: str, path: str) -> httpx.Response:
        return await self.send("GET", team, path)

    async def delete(self, team: str, path: str) -> httpx.Response:
        return await self.send("DELETE", team, path)

    async def send(self, method: str, team: str, path: str, **content: Any) -> httpx.Response:
        """content: the body, as httpx takes it."""
        transport = httpx.ASGITransport(app=self.routers[0].app)
        headers = {"Authorization": f"Bearer {self.keys[team]}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=20) as client:
            return await client.request(method, path, headers=headers, **content)


@pytest.fixture(scope="module")
def server() -> Iterator[OwnRedis]:
    with redis_server(32) as own:
        yield own


@asynccontextmanager
async def teams_of(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, folder: Path, similarity_model: str = ""
) -> AsyncIterator[Teams]:
    """Two routers and four teams. similarity_model: "vectors" finds similar questions; all texts are alike to it."""
    make_model(folder / "tiny")
    models = [{"name": MODEL}, {"name": "vectors", "task": "embed", "source": str(folder / "tiny")}]
    engines, keys, flights = RecordingEngines(), {}, list[object]()
    acquire = SingleFlight.acquire

    async def recorded(single_flight: SingleFlight, key: str, queue_class: QueueClass, **how: bool) -> object:
        flights.append(acquired := await acquire(single_flight, key, queue_class, **how))
        return acquired

    monkeypatch.setattr(SingleFlight, "acquire", recorded)
    async with AsyncExitStack() as stack:
        store: Any = stack.enter_context(redis.Redis.from_url(server.url))
        store.flushall()
        for name in ("ann", "ben", "cleo", "dan"):
            quota = Quota(requests_per_minute=1000)
            add_team(store, Team(name, 0.0, shares_answers=name in SHARING, quota=quota))
            keys[name] = create_key(store, name).secret
        routers = [
            await stack.enter_async_context(
                running_router(
                    monkeypatch,
                    server.url,
                    engines=engines,
                    models=models,
                    cache={"similarity_model": similarity_model},
                )
            )
            for _ in range(2)
        ]
        yield Teams(keys, engines, routers, flights, store)


def reused(answer: httpx.Response) -> bool:
    assert answer.status_code == 200, answer.text
    return answer.headers["x-dray-cache"] in ("hit", "curated", "join")


def new_question() -> str:
    return f"What is {next(_numbers)} + {next(_numbers)}?"


async def a_stored_answer(teams: Teams, first: str, second: str) -> bool:
    found = []
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": new_question()}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": new_question()}], "seed": 7, "top_p": 0.9}),
        ("/v1/completions", {"prompt": new_question()}),
        ("/v1/responses", {"input": new_question()}),
        ("/v1/messages", {"messages": [{"role": "user", "content": new_question()}], "max_tokens": 50}),
    ):
        assert not reused(await teams.post(first, path, body))
        assert reused(await teams.post(first, path, body)), "the first team gets its own"
        found.append(reused(await teams.post(second, path, body)))
    assert len(set(found)) == 1, found
    return found[0]


async def an_answer_in_other_words(teams: Teams, first: str, second: str) -> bool:
    left, right = next(_numbers), next(_numbers)
    assert not reused(await teams.chat(first, f"What is {left} times {right}?"))
    return reused(await teams.chat(second, f"what is {left} times {right}"))


async def a_curated_answer(teams: Teams, first: str, second: str) -> bool:
    return await _curated(teams, first, second, "What is {} times {}?", "What is {} times {}?")


async def a_curated_answer_in_other_words(teams: Teams, first: str, second: str) -> bool:
    return await _curated(teams, first, second, "What is {} times {}?", "what is {} times {}")


async def _curated(teams: Teams, first: str, second: str, question: str, asked: str) -> bool:
    numbers = next(_numbers), next(_numbers)
    namespace = "shared" if first in SHARING else f"team.{first}"
    put_answers(teams.store, [new_answer(namespace, question.format(*numbers), "of somebody")])
    version = int(teams.store.get(VERSION))
    await _until(lambda: all(router.router._curated._version == version for router in teams.routers))
    assert (await teams.chat(first, asked.format(*numbers))).headers["x-dray-cache"] == "curated"
    answer = await teams.chat(second, asked.format(*numbers), router=1)
    assert reused(answer) == ("of somebody" in answer.text)
    return reused(answer)


async def an_answer_under_an_idempotency_key(teams: Teams, first: str, second: str) -> bool:
    question = new_question()
    assert not reused(await teams.chat(first, question, idempotency_key="the same"))
    return reused(await teams.chat(second, question, idempotency_key="the same"))


async def an_answer_that_a_router_generates(teams: Teams, first: str, second: str) -> bool:
    return await _in_progress(teams, first, second, router=0)


async def an_answer_that_another_router_generates(teams: Teams, first: str, second: str) -> bool:
    return await _in_progress(teams, first, second, router=1)


async def _in_progress(teams: Teams, first: str, second: str, router: int) -> bool:
    """Both ask before the engines have answered. router: the one that the second team asks."""
    teams.engines.blocked, question = asyncio.Event(), new_question()
    teams.flights.clear()
    leading = asyncio.create_task(teams.chat(first, question))
    await _until(lambda: len(teams.flights) == 1)
    following = asyncio.create_task(teams.chat(second, question, router))
    await _until(lambda: len(teams.flights) == 2 or teams.is_followed())
    teams.engines.blocked.set()
    assert not reused(await leading)
    return reused(await following)


async def _until(fact: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not fact():
            await asyncio.sleep(0.01)


async def what_is_in_the_kv_cache(teams: Teams, first: str, second: str) -> bool:
    """The engine tells a namespace what it has used itself (tests/deployments/engine/test_scheduler.py)."""
    question = new_question()
    for team in (first, second):
        await teams.chat(team, question, cache_control="no-cache, no-store")
    one, other = teams.engines.namespaces[-2:]
    return one == other


WAYS = (
    a_stored_answer,
    an_answer_in_other_words,
    a_curated_answer,
    a_curated_answer_in_other_words,
    an_answer_under_an_idempotency_key,
    an_answer_that_a_router_generates,
    an_answer_that_another_router_generates,
    what_is_in_the_kv_cache,
)

Way = Callable[[Teams, str, str], Awaitable[bool]]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_team_has_what_another_made_only_if_both_share(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: Way
) -> None:
    async def work() -> list[tuple[str, str, bool]]:
        similarity_model = "vectors" if way.__name__.endswith("in_other_words") else ""
        async with teams_of(server, monkeypatch, tmp_path, similarity_model) as teams:
            return [(first, second, await way(teams, first, second)) for first, second, _ in PAIRS]

    assert asyncio.run(work()) == PAIRS


def test_a_team_reads_its_own_usage_and_administers_nothing(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def work() -> None:
        async with teams_of(server, monkeypatch, tmp_path) as teams:
            remaining = "x-ratelimit-remaining-requests"
            first = await teams.chat("ann", new_question())
            assert (await teams.chat("ben", new_question())).headers[remaining] == first.headers[remaining]
            for team in teams.keys:
                for query in ("", "?team=ann", "?team=ben", "?team="):
                    rows = (await teams.get(team, f"/v1/usage{query}")).json()["data"]
                    assert {row["team"] for row in rows} <= {team}
            for path in ("/admin/teams", "/admin/teams/ann", "/admin/keys", "/admin/keys/x"):
                assert (await teams.get("ben", path)).status_code == 403
            for path in ("/admin/teams", "/admin/keys", "/admin/keys/x/rotate"):
                assert (await teams.post("ben", path, {})).status_code == 403

    asyncio.run(work())


def test_nothing_else_is_kept_for_a_team(server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever adds an endpoint that stores something tries it with two teams, as responses, files and batches are
    below."""
    stateless = {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"}
    stateless |= {"/v1/rerank", "/v2/rerank", "/v1/score"}
    stateless |= {"/v1/messages/count_tokens", "/v1/responses/input_tokens"}
    stateless |= {"/tokenize", "/detokenize", "/v1/models", "/v1/models/{name}", "/health/live", "/health/ready"}
    stateless |= {"/health", "/ping", "/version", "/tokenizer_info"}
    administration = {path for path in paths(OPERATIONS) if path.startswith("/admin/")}
    stored = {"/v1/responses/{id}", "/v1/responses/{id}/input_items", "/v1/responses/{id}/cancel"}
    stored |= {"/v1/feedback"}
    stored |= {"/v1/files", "/v1/files/{id}", "/v1/files/{id}/content"}
    stored |= {"/v1/batches", "/v1/batches/{id}", "/v1/batches/{id}/cancel"}
    assert paths(OPERATIONS) <= stateless | administration | stored | {"/v1/usage", "/metrics"}


def test_a_team_never_reads_another_ones_response(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Even if both share answers: a stored response has the whole conversation."""

    async def work() -> None:
        async with teams_of(server, monkeypatch, tmp_path) as teams:
            for (first, second, _), background in itertools.product(PAIRS, (False, True)):
                question = new_question()
                made = (await teams.post(first, "/v1/responses", {"input": question, "background": background})).json()
                assert made["store"] is True
                while (await teams.get(first, f"/v1/responses/{made['id']}")).json()["status"] != "completed":
                    await asyncio.sleep(0.02)
                path = f"/v1/responses/{made['id']}"
                following = {"input": "and then?", "previous_response_id": made["id"]}
                counting = "/v1/responses/input_tokens"
                for team, statuses in (
                    (second, (404, 404, 404, 400, 400, 404)),
                    (first, (200, 200, 200 if background else 400, 200, 200, 200)),
                ):
                    answers = [
                        await teams.get(team, path),
                        await teams.get(team, f"{path}/input_items"),
                        await teams.post(team, f"{path}/cancel", {}),
                        await teams.post(team, "/v1/responses", following),
                        await teams.post(team, counting, following),
                        await teams.delete(team, path),
                    ]
                    assert tuple(answer.status_code for answer in answers) == statuses, (first, second)
                    assert team == first or not any(question in answer.text for answer in answers)

    asyncio.run(work())


def test_a_team_never_sees_another_ones_files_and_batches(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Even if both share answers: not by their ids, not in lists, and not as the input of a batch."""
    monkeypatch.setenv("DRAY_DATA_DIR", str(tmp_path))

    async def work() -> None:
        async with teams_of(server, monkeypatch, tmp_path) as teams:
            for first, second, _ in PAIRS:
                question = new_question()
                body = {"model": MODEL, "messages": [{"role": "user", "content": question}]}
                line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
                form = {"files": {"file": (question, json.dumps(line))}, "data": {"purpose": "batch"}}
                file = (await teams.send("POST", first, "/v1/files", **form)).json()
                new = {"input_file_id": file["id"], "endpoint": line["url"], "completion_window": "24h"}
                assert (await teams.send("POST", second, "/v1/batches", json=new)).status_code == 404
                batch = (await teams.send("POST", first, "/v1/batches", json=new)).json()
                path = f"/v1/batches/{batch['id']}"
                while (batch := (await teams.get(first, path)).json())["status"] != "completed":
                    await asyncio.sleep(0.02)
                ways = [("GET", path), ("POST", f"{path}/cancel")]
                for file_id in (batch["output_file_id"], file["id"]):
                    ways += [("GET", f"/v1/files/{file_id}"), ("GET", f"/v1/files/{file_id}/content")]
                    ways += [("DELETE", f"/v1/files/{file_id}")]
                for team, allowed in ((second, False), (first, True)):
                    for listed in ("/v1/files", "/v1/batches"):
                        assert (file["id"] in (await teams.get(team, listed)).text) == allowed
                    answers = [await teams.send(method, team, way) for method, way in ways]
                    assert {answer.status_code for answer in answers} == ({200, 409} if allowed else {404})
                    assert allowed or not any(question in answer.text for answer in answers)
            for path in ("/admin/batches", f"/admin/batches/{batch['id']}"):
                assert (await teams.get("ann", path)).status_code == 403
            assert (await teams.send("POST", "ann", f"/admin/batches/{batch['id']}/cancel")).status_code == 403

    asyncio.run(work())


def test_a_new_team_does_not_get_the_files_of_a_removed_one_of_its_name(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DRAY_DATA_DIR", str(tmp_path))

    async def work() -> None:
        async with teams_of(server, monkeypatch, tmp_path) as teams:
            line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {}}
            form = {"files": {"file": ("a", json.dumps(line))}, "data": {"purpose": "batch"}}
            file = (await teams.send("POST", "ann", "/v1/files", **form)).json()
            new = {"input_file_id": file["id"], "endpoint": line["url"], "completion_window": "24h"}
            batch = (await teams.send("POST", "ann", "/v1/batches", json=new)).json()
            paths = [f"/v1/files/{file['id']}", f"/v1/files/{file['id']}/content", f"/v1/batches/{batch['id']}"]
            assert [(await teams.get("ann", path)).status_code for path in paths] == [200] * 3
            remove_team(teams.store, "ann")
            add_team(teams.store, Team("ann", time.time() + 1))
            teams.keys["ann"] = create_key(teams.store, "ann").secret
            registries = [router.router._authenticator for router in teams.routers]
            await _until(
                lambda: all("ann" in (all_ := each._registry.teams) and all_["ann"].created for each in registries)
            )
            assert [(await teams.get("ann", path)).status_code for path in paths] == [404] * 3
            assert (await teams.send("POST", "ann", "/v1/batches", json=new)).status_code == 404
            for listed in ("/v1/files", "/v1/batches"):
                assert (await teams.get("ann", listed)).json()["data"] == []

    asyncio.run(work())


def test_a_team_votes_on_its_own_answers_only(
    server: OwnRedis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the id of a response only on what the team itself got; by a key also on what it shares."""

    async def work() -> None:
        async with teams_of(server, monkeypatch, tmp_path) as teams:
            for first, second, shared in PAIRS:
                question = new_question()
                given = [await teams.chat(first, question) for _ in range(2)]
                assert [answer.headers["x-dray-cache"] for answer in given] == ["miss", "hit"]
                generated, cached = (answer.json()["id"] for answer in given)
                key = given[0].headers["x-dray-cache-key"]
                votes = ({"id": generated}, {"id": cached}, {"cache_key": key})
                for team, statuses in ((second, (404, *[201 if shared else 404] * 2)), (first, (201, 201, 201))):
                    for vote, status in zip(votes, statuses, strict=True):
                        assert await _voted(teams, team, vote, status) == status, (first, second, vote)
                assert reused(await teams.chat(first, question)), "the vote of one that is not its own withheld nothing"

    asyncio.run(work())


async def _voted(teams: Teams, team: str, vote: dict[str, str], status: int) -> int:
    """The status of a vote; an answer can be voted on a moment after it was complete."""
    transport = httpx.ASGITransport(app=teams.routers[0].app)
    headers = {"Authorization": f"Bearer {teams.keys[team]}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=20) as client:
        async with asyncio.timeout(20):
            while True:
                answer = await client.post("/v1/feedback", json={"rating": "down", **vote}, headers=headers)
                if answer.status_code == status or status == 404:
                    return answer.status_code
                await asyncio.sleep(0.02)


def paths(operations: Sequence[Operation]) -> set[str]:
    return {operation.path for operation in operations}
