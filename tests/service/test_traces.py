"""Traces of a real Dray at a real collector, with the client's trace id, over router and engine; and what is logged."""

import json
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.ports import free_port
from tests.collector import Collector, Seen, collector
from tests.conftest import MODEL, Dray, wait_for
from tests.service.test_cache import new_question

LONG = "What is 345 times 678?"


@dataclass(frozen=True)
class Watched:
    """A Dray that sends its traces, and where they come."""

    dray: Dray
    found: Collector
    server: ThreadingHTTPServer

    @property
    def engine(self) -> int:
        """The engine's process id."""
        [pid] = [one["engine_pid"] for one in self.dray.status()["replicas"]]
        return int(pid)

    def ask(self, question: str, trace: str = "", **more: Any) -> httpx.Response:
        """Asks as a part of this trace."""
        headers = {"traceparent": f"00-{trace}-{'1' * 16}-01"} if trace else {}
        body = {"model": MODEL, "messages": [{"role": "user", "content": question}], **more}
        return httpx.post(f"{self.dray.url}/chat/completions", json=body, headers=headers, timeout=60)

    def trace(self, trace: str, *names: str) -> dict[str, Seen]:
        """A trace's spans by name, once these are there."""
        spans: dict[str, Seen] = wait_for(lambda: (got := self.found.of(trace)).keys() >= {*names} and got, 20)
        return spans


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    folder = Path(tempfile.mkdtemp(prefix="dray-t-"))
    dray = Dray(folder, free_port())
    with collector() as (found, server):
        extra: dict[str, Any] = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": found.url,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
            "DRAY_LOG_PROMPTS": "true",
            "DRAY_MODEL__MAX_REPLICAS": "2",
            "DRAY_MODEL__CORES_PER_REPLICA": "1",
        }
        started = dray.run("up", "--detach", **extra)
        assert started.returncode == 0, started.stdout + started.stderr
        yield Watched(dray, found, server)
        dray.run("down")
        shutil.rmtree(folder, ignore_errors=True)


ROUTE, CHAT = "POST /v1/chat/completions", f"chat {MODEL}"


def test_a_trace_goes_from_the_client_to_the_engine(watched: Watched) -> None:
    trace = secrets.token_hex(16)
    answer = watched.ask(new_question(), trace, temperature=0)
    assert answer.headers["x-dray-cache"] == "miss"
    spans = watched.trace(trace, ROUTE, "cache", CHAT, "queue", "engine", "prefill", "decode")
    route, chat, engine = spans[ROUTE], spans[CHAT], spans["engine"]
    assert route.parent == "1" * 16
    assert answer.headers["traceresponse"] == f"00-{trace}-{route.id}-01"
    parents = {"cache": route, CHAT: route, "queue": chat, "engine": chat, "prefill": engine, "decode": engine}
    assert {name: one.parent for name, one in spans.items() if name != ROUTE} == {
        name: parent.id for name, parent in parents.items()
    }
    of_engine = {one.process for name, one in spans.items() if name in ("engine", "prefill", "decode")}
    assert len(of_engine) == 1 and route.process not in of_engine
    assert (route.service, engine.service) == ("dray-router", "dray-engine")
    assert engine.attributes["dray.replica"] in {one["replica"] for one in watched.dray.status()["replicas"]}
    assert chat.began <= spans["queue"].ended <= spans["prefill"].ended == pytest.approx(spans["decode"].began, abs=0.1)
    assert spans["decode"].ended <= route.ended
    usage = answer.json()["usage"]
    assert chat.attributes["gen_ai.request.model"] == MODEL
    assert chat.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert chat.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert engine.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert route.attributes["http.response.status_code"] == 200
    assert route.attributes["dray.cache.result"] == "miss"
    assert not any(one.failed for one in spans.values())


def test_a_hit_asks_no_engine(watched: Watched) -> None:
    question, trace = new_question(), secrets.token_hex(16)
    watched.ask(question, temperature=0)
    answer = watched.ask(question, trace, temperature=0)
    assert answer.headers["x-dray-cache"] == "hit"
    spans = watched.trace(trace, ROUTE, "cache")
    assert spans.keys() == {ROUTE, "cache"}
    assert spans[ROUTE].attributes["dray.cache.result"] == "hit"


def test_a_joined_request_names_the_trace_that_makes_its_answer(watched: Watched) -> None:
    first, second, question = secrets.token_hex(16), secrets.token_hex(16), new_question()
    engine = watched.engine
    os.kill(engine, signal.SIGSTOP)
    thread = threading.Thread(target=watched.ask, args=(question, first), kwargs={"temperature": 0})
    thread.start()
    wait_for(lambda: "queue" in watched.found.of(first))
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "temperature": 0, "stream": True}
    headers = {"traceparent": f"00-{second}-{'1' * 16}-01"}
    with httpx.stream("POST", f"{watched.dray.url}/chat/completions", json=body, headers=headers, timeout=60) as joined:
        os.kill(engine, signal.SIGCONT)
        assert joined.headers["x-dray-cache"] == "join"
        assert "[DONE]" in "".join(joined.iter_text())
    thread.join(60)
    spans = watched.trace(second, ROUTE)
    assert spans[ROUTE].links == (first,)
    assert CHAT not in spans


def test_a_stream_that_is_carried_on_says_so(watched: Watched) -> None:
    trace = secrets.token_hex(16)
    engine = watched.engine
    os.kill(engine, signal.SIGSTOP)
    given: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: given.append(watched.ask(LONG, trace, max_tokens=701)))
    thread.start()
    wait_for(lambda: watched.found.of(trace).get("queue"))
    os.kill(engine, signal.SIGKILL)
    thread.join(60)
    assert given[0].status_code == 200
    spans = watched.trace(trace, ROUTE, CHAT, "engine")
    assert spans[CHAT].events == ("carried on",)
    tries = wait_for(
        lambda: (
            (of_engine := [one for one in watched.found.spans if (one.trace, one.name) == (trace, "engine")])[1:]
            and of_engine
        )
    )
    lost, whole = sorted(tries, key=lambda one: one.began)
    assert lost.failed and lost.attributes["error.type"] == "lost"
    assert not whole.failed and not spans[CHAT].failed


def test_probes_and_pages_make_no_traces(watched: Watched) -> None:
    httpx.get(f"{watched.dray.root}/health/ready")
    httpx.get(f"{watched.dray.root}/metrics")
    trace = secrets.token_hex(16)
    watched.ask("", trace, max_tokens=-1)
    spans = watched.trace(trace, ROUTE)
    assert spans[ROUTE].attributes["http.response.status_code"] == 400
    assert not [one for one in watched.found.spans if "health" in one.name or "metrics" in one.name]


def test_log_lines_have_the_trace_and_where_it_is_wished_the_question(watched: Watched) -> None:
    question, trace = f"Is {secrets.token_hex(8)} a number?", secrets.token_hex(16)
    watched.ask(question, trace, max_tokens=1)
    [line] = wait_for(lambda: [line for line in logged(watched.dray) if trace in line])
    said = json.loads(line)
    assert (said["message"], said["model"], said["prompt"]) == ("asked", MODEL, [question])
    assert said["trace_id"] == trace and said["request_id"]


def test_status_says_why_there_are_so_many_replicas(watched: Watched) -> None:
    [scaling] = wait_for(lambda: [one for one in watched.dray.status()["autoscaling"] if one["reason"] != "unknown"])
    assert scaling["model"] == MODEL
    assert (scaling["replicas"], scaling["desired"], scaling["max_replicas"]) == (1, 1, 2)
    assert scaling["reason"] == "min"
    assert scaling["predicted_wait_s"] < scaling["target_wait_s"] == 20
    shown = watched.dray.run("status").stdout
    assert "1 of 1 to 2 replicas" in shown and "the least that the settings ask for" in shown, shown


def test_nobody_waits_for_a_collector_that_is_gone(watched: Watched) -> None:
    watched.server.shutdown()
    watched.server.server_close()
    for _ in range(3):
        began = time.monotonic()
        assert watched.ask(new_question(), temperature=0).status_code == 200
        assert time.monotonic() - began < 5
    began = time.monotonic()
    assert watched.dray.run("down").returncode == 0
    assert time.monotonic() - began < 30


def logged(dray: Dray) -> list[str]:
    """Lines that its processes have logged."""
    files = [file for file in (dray.folder / "s").rglob("*") if file.suffix in (".log", ".err", ".out")]
    return [line for file in files for line in file.read_text(errors="replace").splitlines()]
