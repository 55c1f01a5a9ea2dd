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
        policies.append(names(_blocks(kubernetes.dns_addresses)))
    if kubernetes.client_networks:
        policies.append(clients(_blocks(kubernetes.client_networks)))
    if kubernetes.api_server_ports:
        policies.append(api_server(_ports(*kubernetes.api_server_ports)))
    if kubernetes.proxy:
        # A policy cannot name a host, so it opens the port.
        rule = {"ports": _ports(_port(kubernetes.proxy))}
        policies.append(_policy("dray-more-models", _pods("models"), "Egress", rule))
    if settings.sign_on.issuer:
        rule = {"ports": _ports(_port(settings.sign_on.issuer))}
        policies.append(_policy("dray-sign-on", _pods("router", "engine"), "Egress", rule))
    if settings.batches.url:
        policies.append(_policy("dray-more-batches", _pods("router"), "Egress", {"ports": _ports(443)}))
    return policies


def names(peers: object) -> dict[str, Any]:
    """Lets every pod ask these name servers. peers: as a policy has them, or a text that becomes them."""
    return _policy("dray-more-names", {}, "Egress", {"to": peers, "ports": _DNS_PORTS})


def clients(peers: object) -> dict[str, Any]:
    """Lets these peers connect as clients."""
    rule = {"from": peers, "ports": _ports("serve")}
    return _policy("dray-more-clients", _pods("router", "engine"), "Ingress", rule)


def api_server(ports: object) -> dict[str, Any]:
    """Lets the head connect to these ports, at which the API server is."""
    return _policy("dray-more-head-api", _pods("head"), "Egress", {"ports": ports})


def _ports(*ports: int | str) -> list[dict[str, Any]]:
    return [{"protocol": "TCP", "port": port} for port in ports]


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
