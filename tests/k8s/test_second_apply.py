"""Applying a changed overlay over the one that runs, by Kubernetes' own rules of what may change."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from cluster.kubernetes.names import distinct_labels, dns_label
from cluster.kubernetes.render import render
from cluster.kubernetes.sizes import KubernetesError
from cluster.settings import Settings
from tests.k8s.apply_rules import refused
from tests.k8s.manifests import K8S, Document, kustomize, of_kind

FIFTEEN, FOUR = "deepseek-r1-distill-qwen-1.5b", "qwen3-4b"
FIRST: dict[str, Any] = {
    "models": [
        {"source": FIFTEEN, "cores_per_replica": 4, "replicas": 2},
        {"source": FOUR, "cores_per_replica": 8, "replicas": 2},
    ],
    "router": {"replicas": 2},
    "kubernetes": {"models_claim": "store"},
}


def documents(files: dict[str, str]) -> list[Document]:
    return [
        document
        for name, text in files.items()
        if not name.startswith(("ingress", "httproute", "redis-"))
        for document in yaml.load_all(text, yaml.CSafeLoader)
    ]


def model(index: int, **changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda settings: settings["models"][index].update(changes)


def group(name: str, **changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda settings: settings.setdefault(name, {}).update(changes)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another image": group("kubernetes", image="registry.example.com/dray:0.2.0"),
    "another image for fetching": group("kubernetes", fetch_image="dray:export"),
    "more replicas": model(0, replicas=5),
    "replicas that follow the load": model(0, max_replicas=9),
    "one model fewer": lambda settings: settings["models"].pop(),
    "another model": model(0, source="qwen3-0.6b"),
    "a model from the hub": model(0, source="org/My_Model-2507", name=FIFTEEN),
    "other weights": model(1, weight="int4"),
    "more cores and cache": model(0, cores_per_replica=8, kv_cache_mb=4096),
    "longer requests": group("limits", request_timeout_s=1800),
    "another port": lambda settings: settings.update(port=9000),
    "more routers": group("router", replicas=4),
    "another hub": lambda settings: settings.update(hub="modelscope"),
    "a larger claim": group("kubernetes", storage_mb=200 * 1024),
    "more memory for Redis": group("kubernetes", answers_memory_mb=4096, teams_memory_mb=512),
    "another claim": group("kubernetes", models_claim="store-2", storage_mb=10 * 1024),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_can_be_applied_and_undone(name: str) -> None:
    changed = copy.deepcopy(FIRST)
    CHANGES[name](changed)
    first = render(Settings(**FIRST), K8S / "base")
    second = render(Settings(**changed), K8S / "base", first)
    assert refused([], documents(first)) == []
    assert refused(documents(first), documents(second)) == []
    assert second != first
    if name != "a larger claim":
        undone = render(Settings(**FIRST), K8S / "base", second)
        assert refused(documents(second), documents(undone)) == []


def test_a_claim_keeps_its_size_with_fewer_models() -> None:
    first = render(Settings(**FIRST), K8S / "base")
    changed = FIRST | {"models": FIRST["models"][:1]}
    fresh, over = (render(Settings(**changed), K8S / "base", previous) for previous in (None, first))

    def size(files: dict[str, str]) -> int:
        [claim] = of_kind(documents(files), "PersistentVolumeClaim")
        return int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi"))

    assert size(fresh) < size(over) == size(first)
    assert any("a smaller size" in reason for reason in refused(documents(first), documents(fresh)))


def test_a_size_that_would_shrink_a_claim_is_refused() -> None:
    first = render(Settings(**FIRST), K8S / "base")
    smaller = FIRST | {"kubernetes": {"models_claim": "store", "storage_mb": 1024}}
    with pytest.raises(KubernetesError, match=r"no claim can shrink to 1Gi: raise kubernetes\.storage_mb"):
        render(Settings(**smaller), K8S / "base", first)


@pytest.mark.parametrize("setting", ["teams_disk_mb", "gcs_disk_mb"])
def test_another_disk_of_a_redis_server_is_refused(setting: str) -> None:
    first = render(Settings(**FIRST), K8S / "base")
    changed = FIRST | {"kubernetes": {"models_claim": "store", setting: 10 * 1024}}
    with pytest.raises(KubernetesError, match=rf"a disk of 2Gi, .* become 10Gi: .*kubernetes\.{setting}"):
        render(Settings(**changed), K8S / "base", first)
    assert "storage: 10Gi" in str(render(Settings(**changed), K8S / "base").values())


@pytest.mark.parametrize("text", ["org--my_model-int8", "_x_", "a" * 80, "a." * 40, "模型", "7b"])
def test_a_name_is_one_that_kubernetes_accepts(text: str) -> None:
    def job(container: str) -> Document:
        pod = {"metadata": {}, "spec": {"containers": [{"name": container}]}}
        return {"kind": "Job", "metadata": {"name": "j"}, "spec": {"template": pod}}

    assert refused([], [job(dns_label(text))]) == []
    assert (refused([], [job(text)]) == []) == (text == "7b"), "the check finds the others"


def test_names_stay_distinct() -> None:
    names = distinct_labels(["a.b", "a-b", "a_b", "x" * 70, "x" * 71])
    assert len(set(names.values())) == 5 and names["a.b"] == "a-b"


def test_the_overlays_can_be_applied_one_over_another() -> None:
    """Their Redis servers, accounts and priorities are the same, so that one can become another."""
    kind, production, several = (kustomize(K8S / "overlays" / name) for name in ("kind", "production", "several"))
    assert refused([], kind) == refused([], several) == []
    assert refused(kind, production) == []


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("StatefulSet", lambda spec: spec.update(serviceName="other"), "serviceName may not change"),
        (
            "StatefulSet",
            lambda spec: spec.setdefault("volumeClaimTemplates", []).append({"metadata": {"name": "x"}}),
            "volumeClaimTemplates may not change",
        ),
        ("Job", lambda spec: spec["template"]["spec"].update(restartPolicy="Never"), "template may not change"),
        (
            "PersistentVolumeClaim",
            lambda spec: spec.update(accessModes=["ReadWriteOnce"]),
            "accessModes may not change",
        ),
    ],
)
def test_the_rules_find_a_change_that_is_refused(kind: str, change: Callable[[Any], Any], message: str) -> None:
    before = kustomize(K8S / "overlays" / "production")
    after = copy.deepcopy(before)
    change(of_kind(after, kind)[0]["spec"])
    assert any(message in reason for reason in refused(before, after))
