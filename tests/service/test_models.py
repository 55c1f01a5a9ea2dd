"""Several models at once: each on its own cores, selected by the name in the request."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from cluster.models.folder import BUNDLED_FOLDER
from cluster.ports import free_port
from tests.conftest import RABBITS, Dray

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a core for each of two models")


@pytest.fixture(scope="module")
def pair() -> Iterator[Dray]:
    """A Dray that serves the bundled model and a copy of it with a context of 64 tokens."""
    folder = Path(tempfile.mkdtemp(prefix="dray-t-"))
    shutil.copytree(BUNDLED_FOLDER, folder / "other")
    dray = Dray(folder, free_port())
    models = [
        {"name": "first", "cores_per_replica": 1, "aliases": ["default", "team/first"]},
        {"name": "second", "cores_per_replica": 1, "source": str(folder / "other"), "context_tokens": 64},
    ]
    started = dray.run("up", "--detach", DRAY_MODELS=json.dumps(models))
    assert started.returncode == 0, started.stderr
    yield dray
    dray.run("down")
    shutil.rmtree(folder, ignore_errors=True)


def test_models_answer_by_name_and_alias(pair: Dray) -> None:
    with openai.OpenAI(base_url=pair.url, api_key="none", max_retries=0) as client:
        listed = {model.id: model.model_dump() for model in client.models.list()}
        assert list(listed) == ["first", "second"]
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
