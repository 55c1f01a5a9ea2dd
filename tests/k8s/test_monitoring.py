"""Alerts and dashboard: their expressions parse, and name metrics and labels that there are."""

import json
import re
from collections.abc import Iterator

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from cluster import scaling_metrics
from deployments.observability import metrics
from tests.k8s.manifests import K8S, ROOT, containers, kustomize, of_kind, pod_templates

MONITORING = K8S / "monitoring"
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
_OF_THE_TARGET = {"pod", "namespace", "component"}
"""Labels that Prometheus adds to every series of a pod."""


@pytest.fixture(scope="module")
def defined() -> dict[str, set[str]]:
    """Every series that Dray's processes make, by name, with its labels."""
    registry = CollectorRegistry()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "CollectorRegistry", lambda: registry)
        metrics.RouterMetrics()
        metrics.EngineMetrics("m", "r")
    found: dict[str, set[str]] = {}
    for collector in (*registry._collector_to_names, *scaling_metrics._own._collector_to_names):
        assert isinstance(collector, MetricWrapperBase)
        (metric,) = collector.describe()
        labels = {*collector._labelnames, *(("le",) if metric.type == "histogram" else ())}
        found |= {metric.name + suffix: labels for suffix in _SUFFIXES[metric.type]}
    return found


def alerts() -> dict[str, dict[str, object]]:
    (rule,) = of_kind(list(yaml.safe_load_all((MONITORING / "rules.yaml").read_text())), "PrometheusRule")
    return {one["alert"]: one for group in rule["spec"]["groups"] for one in group["rules"]}


def dashboard() -> dict[str, str]:
    """Expressions of the dashboard by their panel's title."""
    panels = json.loads((MONITORING / "dray.json").read_text())["panels"]
    return {
        f"{panel['title']} {target['refId']}": target["expr"] for panel in panels for target in panel.get("targets", ())
    }


def expressions() -> dict[str, str]:
    return {name: str(rule["expr"]) for name, rule in alerts().items()} | dashboard()


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Metrics of an expression, each with the labels by which it is selected. ValueError where it does not parse."""
    todo = [promql_parser.parse(expression.replace("$__rate_interval", "5m"))]
    while todo:
        node = todo.pop()
        if isinstance(node, promql_parser.VectorSelector):
            yield str(node.name), {matcher.name for matcher in node.matchers.matchers}
        parts = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "param", "vector_selector", "vs")]
        todo += [part for part in (*parts, *getattr(node, "args", ())) if isinstance(part, promql_parser.Expr)]


@pytest.mark.parametrize("name", expressions())
def test_an_expression_names_what_there_is(name: str, defined: dict[str, set[str]]) -> None:
    expression = expressions()[name]
    found = list(selectors(expression))
    assert found
    for metric, labels in found:
        assert metric in defined, expression
        assert labels <= defined[metric] | _OF_THE_TARGET, expression
    known = set.union(*(defined[metric] for metric, _ in found)) | _OF_THE_TARGET
    for group in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= known, expression


def test_a_name_that_is_none_would_be_found(defined: dict[str, set[str]]) -> None:
    (metric,) = (name for name, _ in selectors("sum(rate(dray_request_total[5m]))"))
    assert metric not in defined
    assert {"dray_requests_total", "dray_request_seconds_bucket", "dray_engine_info"} <= set(defined)


def test_every_metric_is_on_the_dashboard(defined: dict[str, set[str]]) -> None:
    shown = {metric for expression in dashboard().values() for metric, _ in selectors(expression)}
    base = {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in shown}
    wanted = {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in defined}
    assert base == wanted


def test_every_alert_has_its_page() -> None:
    manual = (ROOT / "docs" / "operations.md").read_text()
    titles = re.findall(r"^### (Dray\w+)$", manual, flags=re.MULTILINE)
    assert titles == list(alerts())
    for name, rule in alerts().items():
        annotations = rule["annotations"]
        assert isinstance(annotations, dict)
        assert annotations["runbook"] == f"docs/operations.md#{name.lower()}"
        assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})


def test_monitors_find_ports_of_pods() -> None:
    documents = kustomize(MONITORING)
    templates = [template for _, template in pod_templates(kustomize(K8S / "overlays" / "production"))]
    for monitor in of_kind(documents, "PodMonitor"):
        spec = monitor["spec"]
        (expression,) = spec["selector"]["matchExpressions"]
        for component in expression["values"]:
            of_it = [one for one in templates if one["metadata"]["labels"].get(expression["key"]) == component]
            assert of_it
            for template in of_it:
                ports = {port["name"] for container in containers(template) for port in container.get("ports", ())}
                assert {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]} <= ports, component
    (dash,) = of_kind(documents, "ConfigMap")
    assert json.loads(dash["data"]["dray.json"])["uid"] == "dray"
