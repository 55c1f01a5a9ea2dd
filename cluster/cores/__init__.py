"""The machine's cores: what there is, what this process may use, and leases of them.

```
with lease_cores(4, directory, owner="qwen3-0.6b/replica-1") as lease:
    engine = subprocess.Popen(command, pass_fds=lease.pass_fds)
    pin_process(lease.cpus, engine.pid)
```
"""

from cluster.cores.affinity import PinningRefused, check_affinity, pin_process, repin
from cluster.cores.choice import choose_cores
from cluster.cores.leases import (
    CoreLease,
    NotEnoughCores,
    count_free,
    held_cores,
    lease_cores,
)
from cluster.cores.limits import Quota, UsableCores, cgroup_quota, usable_cores
from cluster.cores.locks import HeldCore, LeasesUnavailable, sweep
from cluster.cores.processor import processor_flags, processor_name
from cluster.cores.topology import Core, Topology, format_cpus, parse_cpus, read_topology

__all__ = [
    "Core",
    "CoreLease",
    "HeldCore",
    "LeasesUnavailable",
    "NotEnoughCores",
    "PinningRefused",
    "Quota",
    "Topology",
    "UsableCores",
    "cgroup_quota",
    "check_affinity",
    "choose_cores",
    "count_free",
    "format_cpus",
    "held_cores",
    "lease_cores",
    "parse_cpus",
    "pin_process",
    "processor_flags",
    "processor_name",
    "read_topology",
    "repin",
    "sweep",
    "usable_cores",
]
