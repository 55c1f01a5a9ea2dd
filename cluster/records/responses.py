"""Stored responses as Redis holds them: how keys are named, and what operators do with them.

A response is one value at `dray:response:{OWNER}:ID`. A sorted set of the owner's ids, by the time they were stored,
keeps their number bounded. Another one has those that are still generated in the background, by the time at which their
routers' leases expire. The braces keep all keys of an owner on one node of a cluster. An owner is `team.NAME`, or the
namespace of all callers while no key is needed.
"""

from urllib.parse import quote

from cluster.records.client import BlockingRedis

_PREFIX, _IDS_PREFIX, _RUNNING_PREFIX = "dray:response:", "dray:responses:", "dray:responses-running:"
_BATCH = 500


def response_key(owner: str, response_id: str) -> str:
    """The key of a response; without an id, the beginning of the keys of all."""
    return f"{_PREFIX}{{{quote(owner, safe='')}}}:{response_id}"


def ids_key(owner: str) -> str:
    """The key of the ids of an owner's responses."""
    return f"{_IDS_PREFIX}{{{quote(owner, safe='')}}}"


def running_key(owner: str) -> str:
    """The key of the ids of an owner's responses that are being generated in the background."""
    return f"{_RUNNING_PREFIX}{{{quote(owner, safe='')}}}"


def clear_responses(client: BlockingRedis, owner: str = "") -> int:
    """Removes all stored responses, or those of an owner. Returns their number."""
    _remove(client, ids_key(owner) if owner else f"{_IDS_PREFIX}*")
    # The routers that generate them notice it, and stop.
    _remove(client, running_key(owner) if owner else f"{_RUNNING_PREFIX}*")
    return _remove(client, f"{response_key(owner, '')}*" if owner else f"{_PREFIX}*")


def _remove(client: BlockingRedis, pattern: str) -> int:
    keys = list(client.scan_iter(match=pattern, count=_BATCH))
    # One command a key, in a pipeline: in a cluster the keys are on different nodes.
    with client.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.unlink(key)
        return sum(pipe.execute())


def all_responses() -> str:
    """A pattern for the keys of all responses."""
    return f"{_PREFIX}*"
