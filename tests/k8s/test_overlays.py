"""Every rendered overlay against schemas, Serve, the code and itself; and wrong manifests, each found by a check."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.kubernetes.render import kustomization, render
from tests.k8s.checks import faults
from tests.k8s.manifests import K8S, OVERLAYS, Document, cluster_of, kustomize, of_kind, rayservice, settings_of


@pytest.fixture(scope="module")
def rendered() -> dict[str, list[Document]]:
    return {overlay: kustomize(K8S / "overlays" / overlay) for overlay in OVERLAYS}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_has_no_faults(overlay: str, rendered: dict[str, list[Document]]) -> None:
    assert list(faults(rendered[overlay], settings_of(overlay))) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_generated_files_match_the_settings(overlay: str) -> None:
    folder = K8S / "overlays" / overlay
    files = render(settings_of(overlay), K8S / "base")
    stale = [
        name for name, text in files.items() if not (folder / name).is_file() or (folder / name).read_text() != text
    ]
    assert not stale, f"dray k8s render --settings {folder}/dray.yaml --out {folder}"
    known = {*files, "dray.yaml", "kustomization.yaml", "cluster.yaml"}
    assert {path.name for path in folder.iterdir()} <= known


@pytest.mark.parametrize("store", [{"models_claim": "store"}, {"models_path": "/var/lib/dray/models"}])
def test_a_new_overlay_renders_and_applies(store: dict[str, str], tmp_path: Path) -> None:
    kubernetes = settings_of("production").kubernetes.model_copy(update={"models_claim": ""} | store)
    settings = settings_of("production").model_copy(update={"kubernetes": kubernetes})
    files = render(settings, K8S / "base")
    folder = K8S / "overlays"
    relative = Path("../" * (len(tmp_path.resolve().parts) - 1) + str(K8S / "base")[1:])
    (tmp_path / "kustomization.yaml").write_text(kustomization(files, str(relative)))
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert folder.is_dir()
    documents = kustomize(tmp_path)
    assert list(faults(documents, settings)) == []
    [namespace] = of_kind(documents, "Namespace")
    level = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert level == ("privileged" if settings.kubernetes.models_path else "restricted")


def _group(documents: list[Document], index: int) -> Document:
    group: Document = cluster_of(documents)["workerGroupSpecs"][index]
    return group


def _worker(documents: list[Document], index: int = 1) -> Document:
    container: Document = _group(documents, index)["template"]["spec"]["containers"][0]
    return container


def _serve(documents: list[Document], change: Callable[[Any], Any]) -> None:
    spec = rayservice(documents)["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    change(config)
    spec["serveConfigV2"] = yaml.safe_dump(config)


def _named(documents: list[Document], kind: str, name: str) -> Document:
    (match,) = (document for document in of_kind(documents, kind) if document["metadata"]["name"] == name)
    return match


def _set(target: Any, *path: Any, to: Any) -> None:
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = to


def _env(container: Document, name: str) -> Document:
    variable: Document = next(entry for entry in container["env"] if entry["name"] == name)
    return variable


WRONG: dict[str, tuple[Callable[[list[Document]], Any], str]] = {
    "a field that the CRD does not know": (
        lambda manifests: _set(rayservice(manifests), "spec", "serveConfigV3", to=""),
        "serveConfigV3",
    ),
    "a field that a StatefulSet does not know": (
        lambda manifests: _set(_named(manifests, "StatefulSet", "dray-teams"), "spec", "replica", to=2),
        "replica",
    ),
    "a key that Serve would ignore": (
        lambda manifests: _serve(
            manifests, lambda c: _set(c, "applications", 0, "deployments", 0, "num_replica", to=2)
        ),
        "num_replica",
    ),
    "a key at the top of the Serve config": (
        lambda manifests: _serve(manifests, lambda c: _set(c, "proxy", to="x")),
        "proxy",
    ),
    "an engine that no router knows": (
        lambda manifests: _serve(manifests, lambda c: _set(c, "applications", 1, "name", to="engine-other-00")),
        "other engines",
    ),
    "an engine that fits no pod": (
        lambda manifests: _set(_group(manifests, 1), "resources", to={"CPU": "8", "dray-engine-x": "1"}),
        "which no pod has",
    ),
    "a port that Serve does not listen on": (
        lambda manifests: _serve(manifests, lambda c: _set(c, "http_options", "port", to=8001)),
        "does not listen",
    ),
    "a password in the Serve config": (
        lambda manifests: _serve(
            manifests, lambda c: _set(c, "applications", 0, "args", "redis_url", to="rediss://:x@dray-answers:6379/0")
        ),
        "password",
    ),
    "requests below limits": (
        lambda manifests: _set(_worker(manifests), "resources", "requests", "cpu", to="1"),
        "not Guaranteed",
    ),
    "half a CPU for an engine": (
        lambda manifests: _set(
            _worker(manifests),
            "resources",
            to={kind: {"cpu": "17500m", "memory": "9Gi"} for kind in ("requests", "limits")},
        ),
        "no whole CPUs",
    ),
    "an init container without limits": (
        lambda manifests: _group(manifests, 1)["template"]["spec"]["initContainers"][0].pop("resources"),
        "not Guaranteed",
    ),
    "memory of another model": (
        lambda manifests: _set(
            _worker(manifests),
            "resources",
            to={kind: {"cpu": "18", "memory": "2048Mi"} for kind in ("requests", "limits")},
        ),
        "needs more than",
    ),
    "cores of another size": (
        lambda manifests: _set(
            _worker(manifests),
            "resources",
            to={kind: {"cpu": "16", "memory": "9984Mi"} for kind in ("requests", "limits")},
        ),
        "and needs one more",
    ),
    "fewer pods than engines": (
        lambda manifests: _set(_group(manifests, 1), "replicas", to=3),
        "with 3 pods for 4 replicas",
    ),
    "fewer pods than routers": (
        lambda manifests: _set(_group(manifests, 0), "replicas", to=1),
        "with 1 pods for 2 replicas",
    ),
    "bounds that a running cluster would keep": (
        lambda manifests: _set(_group(manifests, 1), "maxReplicas", to=13),
        "never have more than 13 pods",
    ),
    "a minimum that a second cluster would need at once": (
        lambda manifests: _set(_group(manifests, 1), "minReplicas", to=4),
        "at least 4 pods",
    ),
    "a head that takes as long as a stream": (
        lambda manifests: _set(
            cluster_of(manifests)["headGroupSpec"]["template"]["spec"], "terminationGracePeriodSeconds", to=675
        ),
        "before the head is back",
    ),
    "a head that outlasts the deletion of its state": (
        lambda manifests: _set(
            cluster_of(manifests)["headGroupSpec"]["template"]["spec"], "terminationGracePeriodSeconds", to=300
        ),
        "state stays in Redis",
    ),
    "a head that drains": (
        lambda manifests: _set(
            _env(
                cluster_of(manifests)["headGroupSpec"]["template"]["spec"]["containers"][0],
                "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S",
            ),
            "value",
            to="630",
        ),
        "the head drains",
    ),
    "root": (
        lambda manifests: _set(_group(manifests, 1), "template", "spec", "securityContext", "runAsNonRoot", to=False),
        "root",
    ),
    "a root file system to write to": (
        lambda manifests: _set(_worker(manifests), "securityContext", "readOnlyRootFilesystem", to=False),
        "writes to its root",
    ),
    "capabilities": (lambda manifests: _worker(manifests)["securityContext"].pop("capabilities"), "not restricted"),
    "a liveness probe that waits for the model": (
        lambda manifests: _set(
            _worker(manifests), "livenessProbe", "httpGet", to={"path": "/health/ready", "port": "serve"}
        ),
        "does not ask the raylet",
    ),
    "ready before it serves": (lambda manifests: _worker(manifests, 0).pop("readinessProbe"), "ready before"),
    "a grace shorter than a stream": (
        lambda manifests: _set(_group(manifests, 1), "template", "spec", "terminationGracePeriodSeconds", to=600),
        "killed before",
    ),
    "no preStop": (lambda manifests: _worker(manifests).pop("lifecycle"), "before proxies know"),
    "a Secret that nothing creates": (
        lambda manifests: _set(
            _env(_worker(manifests, 0), "TEAMS_PASSWORD"), "valueFrom", "secretKeyRef", "key", to="passwort"
        ),
        "no Secret dray-teams",
    ),
    "the teams' URL with the answers' password": (
        lambda manifests: _set(
            _env(_worker(manifests, 0), "DRAY_TEAMS__URL"),
            "value",
            to="rediss://:$(ANSWERS_PASSWORD)@dray-teams:6379/0",
        ),
        "has the password of dray-answers",
    ),
    "answers without TLS": (
        lambda manifests: _set(
            _env(_worker(manifests, 0), "DRAY_CACHE__URL"),
            "value",
            to="redis://:$(ANSWERS_PASSWORD)@dray-answers:6379/0",
        ),
        "not TLS to dray-answers",
    ),
    "Ray in the answers' Redis": (
        lambda manifests: _set(
            cluster_of(manifests), "gcsFaultToleranceOptions", "redisAddress", to="rediss://dray-answers:6379"
        ),
        "not its own",
    ),
    "another image": (lambda manifests: _set(_worker(manifests), "image", to="dray:latest"), "runs dray:latest"),
    "another metrics port": (
        lambda manifests: _set(
            _group(manifests, 1), "template", "spec", "initContainers", 1, "ports", 0, "containerPort", to=9090
        ),
        "dray-metrics is 9090",
    ),
    "throughput mode without HAProxy": (
        lambda manifests: _set(_env(_worker(manifests), "RAY_SERVE_ENABLE_HA_PROXY"), "value", to="0"),
        "RAY_SERVE_ENABLE_HA_PROXY",
    ),
    "a metrics folder that is not mounted": (
        lambda manifests: _set(_worker(manifests), "volumeMounts", to=[{"name": "tmp", "mountPath": "/tmp"}]),
        "lacks a folder",
    ),
    "a volume that does not exist": (
        lambda manifests: _set(_worker(manifests), "volumeMounts", 0, "name", to="temporary"),
        "no volume",
    ),
    "a Service that selects nothing": (
        lambda manifests: _set(
            _named(manifests, "Service", "dray-teams"), "spec", "selector", "app.kubernetes.io/component", to="team"
        ),
        "selects no pod",
    ),
    "a network policy for a port that no pod has": (
        lambda manifests: _set(
            _named(manifests, "NetworkPolicy", "dray-clients"), "spec", "ingress", 0, "ports", 0, "port", to="http"
        ),
        "names a port",
    ),
    "no policy for the rest": (
        lambda manifests: manifests.remove(_named(manifests, "NetworkPolicy", "dray-none")),
        "pods that no policy names are open",
    ),
    "a policy for everybody": (
        lambda manifests: _named(manifests, "NetworkPolicy", "dray-clients")["spec"]["ingress"][0].pop("from"),
        "lets everybody in",
    ),
    "engines that may reach the teams' Redis": (
        lambda manifests: _set(
            _named(manifests, "NetworkPolicy", "dray-redis")["spec"]["ingress"][0]["from"][0]["podSelector"],
            "matchLabels",
            "app.kubernetes.io/component",
            to="engine",
        ),
        "Redis is open to",
    ),
    "pods that may connect to anywhere": (
        lambda manifests: _named(manifests, "NetworkPolicy", "dray-ray")["spec"]["egress"].append({}),
        "out to anywhere",
    ),
    "a budget in percent": (
        lambda manifests: _set(of_kind(manifests, "PodDisruptionBudget")[0], "spec", "minAvailable", to="50%"),
        "minAvailable must be a number",
    ),
    "an account that does not exist": (
        lambda manifests: _set(_group(manifests, 1), "template", "spec", "serviceAccountName", to="default-worker"),
        "ServiceAccount default-worker",
    ),
    "a token for a worker": (
        lambda manifests: _group(manifests, 1)["template"]["spec"].pop("automountServiceAccountToken"),
        "token of the API server",
    ),
    "a token for the head": (
        lambda manifests: cluster_of(manifests)["headGroupSpec"]["template"]["spec"].pop(
            "automountServiceAccountToken"
        ),
        "token of the API server",
    ),
    "an autoscaler without a token": (
        lambda manifests: cluster_of(manifests)["autoscalerOptions"]["volumeMounts"].pop(),
        "cannot reach the API server",
    ),
    "Services whose variables look like settings": (
        lambda manifests: _set(_group(manifests, 0), "template", "spec", "enableServiceLinks", to=True),
        "names like those of settings",
    ),
    "routers that are spread away from engines": (
        lambda manifests: _set(
            _group(manifests, 0)["template"]["spec"]["topologySpreadConstraints"],
            0,
            "labelSelector",
            "matchLabels",
            "app.kubernetes.io/component",
            to="engine",
        ),
        "is spread by the labels of other pods",
    ),
    "routers on one node": (
        lambda manifests: _group(manifests, 0)["template"]["spec"].pop("topologySpreadConstraints"),
        "on one node",
    ),
    "the autoscaler v1": (
        lambda manifests: _set(cluster_of(manifests), "autoscalerOptions", "version", to="v1"),
        "v2 is off",
    ),
    "a step larger than the surge": (
        lambda manifests: _set(
            rayservice(manifests)["spec"],
            "upgradeStrategy",
            to={
                "type": "NewClusterWithIncrementalUpgrade",
                "clusterUpgradeOptions": {"stepSizePercent": 80, "maxSurgePercent": 50},
            },
        ),
        "stepSizePercent",
    ),
    "an incremental upgrade without a Service for routes": (
        lambda manifests: _set(
            rayservice(manifests)["spec"],
            "upgradeStrategy",
            to={
                "type": "NewClusterWithIncrementalUpgrade",
                "clusterUpgradeOptions": {"stepSizePercent": 25, "maxSurgePercent": 50},
            },
        ),
        "creates no dray-serve-svc",
    ),
    "an old cluster that is deleted at once": (
        lambda manifests: rayservice(manifests)["spec"].pop("rayClusterDeletionDelaySeconds"),
        "old cluster is deleted",
    ),
    "replicas on the head": (
        lambda manifests: _set(cluster_of(manifests), "headGroupSpec", "rayStartParams", to={}),
        "the head takes",
    ),
    "models that nothing fetches": (
        lambda manifests: manifests.remove(of_kind(manifests, "Job")[0]),
        "nobody fetches",
    ),
    "a claim that does not exist": (
        lambda manifests: manifests.remove(of_kind(manifests, "PersistentVolumeClaim")[0]),
        "no PersistentVolumeClaim",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_manifest_is_found(wrong: str, rendered: dict[str, list[Document]]) -> None:
    change, message = WRONG[wrong]
    documents = copy.deepcopy(rendered["production"])
    change(documents)
    assert any(message in fault for fault in faults(documents, settings_of("production")))


@pytest.mark.parametrize(
    ("overlay", "kind", "change", "message"),
    [
        (
            "several",
            "Ingress",
            lambda ingress: _set(
                ingress, "metadata", "annotations", "nginx.ingress.kubernetes.io/proxy-read-timeout", to="60"
            ),
            "before Dray does",
        ),
        (
            "several",
            "Ingress",
            lambda ingress: _set(ingress, "spec", "rules", 0, "http", "paths", 0, "path", to="/"),
            "the Ingress opens /",
        ),
        (
            "airgapped",
            "HTTPRoute",
            lambda route: _set(route, "spec", "rules", 0, "timeouts", "request", to="60s"),
            "before Dray does",
        ),
        (
            "airgapped",
            "HTTPRoute",
            lambda route: _set(route, "spec", "rules", 0, "backendRefs", 0, "port", to=80),
            "another port",
        ),
    ],
)
def test_a_wrong_ingress_or_route_is_found(
    overlay: str, kind: str, change: Callable[[Any], None], message: str, rendered: dict[str, list[Document]]
) -> None:
    documents = copy.deepcopy(rendered[overlay])
    change(of_kind(documents, kind)[0])
    assert any(message in fault for fault in faults(documents, settings_of(overlay)))
