"""Several models at once: each on its own cores, selected by the name in the request."""

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from cluster.client import metrics
from cluster.models.folder import BUNDLED_FOLDER
from cluster.ports import free_port
from tests.conftest import RABBITS, Dray, wait_for

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a core for each of two models")


@pytest.fixture(scope="module")
def pair() -> Iterator[Dray]:
    """A Dray that serves the bundled model, a copy of it with a context of 64 tokens, and a route to both."""
    folder = Path(tempfile.mkdtemp(prefix="dray-t-"))
    shutil.copytree(BUNDLED_FOLDER, folder / "other")
    dray = Dray(folder, free_port())
    models = [
        {"name": "first", "cores_per_replica": 1, "aliases": ["default", "team/first"]},
        {"name": "second", "cores_per_replica": 1, "source": str(folder / "other"), "context_tokens": 64}
        | {"fallback": "first"},
        {"name": "auto", "route": [{"to": "second", "max_chars": 10}, {"to": "default"}]},
    ]
    started = dray.run("up", "--detach", DRAY_MODELS=json.dumps(models))
    assert started.returncode == 0, started.stderr
    yield dray
    dray.run("down")
    shutil.rmtree(folder, ignore_errors=True)


def ask(dray: Dray, model: str, question: str, *, stream: bool = False) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "stream": stream}
    return httpx.post(f"{dray.url}/chat/completions", json=body, timeout=120).raise_for_status()


def test_models_answer_by_name_and_alias(pair: Dray) -> None:
    with openai.OpenAI(base_url=pair.url, api_key="none", max_retries=0) as client:
        listed = {model.id: model.model_dump() for model in client.models.list()}
        assert list(listed) == ["first", "second", "auto"]
        assert listed["first"]["aliases"] == ["default", "team/first"]
        assert client.models.retrieve("team/first").id == "first"
        for name in ("first", "default", "team/first"):
            completion = client.chat.completions.create(
                model=name, messages=[{"role": "user", "content": RABBITS}], temperature=0
            )
            assert "23" in str(completion.choices[0].message.content)
        short = client.chat.completions.create(
            model="second", messages=[{"role": "user", "content": "1+1=?"}], temperature=0
        )
        assert short.usage is not None and short.usage.total_tokens <= 64
        with pytest.raises(openai.NotFoundError, match="third"):
            client.chat.completions.create(model="third", messages=[{"role": "user", "content": "hi"}])


def test_each_model_has_its_own_cores(pair: Dray) -> None:
    report = pair.status()
    assert report["models"] == ["first", "second"]
    cpus = {replica["model"]: set(replica["cpus"].split(",")) for replica in report["replicas"]}
    assert set(cpus) == {"first", "second"} and not cpus["first"] & cpus["second"]
    output = pair.run("status").stdout
    assert "first" in output and "second" in output
    assert report["routes"] == {"auto": ["second", "default"]} and "auto routes to second, default" in output


@pytest.mark.parametrize("stream", [False, True])
def test_a_route_leads_to_one_of_them(pair: Dray, stream: bool) -> None:
    for question, model in ((f"{int(stream)}+2=?", "second"), (f"What is {int(stream)} + 20?", "first")):
        for result in ("miss", "hit"):
            answer = ask(pair, "auto", question, stream=stream)
            assert (answer.headers["x-dray-model"], answer.headers["x-dray-cache"]) == (model, result)
            assert f'"model":"{model}"' in answer.text
    samples = metrics(pair.url)["dray_routed_requests_total"]
    assert {(labels["model"], labels["target"], labels["reason"]) for labels, _ in samples} == {
        ("auto", "first", "rule"),
        ("auto", "second", "rule"),
    }


def test_a_fallback_answers_while_a_model_has_no_replica(pair: Dray) -> None:
    async def work() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=pair.url, timeout=120) as client:
            waiting: list[asyncio.Task[httpx.Response]] = []
            while not any(task.done() and "x-dray-model" in task.result().headers for task in waiting):
                assert len(waiting) < 120
                body = {"model": "second", "messages": [{"role": "user", "content": f"{len(waiting)}+3=?"}]}
                waiting.append(asyncio.create_task(client.post("/chat/completions", json=body)))
                await asyncio.wait(waiting[-1:], timeout=0.5)  # those that came too early wait for the next replica
            return await asyncio.gather(*waiting)

    [engine] = [replica["engine_pid"] for replica in pair.status()["replicas"] if replica["model"] == "second"]
    replica = psutil.Process(engine).parent()
    assert replica is not None
    replica.kill()
    answers = asyncio.run(work())
    assert {answer.status_code for answer in answers} == {200}
    by_header = [answer for answer in answers if "x-dray-model" in answer.headers]
    assert {(answer.headers["x-dray-model"], answer.json()["model"]) for answer in by_header} == {("first", "first")}
    wait_for(lambda: "x-dray-model" not in ask(pair, "second", "4+4=?").headers, 120)
    wait_for(lambda: httpx.get(f"{pair.root}/health/ready").status_code == 200, 60)


def test_ready_requires_every_model(pair: Dray) -> None:
    assert httpx.get(f"{pair.root}/health/ready").status_code == 200


def test_models_that_do_not_fit_are_refused_with_their_sums(another: Dray) -> None:
    models = [{"name": "a", "cores_per_replica": 4000}, {"name": "b", "cores_per_replica": 5, "replicas": 2}]
    done = another.run("up", DRAY_MODELS=json.dumps(models))
    assert done.returncode == 1
    assert "4010" in done.stderr and "a: 1 x 4000" in done.stderr and "b: 2 x 5" in done.stderr
    models = [{"name": "a", "kv_cache_mb": 50_000_000, "cores_per_replica": 1}]
    done = another.run("up", DRAY_MODELS=json.dumps(models))
    assert done.returncode == 1 and "a 488" in done.stderr and "GiB" in done.stderr


def test_two_models_of_one_name_are_refused(another: Dray) -> None:
    done = another.run("up", DRAY_MODELS=json.dumps([{"name": "a"}, {"name": "b", "aliases": ["a"]}]))
    assert done.returncode == 1 and "two models have the name 'a'" in done.stderr
