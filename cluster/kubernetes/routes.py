"""The paths that clients may reach from outside the cluster, as patches of an Ingress and of an HTTPRoute.

A path that is in neither table below is closed; a test holds both tables against the routers' own routes.
"""

from dataclasses import dataclass
from math import ceil
from typing import Any

from cluster.settings import Settings

SERVE_SERVICE = "dray-serve-svc"
"""The Service that KubeRay points at the RayCluster in charge."""
_MATCHES_PER_RULE = 8
"""As many as every version of the Gateway API accepts."""
_ANNOTATION = "/metadata/annotations/nginx.ingress.kubernetes.io~1"
_SPARE_S = 60


@dataclass(frozen=True)
class PublicPath:
    """A path for clients. below: paths below it are open too; both kinds of object compare whole path elements."""

    path: str
    below: bool = False


PUBLIC = (
    PublicPath("/v1", below=True),
    PublicPath("/v2", below=True),
    PublicPath("/health", below=True),
    PublicPath("/tokenize"),
    PublicPath("/detokenize"),
    PublicPath("/tokenizer_info"),
    PublicPath("/openapi.json"),
    PublicPath("/docs"),
    PublicPath("/ping"),
    PublicPath("/version"),
)
INTERNAL = ("/admin", "/metrics", "/status", "/chat", "/console")
"""Only for use inside the cluster: they administer, show the machines without a key, or are not in the image."""


def ingress_patch(settings: Settings) -> list[dict[str, Any]]:
    """A JSON patch of the Ingress: its paths, and limits that are no stricter than Dray's own."""
    backend = {"service": {"name": SERVE_SERVICE, "port": {"name": "serve"}}}
    paths = [
        {"path": public.path, "pathType": "Prefix" if public.below else "Exact", "backend": backend}
        for public in PUBLIC
    ]
    annotations = {
        "proxy-read-timeout": str(_timeout_s(settings)),
        "proxy-send-timeout": str(_timeout_s(settings)),
        # Dray's own limit answers in OpenAI's error shape, so the proxy's must be above it.
        "proxy-body-size": f"{ceil(max(settings.limits.body_bytes, settings.batches.file_bytes) / 2**20) + 1}m",
    }
    return [
        {"op": "add", "path": "/spec/rules/0/http/paths", "value": paths},
        *({"op": "add", "path": _ANNOTATION + name, "value": value} for name, value in annotations.items()),
    ]


def route_patch(settings: Settings) -> list[dict[str, Any]]:
    """A JSON patch of the HTTPRoute: its rules."""
    matches = [{"path": {"type": "PathPrefix" if public.below else "Exact", "value": public.path}} for public in PUBLIC]
    timeout = f"{_timeout_s(settings)}s"
    rules = [
        {
            "matches": matches[start : start + _MATCHES_PER_RULE],
            "timeouts": {"request": timeout, "backendRequest": timeout},
            "backendRefs": [{"name": SERVE_SERVICE, "port": settings.port}],
        }
        for start in range(0, len(matches), _MATCHES_PER_RULE)
    ]
    return [{"op": "add", "path": "/spec/rules", "value": rules}]


def _timeout_s(settings: Settings) -> int:
    return ceil(settings.limits.request_timeout_s) + _SPARE_S
