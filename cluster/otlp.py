"""Whether and how this process sends something to an OpenTelemetry collector, by OpenTelemetry's own variables."""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

log = logging.getLogger("dray.otlp")

Signal = Literal["TRACES", "LOGS"]

CLOSE_S = 2.0
"""Time for the collector to accept what is left when a process ends; after that it is dropped."""
_PROTOCOL = "http/protobuf"


def configured(signal: Signal, environment: Mapping[str, str]) -> bool:
    """Whether the variables (OTEL_EXPORTER_OTLP_ENDPOINT and its kin) turn a signal on."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environment.get(f"OTEL_{signal}_EXPORTER", "otlp") != "otlp":
        return False
    names = (f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return any(environment.get(name) for name in names)


def warn_of_protocol(signal: Signal, environment: Mapping[str, str]) -> None:
    """Says it if the variables ask for a protocol that Dray does not speak."""
    names = (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    if any(environment.get(name, _PROTOCOL) != _PROTOCOL for name in names):
        log.warning("%s are exported as %s; OTEL_EXPORTER_OTLP_PROTOCOL is ignored", signal.lower(), _PROTOCOL)


def resource(service: str, instance: str) -> "Resource":
    """Names this process. service: unless the environment gives another. instance: identifies the process."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    own = Resource.create({"service.name": service, "service.instance.id": instance})
    return own.merge(OTELResourceDetector().detect())


def end(shutdown: Callable[[], object]) -> None:
    """Ends a provider, for at most 2 s: in a daemon thread, so that the process can exit while its exporter retries."""
    ending = threading.Thread(target=shutdown, daemon=True)
    ending.start()
    ending.join(CLOSE_S)
