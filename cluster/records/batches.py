"""Files and batches as the teams' Redis holds them: how keys are named.

All keys share one node of a cluster ({batches}), because a step of a batch changes several of them at once. The bytes
of files and answers are not here but in objects (cluster.objects). An owner is `team.NAME`, or the namespace of all
callers while no key is needed.

- `dray:{batches}:files:OWNER`: a hash of the owner's files, by id; `sizes:OWNER`: the bytes of each.
- `dray:{batches}:owners`: a set of the owners that have files.
- `dray:{batches}:of:OWNER`: a sorted set of the ids of the owner's batches, by the time of their creation.
- `dray:{batches}:batch:ID`: a hash of the fields of a batch.
- `dray:{batches}:open`: a hash of the batches that have not ended, by id: the owner, and the input file.
- `dray:{batches}:todo:ID`: a sorted set of the batch's tasks that are left, by the time (in ms) until which a router
  holds a lease on each; `holders:ID`: who holds it; `parts:ID`: by chunk of lines, the object with the answers to them.
"""

from typing import Literal

OPEN = "dray:{batches}:open"
OWNERS = "dray:{batches}:owners"
SWEEPING = "dray:{batches}:sweeping"
"""Who removes what has expired takes this key for a while; one that ends in a Ray cluster's name, if no other cluster
reaches its objects."""


def owner_key(kind: Literal["files", "sizes", "of"], owner: str) -> str:
    """A key of an owner: its files, their sizes, or the ids of its batches."""
    return f"dray:{{batches}}:{kind}:{owner}"


def batch_key(kind: Literal["batch", "todo", "holders", "parts"], batch_id: str) -> str:
    """A key of a batch."""
    return f"dray:{{batches}}:{kind}:{batch_id}"
