"""Manifests by the schemas of their kinds, the Serve config by Serve's and Dray's: what nobody reads is a fault."""

import functools
from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from pydantic import BaseModel
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from cluster.kubernetes.render import MODELS_DIR, STATE_DIR
from cluster.serve_config import ENGINE, ROUTER, ROUTERS, EngineArgs, RouterArgs
from cluster.settings import Settings
from tests.k8s.manifests import K8S, Document, cluster_of, rayservice

KUBERNETES = "1.34"
_CRD = K8S.parent / "tests" / "k8s" / "crds" / "ray.io_rayservices.yaml"
_WITHOUT_SCHEMA = {"gateway.networking.k8s.io/v1", "monitoring.coreos.com/v1"}


def schemas(documents: list[Document], settings: Settings) -> Iterator[str]:
    """Each object by the schema of its kind, strictly: a field that nobody knows is a fault."""
    for document in documents:
        version, name = document["apiVersion"], f"{document['kind']}/{document['metadata']['name']}"
        if document["kind"] == "RayService":
            yield from (
                f"{name} {error.json_path}: {error.message[:200]}" for error in _rayservice().iter_errors(document)
            )
        elif version not in _WITHOUT_SCHEMA:
            try:
                kubernetes_validate.validate(document, KUBERNETES, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{name} {'.'.join(map(str, error.path))}: {error.message[:200]}"


@functools.cache
def _rayservice() -> Any:
    crd = yaml.load(_CRD.read_text(), yaml.CSafeLoader)["spec"]
    (version,) = (one for one in crd["versions"] if one["name"] == "v1")
    schema = _closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def _closed(schema: Any) -> Any:
    """The same structural schema, with unknown fields refused, and int-or-string as it is meant."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    dropped = ("allOf", "anyOf", "oneOf", "not", "format")
    out = {
        key: _closed(value) if key in ("items", "additionalProperties") else value
        for key, value in schema.items()
        if key not in dropped and not key.startswith("x-kubernetes")
    }
    if "properties" in out:
        out["properties"] = {name: _closed(one) for name, one in out["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            out.setdefault("additionalProperties", False)
    return out


def serve(documents: list[Document], settings: Settings) -> Iterator[str]:
    """serveConfigV2 as Serve and Dray read it, strictly, and bound to the pods that there are."""
    text = rayservice(documents)["spec"]["serveConfigV2"]
    config = yaml.safe_load(text)
    parsed = ServeDeploySchema.model_validate(config)
    yield from _unknown(config, parsed, "serveConfigV2")
    if parsed.http_options.port != settings.port or parsed.http_options.host != "0.0.0.0":
        yield "Serve does not listen where the pods' ports say"
    units = {unit for group in cluster_of(documents)["workerGroupSpecs"] for unit in group["resources"]}
    applications = {one["name"]: one for one in config["applications"]}
    router = RouterArgs.model_validate(applications[ROUTERS]["args"])
    if set(router.engines.values()) | {ROUTERS} != set(applications):
        yield "the routers know other engines than there are"
    if (str(router.settings.state_dir), str(router.settings.models_dir)) != (str(STATE_DIR), str(MODELS_DIR)):
        yield "the routers' folders are not the pod's"
    for name, application in applications.items():
        deployment = application["deployments"][0]
        if deployment["name"] != (ROUTER if name == ROUTERS else ENGINE):
            yield f"{name} has a deployment {deployment['name']}"
        wanted = deployment["ray_actor_options"].get("resources", {})
        if not wanted or not wanted.keys() <= units:
            yield f"{name} asks for {wanted}, which no pod has"
        if name != ROUTERS:
            args = EngineArgs.model_validate(application["args"])
            if args.cores != deployment["ray_actor_options"]["num_cpus"]:
                yield f"{name} leases other cores than Ray counts"
    if "password" in text.lower() or "@dray" in text:
        yield "serveConfigV2 holds a password"


def _unknown(given: Any, read: Any, path: str) -> Iterator[str]:
    """What was given and not read: Serve lets it pass."""
    if isinstance(given, list):
        for number, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from _unknown(one, other, f"{path}.{number}")
    if not isinstance(given, dict) or not isinstance(read, BaseModel):
        return
    for key, value in given.items():
        if key not in type(read).model_fields:
            yield f"{path}.{key} is not known to Serve"
        elif key == "autoscaling_config":
            yield from _unknown(value, AutoscalingConfig.model_validate(value), f"{path}.{key}")
        else:
            yield from _unknown(value, getattr(read, key), f"{path}.{key}")
