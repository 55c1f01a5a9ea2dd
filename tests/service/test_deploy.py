"""`dray deploy` under load: no request fails, streams end on the engine they began on, and no answer is mixed up."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cluster.models.folder import BUNDLED_FOLDER
from tests.conftest import RABBITS, Dray, wait_for

TWO_CORES = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs a core for the old and one for the new")
RIGHT = ("23", "12")


@dataclass
class Load:
    """What the clients received. answers: the number of answers by model fingerprint. failures: errors of requests."""

    answers: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def copy_model(folder: Path, version: int) -> Path:
    """A copy of the bundled model with the same answers and another fingerprint."""
    model = folder / f"v{version}"
    shutil.copytree(BUNDLED_FOLDER, model)
    defaults = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(defaults | {"version": version}))
    return model


@contextmanager
def constant_load(dray: Dray) -> Iterator[Load]:
    """Four clients that ask until the block ends: streamed and whole answers, cached and new ones."""
    load, done, lock = Load(), threading.Event(), threading.Lock()

    def ask(client: Any, number: int) -> str:
        question, limit = {"role": "user", "content": RABBITS}, 300 + number % 50
        if number % 2:
            completion = client.chat.completions.create(model="bot", messages=[question], max_tokens=limit)
            text, fingerprint = completion.choices[0].message.content, completion.system_fingerprint
        else:
            text, fingerprint = "", ""
            for chunk in client.chat.completions.create(
                model="bot", messages=[question], max_tokens=limit, stream=True
            ):
                text += chunk.choices[0].delta.content or ""
                fingerprint = chunk.system_fingerprint
        assert all(part in text for part in RIGHT), text
        return str(fingerprint)

    def run_client(index: int) -> None:
        with openai.OpenAI(base_url=dray.url, api_key="none", max_retries=0, timeout=120) as client:
            number = index
            while not done.is_set():
                try:
                    fingerprint = ask(client, number)
                    with lock:
                        load.answers[fingerprint] = load.answers.get(fingerprint, 0) + 1
                except (openai.OpenAIError, httpx.HTTPError, AssertionError) as error:
                    load.failures.append(repr(error))
                number += 4

    threads = [threading.Thread(target=run_client, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        done.set()
        for thread in threads:
            thread.join()


def fingerprint(dray: Dray) -> str:
    with openai.OpenAI(base_url=dray.url, api_key="none", max_retries=0, timeout=60) as client:
        messages = [{"role": "user", "content": RABBITS}]
        return str(client.chat.completions.create(model="bot", messages=messages).system_fingerprint)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("cores", [pytest.param("1", marks=TWO_CORES, id="beside"), pytest.param("0", id="in turn")])
def test_a_new_version_without_a_failed_request(another: Dray, cores: str) -> None:
    settings = {"DRAY_MODEL__CORES_PER_REPLICA": cores, "DRAY_MODEL__NAME": "bot"}
    old, new = copy_model(another.folder, 1), copy_model(another.folder, 2)
    started = another.run("up", "--detach", "--model", str(old), **settings)  # type: ignore[arg-type]
    assert started.returncode == 0, started.stderr
    before = fingerprint(another)
    [engine] = another.status()["replicas"]
    with constant_load(another) as load:
        wait_for(lambda: load.answers.get(before, 0) >= 8)
        deployed = another.run("deploy", "--model", str(new), "--json", timeout=200, **settings)
        assert deployed.returncode == 0, deployed.stderr
        assert json.loads(deployed.stdout) == {"models": ["bot"]}
        after = fingerprint(another)
        wait_for(lambda: load.answers.get(after, 0) >= 8)
    assert load.failures == []
    assert before != after and set(load.answers) == {before, after}, load.answers
    [replaced] = another.status()["replicas"]
    assert replaced["engine_pid"] != engine["engine_pid"] and replaced["cpus"].count(",") == engine["cpus"].count(",")


@pytest.mark.slow
def test_a_stream_ends_on_the_engine_it_began_on_and_settings_change(another: Dray) -> None:
    """The limits change during a long stream: it continues to its end, and later requests meet the new limits."""
    endless = another.folder / "endless"
    shutil.copytree(BUNDLED_FOLDER, endless)
    defaults = json.loads((endless / "generation_config.json").read_text())
    defaults["eos_token_id"] = json.loads((endless / "config.json").read_text())["bos_token_id"]
    (endless / "generation_config.json").write_text(json.dumps(defaults))
    settings = {"DRAY_MODEL__NAME": "bot"}
    assert another.run("up", "--detach", "--model", str(endless), **settings).returncode == 0  # type: ignore[arg-type]
    [engine] = another.status()["replicas"]
    counts: list[int] = []

    def follow() -> None:
        body = {"model": "bot", "messages": [{"role": "user", "content": "hi"}], "stream": True, "temperature": 0}
        body |= {"stream_options": {"include_usage": True}}
        with httpx.stream("POST", f"{another.url}/chat/completions", json=body, timeout=120) as answer:
            events = [line[6:] for line in answer.iter_lines() if line.startswith("data: {")]
        counts.append(json.loads(events[-1])["usage"]["total_tokens"])

    thread = threading.Thread(target=follow)
    thread.start()
    changed = another.run("deploy", "--model", str(endless), DRAY_LIMITS__OUTPUT_TOKENS="5", timeout=200, **settings)
    assert changed.returncode == 0, changed.stderr
    thread.join()
    assert counts == [2048], "the stream ran to the end of its context"
    assert another.status()["replicas"][0]["engine_pid"] == engine["engine_pid"], "the engine was not restarted"
    body = {"model": "bot", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    later = httpx.post(f"{another.url}/chat/completions", json=body, timeout=60).json()
    assert later["usage"]["completion_tokens"] == 5


@pytest.mark.slow
def test_a_failed_deployment_is_refused_and_the_old_version_serves(another: Dray) -> None:
    settings = {"DRAY_MODEL__NAME": "bot", "DRAY_MODEL__START_TIMEOUT_S": "90"}
    assert another.run("up", "--detach", **settings).returncode == 0  # type: ignore[arg-type]
    before = fingerprint(another)
    broken = another.folder / "broken"
    shutil.copytree(BUNDLED_FOLDER, broken)
    # The model passes the check of its files, but the engine cannot load it.
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "num_attention_heads": 0}))
    for arguments, more, message in (
        (["--model", str(another.folder / "nothing")], {}, "does not exist"),
        (["--cores", "4000"], {}, "core"),
        ([], {"DRAY_HOST": "127.0.0.2"}, "host cannot change"),
        (["--model", str(broken)], {}, "the engine cannot start"),
    ):
        refused = another.run("deploy", *arguments, timeout=200, **(settings | more))
        assert refused.returncode == 1 and message in refused.stderr, refused.stderr
        assert refused.stderr.count("\n") == 1 and "EngineStartError" not in refused.stderr
        assert fingerprint(another) == before
    assert another.run("deploy", timeout=200, **settings).returncode == 0


@pytest.mark.slow
def test_a_deployment_survives_the_death_of_serves_controller(another: Dray) -> None:
    settings = {"DRAY_MODEL__NAME": "bot"}
    assert another.run("up", "--detach", **settings).returncode == 0  # type: ignore[arg-type]
    record = another.folder / "s" / "dray.json"
    launcher = json.loads(record.read_text())["pid"]
    with subprocess.Popen(
        another.command("deploy"), env=another.environment | settings | {"DRAY_LIMITS__OUTPUT_TOKENS": "5"}
    ) as deploying:
        wait_for(lambda: json.loads(record.read_text())["rollout"])
        [controller] = another.processes("ray::ServeController")
        controller.kill()
        assert deploying.wait(200) == 0
    assert json.loads(record.read_text())["pid"] == launcher and another.status()["problems"] == []
    body = {"model": "bot", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    answer = httpx.post(f"{another.url}/chat/completions", json=body, timeout=60).json()
    assert answer["usage"]["completion_tokens"] == 5


def test_deploy_without_up(another: Dray) -> None:
    done = another.run("deploy")
    assert done.returncode == 1 and "not running" in done.stderr
