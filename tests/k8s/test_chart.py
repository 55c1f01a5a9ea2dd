"""The Helm chart, rendered by Helm itself: by default the overlay for production, and what its values change."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli import app
from cluster.kubernetes.redis import pod_memory_mb
from tests.k8s.manifests import (
    K8S,
    Document,
    cluster_of,
    containers,
    environment,
    kustomize,
    of_kind,
    pod_templates,
    settings_of,
)
from tests.k8s.policies import Place, may_reach
from tests.k8s.schemas import schemas

CHART = K8S / "chart"


class Refused(Exception):
    """Helm takes no such values."""


def helm(chart: Path, values: Document | None = None, namespace: str = "dray") -> list[Document]:
    """The objects that Helm would install: by its command, or by its library from PyPI."""
    if shutil.which("helm"):
        command = ["helm", "template", "dray", str(chart), "--namespace", namespace, "--values", "-"]
        done = subprocess.run(command, input=json.dumps(values or {}), capture_output=True, text=True, check=False)
        if done.returncode:
            raise Refused(done.stderr)
        texts = [done.stdout]
    else:
        answer = library("render", str(chart), namespace, values=values)
        if "refused" in answer:
            raise Refused(answer["refused"])
        texts = answer["texts"]
    return [document for text in texts for document in yaml.load_all(text, yaml.CSafeLoader) if document]


def library(*arguments: str, values: Document | None = None) -> dict[str, Any]:
    """What Helm's library says, in a process of its own."""
    if find_spec("helm_python") is None:
        pytest.skip("needs helm, or its library: pip install helm-python-sdk")
    command = [sys.executable, str(Path(__file__).with_name("helm.py")), *arguments]
    done = subprocess.run(command, input=json.dumps(values or {}), capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def by_name(documents: list[Document]) -> dict[str, Document]:
    return {f"{document['kind']}/{document['metadata']['name']}": document for document in documents}


@pytest.fixture(scope="module")
def production() -> list[Document]:
    return kustomize(K8S / "overlays" / "production")


def test_the_chart_is_what_the_command_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = K8S / "overlays" / "production" / "dray.yaml"
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "chart"
    (target / "templates").mkdir(parents=True)
    (target / "templates" / "job-dray-models-old.yaml").touch()
    done = CliRunner().invoke(app, ["k8s", "chart", "--settings", str(settings), "--out", str(target)])
    assert done.exit_code == 0, done.output

    def files(folder: Path) -> dict[str, str]:
        return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}

    assert files(CHART) == files(target), f"dray k8s chart --settings {settings} --out {CHART}"


def test_by_default_it_installs_the_overlay_for_production(production: list[Document]) -> None:
    """All but the Namespace, which Helm creates or finds."""
    ours, theirs = by_name(production), by_name(helm(CHART))
    assert ours.keys() - theirs.keys() == {"Namespace/dray"}
    assert not theirs.keys() - ours.keys()
    for name, document in theirs.items():
        assert document == ours[name], name


def test_helm_finds_no_fault() -> None:
    if shutil.which("helm"):
        done = subprocess.run(["helm", "lint", "--strict", str(CHART)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        assert library("lint", str(CHART)) == {"faults": []}


def test_values_change_what_differs_between_clusters() -> None:
    values = {
        "image": "r.example/dray@sha256:0",
        "fetchImage": "r.example/export:1",
        "redisImage": "r.example/valkey:1",
        "imagePullSecrets": [{"name": "registry"}],
        "labels": {"cost-center": "42"},
        "storageClass": "fast",
        "engines": {"nodeSelector": {"dray/pool": "cpu"}, "tolerations": []},
        "route": {"hostnames": ["ai.example.org"], "parentRefs": [{"name": "shared", "namespace": "gateways"}]},
        "network": {
            "dnsAddresses": ["10.96.0.10/32"],
            "clientNetworks": ["192.0.2.0/24"],
            "apiServerPorts": [16443, 8443],
        },
        "monitoring": {"enabled": True, "labels": {"release": "metrics"}},
    }
    documents = helm(CHART, values, namespace="bots")
    assert not list(schemas(documents, settings_of("production")))
    for document in documents:
        assert document["metadata"].get("namespace") == (None if document["kind"] == "PriorityClass" else "bots")
        assert document["metadata"]["labels"]["cost-center"] == "42"
    for name, template in pod_templates(documents):
        assert template["spec"]["imagePullSecrets"] == [{"name": "registry"}], name
        assert template["metadata"]["labels"]["cost-center"] == "42", name
        for container in containers(template):
            fetches, redis = "pull" in container.get("command", ()), name.startswith("StatefulSet/")
            expected = "r.example/export:1" if fetches else "r.example/valkey:1" if redis else values["image"]
            assert container["image"] == expected, (name, container["name"])
    _, engines = cluster_of(documents)["workerGroupSpecs"]
    pod = engines["template"]["spec"]
    assert (pod["nodeSelector"], pod["tolerations"]) == ({"dray/pool": "cpu"}, [])
    (claim,) = of_kind(documents, "PersistentVolumeClaim")
    assert claim["spec"]["storageClassName"] == "fast"
    claims = [c for s in of_kind(documents, "StatefulSet") for c in s["spec"].get("volumeClaimTemplates", ())]
    assert [c["spec"]["storageClassName"] for c in claims] == ["fast", "fast"]
    (route,) = of_kind(documents, "HTTPRoute")
    assert route["spec"]["hostnames"] == ["ai.example.org"]
    assert route["spec"]["parentRefs"] == [{"name": "shared", "namespace": "gateways"}]
    policies = of_kind(documents, "NetworkPolicy")
    head = Place("10.0.0.1", "bots", cluster_of(documents)["headGroupSpec"]["template"]["metadata"]["labels"])
    engine = Place("10.0.0.2", "bots", engines["template"]["metadata"]["labels"], {"serve": 8000})
    assert may_reach(policies, head, Place("192.0.2.1"), 16443) and may_reach(policies, head, Place("192.0.2.1"), 8443)
    assert may_reach(policies, head, Place("10.96.0.10"), 53)
    assert may_reach(policies, Place("192.0.2.7"), engine, 8000)
    for kind in ("PodMonitor", "PrometheusRule"):
        for document in of_kind(documents, kind):
            assert document["metadata"]["labels"]["release"] == "metrics"


def test_sizes_of_redis_are_values_of_which_the_pods_sizes_follow() -> None:
    values = {
        "redis": {"answersMemoryMiB": 4096, "teamsMemoryMiB": 300, "teamsDisk": "10Gi", "gcsMemoryMiB": 1_000_000}
    }
    found = {}
    for document in of_kind(helm(CHART, values), "StatefulSet"):
        [container] = document["spec"]["template"]["spec"]["containers"]
        disks = [
            c["spec"]["resources"]["requests"]["storage"] for c in document["spec"].get("volumeClaimTemplates", ())
        ]
        memory = {size["memory"] for size in container["resources"].values()}
        found[document["metadata"]["name"]] = (environment(container)["MAXMEMORY"], memory, disks)
    expected = {
        name: (f"{data_mb}mb", {f"{pod_memory_mb(data_mb)}Mi"}, disks)
        for name, data_mb, disks in (
            ("dray-answers", 4096, []),
            ("dray-teams", 300, ["10Gi"]),
            ("dray-gcs", 1_000_000, ["2Gi"]),
        )
    }
    assert found == expected


def test_monitoring_is_what_kustomize_installs() -> None:
    ours = by_name(kustomize(K8S / "monitoring"))
    theirs = by_name(helm(CHART, {"monitoring": {"enabled": True}}))
    for name, document in ours.items():
        assert theirs[name] == document, name


def test_a_job_with_other_pods_has_another_name() -> None:
    """A Job is immutable: the API server refuses an upgrade that changes its pods."""

    def job(values: Document) -> str:
        (found,) = of_kind(helm(CHART, values), "Job")
        return str(found["metadata"]["name"])

    names = {
        job(values)
        for values in ({}, {"fetchImage": "x"}, {"labels": {"a": "b"}}, {"imagePullSecrets": [{"name": "x"}]})
    }
    assert len(names) == 4
    assert all(len(name) <= 63 for name in names)


@pytest.mark.parametrize(
    "values",
    [
        {"imgae": "x"},
        {"image": ""},
        {"image": 3},
        {"imagePullSecrets": ["registry"]},
        {"labels": {"app.kubernetes.io/component": "x"}},
        {"labels": {"a": 1}},
        {"engines": {"nodeselector": {}}},
        {"route": {"parentRefs": []}},
        {"network": {"clientNetworks": ["everybody"]}},
        {"network": {"apiServerPorts": ["16443"]}},
        {"monitoring": {"enabled": "yes"}},
        {"redis": {"answersMemoryMiB": "1gb"}},
        {"redis": {"teamsMemoryMiB": 0}},
        {"redis": {"gcsDisk": "2 GB"}},
        {"redis": {"answersDisk": "2Gi"}},
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any]) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert list(jsonschema.Draft7Validator(schema).iter_errors(values))
    with pytest.raises(Refused):
        helm(CHART, values)


def test_the_default_values_match_their_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert not list(jsonschema.Draft7Validator(schema).iter_errors(values))
    assert values.keys() <= schema["properties"].keys()
