"""The network policies that a cluster needs besides those of k8s/base, because of addresses and ports of its own.

Policies only ever allow, so one more of them opens what it names and changes none of the others.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import Any
from urllib.parse import urlsplit

from cluster.settings import Settings

_PART, _COMPONENT = "app.kubernetes.io/part-of", "app.kubernetes.io/component"
_DNS_PORTS = [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]


def more_policies(settings: Settings) -> list[dict[str, Any]]:
    """The NetworkPolicies that follow from the settings; none for the default ones."""
    kubernetes, policies = settings.kubernetes, []
    if kubernetes.dns_addresses:
        rule = {"to": _blocks(kubernetes.dns_addresses), "ports": _DNS_PORTS}
        policies.append(_policy("dray-more-names", {}, "Egress", rule))
    if kubernetes.client_networks:
        rule = {"from": _blocks(kubernetes.client_networks), "ports": [{"protocol": "TCP", "port": "serve"}]}
        policies.append(_policy("dray-more-clients", _pods("router", "engine"), "Ingress", rule))
    if kubernetes.api_server_ports:
        rule = {"ports": [{"protocol": "TCP", "port": port} for port in kubernetes.api_server_ports]}
        policies.append(_policy("dray-more-head-api", _pods("head"), "Egress", rule))
    if kubernetes.proxy:
        # A policy cannot name a host, so it opens the port.
        rule = {"ports": [{"protocol": "TCP", "port": _port(kubernetes.proxy)}]}
        policies.append(_policy("dray-more-models", _pods("models"), "Egress", rule))
    return policies


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


def _pods(*components: str) -> dict[str, Any]:
    expression = {"key": _COMPONENT, "operator": "In", "values": list(components)}
    return {"matchLabels": {_PART: "dray"}, "matchExpressions": [expression]}


def _blocks(networks: Iterable[IPv4Network | IPv6Network]) -> list[dict[str, Any]]:
    return [{"ipBlock": {"cidr": str(network)}} for network in networks]


def _policy(name: str, pods: dict[str, Any], direction: str, rule: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name},
        "spec": {"podSelector": pods, "policyTypes": [direction], direction.lower(): [rule]},
    }
