"""Checks of the names by which objects refer to each other, and of network policies."""

from collections.abc import Iterator

from cluster.settings import Settings
from tests.k8s.manifests import Document, cluster_of, containers, of_kind, pod_templates

SECRETS = {
    "dray-answers": {"password"},
    "dray-teams": {"password"},
    "dray-gcs": {"password"},
    "dray-redis-tls": {"ca.crt", "tls.crt", "tls.key"},
}
"""The keys of each Secret that k8s/secrets.sh creates; a test compares the two."""

_TO_ANYWHERE = ("dray-head-api", "dray-models", "dray-more-head-api", "dray-more-models")
"""The policies that open a port to every address: of the API server, which is no pod, and of hubs."""

_GATEWAY = "gateway.networking.k8s.io/gateway-name"
"""The label of a Gateway's proxies, which no manifest has: its controller creates them."""


def references(documents: list[Document], settings: Settings) -> Iterator[str]:
    """Every name of another object is the name of an object that exists."""
    existing = {(document["kind"], document["metadata"]["name"]) for document in documents}
    existing.add(("ConfigMap", settings.kubernetes.ca_config_map))  # the cluster's own
    for name, template in pod_templates(documents):
        spec = template["spec"]
        for kind, target in (
            ("ServiceAccount", spec.get("serviceAccountName")),
            ("PriorityClass", spec.get("priorityClassName")),
        ):
            if target and (kind, target) not in existing:
                yield f"{name} names {kind} {target}, which does not exist"
        volumes = {volume["name"] for volume in spec.get("volumes", ())} | _claim_names(documents, name)
        for volume in spec.get("volumes", ()):
            yield from _volume_source(name, volume, existing)
        for container in containers(template):
            earlier = set()
            for entry in container.get("env", ()):
                reference = entry.get("valueFrom", {}).get("secretKeyRef")
                if reference and not reference.get("optional") and not _exists(reference["name"], reference["key"]):
                    yield f"{name}/{container['name']}: no Secret {reference['name']} with {reference['key']}"
                for part in str(entry.get("value", "")).split("$(")[1:]:
                    if part.partition(")")[0] not in earlier:
                        yield f"{name}/{container['name']}: {entry['name']} uses {part.partition(')')[0]} too early"
                earlier.add(entry["name"])
            for mount in container.get("volumeMounts", ()):
                if mount["name"] not in volumes:
                    yield f"{name}/{container['name']} mounts {mount['name']}, which is no volume"
    redis = cluster_of(documents)["gcsFaultToleranceOptions"]
    reference = redis["redisPassword"]["valueFrom"]["secretKeyRef"]
    if not _exists(reference["name"], reference["key"]):
        yield f"no Secret {reference['name']} with {reference['key']}"
    yield from _selectors(documents)
    yield from _redis_urls(documents)


def _claim_names(documents: list[Document], name: str) -> set[str]:
    """The volumes that a StatefulSet claims; none for other pods."""
    sets = {f"StatefulSet/{document['metadata']['name']}": document for document in of_kind(documents, "StatefulSet")}
    claims = sets[name]["spec"].get("volumeClaimTemplates", ()) if name in sets else ()
    return {claim["metadata"]["name"] for claim in claims}


def _volume_source(name: str, volume: Document, existing: set[tuple[str, str]]) -> Iterator[str]:
    if "secret" in volume:
        keys = [item["key"] for item in volume["secret"].get("items", ())]
        secret = volume["secret"]["secretName"]
        if secret not in SECRETS or not set(keys) <= SECRETS[secret]:
            yield f"{name}: no Secret {secret} with {keys}"
    if "configMap" in volume and ("ConfigMap", volume["configMap"]["name"]) not in existing:
        yield f"{name}: no ConfigMap {volume['configMap']['name']}"
    claim = volume.get("persistentVolumeClaim", {}).get("claimName")
    if claim is not None and ("PersistentVolumeClaim", claim) not in existing:
        yield f"{name}: no PersistentVolumeClaim {claim}"


def _exists(secret: str, key: str) -> bool:
    return key in SECRETS.get(secret, ())


def _selectors(documents: list[Document]) -> Iterator[str]:
    """Services, budgets and network policies select existing pods, and name ports of these pods."""
    pods = [(template["metadata"]["labels"], _ports(template)) for _, template in pod_templates(documents)]
    for document in documents:
        kind, name, spec = document["kind"], document["metadata"]["name"], document.get("spec", {})
        if _GATEWAY in str(spec.get("selector", spec.get("podSelector"))):
            continue
        if kind == "Service":
            selected = _select({"matchLabels": spec["selector"]}, pods)
            named_ports = {port["targetPort"] for port in spec["ports"]}
        elif kind == "PodDisruptionBudget":
            selected, named_ports = _select(spec["selector"], pods), set()
            if not isinstance(spec.get("minAvailable"), int):
                yield f"{kind}/{name}: minAvailable must be a number for pods of a RayCluster"
        elif kind == "NetworkPolicy" and spec["podSelector"] and "models" not in name:
            selected = _select(spec["podSelector"], pods)
            named_ports = {port["port"] for rule in spec.get("ingress", ()) for port in rule.get("ports", ())}
        else:
            continue
        if not selected:
            yield f"{kind}/{name} selects no pod"
        elif named_ports - {port for _, ports in selected for port in ports}:
            yield f"{kind}/{name} names a port that none of its pods has"
    for name, template in pod_templates(documents):
        labels = template["metadata"]["labels"]
        spread = template["spec"].get("topologySpreadConstraints", [])
        for term in spread:
            if not term["labelSelector"]["matchLabels"].items() <= labels.items():
                yield f"{name} is spread by the labels of other pods"
        hard = {term["topologyKey"] for term in spread if term["whenUnsatisfiable"] == "DoNotSchedule"}
        if name == "routers" and "kubernetes.io/hostname" not in hard:
            yield "all routers may be on one node"


def _ports(template: Document) -> set[str]:
    return {port["name"] for container in containers(template) for port in container.get("ports", ())}


def _select(selector: Document, pods: list[tuple[Document, set[str]]]) -> list[tuple[Document, set[str]]]:
    """The pods that a selector matches. pods: the labels and port names of each."""

    def matches(labels: Document) -> bool:
        for expression in selector.get("matchExpressions", ()):
            assert expression["operator"] == "In"
            if labels.get(expression["key"]) not in expression["values"]:
                return False
        return bool(selector.get("matchLabels", {}).items() <= labels.items())

    return [(labels, ports) for labels, ports in pods if matches(labels)]


def _redis_urls(documents: list[Document]) -> Iterator[str]:
    """Each Redis has its own Service, and its URL has the password of that server."""
    services = {document["metadata"]["name"] for document in of_kind(documents, "Service")}
    (routers,) = (group for group in cluster_of(documents)["workerGroupSpecs"] if group["groupName"] == "routers")
    entries = {entry["name"]: entry for entry in routers["template"]["spec"]["containers"][0]["env"]}
    for name, server in (("DRAY_CACHE__URL", "dray-answers"), ("DRAY_TEAMS__URL", "dray-teams")):
        url = str(entries.get(name, {}).get("value", ""))
        if not url.startswith("rediss://:$(") or f"@{server}:6379/" not in url or server not in services:
            yield f"{name} is {url!r}, not TLS to {server} with a password"
            continue
        password = entries[url.partition("$(")[2].partition(")")[0]]["valueFrom"]["secretKeyRef"]
        if password["name"] != server:
            yield f"{name} has the password of {password['name']}"
    gcs = cluster_of(documents)["gcsFaultToleranceOptions"]
    if gcs["redisAddress"] != "rediss://dray-gcs:6379" or "dray-gcs" not in services:
        yield "Ray's Redis is not its own, or without TLS"


def network(documents: list[Document], settings: Settings) -> Iterator[str]:
    """Traffic that no policy allows is blocked, and no policy lets everybody in."""
    policies = {document["metadata"]["name"]: document["spec"] for document in of_kind(documents, "NetworkPolicy")}
    if policies.get("dray-none") != {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}:
        yield "pods that no policy names are open to all"
    clients: dict[str, set[str]] = {}
    for name, spec in policies.items():
        for rule in spec.get("ingress", ()):
            for peer in rule.get("from") or [{}]:
                if not any(peer.get(kind) for kind in ("podSelector", "namespaceSelector", "ipBlock")):
                    yield f"{name} lets everybody in"
                for component in _components(spec["podSelector"]):
                    clients.setdefault(component, set()).update(_components(peer.get("podSelector", {})))
        outside = {*_TO_ANYWHERE, *(["dray-node-store"] if settings.kubernetes.models_path else [])}
        if spec.get("egress") and name not in outside:
            yield from (f"{name} lets pods out to anywhere" for rule in spec["egress"] if not rule.get("to"))
    for server, allowed in (("answers", {"router"}), ("teams", {"router"}), ("gcs", {"head"})):
        if clients.get(server) != allowed:
            yield f"the {server} Redis is open to {clients.get(server)}"
    if clients.get("head", set()) - {"head", "router", "engine", "kuberay-operator"}:
        yield "other pods than Dray's reach the head"


def _components(selector: Document) -> set[str]:
    """The parts of Dray that a selector names."""
    key = "app.kubernetes.io/component"
    named = {selector.get("matchLabels", {}).get(key)} - {None}
    for expression in selector.get("matchExpressions", ()):
        named |= set(expression["values"]) if expression["key"] == key else set()
    return named
