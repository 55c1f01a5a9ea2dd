"""Who may reach whom under NetworkPolicies, by the rules of networking.k8s.io/v1.

Policies only allow: a pod that none of them selects for a direction is open in that direction, and one that some select
is open to what at least one of these allows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from tests.k8s.manifests import Document


@dataclass(frozen=True)
class Place:
    """A pod, or with an empty namespace an address outside of the pod network: a node, what runs on its host network,
    or the internet. No selector matches such a place and no policy holds it.

    ports: the pod's port numbers by name.
    """

    ip: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    namespace_labels: Mapping[str, str] = field(default_factory=dict)


def may_reach(policies: Iterable[Document], source: Place, target: Place, port: int, protocol: str = "TCP") -> bool:
    """Whether the source may connect to this port of the target."""
    policies = list(policies)
    leaves = _open(policies, "Egress", source, target, target.ports, port, protocol)
    return leaves and _open(policies, "Ingress", target, source, target.ports, port, protocol)


def _open(
    policies: list[Document],
    direction: str,
    held: Place,
    peer: Place,
    names: Mapping[str, int],
    port: int,
    protocol: str,
) -> bool:
    """Whether the policies that hold a place allow this direction of a connection with a peer.

    names: the target's ports by name, which both directions may use.
    """
    selecting = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == held.namespace
        and direction in policy["spec"]["policyTypes"]
        and _matches(policy["spec"]["podSelector"], held.labels)
    ]
    side = "to" if direction == "Egress" else "from"
    return not selecting or any(
        (not rule.get(side) or any(_is_peer(term, held.namespace, peer) for term in rule[side]))
        and (not rule.get("ports") or any(_is_port(term, names, port, protocol) for term in rule["ports"]))
        for spec in selecting
        for rule in spec.get(direction.lower(), ())
    )


def _is_peer(term: Document, own_namespace: str, peer: Place) -> bool:
    if "ipBlock" in term:
        address, block = ip_address(peer.ip), term["ipBlock"]
        return address in ip_network(block["cidr"]) and not any(
            address in ip_network(hole) for hole in block.get("except", ())
        )
    if not peer.namespace:
        return False
    if "namespaceSelector" in term:
        labels = {"kubernetes.io/metadata.name": peer.namespace, **peer.namespace_labels}
        inside = _matches(term["namespaceSelector"], labels)
    else:
        inside = peer.namespace == own_namespace
    return inside and _matches(term.get("podSelector", {}), peer.labels)


def _is_port(term: Document, names: Mapping[str, int], port: int, protocol: str) -> bool:
    if term.get("protocol", "TCP") != protocol:
        return False
    first = names.get(term["port"]) if isinstance(term["port"], str) else term["port"]
    return first is not None and first <= port <= (term.get("endPort") or first)


def _matches(selector: Document, labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects these labels. An empty selector selects all."""
    for expression in selector.get("matchExpressions", ()):
        value, operator = labels.get(expression["key"]), expression["operator"]
        if operator in ("In", "NotIn"):
            matching = (value in expression["values"]) == (operator == "In")
        else:
            matching = (value is not None) == (operator == "Exists")
        if not matching:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())
