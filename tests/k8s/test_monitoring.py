"""Alerts and dashboard: their expressions parse, and name existing metrics and labels."""

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
_TARGET_LABELS = {"pod", "namespace", "component"}
"""Labels that Prometheus adds to every series of a pod."""


@pytest.fixture(scope="module")
def defined() -> dict[str, set[str]]:
    """The labels of every series that Dray's processes export, by the name of the series."""
    registry = CollectorRegistry()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "CollectorRegistry", lambda: registry)
        metrics.RouterMetrics()
        metrics.EngineMetrics("m", "r")
    series: dict[str, set[str]] = {}
    for collector in (*registry._collector_to_names, *scaling_metrics._own._collector_to_names):
        assert isinstance(collector, MetricWrapperBase)
        (metric,) = collector.describe()
        labels = {*collector._labelnames, *(("le",) if metric.type == "histogram" else ())}
        series |= {metric.name + suffix: labels for suffix in _SUFFIXES[metric.type]}
    return series


def alerts() -> dict[str, dict[str, object]]:
    (document,) = of_kind(list(yaml.safe_load_all((MONITORING / "rules.yaml").read_text())), "PrometheusRule")
    return {rule["alert"]: rule for group in document["spec"]["groups"] for rule in group["rules"]}


def dashboard() -> dict[str, str]:
    """The dashboard's expressions, by title of their panel."""
    panels = json.loads((MONITORING / "dray.json").read_text())["panels"]
    return {
        f"{panel['title']} {target['refId']}": target["expr"] for panel in panels for target in panel.get("targets", ())
    }


def expressions() -> dict[str, str]:
    return {name: str(rule["expr"]) for name, rule in alerts().items()} | dashboard()


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Metrics of an expression, each with its selecting labels. Raises ValueError if it does not parse."""
    todo = [promql_parser.parse(expression.replace("$__rate_interval", "5m"))]
    while todo:
        node = todo.pop()
        if isinstance(node, promql_parser.VectorSelector):
            yield str(node.name), {matcher.name for matcher in node.matchers.matchers}
        parts = [getattr(node, name, None) for name in ("expr", "lhs", "rhs", "param", "vector_selector", "vs")]
        todo += [part for part in (*parts, *getattr(node, "args", ())) if isinstance(part, promql_parser.Expr)]


@pytest.mark.parametrize("name", expressions())
def test_an_expression_names_existing_metrics_and_labels(name: str, defined: dict[str, set[str]]) -> None:
    expression = expressions()[name]
    selected = list(selectors(expression))
    assert selected
    for metric, labels in selected:
        assert metric in defined, expression
        assert labels <= defined[metric] | _TARGET_LABELS, expression
    known = set.union(*(defined[metric] for metric, _ in selected)) | _TARGET_LABELS
    for group in re.findall(r"by \(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= known, expression


def test_an_unknown_metric_would_be_noticed(defined: dict[str, set[str]]) -> None:
    (metric,) = (name for name, _ in selectors("sum(rate(dray_request_total[5m]))"))
    assert metric not in defined
    assert {"dray_requests_total", "dray_request_seconds_bucket", "dray_engine_info"} <= set(defined)


def test_every_metric_is_on_the_dashboard(defined: dict[str, set[str]]) -> None:
    shown = {metric for expression in dashboard().values() for metric, _ in selectors(expression)}
    shown_metrics = {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in shown}
    all_metrics = {re.sub(r"_(bucket|sum|count)$", "", metric) for metric in defined}
    assert shown_metrics == all_metrics


def test_every_alert_has_a_section_in_the_manual() -> None:
    manual = (ROOT / "docs" / "operations.md").read_text()
    titles = re.findall(r"^### (Dray\w+)$", manual, flags=re.MULTILINE)
    assert titles == list(alerts())
    for name, rule in alerts().items():
        annotations = rule["annotations"]
        assert isinstance(annotations, dict)
        assert annotations["runbook"] == f"docs/operations.md#{name.lower()}"
        assert rule["labels"] in ({"severity": "critical"}, {"severity": "warning"})


def test_monitors_name_ports_of_pods() -> None:
    documents = kustomize(MONITORING)
    templates = [template for _, template in pod_templates(kustomize(K8S / "overlays" / "production"))]
    for monitor in of_kind(documents, "PodMonitor"):
        spec = monitor["spec"]
        (expression,) = spec["selector"]["matchExpressions"]
        for component in expression["values"]:
            selected = [
                template for template in templates if template["metadata"]["labels"].get(expression["key"]) == component
            ]
            assert selected
            for template in selected:
                ports = {port["name"] for container in containers(template) for port in container.get("ports", ())}
                assert {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]} <= ports, component
    for document in documents:
        assert document["metadata"]["labels"]["release"] == "kube-prometheus-stack", "its Prometheus reads no others"
    (config,) = of_kind(documents, "ConfigMap")
    assert json.loads(config["data"]["dray.json"])["uid"] == "dray"
