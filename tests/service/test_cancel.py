"""A client that goes away stops the work. The model here never ends by itself, so only a cancel can end it."""

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cluster.client import metrics
from cluster.models.folder import BUNDLED_FOLDER
from cluster.ports import free_port
from tests.conftest import Dray, wait_for

BODY = {"model": "endless", "messages": [{"role": "user", "content": "What is 1 + 1?"}], "temperature": 0}


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dray]:
    """A Dray whose model takes a token that it never makes for its end."""
    folder = Path(tempfile.mkdtemp(prefix="dray-t-"))
    model = folder / "endless"
    shutil.copytree(BUNDLED_FOLDER, model)
    defaults = json.loads((model / "generation_config.json").read_text())
    defaults["eos_token_id"] = json.loads((model / "config.json").read_text())["bos_token_id"]
    (model / "generation_config.json").write_text(json.dumps(defaults))
    dray = Dray(folder, free_port())
    limits = {
        "DRAY_LIMITS__REQUEST_TIMEOUT_S": "5",
        "DRAY_MODEL__STALL_TIMEOUT_S": "60",
        "DRAY_ROUTER__KEEP_ALIVE_S": "0.5",
        # With it, each test would go on from where the one before it left the same answer.
        "DRAY_CACHE__ENABLED": "false",
    }
    started = dray.run("up", "--detach", "--model", str(model), "--replicas", "1", **limits)  # type: ignore[arg-type]
    assert started.returncode == 0, started.stderr
    yield dray
    dray.run("down")
    shutil.rmtree(folder, ignore_errors=True)


def running(dray: Dray) -> int:
    [replica] = dray.status()["replicas"]
    count: int = replica["running"]
    return count


def finished(dray: Dray) -> float:
    """Answers that were made to their end."""
    return sum(value for _, value in metrics(dray.url).get("dray_answer_cache_total", []))


@pytest.fixture
def unfinished(endless: Dray) -> Iterator[None]:
    """What the test asks must not run to its end by itself, which takes the engine some seconds."""
    before = finished(endless)
    yield
    assert finished(endless) == before


@pytest.mark.usefixtures("unfinished")
def test_closing_a_stream_frees_the_engine(endless: Dray) -> None:
    with httpx.Client(base_url=endless.url, timeout=60) as http:
        streams = [http.stream("POST", "/chat/completions", json=BODY | {"stream": True, "seed": n}) for n in range(4)]
        opened = [stream.__enter__() for stream in streams]
        for response in opened:
            assert next(response.iter_lines()).startswith("data: ")
        for stream in streams:
            stream.__exit__(None, None, None)
    wait_for(lambda: running(endless) == 0, 10)


@pytest.mark.usefixtures("unfinished")
def test_leaving_an_unstreamed_request_frees_the_engine(endless: Dray) -> None:
    for _ in range(4):
        with httpx.Client(base_url=endless.url) as http, pytest.raises(httpx.ReadTimeout):
            http.post("/chat/completions", json=BODY, timeout=0.3)
    wait_for(lambda: running(endless) == 0, 10)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_beyond_its_time_is_refused(endless: Dray, stream: bool) -> None:
    [replica] = endless.status()["replicas"]
    os.kill(replica["engine_pid"], signal.SIGSTOP)
    try:
        answer = httpx.post(f"{endless.url}/chat/completions", json=BODY | {"stream": stream}, timeout=60)
    finally:
        os.kill(replica["engine_pid"], signal.SIGCONT)
    if stream:  # it was open already
        assert answer.status_code == 200
        error = json.loads(answer.text.rpartition("data: ")[2])["error"]
    else:
        assert answer.status_code == 408
        error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("request_timeout", "timeout_error")
    wait_for(lambda: running(endless) == 0, 10)


def test_a_silent_stream_is_kept_alive(endless: Dray) -> None:
    [replica] = endless.status()["replicas"]
    os.kill(replica["engine_pid"], signal.SIGSTOP)
    try:
        with httpx.stream("POST", f"{endless.url}/chat/completions", json=BODY | {"stream": True}) as answer:
            lines = answer.iter_lines()
            assert "assistant" in next(lines)
            assert [next(line for line in lines if line) for _ in range(2)] == [": keep-alive"] * 2
    finally:
        os.kill(replica["engine_pid"], signal.SIGCONT)
    wait_for(lambda: running(endless) == 0, 10)


def test_a_slow_client_gets_all_of_it(endless: Dray) -> None:
    body = BODY | {"stream": True, "max_tokens": 400, "stream_options": {"include_usage": True}}
    with httpx.stream("POST", f"{endless.url}/chat/completions", json=body, timeout=60) as answer:
        lines = []
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                lines.append(json.loads(line[6:]))
                time.sleep(0.01)
    assert lines[-1]["usage"]["completion_tokens"] == 400
    text = "".join(c["delta"].get("reasoning_content", "") for e in lines for c in e["choices"])
    whole = httpx.post(f"{endless.url}/chat/completions", json=BODY | {"max_tokens": 400}, timeout=60).json()
    assert text == whole["choices"][0]["message"].get("reasoning_content", "")


def test_the_limit_on_output_holds(endless: Dray) -> None:
    answer = httpx.post(f"{endless.url}/chat/completions", json=BODY | {"max_tokens": 20}, timeout=60).json()
    assert answer["usage"]["completion_tokens"] == 20
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_wish_beyond_the_context_is_cut_to_it(endless: Dray) -> None:
    # A long prompt, so that what is left of the context takes little time.
    long = [{"role": "user", "content": "What is 1 + 2? " * 150}]
    body = BODY | {"messages": long, "max_tokens": 10**6}
    answer = httpx.post(f"{endless.url}/chat/completions", json=body, timeout=120).json()
    assert answer["usage"]["total_tokens"] == 2048 > 2 * answer["usage"]["completion_tokens"] > 0
    assert answer["choices"][0]["finish_reason"] == "length"


def test_who_left_is_counted_and_logged_as_499(endless: Dray) -> None:
    given = {"x-request-id": "left-midway"}
    with httpx.stream("POST", f"{endless.url}/chat/completions", json=BODY | {"stream": True}, headers=given) as answer:
        next(answer.iter_lines())

    def counted() -> bool:
        samples = metrics(endless.url).get("dray_requests_total", [])
        return any(labels["status"] == "499" and labels["route"] == "/v1/chat/completions" for labels, _ in samples)

    wait_for(counted)
    logs = (endless.folder / "s" / "ray" / "session_latest" / "logs").glob("worker*.err")
    lines = [line for file in logs for line in file.read_text().splitlines() if "left-midway" in line]
    assert any(json.loads(line)["status"] == 499 for line in lines if line.startswith("{"))
