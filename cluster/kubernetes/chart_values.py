"""The values of Dray's Helm chart: their defaults, which the manifests have, and their schema."""

from typing import Any

from cluster.kubernetes.redis import sizes_of

Document = dict[str, Any]


def pod_templates(document: Document) -> list[Document]:
    """The templates of an object's pods."""
    if document["kind"] in ("StatefulSet", "Job"):
        return [document["spec"]["template"]]
    if document["kind"] == "RayService":
        cluster = document["spec"]["rayClusterConfig"]
        return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    return []


def default_values(documents: list[Document]) -> Document:
    """The default values: what the manifests have."""
    (service,) = (document for document in documents if document["kind"] == "RayService")
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    engine = next(group["template"]["spec"] for group in groups if "nodeSelector" in group["template"]["spec"])
    redis = [document["spec"]["template"]["spec"] for document in documents if document["kind"] == "StatefulSet"]
    fetchers = [
        container["image"]
        for document in documents
        for template in pod_templates(document)
        for container in template["spec"].get("initContainers", ())
        if container.get("command", [])[:3] == ["dray", "models", "pull"]
    ]
    (route,) = (document["spec"] for document in documents if document["kind"] == "HTTPRoute")
    return {
        "image": engine["containers"][0]["image"],
        **({"fetchImage": fetchers[0]} if fetchers else {}),
        **({"redisImage": redis[0]["containers"][0]["image"]} if redis else {}),
        **({"redis": sizes_of(documents)} if redis else {}),
        "imagePullSecrets": [],
        "labels": {},
        "storageClass": "",
        "engines": {"nodeSelector": engine["nodeSelector"], "tolerations": engine["tolerations"]},
        "route": {"enabled": True, "hostnames": route["hostnames"], "parentRefs": route["parentRefs"]},
        "network": {"dnsAddresses": [], "clientNetworks": [], "apiServerPorts": []},
        "monitoring": {"enabled": False, "labels": {"release": "kube-prometheus-stack"}},
    }


_TEXT, _NAMED = {"type": "string", "minLength": 1}, {"type": "string", "pattern": "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"}
_MEMORY, _DISK = {"type": "integer", "minimum": 16}, {"type": "string", "pattern": "^[1-9][0-9]*Gi$"}
_FIELDS: Document = {
    "image": _TEXT | {"description": "Container image of every pod that runs Dray."},
    "fetchImage": _TEXT | {"description": "Image of the Job that downloads or exports models."},
    "redisImage": _TEXT | {"description": "Image of the three Redis (Valkey) servers."},
    "redis": {
        "description": (
            "Memory for the data of each Redis server, in MiB; its pod gets half as much more. A disk cannot change "
            "while its server exists."
        ),
        **{f"{server}MemoryMiB": _MEMORY for server in ("answers", "teams", "gcs")},
        **{f"{server}Disk": _DISK for server in ("teams", "gcs")},
    },
    "imagePullSecrets": {
        "description": "Secrets with credentials of image registries.",
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"name": _NAMED},
            "required": ["name"],
            "additionalProperties": False,
        },
    },
    "labels": {
        "description": "Labels of all objects and pods besides Dray's own.",
        "type": "object",
        "propertyNames": {"not": {"pattern": "^(app\\.kubernetes\\.io/(part-of|component)$|dray/|ray\\.io/)"}},
        "additionalProperties": {"type": "string", "pattern": "^([A-Za-z0-9]([\\w.-]{0,61}[A-Za-z0-9])?)?$"},
    },
    "storageClass": {"description": "Of all claims; empty: the cluster's default.", "type": "string"},
    "engines": {
        "description": "Where engines may run.",
        "nodeSelector": {"type": "object", "additionalProperties": {"type": "string"}},
        "tolerations": {"type": "array", "items": {"type": "object"}},
    },
    "route": {
        "description": "The HTTPRoute, and the Gateway that it belongs to.",
        "enabled": {"type": "boolean"},
        "hostnames": {"type": "array", "items": _NAMED},
        "parentRefs": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["name"]}},
    },
    "network": {
        "description": "Addresses and ports that network policies allow besides the usual ones.",
        "dnsAddresses": {"type": "array", "items": {"type": "string", "pattern": "^[0-9a-fA-F.:]+/[0-9]{1,3}$"}},
        "clientNetworks": {"type": "array", "items": {"type": "string", "pattern": "^[0-9a-fA-F.:]+/[0-9]{1,3}$"}},
        "apiServerPorts": {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 65535}},
    },
    "monitoring": {
        "description": "Monitors and alerts for the Prometheus operator, and a dashboard for Grafana.",
        "enabled": {"type": "boolean"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def schema(values: Document) -> Document:
    """A JSON schema of the values, in which unknown names are errors."""
    fields = {name: _closed(_FIELDS[name]) for name in values}
    # Helm passes these two to every chart that is part of another one.
    fields |= {"global": {"type": "object"}, "enabled": {"type": "boolean"}}
    return {
        "$schema": "https://json-schema.org/draft-07/schema#",
        "title": "Values of Dray's chart",
        "type": "object",
        "properties": fields,
        "additionalProperties": False,
    }


def _closed(field: Document) -> Document:
    if "type" in field:
        return field
    properties = {name: part for name, part in field.items() if name != "description"}
    return {
        "description": field["description"],
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
