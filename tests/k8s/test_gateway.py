"""Gateways: the one for clients, in a namespace of its own, and the one that KubeRay makes for upgrades in steps."""

from pathlib import Path

import pytest
import yaml

from tests.k8s.checks import faults
from tests.k8s.manifests import K8S, Document, kustomize, of_kind, pod_templates, rayservice, settings_of
from tests.k8s.policies import Place, may_reach


@pytest.fixture(scope="module")
def incremental(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """The overlay for production with the component."""
    folder = tmp_path_factory.mktemp("overlay")
    up = Path("../" * (len(folder.resolve().parts) - 1) + str(K8S)[1:])
    text = yaml.safe_dump(
        {
            "namespace": "dray",
            "resources": [str(up / "overlays" / "production")],
            "components": [str(up / "components" / "incremental")],
        }
    )
    (folder / "kustomization.yaml").write_text(text)
    return kustomize(folder)


@pytest.mark.parametrize("overlay", ["airgapped", "kind", "production", "several"])
def test_an_upgrade_needs_no_gateway_by_default(overlay: str) -> None:
    """KubeRay's gate for incremental upgrades is off by default, and Istio's proxies need values of their own."""
    documents = kustomize(K8S / "overlays" / overlay)
    assert rayservice(documents)["spec"]["upgradeStrategy"] == {"type": "NewCluster"}
    assert not of_kind(documents, "Gateway")


def test_the_route_is_admitted_by_the_gateway_in_the_other_namespace() -> None:
    documents, edge = kustomize(K8S / "overlays" / "production"), kustomize(K8S / "gateway")
    (route,), (gateway,) = of_kind(documents, "HTTPRoute"), of_kind(edge, "Gateway")
    (namespace,), (outside,) = of_kind(documents, "Namespace"), of_kind(edge, "Namespace")
    assert route["spec"]["parentRefs"] == [
        {"name": gateway["metadata"]["name"], "namespace": gateway["metadata"]["namespace"]}
    ]
    (listener,) = gateway["spec"]["listeners"]
    assert listener["protocol"] == "HTTPS" and listener["tls"]["mode"] == "Terminate"
    assert route["spec"]["hostnames"] == [listener["hostname"]]
    allowed = listener["allowedRoutes"]["namespaces"]["selector"]["matchLabels"]
    assert allowed.items() <= namespace["metadata"]["labels"].items()
    # The proxies may be in the Gateway's namespace, as Istio's are.
    assert outside["metadata"]["name"] == gateway["metadata"]["namespace"] != namespace["metadata"]["name"]
    assert outside["metadata"]["labels"]["dray/clients"] == "true"


def test_an_upgrade_in_steps_is_valid(incremental: list[Document]) -> None:
    assert list(faults(incremental, settings_of("production"))) == []


def test_kuberays_gateway_is_reached_and_reaches_what_it_must(incremental: list[Document]) -> None:
    """Its proxies have this label (Istio's kube-gateway.yaml), and are in the RayService's namespace
    (rayservice_controller.go:899, v1.7.0)."""
    name = f"{rayservice(incremental)['metadata']['name']}-gateway"
    policies = of_kind(incremental, "NetworkPolicy")
    proxy = Place("10.0.2.1", "dray", {"gateway.networking.k8s.io/gateway-name": name})
    edge = Place("10.0.2.2", "dray-edge", {}, {}, {"dray/clients": "true"})
    istiod = Place("10.0.2.3", "istio-system", {"app": "istiod"})
    dns = Place("10.0.2.4", "kube-system")
    pods = {
        template["metadata"]["labels"]["app.kubernetes.io/component"]: Place(
            "10.0.3.1", "dray", template["metadata"]["labels"], {"serve": 8000, "redis": 6379}
        )
        for _, template in pod_templates(incremental)
    }
    assert may_reach(policies, edge, proxy, 80)
    assert may_reach(policies, proxy, istiod, 15012)
    assert may_reach(policies, proxy, dns, 53)
    for component in ("router", "engine"):
        assert may_reach(policies, proxy, pods[component], 8000)
    assert not may_reach(policies, proxy, pods["head"], 8265)
    assert not may_reach(policies, proxy, pods["teams"], 6379)
    assert not may_reach(policies, proxy, Place("198.51.100.9"), 443)
    assert not may_reach(policies, Place("10.0.2.5", "elsewhere"), proxy, 80)


def test_routes_lead_to_kuberays_gateway(incremental: list[Document]) -> None:
    """KubeRay names its Services after the clusters then (service.go:187, v1.7.0)."""
    (service,) = (s for s in of_kind(incremental, "Service") if s["metadata"]["name"] == "dray-serve-svc")
    assert service["spec"]["selector"] == {"gateway.networking.k8s.io/gateway-name": "dray-gateway"}
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] == 80, "DefaultGatewayListenerPort"
    (route,) = of_kind(incremental, "HTTPRoute")
    for rule in route["spec"]["rules"]:
        assert [backend["port"] for backend in rule["backendRefs"]] == [port["port"]]
