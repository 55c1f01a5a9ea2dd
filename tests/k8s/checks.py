"""Checks of rendered manifests: each yields a sentence for every fault that it finds."""

import math
from collections.abc import Iterator

from cluster.kubernetes import sizes
from cluster.kubernetes.pods import HAPROXY, MODELS_DIR, STATE_DIR, head_environment, in_cluster, pod_environment
from cluster.launch.environment import METRICS_PORT
from cluster.settings import BUNDLED, Settings
from tests.k8s.manifests import (
    Document,
    cluster_of,
    containers,
    cpus,
    environment,
    mebibytes,
    of_kind,
    pod_templates,
    rayservice,
)
from tests.k8s.references import network, references
from tests.k8s.schemas import schemas, serve


def pods(documents: list[Document], settings: Settings) -> Iterator[str]:
    """Each pod is Guaranteed and restricted, and its probes ask the right process."""
    for name, template in pod_templates(documents):
        spec = template["spec"]
        security = spec.get("securityContext", {})
        if not security.get("runAsNonRoot") or not security.get("runAsUser"):
            yield f"{name} may run as root"
        if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name} has no seccomp profile"
        folders = {volume["hostPath"]["path"] for volume in spec.get("volumes", ()) if "hostPath" in volume}
        models = {settings.kubernetes.models_path} if settings.kubernetes.models_path and name != "head" else set()
        if spec.get("hostNetwork") or spec.get("hostPID") or folders - models:
            yield f"{name} reaches the node"
        mounts = {mount["name"]: mount for container in spec["containers"] for mount in container["volumeMounts"]}
        if folders and not mounts["models"].get("readOnly"):
            yield f"{name} can change the models of its node"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{name} has a token of the API server"
        if spec.get("enableServiceLinks") is not False:
            yield f"{name}: Kubernetes adds a variable for each Service, with names like those of settings"
        for container in [*containers(template), *_autoscaler(documents, name)]:
            where = f"{name}/{container['name']}"
            size = container.get("resources", {})
            if size.get("requests") != size.get("limits") or set(size.get("limits", {})) != {"cpu", "memory"}:
                yield f"{where} is not Guaranteed: requests {size.get('requests')}, limits {size.get('limits')}"
            own = container.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{where} is not restricted"
            if not own.get("readOnlyRootFilesystem"):
                yield f"{where} writes to its root file system"
    mounts = cluster_of(documents)["autoscalerOptions"]["volumeMounts"]
    if "/var/run/secrets/kubernetes.io/serviceaccount" not in {mount["mountPath"] for mount in mounts}:
        yield "the autoscaler cannot reach the API server"
    worker_groups = [(group["groupName"], group["template"]) for group in cluster_of(documents)["workerGroupSpecs"]]
    for name, template in [("head", cluster_of(documents)["headGroupSpec"]["template"]), *worker_groups]:
        main = template["spec"]["containers"][0]
        for probe in ("startupProbe", "livenessProbe"):
            # A pod that loads a model must not be killed: these probes only ask whether Ray's own process answers.
            if main.get(probe, {}).get("httpGet") != {"path": "/api/healthz", "port": 52365}:
                yield f"{name}: {probe} does not ask the raylet"
        grace_s = template["spec"]["terminationGracePeriodSeconds"]
        if name == "head":
            yield from _head_returns(grace_s, main["startupProbe"])
        elif grace_s <= settings.limits.request_timeout_s + 30:
            yield f"{name} is killed before its last stream ends"
        if template["spec"].get("restartPolicy", "Never") != "Never":
            yield f"{name}: the autoscaler v2 needs restartPolicy Never"
    for name, template in worker_groups:
        spec, main = template["spec"], template["spec"]["containers"][0]
        if main.get("readinessProbe", {}).get("httpGet") != {"path": "/-/healthz", "port": "serve"}:
            yield f"{name} is ready before it serves"
        if main.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command") != [
            "sleep",
            str(sizes.NOTICE_S),
        ]:
            yield f"{name} stops before proxies know"
        if not main["resources"]["limits"]["cpu"].isdigit():
            yield f"{name} has no whole CPUs"
        if not spec.get("shareProcessNamespace"):
            yield f"{name}: its metrics container cannot see which processes are alive"


def _head_returns(grace_s: int, startup: Document) -> Iterator[str]:
    """A new head starts before workers give up, and the old one ends before its state in Redis is no longer deleted."""
    start_s = startup["periodSeconds"] * startup["failureThreshold"]
    # kuberay v1.7.0, common/pod.go:97: workers end after 600 s without a head; raycluster_controller.go:1003: there is
    # no new one while the old pod exists.
    if grace_s + start_s >= 600:
        yield f"workers give up before the head is back: {grace_s} s of grace, {start_s} s to start"
    # constant.go:259, raycluster_controller.go:300: the finalizer that deletes Ray's state from Redis goes after 300 s.
    if grace_s >= 300:
        yield f"Ray's state stays in Redis: the head may take {grace_s} s to end"


def _autoscaler(documents: list[Document], name: str) -> list[Document]:
    if name != "head":
        return []
    options = cluster_of(documents)["autoscalerOptions"]
    return [{"name": "autoscaler", **{key: options[key] for key in ("resources", "securityContext")}}]


def numbers(documents: list[Document], settings: Settings) -> Iterator[str]:
    """Resources, images, ports and environment match the settings and the code."""
    cluster = cluster_of(documents)
    threads = settings.kubernetes.threads_per_core
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    if len(groups) != 1 + len(settings.served):
        yield f"{len(groups)} worker groups for {len(settings.served)} models and the routers"
    for model in settings.served:
        matching = [group for group in groups.values() if group["resources"]["CPU"] == str(model.cores_per_replica)]
        sized = sizes.ModelInCluster(model)
        min_bytes = sized.weights_bytes * 2 + model.kv_cache_mb * 2**20
        if not matching:
            yield f"no worker group has the {model.cores_per_replica} cores of {sized.name}"
        for group in matching:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            if cpus(limits["cpu"]) != (model.cores_per_replica + 1) * threads:
                yield f"{sized.name} leases {model.cores_per_replica} cores and needs one more; has {limits['cpu']}"
            if not min_bytes < mebibytes(limits["memory"]) * 2**20 < 2 * min_bytes + 3 * 2**30:
                yield f"{sized.name} needs more than {min_bytes >> 20} MiB and gets {limits['memory']}"
    yield from _growth(groups, settings)
    inside = in_cluster(settings)
    workers, head = pod_environment(inside), head_environment(inside)
    for name, template in pod_templates(documents):
        variables = head if name == "head" else workers
        for container in containers(template):
            if container["name"] == "redis":
                continue
            image = container["image"]
            if image not in (settings.kubernetes.image, settings.kubernetes.fetch_image):
                yield f"{name}/{container['name']} runs {image}"
            for port in container.get("ports", ()):
                expected = {"serve": settings.port, "dray-metrics": METRICS_PORT}.get(port["name"])
                if expected and port["containerPort"] != expected:
                    yield f"{name}: port {port['name']} is {port['containerPort']}, not {expected}"
            if container["name"] in ("ray-head", "ray-worker"):
                own = environment(container)
                yield from (
                    f"{name}: {key} is {own.get(key)}" for key, value in variables.items() if own.get(key) != value
                )
                mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
                if not {"/tmp", str(STATE_DIR), variables["PROMETHEUS_MULTIPROC_DIR"], str(MODELS_DIR)} <= mounted:
                    yield f"{name} lacks a folder that Dray writes to or reads: {sorted(mounted)}"
                if own["RAY_SERVE_HAPROXY_BINARY_PATH"] != str(HAPROXY):
                    yield f"{name} starts another HAProxy"
                drain_s = int(own["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
                if name == "head" and drain_s:
                    yield "the head drains, although no stream passes through it"
                if name != "head" and drain_s < settings.limits.request_timeout_s:
                    yield f"{name} stops draining before the longest stream ends"
            if container["name"] == "metrics" and environment(container) != {
                "PROMETHEUS_MULTIPROC_DIR": variables["PROMETHEUS_MULTIPROC_DIR"]
            }:
                yield f"{name}: its metrics are read from another folder than they are written to"
    yield from _outside(documents, settings)


def _growth(groups: dict[str, Document], settings: Settings) -> Iterator[str]:
    """Each group starts with its replicas' pods, and a running cluster can have any other number of them."""
    starting = {"routers": settings.router.replica_minimum}
    for model in settings.served:
        asleep = bool(model.sleep_after_s) and model.max_replicas <= model.replicas
        name = sizes.ModelInCluster(model).name.replace(".", "-")
        starting[name] = 0 if asleep else model.replicas
    for name, group in groups.items():
        if group["replicas"] != starting.get(name):
            yield f"{name} starts with {group['replicas']} pods for {starting.get(name)} replicas"
        # kuberay v1.7.0, util.go:647-664: the bounds are not in the hash, so a running cluster keeps those it has.
        if group["maxReplicas"] < sizes.MAX_PODS:
            yield f"{name} may never have more than {group['maxReplicas']} pods in a running cluster"
        if group["minReplicas"] != 0:
            yield f"{name} has at least {group['minReplicas']} pods, in a second cluster and in one that shrinks too"


def _outside(documents: list[Document], settings: Settings) -> Iterator[str]:
    """The Ingress or HTTPRoute lets the longest request finish."""
    longest_s = math.ceil(settings.limits.request_timeout_s)
    for ingress in of_kind(documents, "Ingress"):
        annotations = ingress["metadata"]["annotations"]
        for key in ("proxy-read-timeout", "proxy-send-timeout"):
            if int(annotations[f"nginx.ingress.kubernetes.io/{key}"]) <= longest_s:
                yield f"the Ingress cuts a request before Dray does ({key})"
        if annotations["nginx.ingress.kubernetes.io/proxy-buffering"] != "off":
            yield "the Ingress holds tokens back"
        paths = [path["path"] for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
        yield from (f"the Ingress opens {path}" for path in paths if path in ("/", "/metrics", "/admin"))
    for route in of_kind(documents, "HTTPRoute"):
        for rule in route["spec"]["rules"]:
            if any(int(value.rstrip("s")) <= longest_s for value in rule["timeouts"].values()):
                yield "the HTTPRoute cuts a request before Dray does"
            if any(backend["port"] != settings.port for backend in rule["backendRefs"]):
                yield "the HTTPRoute goes to another port than Serve's"


def upgrades(documents: list[Document], settings: Settings) -> Iterator[str]:
    """The rules of KubeRay's own validation of a RayService, which schemas cannot express."""
    spec = rayservice(documents)["spec"]
    cluster, strategy = spec["rayClusterConfig"], spec["upgradeStrategy"]
    if not cluster.get("enableInTreeAutoscaling") or cluster["autoscalerOptions"].get("version") != "v2":
        yield "the autoscaler v2 is off"
    if strategy["type"] == "NewClusterWithIncrementalUpgrade":
        options = strategy["clusterUpgradeOptions"]
        if not 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100:
            yield "clusterUpgradeOptions: stepSizePercent must be at most maxSurgePercent"
        services = {document["metadata"]["name"] for document in of_kind(documents, "Service")}
        if "dray-serve-svc" not in services:
            yield "KubeRay creates no dray-serve-svc for incremental upgrades, and nothing else does"
    elif strategy != {"type": "NewCluster"}:
        yield f"upgradeStrategy is {strategy}"
    if not spec.get("excludeHeadPodFromServeSvc") or cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "the head takes requests or replicas"
    if spec.get("rayClusterDeletionDelaySeconds", 0) < settings.limits.request_timeout_s:
        yield "an old cluster is deleted before its last stream ends"
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "Ray requires no token"
    for group in cluster["workerGroupSpecs"]:
        if "num-cpus" in group["rayStartParams"]:
            yield f"{group['groupName']} has its CPUs in rayStartParams and in resources"
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"{group['groupName']}: replicas are not between minReplicas and maxReplicas"
    names = [entry["name"] for entry in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]]
    if forbidden := {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS", "REDIS_USERNAME"} & set(names):
        yield f"KubeRay refuses {forbidden} in the head beside gcsFaultToleranceOptions"
    fetched = [model for model in settings.served if model.source != BUNDLED]
    if fetched and settings.kubernetes.models_claim and not of_kind(documents, "Job"):
        yield "nobody fetches the models"


ALL = (serve, pods, references, network, numbers, upgrades, schemas)
"""The slow check last: a test that looks for a single fault can stop before it."""


def faults(documents: list[Document], settings: Settings) -> Iterator[str]:
    """The faults of all checks."""
    return (f"{check.__name__}: {fault}" for check in ALL for fault in check(documents, settings))
