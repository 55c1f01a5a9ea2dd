"""What the page about two zones shows of Kubernetes, on top of the overlay for production."""

import re
from pathlib import Path

import pytest
import yaml

from tests.k8s.manifests import K8S, ROOT, Document, kustomize, of_kind, settings_of
from tests.k8s.schemas import schemas

PAGE = (ROOT / "docs" / "zones.md").read_text()
OBJECTS, PATCHES = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    """The overlay with what the page adds to it."""
    folder = tmp_path_factory.mktemp("overlay")
    up = Path("../" * (len(folder.resolve().parts) - 1) + str(K8S)[1:])
    (folder / "zone-b.yaml").write_text(OBJECTS)
    resources = [str(up / "overlays" / "production"), "zone-b.yaml"]
    text = yaml.safe_dump({"resources": resources, "patches": yaml.safe_load(PATCHES)})
    (folder / "kustomization.yaml").write_text(text)
    return kustomize(folder)


def test_the_objects_are_valid(documents: list[Document]) -> None:
    added = [document["kind"] for document in yaml.safe_load_all(OBJECTS)]
    assert added == ["Service", "EndpointSlice"]
    assert list(schemas(documents, settings_of("production"))) == []


def test_every_rule_of_the_route_leads_to_both_zones(documents: list[Document]) -> None:
    (route,) = of_kind(documents, "HTTPRoute")
    (slice_,) = of_kind(documents, "EndpointSlice")
    other = slice_["metadata"]["labels"]["kubernetes.io/service-name"]
    (service,) = (document for document in of_kind(documents, "Service") if document["metadata"]["name"] == other)
    assert "selector" not in service["spec"], "its addresses are those of the slice"
    assert [(port["name"], port["port"]) for port in service["spec"]["ports"]] == [
        (port["name"], port["port"]) for port in slice_["ports"]
    ]
    for one in (service, slice_):
        assert one["metadata"]["namespace"] == route["metadata"]["namespace"]
    for rule in route["spec"]["rules"]:
        own, there = rule["backendRefs"]
        assert own == {"name": "dray-serve-svc", "port": 8000, "weight": 90}
        assert there == {"name": other, "port": service["spec"]["ports"][0]["port"], "weight": 10}
