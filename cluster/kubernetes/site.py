"""What a cluster asks of its objects and pods: a namespace, labels, pull secrets, a proxy, certificate authorities.

The pods of the RayService and of the Job get these when they are rendered. Transformers of Kustomize, which an overlay
lists, change the objects of k8s/base.
"""

import json
from typing import Any

from cluster.settings import Settings

_CA_FOLDER = "/etc/dray/ca"
_CA_FILE = f"{_CA_FOLDER}/ca.crt"
_LABELLED = [
    # Neither the selectors nor the claims of a StatefulSet, which the API server lets nobody change.
    {"path": "metadata/labels", "create": True},
    {"path": "spec/template/metadata/labels", "kind": "StatefulSet", "create": True},
]


def transformers(settings: Settings) -> list[dict[str, Any]]:
    """Kustomize's transformers for all objects of an overlay."""
    namespace = settings.kubernetes.namespace
    rename = [{"op": "replace", "path": "/metadata/name", "value": namespace}]
    found = [
        {**_transformer("Namespace", "namespace"), "metadata": {"name": "namespace", "namespace": namespace}},
        # Kustomize puts objects into a namespace, but does not rename the Namespace.
        _transformer(
            "Patch",
            "namespace-name",
            target={"kind": "Namespace"},
            patch=json.dumps(rename),
            options={"allowNameChange": True},
        ),
    ]
    if settings.kubernetes.labels:
        found.append(_transformer("Label", "labels", labels=_labels(settings), fieldSpecs=_LABELLED))
    if secrets := _pull_secrets(settings):
        add = [{"op": "add", "path": "/spec/template/spec/imagePullSecrets", "value": secrets}]
        target = {"kind": "StatefulSet"}
        found.append(_transformer("Patch", "pull-secrets", target=target, patch=json.dumps(add)))
    return found


def adapt(template: dict[str, Any], settings: Settings) -> None:
    """Adds labels, pull secrets and certificate authorities to a pod template of the RayService or of the Job."""
    template["metadata"].setdefault("labels", {}).update(_labels(settings))
    pod = template["spec"]
    if secrets := _pull_secrets(settings):
        pod["imagePullSecrets"] = secrets
    if name := settings.kubernetes.ca_config_map:
        items = [{"key": "ca.crt", "path": "ca.crt"}]
        pod["volumes"].append({"name": "ca", "configMap": {"name": name, "items": items}})
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            container.setdefault("volumeMounts", []).append({"name": "ca", "mountPath": _CA_FOLDER, "readOnly": True})
        for container in pod["containers"]:
            # Of the collector that traces are sent to.
            container.setdefault("env", []).append({"name": "OTEL_EXPORTER_OTLP_CERTIFICATE", "value": _CA_FILE})


def download_environment(settings: Settings) -> dict[str, str]:
    """Variables of the containers that download models."""
    environment: dict[str, str] = {}
    if proxy := settings.kubernetes.proxy:
        environment |= {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy, "NO_PROXY": "localhost,127.0.0.1,.svc"}
    if settings.kubernetes.ca_config_map:
        # The hubs' clients use httpx and requests, which have a variable each.
        environment |= {"SSL_CERT_FILE": _CA_FILE, "REQUESTS_CA_BUNDLE": _CA_FILE}
    return environment


def _labels(settings: Settings) -> dict[str, str]:
    return dict(label.split("=", 1) for label in settings.kubernetes.labels)


def _pull_secrets(settings: Settings) -> list[dict[str, str]]:
    return [{"name": name} for name in settings.kubernetes.image_pull_secrets]


def _transformer(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"apiVersion": "builtin", "kind": f"{kind}Transformer", "metadata": {"name": name}, **fields}
