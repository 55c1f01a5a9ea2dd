"""Waits for a replica's lease of cores."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from cluster.cores import CoreLease, NotEnoughCores, lease_cores

_WAIT_S = 60.0
_LOCK_WAIT_S = 5.0
"""Waiting for the lock of all leases stops the event loop, so it must end before this process counts as hung."""


async def wait_for_lease(cores: int, directory: Path, owner: str, on_timeout: Callable[[], object]) -> CoreLease:
    """Leases cores, and waits for them: in a rolling update the old replica holds its cores a moment longer.

    owner: shown in errors of others that find no cores. on_timeout: called before NotEnoughCores is raised.
    Raises NotEnoughCores if the cores are not free within a minute.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _WAIT_S
    while True:
        try:
            return lease_cores(cores, directory, owner=owner, wait_s=_LOCK_WAIT_S)
        except NotEnoughCores:
            if loop.time() > deadline:
                on_timeout()
                raise
            await asyncio.sleep(0.2)
