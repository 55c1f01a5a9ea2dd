"""What the pages about Kubernetes tell readers to apply or to expect, against the manifests and the code."""

import re
from typing import Any

import pytest
import yaml

from cluster.kubernetes import sizes
from cluster.kubernetes.pods import in_cluster, routers_of
from cluster.settings import KubernetesSettings, ModelSettings, Settings
from tests.k8s.manifests import K8S, ROOT, Document, kustomize, of_kind
from tests.k8s.references import SECRETS
from tests.k8s.test_monitoring import selectors

PAGE = (ROOT / "docs" / "clusters.md").read_text()
SIZES = re.findall(
    r"^\| `([\w.-]+)` \| (.* GiB) \| (\d+) \| (.*) GiB \| (.*) GiB \| (.*) GiB \|$", PAGE, flags=re.MULTILINE
)


def objects() -> list[Document]:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return [document for block in blocks for document in yaml.safe_load_all(block)]


def named(kind: str) -> list[Document]:
    return [document for document in objects() if document.get("kind") == kind]


def test_the_settings_shown_are_settings() -> None:
    (shown,) = (document["kubernetes"] for document in objects() if "kubernetes" in document)
    KubernetesSettings.model_validate(shown)
    for name, value in re.findall(r"`kubernetes\.(\w+): ([^`]+)`", PAGE):
        KubernetesSettings.model_validate({name: yaml.safe_load(value)})


def test_certificates_are_for_the_secrets_and_names_that_are_used() -> None:
    (gateway,) = of_kind(kustomize(K8S / "gateway"), "Gateway")
    (listener,) = gateway["spec"]["listeners"]
    services = {s["metadata"]["name"] for s in of_kind(kustomize(K8S / "overlays" / "production"), "Service")}
    front, redis = named("Certificate")
    assert front["metadata"]["namespace"] == gateway["metadata"]["namespace"]
    assert [front["spec"]["secretName"]] == [reference["name"] for reference in listener["tls"]["certificateRefs"]]
    assert front["spec"]["dnsNames"] == [listener["hostname"]]
    assert redis["spec"]["secretName"] in SECRETS
    # Probes connect to localhost.
    assert set(redis["spec"]["dnsNames"]) == services | {"localhost"}


def test_secrets_from_a_store_have_the_names_and_keys_that_pods_read() -> None:
    (secret,) = named("ExternalSecret")
    assert {entry["secretKey"] for entry in secret["spec"]["data"]} == SECRETS[secret["spec"]["target"]["name"]]


def test_the_metric_for_keda_exists() -> None:
    (scaled,) = named("ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    assert [name for name, _ in selectors(trigger["metadata"]["query"])] == ["dray_autoscaling_predicted_wait_seconds"]


def test_flux_passes_values_that_the_chart_has() -> None:
    values = yaml.safe_load((K8S / "chart" / "values.yaml").read_text())

    def known(given: Any, default: Any) -> bool:
        return not isinstance(given, dict) or all(k in default and known(v, default[k]) for k, v in given.items())

    (release,) = named("HelmRelease")
    assert known(release["spec"]["values"], values)


@pytest.mark.parametrize(
    "row", re.findall(r"^\| `([\w.-]+)` \| (.* GiB) \| (\d+) \| (.*) GiB \| (.*) GiB \| (.*) GiB \|$", PAGE, re.M)
)
def test_the_sizes_are_those_of_the_code(row: tuple[str, ...]) -> None:
    name, weights, cpus, memory, download, claim = row
    settings = Settings(model=ModelSettings(source=name, cores_per_replica=8, kv_cache_mb=4096))
    (engine,) = routers_of(in_cluster(settings)).engines
    model = sizes.ModelInCluster(engine.settings.served[0])
    assert f"{model.weights_bytes / 2**30:.1f} GiB" == weights
    assert str(sizes.engine_pods(engine).cpus) == cpus
    assert f"{sizes.engine_memory(engine) / 2**30:.2f}" == memory
    assert f"{sizes.fetch_memory(model, exports=False) / 2**30:.2f}" == download
    assert f"{sizes.storage([model], exports=False) / 2**30:.1f}" == claim


def test_the_table_of_sizes_is_found() -> None:
    assert len(SIZES) == PAGE.count(" GiB |\n") > 0
