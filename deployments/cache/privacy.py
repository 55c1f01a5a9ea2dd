"""A router's check of the keys of encryption at its start: wrong ones are named in the log, not found out by misses."""

import logging
from contextlib import suppress

from cluster.records.privacy import CHECK, fault_of, renewed_check
from deployments.common.redis import RedisStore, RedisUnavailable

log = logging.getLogger("dray.privacy")


async def check_keys(teams: RedisStore) -> None:
    """Logs why this router could not read what Redis keeps; otherwise, the others can check against its key."""
    with suppress(RedisUnavailable):
        stored = await teams.get(CHECK)
        if fault := fault_of(stored):
            log.error("the keys of encryption do not fit", extra={"reason": fault})
        elif (value := renewed_check(stored)) is not None:
            await teams.execute("SET", CHECK, value)
