"""Over HTTP: a request that joins another's generation keeps its own priority and its own quota."""

import asyncio
import json
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.client import metrics
from cluster.ports import free_port
from tests.conftest import MODEL, Dray, wait_for
from tests.service.test_cache import new_question
from tests.service.test_single_flight import routers, url_of

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Narrow:
    """A Dray with two routers, each with a single engine slot, and teams that share answers."""

    dray: Dray
    urls: list[str]
    keys: dict[str, str]

    def post(
        self, client: httpx.AsyncClient, team: str, question: str, url: str, **more: Any
    ) -> "asyncio.Task[httpx.Response]":
        """Sends a request in a task. more: fields of the body."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": question}], **more}
        headers = {"Authorization": f"Bearer {self.keys[team]}"}
        return asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=body, headers=headers))

    async def waiting(self, requests: int) -> None:
        """Returns once this number of requests waits in the routers' queues."""
        await self._total("dray_requests_waiting", requests)

    async def running(self, requests: int) -> None:
        """Returns once the engine runs this number of requests."""
        await self._total("dray_engine_running", requests)

    async def _total(self, metric: str, number: int) -> None:
        def reached() -> bool:
            return sum(value for _, value in metrics(self.dray.url).get(metric, [])) == number

        await asyncio.to_thread(wait_for, reached)


@pytest.fixture(scope="module")
def narrow() -> Iterator[Narrow]:
    dray = Dray(Path(tempfile.mkdtemp(prefix="dray-t-")), free_port())
    started = dray.run("up", "--detach", DRAY_ROUTER__REPLICAS="2", DRAY_MODEL__MAX_NUM_SEQS="2")
    assert started.returncode == 0, started.stderr
    keys = {}
    for team, quota in (("nightly", []), ("people", []), ("crowd", []), ("poor", ["--tokens-per-month", "1"])):
        added = dray.run("teams", "add", team, "--share-answers", *quota)
        assert added.returncode == 0, added.stderr
        keys[team] = json.loads(dray.run("keys", "create", team, "--json").stdout)["key"]
    urls = [url_of(router) for router in routers(dray)]

    def accepts(url: str, key: str) -> bool:
        return httpx.get(f"{url}/v1/models", headers={"x-api-key": key}).is_success

    for url, key in product(urls, keys.values()):
        wait_for(partial(accepts, url, key), 5)
    yield Narrow(dray, urls, keys)
    dray.run("down")
    shutil.rmtree(dray.folder, ignore_errors=True)


@pytest.mark.parametrize("joins", [0, 1], ids=["same-router", "over-redis"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_person_who_joins_a_waiting_batch_request_does_not_wait_as_a_batch(
    narrow: Narrow, joins: int, stream: bool
) -> None:
    async def work() -> None:
        leading, joining = narrow.urls[0], narrow.urls[joins]
        long = {"max_tokens": 1500, "ignore_eos": True}
        async with asyncio.timeout(100), httpx.AsyncClient(timeout=100) as client:
            occupant = narrow.post(client, "crowd", new_question(), leading, **long)
            await narrow.running(1)
            question = new_question()
            batch = narrow.post(client, "nightly", question, leading, service_tier="flex")
            await narrow.waiting(1)
            crowd = [narrow.post(client, "crowd", new_question(), leading, **long) for _ in range(4)]
            await narrow.waiting(5)
            person = await narrow.post(client, "people", question, joining, stream=stream)
            assert person.status_code == 200 and person.headers["x-dray-cache"] == "join"
            assert sum(task.done() for task in crowd) <= 1, "it did not wait behind all of them"
            assert (await batch).status_code == 200
            for task in (occupant, *crowd):
                task.cancel()
            await asyncio.wait([occupant, *crowd])
        await narrow.waiting(0)

    asyncio.run(work())


@pytest.mark.parametrize("count", [1, 2], ids=["one-router", "two-routers"])
def test_a_team_never_gets_the_quota_refusal_of_a_team_that_it_joins(narrow: Narrow, count: int) -> None:
    async def work() -> Counter[tuple[str, int]]:
        outcomes: Counter[tuple[str, int]] = Counter()
        async with httpx.AsyncClient(timeout=100) as client:
            for _ in range(6):
                question, teams = new_question(), ["poor", "people"] * 6
                tasks = [
                    narrow.post(client, team, question, secrets.choice(narrow.urls[:count]), stream=index % 3 == 0)
                    for index, team in enumerate(teams)
                ]
                for team, answer in zip(teams, await asyncio.gather(*tasks), strict=True):
                    outcomes[team, answer.status_code] += 1
                    if answer.status_code == 200:
                        assert answer.headers["x-dray-cache"] in ("miss", "join", "hit")
        return outcomes

    outcomes = asyncio.run(work())
    assert outcomes["people", 200] == 36, outcomes
    assert outcomes["poor", 200] + outcomes["poor", 429] == 36, outcomes
