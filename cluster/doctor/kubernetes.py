"""Checks under Kubernetes: whether an engine has its CPUs to itself."""

import json
from pathlib import Path

from cluster.cores import UsableCores, format_cpus
from cluster.doctor.finding import Finding

_ADVICE = "set cpuManagerPolicy: static on the node, and give the pod whole CPUs with requests equal to limits"


def check_pod(usable: UsableCores) -> Finding:
    """Whether the pod that this runs in has exclusive CPUs."""
    every = {cpu for core in usable.topology.cores for cpu in core.cpus}
    limited_by_quota = usable.quota is not None and usable.quota.cpus != len(usable.allowed)
    if usable.allowed >= every or limited_by_quota:
        shared = f"this pod shares CPUs {format_cpus(usable.allowed)}, so another pod may choose the same cores"
        return Finding("Kubernetes", "warning", f"{shared}; {_ADVICE}")
    return Finding("Kubernetes", "passed", f"this pod is pinned to CPUs {format_cpus(usable.allowed)}")


def check_node(cpu_manager: Path) -> Finding:
    """Whether the kubelet of this node gives pods exclusive CPUs. cpu_manager: its state file."""
    policy = json.loads(cpu_manager.read_text()).get("policyName")
    state = f"this node's CPU manager policy is {policy}"
    if policy != "static":
        return Finding("Kubernetes", "warning", f"{state}; {_ADVICE}")
    return Finding("Kubernetes", "passed", state)
