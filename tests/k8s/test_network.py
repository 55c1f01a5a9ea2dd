"""Who may reach whom in a cluster: every pair that must, and those that must not, under the rendered policies."""

import copy
from dataclasses import replace

import pytest

from cluster.kubernetes.network import more_policies
from cluster.settings import KubernetesSettings, Settings
from tests.k8s.manifests import K8S, Document, containers, kustomize, of_kind, pod_templates
from tests.k8s.policies import Place, may_reach

OTHER_DNS, NODE, API_SERVER = Place("10.96.0.10"), Place("192.0.2.7"), Place("192.0.2.1")
HERE = Settings(
    kubernetes=KubernetesSettings.model_validate(
        {
            "dns_addresses": ["10.96.0.10", "fd00:10:96::a"],
            "client_networks": ["192.0.2.0/24", "2001:db8:1::/64"],
            "api_server_ports": [16443],
        }
    )
)
"""A cluster with addresses and ports of its own."""
SERVE, REDIS, DASHBOARD, GCS = 8000, 6379, 8265, 6379
STORES = ("answers", "teams", "gcs")
TRACES, METRICS, RAY_METRICS = 4318, 9464, 8080


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return kustomize(K8S / "overlays" / "production")


@pytest.fixture(scope="module")
def policies(documents: list[Document]) -> list[Document]:
    return of_kind(documents, "NetworkPolicy")


@pytest.fixture(scope="module")
def places(documents: list[Document]) -> dict[str, Place]:
    """Dray's own pods by their component, and others."""
    found = {}
    for index, (_, template) in enumerate(pod_templates(documents)):
        labels = template["metadata"]["labels"]
        ports = {port["name"]: port["containerPort"] for c in containers(template) for port in c.get("ports", ())}
        found[labels["app.kubernetes.io/component"]] = Place(f"10.0.0.{index}", "dray", labels, ports)
    # KubeRay's Job that deletes Ray's state has the head's labels (raycluster_controller.go:1810, v1.7.0).
    found["cleanup"] = found["head"]
    operator = {"app.kubernetes.io/component": "kuberay-operator"}
    helm = operator | {"app.kubernetes.io/name": "kuberay-operator"}  # its chart's values.yaml, v1.7.0
    yaml = operator | {"app.kubernetes.io/name": "kuberay"}  # config/manager/manager.yaml, v1.7.0
    return found | {
        "operator by Helm": Place("10.0.1.1", "kuberay", helm),
        "operator by Kustomize": Place("10.0.1.2", "default", yaml),
        "gateway": Place("10.0.1.3", "edge", {}, {}, {"dray/clients": "true"}),
        "prometheus": Place("10.0.1.4", "monitoring", {}, {}, {"dray/monitoring": "true"}),
        "kube-dns": Place("10.0.1.5", "kube-system", {"k8s-app": "kube-dns"}),
        "openshift-dns": Place("10.0.1.6", "openshift-dns"),
        "dns cache": Place("169.254.20.10"),
        "dns service": OTHER_DNS,
        "dns over IPv6": Place("fd00:10:96::a"),
        "api server": API_SERVER,
        "node": NODE,
        "node over IPv6": Place("2001:db8:1::7"),
        "stranger": Place("10.0.1.7", "elsewhere"),
        "stranger inside": Place("10.0.1.8", "dray", {"app": "shell"}),
        "internet": Place("198.51.100.9"),
        "cloud metadata": Place("169.254.169.254"),
    }


MUST = [
    *((pod, "head", GCS) for pod in ("router", "engine")),
    *((pod, peer, 40123) for pod in ("head", "router", "engine") for peer in ("head", "router", "engine")),
    *((pod, "gcs", REDIS) for pod in ("head", "cleanup")),
    ("router", "answers", REDIS),
    ("router", "teams", REDIS),
    *((operator, "head", port) for operator in ("operator by Helm", "operator by Kustomize") for port in (8265, 8000)),
    *(("gateway", pod, SERVE) for pod in ("router", "engine")),
    *(("prometheus", pod, port) for pod in ("head", "router", "engine") for port in (METRICS, RAY_METRICS)),
    *((pod, "prometheus", TRACES) for pod in ("router", "engine")),
    *(("head", "api server", port) for port in (443, 6443)),
    ("models", "internet", 443),
    *((pod, "kube-dns", 53) for pod in ("head", "router", "engine", "models", "answers", "teams", "gcs")),
    *((pod, "dns cache", 53) for pod in ("head", "router", "engine", "models")),
    *((pod, "openshift-dns", 5353) for pod in ("head", "router", "engine", "models")),
]
MUST_HERE = [
    *((pod, dns, 53) for pod in ("head", "router", "models") for dns in ("dns service", "dns over IPv6")),
    *((node, pod, SERVE) for node in ("node", "node over IPv6") for pod in ("router", "engine")),
    ("head", "api server", 16443),
]
"""What is closed until a cluster's own settings open it."""
MUST_NOT = [
    *(
        (pod, redis, REDIS)
        for pod in ("engine", "models", "stranger", "gateway")
        for redis in ("answers", "teams", "gcs")
    ),
    *(("stranger inside", pod, 6379) for pod in ("head", "answers", "teams", "gcs")),
    *(("stranger inside", pod, SERVE) for pod in ("router", "engine", "head")),
    ("router", "gcs", REDIS),
    *(("head", redis, REDIS) for redis in ("answers", "teams")),
    *(("stranger", pod, port) for pod in ("head", "router", "engine") for port in (SERVE, DASHBOARD, METRICS, 40123)),
    *(("gateway", "head", port) for port in (SERVE, DASHBOARD, GCS)),
    *(("gateway", "router", port) for port in (METRICS, RAY_METRICS, 40123)),
    ("prometheus", "head", DASHBOARD),
    *(("prometheus", pod, SERVE) for pod in ("router", "engine")),
    *(("operator by Helm", pod, REDIS) for pod in ("answers", "teams", "gcs")),
    *((pod, "internet", port) for pod in ("router", "engine", "answers", "teams", "gcs") for port in (53, 80, 443)),
    *(("head", "internet", port) for port in (53, 80)),
    *((pod, "cloud metadata", port) for pod in ("router", "engine", "head", "models") for port in (53, 80)),
    ("models", "head", GCS),
    ("models", "internet", 80),
    *(("answers", pod, SERVE) for pod in ("router", "engine", "head")),
    ("router", "openshift-dns", 53),
    ("node", "teams", REDIS),
    ("node", "head", DASHBOARD),
]


def _pair(pair: tuple[str, str, int]) -> str:
    return f"{pair[0]} to {pair[1]}:{pair[2]}"


def _here(documents: list[Document]) -> list[Document]:
    return [policy | {"metadata": policy["metadata"] | {"namespace": "dray"}} for policy in documents]


@pytest.mark.parametrize("pair", MUST, ids=_pair)
def test_what_must_be_reached(pair: tuple[str, str, int], policies: list[Document], places: dict[str, Place]) -> None:
    assert may_reach(policies, places[pair[0]], places[pair[1]], pair[2])


@pytest.mark.parametrize("pair", MUST_NOT, ids=_pair)
def test_what_must_not_be_reached(
    pair: tuple[str, str, int], policies: list[Document], places: dict[str, Place]
) -> None:
    """Neither with the policies of every cluster nor with those that a cluster adds."""
    source, target, port = places[pair[0]], places[pair[1]], pair[2]
    assert not may_reach(policies, source, target, port)
    assert not may_reach([*policies, *_here(more_policies(HERE))], source, target, port)


@pytest.mark.parametrize("pair", MUST_HERE, ids=_pair)
def test_a_clusters_own_addresses_and_ports_are_settings(
    pair: tuple[str, str, int], policies: list[Document], places: dict[str, Place]
) -> None:
    source, target, port = places[pair[0]], places[pair[1]], pair[2]
    assert not may_reach(policies, source, target, port)
    assert may_reach([*policies, *_here(more_policies(HERE))], source, target, port)


def test_routers_reach_the_bucket_of_batches_if_there_is_one(
    policies: list[Document], places: dict[str, Place]
) -> None:
    bucket = more_policies(Settings(batches={"url": "s3://ours/batches"}))
    for source, target, port in MUST_NOT:
        opened = (source, target, port) == ("router", "internet", 443)
        assert may_reach([*policies, *_here(bucket)], places[source], places[target], port) == opened


def test_names_are_asked_over_udp_too(policies: list[Document], places: dict[str, Place]) -> None:
    for server, port in (("kube-dns", 53), ("dns cache", 53), ("openshift-dns", 5353)):
        assert may_reach(policies, places["router"], places[server], port, "UDP")
    assert not may_reach(policies, places["router"], places["internet"], 53, "UDP")


def test_routers_reach_the_provider_of_single_sign_on(policies: list[Document], places: dict[str, Place]) -> None:
    sign_on = Settings(sign_on={"issuer": "https://sso.example.com:8443/realms/a", "audiences": ["dray"]})
    assert not may_reach(policies, places["router"], places["internet"], 8443)
    opened = [*policies, *_here(more_policies(sign_on))]
    assert may_reach(opened, places["router"], places["internet"], 8443)
    assert not may_reach(opened, places["answers"], places["internet"], 8443)


def test_no_policy_is_there_for_nothing(policies: list[Document], places: dict[str, Place]) -> None:
    """Without any one policy, except the one that denies, some pair that must work does not."""

    def works(some: list[Document]) -> bool:
        return all(may_reach(some, places[source], places[target], port) for source, target, port in MUST)

    assert works(policies)
    for policy in policies:
        others = [other for other in policies if other is not policy]
        assert works(others) == (policy["metadata"]["name"] == "dray-none"), policy["metadata"]["name"]


def test_the_analyser_knows_the_rules() -> None:
    """Rules that no policy here uses: ranges of ports, holes in address blocks, expressions, pods that none selects."""
    pod = Place("10.0.0.1", "a", {"app": "x"}, {"web": 80})
    rule = {
        "from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.9.0.0/16"]}}],
        "ports": [{"port": 1000, "endPort": 2000}, {"port": "web"}],
    }
    policy: Document = {
        "metadata": {"namespace": "a"},
        "spec": {
            "podSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]},
            "policyTypes": ["Ingress"],
            "ingress": [rule],
        },
    }
    outside = Place("10.1.0.1")
    assert may_reach([policy], outside, pod, 1500) and may_reach([policy], outside, pod, 80)
    assert not may_reach([policy], outside, pod, 2001)
    assert not may_reach([policy], outside, pod, 1500, "UDP")
    assert not may_reach([policy], Place("10.9.0.1"), pod, 1500)
    assert may_reach([policy], outside, replace(pod, labels={}), 1), "no policy selects it"
    assert may_reach([policy], outside, replace(pod, namespace="b"), 1), "the policy is another namespace's"
    closed = copy.deepcopy(policy)
    closed["spec"]["ingress"] = []
    assert not may_reach([closed], outside, pod, 80)
    closed["spec"]["podSelector"] = {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["x"]}]}
    assert may_reach([closed], outside, pod, 80)


def test_the_airgapped_overlay_lets_nothing_out(places: dict[str, Place]) -> None:
    policies = of_kind(kustomize(K8S / "overlays" / "airgapped"), "NetworkPolicy")
    assert not may_reach(policies, places["models"], places["internet"], 443)
    assert may_reach(policies, places["gateway"], places["router"], SERVE)
