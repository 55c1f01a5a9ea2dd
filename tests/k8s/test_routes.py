"""What clients reach through the Ingress and the HTTPRoute: each public route of a router, and no internal one."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.routing import Route

from cluster.kubernetes.routes import INTERNAL, ingress_patch, route_patch
from cluster.serve_config import RouterArgs
from cluster.settings import Settings
from deployments import router
from tests.deployments.routers import Engines, start_router
from tests.k8s.manifests import K8S, Document, kustomize, of_kind

INSIDE = (
    *("/admin/teams", "/admin/keys/k1/rotate", "/metrics", "/status", "/status/machine", "/status/load"),
    *("/chat", "/console"),
)


@pytest.fixture(scope="module")
def ingress() -> Document:
    [found] = of_kind(kustomize(K8S / "overlays" / "several"), "Ingress")
    return found


@pytest.fixture(scope="module")
def http_route() -> Document:
    [found] = of_kind(kustomize(K8S / "overlays" / "airgapped"), "HTTPRoute")
    return found


async def paths_of_a_router(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A request's path for each route of a real router."""
    monkeypatch.setattr(router, "DeploymentHandle", lambda deployment, application: Engines())
    args = RouterArgs(
        settings=Settings(),
        redis_url="redis://127.0.0.1:1",
        teams_url="redis://127.0.0.1:1",
        engines={"dray-demo": "e"},
    )
    app = (await start_router(args)).__serve_build_asgi_app__()
    assert all(isinstance(route, Route) for route in app.routes)
    return [route.path.replace("{name:path}", "org/a").replace("{", "").replace("}", "") for route in app.routes]


def below(prefix: str, path: str) -> bool:
    """Whether a prefix of whole elements matches, as both Ingress and the Gateway API define it."""
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")


def through_ingress(ingress: Document) -> Callable[[str], bool]:
    paths = [path for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
    matching = {"Prefix": below, "Exact": str.__eq__}
    return lambda asked: any(matching[path["pathType"]](path["path"], asked) for path in paths)


def through_route(route: Document) -> Callable[[str], bool]:
    matches: list[Any] = [match for rule in route["spec"]["rules"] for match in rule["matches"]]
    matching = {"PathPrefix": below, "Exact": str.__eq__}
    return lambda asked: any(matching[match["path"]["type"]](match["path"]["value"], asked) for match in matches)


def test_every_public_route_is_open_and_no_other(
    ingress: Document, http_route: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = asyncio.run(paths_of_a_router(monkeypatch))
    assert {"/v1/chat/completions", "/tokenize", "/v2/rerank", "/health/ready", *INSIDE[2:]} <= set(paths)
    internal = {path for path in paths if any(below(prefix, path) for prefix in INTERNAL)}
    internal.add("/")  # leads to the chat page
    for opens in (through_ingress(ingress), through_route(http_route)):
        assert [path for path in paths if opens(path) == (path in internal)] == []
        assert not any(opens(path) for path in (*INSIDE, "/", "/v1x", "/tokenize/x"))


def test_a_rule_has_no_more_matches_than_every_gateway_accepts(http_route: Document) -> None:
    assert all(0 < len(rule["matches"]) <= 8 for rule in http_route["spec"]["rules"])
    assert len(http_route["spec"]["rules"]) <= 16


def test_port_times_and_sizes_follow_the_settings() -> None:
    settings = Settings(port=9000, limits={"request_timeout_s": 1200, "body_bytes": 20_000_000})
    [rules] = route_patch(settings)
    assert {rule["backendRefs"][0]["port"] for rule in rules["value"]} == {9000}
    assert {int(rule["timeouts"]["request"].rstrip("s")) > 1200 for rule in rules["value"]} == {True}
    values = {operation["path"].rpartition("~1")[2]: operation["value"] for operation in ingress_patch(settings)}
    assert int(values["proxy-read-timeout"]) > 1200 and int(values["proxy-send-timeout"]) > 1200
    assert int(values["proxy-body-size"].rstrip("m")) * 2**20 > max(20_000_000, settings.batches.file_bytes)
