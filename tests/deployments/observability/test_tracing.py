"""Traces without a Dray: turned off, they load nothing; a collector that is dead or hangs delays nothing."""

import socket
import subprocess
import sys
import time

import pytest

from cluster.otlp import configured
from deployments.observability.tracing import NO_SPAN, Traces, current, trace_id
from tests.collector import collector
from tests.conftest import wait_for

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_an_endpoint_traces_are_off_and_nothing_is_loaded(quiet: pytest.MonkeyPatch) -> None:
    assert not configured("TRACES", {})
    assert not configured("TRACES", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"})
    assert not configured("TRACES", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"})
    assert configured("TRACES", {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"})
    script = (
        "import sys; from deployments.observability.tracing import NO_SPAN, Traces\n"
        "assert Traces('s', 'i').begin('a', '', {}).child('b') is NO_SPAN\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert current.get() is NO_SPAN and trace_id(NO_SPAN) == ""


def test_a_trace_has_all_spans_and_the_type_of_an_error(quiet: pytest.MonkeyPatch) -> None:
    with collector() as (received, _):
        quiet.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.url)
        quiet.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=ours")
        traces = Traces("dray-router", "x")
        with pytest.raises(ValueError, match="secret"), traces.begin("a", PARENT, {}) as span:
            assert trace_id(span) == "ab" * 16
            with span.child("b"):
                raise ValueError("secret")
        traces.begin("new", "garbage", {}).end()
        start = time.monotonic()
        traces.close()
        assert time.monotonic() - start < 2, "closing sends the spans at once"
    spans = {span.name: span for span in received.spans}
    assert spans["b"].parent == spans["a"].id and spans["a"].parent == "cd" * 8
    assert spans["a"].trace == spans["b"].trace == "ab" * 16 != spans["new"].trace
    assert spans["a"].failed and spans["b"].attributes == {"error.type": "ValueError"}
    assert "secret" not in str(received.spans)
    assert spans["a"].service == "ours"


def test_an_unsampled_trace_is_passed_on_but_not_exported(quiet: pytest.MonkeyPatch) -> None:
    with collector() as (received, _):
        quiet.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.url)
        quiet.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        quiet.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
        traces = Traces("dray-router", "x")
        with traces.begin("a", "", {}) as span, span.child("b") as child:
            child.note({"x": 1})
            child.event("y", {})
            assert not int(child.traceparent[-2:], 16) & 1, "the sampled flag is off"
        traces.begin("sampled", PARENT, {}).end()
        traces.close()
    assert [span.name for span in received.spans] == ["sampled"]


def test_a_collector_that_hangs_delays_neither_spans_nor_the_end(quiet: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        quiet.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        quiet.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        quiet.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
        quiet.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
        traces = Traces("dray-router", "x")
        traces.begin("first", "", {}).end()
        connection, _ = wait_for(lambda: silent.accept())  # the exporter is in its call
        start = time.monotonic()
        for _ in range(1000):
            traces.begin("a", "", {}).end()
        assert time.monotonic() - start < 1
        start = time.monotonic()
        traces.close()
        assert time.monotonic() - start < 3
        connection.close()
