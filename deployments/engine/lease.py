"""A replica's lease, waited for."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from cluster.cores import CoreLease, NotEnoughCores, lease_cores

_WAIT_S = 60.0


async def wait_for_lease(cores: int, directory: Path, owner: str, missed: Callable[[], object]) -> CoreLease:
    """Waits a while: in a rolling update the replica that goes still holds its cores for a moment.

    missed: called where that was in vain. Raises NotEnoughCores when none can be had within a minute.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _WAIT_S
    while True:
        try:
            return lease_cores(cores, directory, owner=owner)
        except NotEnoughCores:
            if loop.time() > deadline:
                missed()
                raise
            await asyncio.sleep(0.2)
