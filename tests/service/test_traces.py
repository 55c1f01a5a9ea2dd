"""Traces that Dray exports to a collector, and log lines with the ids of traces."""

import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tests.collector import Collector, ReceivedSpan, collector
from tests.conftest import MODEL, Dray, logged, started_dray, wait_for
from tests.service.test_cache import new_question

# A Dray of its own for them takes half a minute; tests/deployments/observability has the same with less around it.
pytestmark = pytest.mark.slow
LONG = "What is 345 times 678?"


@dataclass(frozen=True)
class TracedDray:
    """A Dray that exports traces, and the collector that receives them."""

    dray: Dray
    collector: Collector
    server: ThreadingHTTPServer

    @property
    def engine(self) -> int:
        """The engine's process id."""
        [pid] = [replica["engine_pid"] for replica in self.dray.status()["replicas"]]
        return int(pid)

    def ask(self, question: str, trace: str = "", **more: Any) -> httpx.Response:
        """Sends a request as part of the trace with this id; empty: without a trace."""
        headers = {"traceparent": f"00-{trace}-{'1' * 16}-01"} if trace else {}
        body = {"model": MODEL, "messages": [{"role": "user", "content": question}], **more}
        return httpx.post(f"{self.dray.url}/chat/completions", json=body, headers=headers, timeout=60)

    def trace(self, trace: str, *names: str) -> dict[str, ReceivedSpan]:
        """The spans of a trace by name, once spans with all of these names have been received."""
        spans: dict[str, ReceivedSpan] = wait_for(
            lambda: (received := self.collector.of(trace)).keys() >= {*names} and received, 20
        )
        return spans


SCALING = {"DRAY_LOG_PROMPTS": "true", "DRAY_MODEL__MAX_REPLICAS": "2", "DRAY_MODEL__CORES_PER_REPLICA": "1"}


@pytest.fixture(scope="module")
def traced() -> Iterator[TracedDray]:
    with collector() as (received, server):
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": received.url,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
            **SCALING,
        }
        with started_dray(settings=settings) as dray:
            yield TracedDray(dray, received, server)


ROUTE, CHAT = "POST /v1/chat/completions", f"chat {MODEL}"


def test_a_trace_leads_from_the_client_to_the_engine(traced: TracedDray) -> None:
    trace = secrets.token_hex(16)
    answer = traced.ask(new_question(), trace, temperature=0)
    assert answer.headers["x-dray-cache"] == "miss"
    spans = traced.trace(trace, ROUTE, "cache", CHAT, "queue", "engine", "prefill", "decode")
    route, chat, engine = spans[ROUTE], spans[CHAT], spans["engine"]
    assert route.parent == "1" * 16
    assert answer.headers["traceresponse"] == f"00-{trace}-{route.id}-01"
    parents = {"cache": route, CHAT: route, "queue": chat, "engine": chat, "prefill": engine, "decode": engine}
    assert {name: span.parent for name, span in spans.items() if name != ROUTE} == {
        name: parent.id for name, parent in parents.items()
    }
    processes = {span.process for name, span in spans.items() if name in ("engine", "prefill", "decode")}
    assert len(processes) == 1 and route.process not in processes
    assert (route.service, engine.service) == ("dray-router", "dray-engine")
    assert engine.attributes["dray.replica"] in {replica["replica"] for replica in traced.dray.status()["replicas"]}
    assert chat.start <= spans["queue"].end <= spans["prefill"].end == pytest.approx(spans["decode"].start, abs=0.1)
    assert spans["decode"].end <= route.end
    usage = answer.json()["usage"]
    assert chat.attributes["gen_ai.request.model"] == MODEL
    assert chat.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert chat.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert engine.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert route.attributes["http.response.status_code"] == 200
    assert route.attributes["dray.cache.result"] == "miss"
    assert not any(span.failed for span in spans.values())


def test_a_hit_has_no_span_of_an_engine(traced: TracedDray) -> None:
    question, trace = new_question(), secrets.token_hex(16)
    traced.ask(question, temperature=0)
    answer = traced.ask(question, trace, temperature=0)
    assert answer.headers["x-dray-cache"] == "hit"
    spans = traced.trace(trace, ROUTE, "cache")
    assert spans.keys() == {ROUTE, "cache"}
    assert spans[ROUTE].attributes["dray.cache.result"] == "hit"


def test_a_joined_request_links_to_the_trace_that_generates_its_answer(traced: TracedDray) -> None:
    first, second, question = secrets.token_hex(16), secrets.token_hex(16), new_question()
    engine = traced.engine
    os.kill(engine, signal.SIGSTOP)
    thread = threading.Thread(target=traced.ask, args=(question, first), kwargs={"temperature": 0})
    thread.start()
    wait_for(lambda: "queue" in traced.collector.of(first))
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "temperature": 0, "stream": True}
    headers = {"traceparent": f"00-{second}-{'1' * 16}-01"}
    with httpx.stream("POST", f"{traced.dray.url}/chat/completions", json=body, headers=headers, timeout=60) as joined:
        os.kill(engine, signal.SIGCONT)
        assert joined.headers["x-dray-cache"] == "join"
        assert "[DONE]" in "".join(joined.iter_text())
    thread.join(60)
    spans = traced.trace(second, ROUTE)
    assert spans[ROUTE].links == (first,)
    assert CHAT not in spans


def test_a_stream_that_another_engine_continues_has_both_attempts(traced: TracedDray) -> None:
    trace = secrets.token_hex(16)
    engine = traced.engine
    os.kill(engine, signal.SIGSTOP)
    responses: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: responses.append(traced.ask(LONG, trace, max_tokens=701)))
    thread.start()
    wait_for(lambda: traced.collector.of(trace).get("queue"))
    os.kill(engine, signal.SIGKILL)
    thread.join(60)
    assert responses[0].status_code == 200
    spans = traced.trace(trace, ROUTE, CHAT, "engine")
    assert spans[CHAT].events == ("carried on",)

    def attempts() -> list[ReceivedSpan]:
        return [span for span in traced.collector.spans if (span.trace, span.name) == (trace, "engine")]

    wait_for(lambda: len(attempts()) == 2)
    lost, complete = sorted(attempts(), key=lambda span: span.start)
    assert lost.failed and lost.attributes["error.type"] == "lost"
    assert not complete.failed and not spans[CHAT].failed


def test_probes_and_metrics_have_no_traces(traced: TracedDray) -> None:
    httpx.get(f"{traced.dray.root}/health/ready")
    httpx.get(f"{traced.dray.root}/metrics")
    trace = secrets.token_hex(16)
    traced.ask("", trace, max_tokens=-1)
    spans = traced.trace(trace, ROUTE)
    assert spans[ROUTE].attributes["http.response.status_code"] == 400
    assert not [span for span in traced.collector.spans if "health" in span.name or "metrics" in span.name]


def test_a_log_line_has_the_trace_id_and_if_enabled_the_prompt(traced: TracedDray) -> None:
    question, trace = f"Is {secrets.token_hex(8)} a number?", secrets.token_hex(16)
    traced.ask(question, trace, max_tokens=1)
    [line] = wait_for(lambda: [line for line in logged(traced.dray) if trace in line])
    record = json.loads(line)
    assert (record["message"], record["model"], record["prompt"]) == ("asked", MODEL, [question])
    assert record["trace_id"] == trace and record["request_id"]


def test_status_gives_the_reason_for_the_number_of_replicas(traced: TracedDray) -> None:
    [scaling] = wait_for(lambda: [row for row in traced.dray.status()["autoscaling"] if row["reason"] != "unknown"])
    assert scaling["model"] == MODEL
    assert (scaling["replicas"], scaling["desired"], scaling["max_replicas"]) == (1, 1, 2)
    assert scaling["reason"] == "min"
    assert scaling["predicted_wait_s"] < scaling["target_wait_s"] == 20
    output = traced.dray.run("status").stdout
    assert "1 replica (1 to 2); target 1: the minimum in the settings" in output, output


def test_administrators_see_the_replicas_and_the_last_requests(traced: TracedDray) -> None:
    answer = traced.ask(new_question(), temperature=0)

    def shown(*command: str) -> Any:
        return json.loads(traced.dray.run(*command, "--json").stdout)

    def with_figures() -> Any:
        return [model for model in shown("models", "replicas") if model["replicas"] and model["per_token_s"]]

    [model] = wait_for(with_figures)
    [replica] = model["replicas"]
    [known] = traced.dray.status()["replicas"]  # a test above has killed its engine
    assert model["model"] == MODEL and replica["cpus"]
    assert {name: known[name] for name in ("replica", "cpus", "restarts")} == {
        name: replica[name] for name in ("replica", "cpus", "restarts")
    }
    assert model["first_token_s"]["samples"] >= 1 and model["waiting"] == 0
    wait_for(lambda: answer.headers["x-request-id"] in {request["id"] for request in shown("requests")})
    assert all(error["advice"] for error in shown("errors"))


@pytest.mark.slow
def test_a_change_by_autoscaling_is_shown_with_its_reason(traced: TracedDray) -> None:
    days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    hours = [{"days": days, "start": "00:00", "end": "23:59:59.999999", "replicas": 2}]
    settings = SCALING | {"DRAY_MODEL__OFFICE_HOURS": json.dumps(hours)}
    deployed = traced.dray.run("deploy", **settings)  # type: ignore[arg-type]  # none of them is the timeout
    assert deployed.returncode == 0, deployed.stderr

    def changes() -> Any:
        [model] = json.loads(traced.dray.run("models", "replicas", "--json").stdout)
        return model["changes"]

    [change] = wait_for(changes, 120)
    assert (change["before"], change["after"], change["reason"]) == (1, 2, "office_hours")
    assert change["why"].startswith("From 1 to 2: office_hours requires them;")


def test_nothing_waits_for_a_collector_that_is_gone(traced: TracedDray) -> None:
    traced.server.shutdown()
    traced.server.server_close()
    for _ in range(3):
        start = time.monotonic()
        assert traced.ask(new_question(), temperature=0).status_code == 200
        assert time.monotonic() - start < 5
    start = time.monotonic()
    assert traced.dray.run("down").returncode == 0
    assert time.monotonic() - start < 30
