"""A client's disconnect cancels its request. The model here never stops by itself, so only cancelling ends its work."""

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
from tests.conftest import Dray, logged, started_dray, wait_for

BODY = {"model": "endless", "messages": [{"role": "user", "content": "What is 1 + 1?"}], "temperature": 0}


@pytest.fixture(scope="module")
def endless() -> Iterator[Dray]:
    """A Dray whose model never generates the token that would end its answer."""
    folder = Path(tempfile.mkdtemp(prefix="dray-t-"))
    model = folder / "endless"
    shutil.copytree(BUNDLED_FOLDER, model)
    defaults = json.loads((model / "generation_config.json").read_text())
    defaults["eos_token_id"] = json.loads((model / "config.json").read_text())["bos_token_id"]
    (model / "generation_config.json").write_text(json.dumps(defaults))
    settings = {
        "DRAY_LIMITS__REQUEST_TIMEOUT_S": "5",
        "DRAY_MODEL__STALL_TIMEOUT_S": "60",
        "DRAY_ROUTER__KEEP_ALIVE_S": "0.5",
        # With a cache, each test would continue the answer that the test before it left unfinished.
        "DRAY_CACHE__ENABLED": "false",
    }
    with started_dray("--model", str(model), settings=settings, folder=folder) as dray:
        yield dray


def running(dray: Dray) -> int:
    [replica] = dray.status()["replicas"]
    count: int = replica["running"]
    return count


def finished(dray: Dray) -> float:
    """The number of answers that were generated to their end."""
    return sum(value for _, value in metrics(dray.url).get("dray_answer_cache_total", []))


@pytest.fixture
def unfinished(endless: Dray) -> Iterator[None]:
    """The test's requests must not run to their own end, which takes some seconds."""
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
def test_disconnecting_from_a_whole_answer_frees_the_engine(endless: Dray) -> None:
    for _ in range(4):
        with httpx.Client(base_url=endless.url) as http, pytest.raises(httpx.ReadTimeout):
            http.post("/chat/completions", json=BODY, timeout=0.3)
    wait_for(lambda: running(endless) == 0, 10)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_beyond_its_timeout_is_refused(endless: Dray, stream: bool) -> None:
    [replica] = endless.status()["replicas"]
    os.kill(replica["engine_pid"], signal.SIGSTOP)
    try:
        response = httpx.post(f"{endless.url}/chat/completions", json=BODY | {"stream": stream}, timeout=60)
    finally:
        os.kill(replica["engine_pid"], signal.SIGCONT)
    if stream:  # its headers were sent already
        assert response.status_code == 200
        error = json.loads(response.text.rpartition("data: ")[2])["error"]
    else:
        assert response.status_code == 408
        error = response.json()["error"]
    assert (error["code"], error["type"]) == ("request_timeout", "timeout_error")
    wait_for(lambda: running(endless) == 0, 10)


def test_a_silent_stream_is_kept_alive(endless: Dray) -> None:
    [replica] = endless.status()["replicas"]
    os.kill(replica["engine_pid"], signal.SIGSTOP)
    try:
        with httpx.stream("POST", f"{endless.url}/chat/completions", json=BODY | {"stream": True}) as response:
            lines = response.iter_lines()
            assert "assistant" in next(lines)
            assert [next(line for line in lines if line) for _ in range(2)] == [": keep-alive"] * 2
    finally:
        os.kill(replica["engine_pid"], signal.SIGCONT)
    wait_for(lambda: running(endless) == 0, 10)


def test_a_slow_client_gets_the_whole_answer(endless: Dray) -> None:
    body = BODY | {"stream": True, "max_tokens": 400, "stream_options": {"include_usage": True}}
    with httpx.stream("POST", f"{endless.url}/chat/completions", json=body, timeout=60) as response:
        events = []
        for line in response.iter_lines():
            if line.startswith("data: {"):
                events.append(json.loads(line[6:]))
                time.sleep(0.01)  # this client reads more slowly than the engine generates
    assert events[-1]["usage"]["completion_tokens"] == 400
    text = "".join(choice["delta"].get("reasoning_content") or "" for event in events for choice in event["choices"])
    whole = httpx.post(f"{endless.url}/chat/completions", json=BODY | {"max_tokens": 400}, timeout=60).json()
    assert text == whole["choices"][0]["message"]["reasoning_content"] != ""


def test_max_tokens_limits_the_answer(endless: Dray) -> None:
    before = finished(endless)
    answer = httpx.post(f"{endless.url}/chat/completions", json=BODY | {"max_tokens": 20}, timeout=60).json()
    assert finished(endless) == before + 1
    assert answer["usage"]["completion_tokens"] == 20
    assert answer["choices"][0]["finish_reason"] == "length"


def test_max_tokens_beyond_the_context_is_cut_to_it(endless: Dray) -> None:
    # A long prompt leaves few tokens of the context to generate.
    messages = [{"role": "user", "content": "What is 1 + 2? " * 150}]
    body = BODY | {"messages": messages, "max_tokens": 10**6}
    answer = httpx.post(f"{endless.url}/chat/completions", json=body, timeout=120).json()
    assert answer["usage"]["total_tokens"] == 2048 > 2 * answer["usage"]["completion_tokens"] > 0
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_disconnect_is_counted_and_logged_as_499(endless: Dray) -> None:
    def disconnects() -> float:
        samples = metrics(endless.url).get("dray_requests_total", [])
        route = {"status": "499", "route": "/v1/chat/completions"}
        return sum(value for labels, value in samples if route.items() <= labels.items())

    before = disconnects()
    url, headers = f"{endless.url}/chat/completions", {"x-request-id": "left-midway"}
    with httpx.stream("POST", url, json=BODY | {"stream": True}, headers=headers) as response:
        next(response.iter_lines())
    wait_for(lambda: disconnects() == before + 1)
    [line] = wait_for(lambda: [line for line in logged(endless) if "left-midway" in line])
    assert json.loads(line)["status"] == 499
