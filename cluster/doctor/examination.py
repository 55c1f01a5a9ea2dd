"""The order of the checks."""

import os
from collections.abc import Iterator
from pathlib import Path

from cluster.cores import usable_cores
from cluster.doctor import kubernetes, machine, models, network, privacy
from cluster.doctor.finding import Finding, attempt
from cluster.launch.preflight import check_processor
from cluster.launch.state import read_record
from cluster.models.folder import KnownModel
from cluster.settings import Settings

_CPU_MANAGER = Path("/var/lib/kubelet/cpu_manager_state")


def examine(settings: Settings, *, offline: bool = False, cpu_manager: Path = _CPU_MANAGER) -> Iterator[Finding]:
    """Runs every check in turn; none changes anything.

    offline: do not contact model hubs. cpu_manager: where the kubelet of this node writes its CPU manager's state.
    """
    # In a pod the settings describe the whole cluster, and `dray k8s render` has sized each pod from them.
    pod = "KUBERNETES_SERVICE_HOST" in os.environ
    usable = usable_cores()
    record = read_record(settings.state_dir)
    yield attempt("processor", check_processor)
    yield machine.check_numa(settings, usable)
    yield machine.check_limits()
    known: list[KnownModel] = []
    for finding, model in models.check_models(settings):
        known += [model] if model else []
        yield finding
    if not pod:
        yield from models.check_room(settings, usable, known, record)
        yield from network.check_ports(settings, record)
        yield machine.check_other_rays(record)
    yield machine.check_shared_memory()
    yield from machine.check_disks(settings)
    yield from network.check_redis(settings)
    yield from privacy.check_privacy(settings, record)
    yield machine.check_packages()
    yield machine.check_chat_page(settings)
    if not offline:
        yield from network.check_hubs()
    if pod:
        yield kubernetes.check_pod(usable)
    elif os.access(cpu_manager, os.R_OK):
        yield kubernetes.check_node(cpu_manager)
