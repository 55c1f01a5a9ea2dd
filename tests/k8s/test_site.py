"""What a cluster asks of objects and pods: namespace, labels, pull secrets, proxy, certificate authorities, IPv6."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.kubernetes.pods import in_cluster, pod_environment
from cluster.kubernetes.render import kustomization, render
from cluster.launch import haproxy
from cluster.settings import KubernetesSettings, Settings
from tests.k8s.checks import faults
from tests.k8s.manifests import (
    K8S,
    Document,
    cluster_of,
    containers,
    environment,
    kustomize,
    of_kind,
    pod_templates,
    rayservice,
    settings_of,
)
from tests.k8s.policies import Place, may_reach
from tests.security.test_slow_clients import running_proxy

SITE: dict[str, Any] = {
    "namespace": "bots",
    "labels": ["cost-center=42", "example.com/owner=support"],
    "image_pull_secrets": ["registry"],
    "proxy": "http://proxy.internal:3128",
    "ca_config_map": "company-ca",
    "client_networks": ["192.0.2.0/24"],
    "ipv6": True,
}
_CLUSTER_WIDE = {"Namespace", "PriorityClass"}


def settings() -> Settings:
    """Those of the overlay for production, in another cluster."""
    production = settings_of("production")
    kubernetes = production.kubernetes.model_dump() | SITE
    return production.model_copy(update={"kubernetes": KubernetesSettings.model_validate(kubernetes)})


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    folder = tmp_path_factory.mktemp("overlay")
    files = render(settings(), K8S / "base")
    base = Path("../" * (len(folder.resolve().parts) - 1) + str(K8S / "base")[1:])
    (folder / "kustomization.yaml").write_text(kustomization(files, str(base)))
    for name, text in files.items():
        (folder / name).write_text(text)
    return kustomize(folder)


def test_another_clusters_manifests_have_no_faults(documents: list[Document]) -> None:
    assert list(faults(documents, settings())) == []


def test_every_object_is_in_the_namespace(documents: list[Document]) -> None:
    (namespace,) = of_kind(documents, "Namespace")
    assert namespace["metadata"]["name"] == "bots"
    for document in documents:
        if document["kind"] not in _CLUSTER_WIDE:
            assert document["metadata"]["namespace"] == "bots", document["metadata"]["name"]


def test_every_object_and_pod_has_the_labels(documents: list[Document]) -> None:
    wanted = {"cost-center": "42", "example.com/owner": "support"}.items()
    for document in documents:
        assert wanted <= document["metadata"]["labels"].items(), document["metadata"]["name"]
    for name, template in pod_templates(documents):
        assert wanted <= template["metadata"]["labels"].items(), name


def test_no_selector_has_them(documents: list[Document]) -> None:
    """A selector is immutable, and Services would lose pods that were started without the label."""
    for document in documents:
        spec = document.get("spec", {})
        assert "cost-center" not in str(spec.get("selector", "")) + str(spec.get("volumeClaimTemplates", ""))


def test_every_pod_pulls_with_the_secret(documents: list[Document]) -> None:
    for name, template in pod_templates(documents):
        assert template["spec"]["imagePullSecrets"] == [{"name": "registry"}], name


def test_downloads_go_through_the_proxy_and_trust_the_companys_authorities(documents: list[Document]) -> None:
    (job,) = of_kind(documents, "Job")
    template = job["spec"]["template"]
    fetcher = template["spec"]["initContainers"][0]
    variables = environment(fetcher)
    assert variables["HTTPS_PROXY"] == "http://proxy.internal:3128"
    mounts = {mount["name"]: mount["mountPath"] for mount in fetcher["volumeMounts"]}
    assert variables["SSL_CERT_FILE"] == variables["REQUESTS_CA_BUNDLE"] == f"{mounts['ca']}/ca.crt"
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    assert volumes["ca"]["configMap"]["name"] == "company-ca"
    policies = of_kind(documents, "NetworkPolicy")
    pod = Place("10.0.0.1", "bots", template["metadata"]["labels"])
    assert may_reach(policies, pod, Place("192.0.2.9"), 3128)
    others = [policy for policy in policies if policy["metadata"]["name"] != "dray-more-models"]
    assert not may_reach(others, pod, Place("192.0.2.9"), 3128)


def test_traces_are_sent_to_collectors_with_the_companys_certificates(documents: list[Document]) -> None:
    for group in cluster_of(documents)["workerGroupSpecs"]:
        (worker,) = group["template"]["spec"]["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in worker["volumeMounts"]}
        assert environment(worker)["OTEL_EXPORTER_OTLP_CERTIFICATE"] == f"{mounts['ca']}/ca.crt"


def test_everything_listens_on_ipv6_where_there_is_nothing_else(documents: list[Document]) -> None:
    assert "host: '::'" in rayservice(documents)["spec"]["serveConfigV2"]
    assert cluster_of(documents)["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "::"
    for name, template in pod_templates(documents):
        for container in containers(template):
            if container["name"].startswith("ray-"):
                assert environment(container)["HAPROXY_HOST"] == "::", name


def test_haproxy_serves_both_families_as_a_pods_environment_tells_it_to() -> None:
    variables = pod_environment(in_cluster(settings()))
    with running_proxy(0, "::", {haproxy.HOST: variables[haproxy.HOST]}) as proxy:
        for address in ("127.0.0.1", "[::1]"):
            assert httpx.get(f"http://{address}:{proxy.port}").status_code == 503


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels", ["no-value"]),
        ("labels", ["app.kubernetes.io/component=router"]),
        ("labels", ["dray/model=x"]),
        ("labels", ["two words=x"]),
        ("namespace", "Upper"),
        ("namespace", ""),
        ("proxy", "http://user:secret@proxy:3128"),
        ("proxy", "proxy:3128"),
        ("client_networks", ["192.0.2.0/40"]),
        ("api_server_ports", [0]),
        ("image_pull_secrets", [""]),
    ],
)
def test_what_an_api_server_would_refuse_is_refused_here(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        KubernetesSettings.model_validate({field: value})
