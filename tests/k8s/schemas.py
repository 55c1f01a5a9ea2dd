"""Checks of manifests by the schemas of their kinds, and of the Serve config by Serve's and Dray's own types."""

import functools
from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from pydantic import BaseModel
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from cluster.kubernetes.pods import MODELS_DIR, STATE_DIR, in_cluster
from cluster.serve_config import ENGINE, ROUTER, ROUTERS, EngineArgs, RouterArgs
from cluster.settings import Settings
from tests.k8s.manifests import K8S, Document, cluster_of, rayservice

KUBERNETES = "1.34"
_CRD = K8S.parent / "tests" / "k8s" / "crds" / "ray.io_rayservices.yaml"
_WITHOUT_SCHEMA = {"gateway.networking.k8s.io/v1", "monitoring.coreos.com/v1"}


def schemas(documents: list[Document], settings: Settings) -> Iterator[str]:
    """Each object matches the schema of its kind, without unknown fields."""
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
    (version,) = (version for version in crd["versions"] if version["name"] == "v1")
    schema = _closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(schema)


def _closed(schema: Any) -> Any:
    """The same structural schema, but without unknown fields, and with int-or-string as a JSON schema writes it."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    dropped = ("allOf", "anyOf", "oneOf", "not", "format")
    closed = {
        key: _closed(value) if key in ("items", "additionalProperties") else value
        for key, value in schema.items()
        if key not in dropped and not key.startswith("x-kubernetes")
    }
    if "properties" in closed:
        closed["properties"] = {name: _closed(field) for name, field in closed["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    return closed


def serve(documents: list[Document], settings: Settings) -> Iterator[str]:
    """serveConfigV2 is valid for Serve and Dray, without unknown fields, and fits the pods."""
    text = rayservice(documents)["spec"]["serveConfigV2"]
    config = yaml.safe_load(text)
    parsed = ServeDeploySchema.model_validate(config)
    yield from _unknown(config, parsed, "serveConfigV2")
    if parsed.http_options.port != settings.port or parsed.http_options.host != in_cluster(settings).host:
        yield "Serve does not listen on the pods' port"
    resources = {name for group in cluster_of(documents)["workerGroupSpecs"] for name in group["resources"]}
    applications = {application["name"]: application for application in config["applications"]}
    router = RouterArgs.model_validate(applications[ROUTERS]["args"])
    if set(router.engines.values()) | {ROUTERS} != set(applications):
        yield "the routers know other engines than those that are deployed"
    if (str(router.settings.state_dir), str(router.settings.models_dir)) != (str(STATE_DIR), str(MODELS_DIR)):
        yield "the routers' folders are not the pod's"
    for name, application in applications.items():
        deployment = application["deployments"][0]
        if deployment["name"] != (ROUTER if name == ROUTERS else ENGINE):
            yield f"{name} has a deployment {deployment['name']}"
        needed = deployment["ray_actor_options"].get("resources", {})
        if not needed or not needed.keys() <= resources:
            yield f"{name} asks for {needed}, which no pod has"
        if name != ROUTERS:
            args = EngineArgs.model_validate(application["args"])
            if args.cores != deployment["ray_actor_options"]["num_cpus"]:
                yield f"{name} leases another number of cores than Ray counts"
    if "password" in text.lower() or "@dray" in text:
        yield "serveConfigV2 holds a password"


def _unknown(config: Any, parsed: Any, path: str) -> Iterator[str]:
    """The fields of the config that are not in the parsed model: Serve ignores them silently."""
    if isinstance(config, list):
        for index, (item, parsed_item) in enumerate(zip(config, parsed, strict=True)):
            yield from _unknown(item, parsed_item, f"{path}.{index}")
    if not isinstance(config, dict) or not isinstance(parsed, BaseModel):
        return
    for key, value in config.items():
        if key not in type(parsed).model_fields:
            yield f"{path}.{key} is not known to Serve"
        elif key == "autoscaling_config":
            yield from _unknown(value, AutoscalingConfig.model_validate(value), f"{path}.{key}")
        else:
            yield from _unknown(value, getattr(parsed, key), f"{path}.{key}")
