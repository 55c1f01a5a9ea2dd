"""What each generating model of the catalog needs and does on one replica, scaled from a profile of another model.

Memory is what `dray plan` calculates for a node. Speed is scaled: the time of a step is taken to grow with the model's
weights, which are all read and multiplied with, and to fall with the number of cores. That flatters one stream, which
more cores help only until the memory's bandwidth is used up.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from cluster.models.catalog import CATALOG
from cluster.plan.nodes import Node, capacity_for
from cluster.plan.profile import Profile, fit
from cluster.units import plural

_ENOUGH_MB = 2**20
_STREAMS, _CONTEXT, _PROMPT = 8, 64, 256


@dataclass(frozen=True, slots=True)
class CatalogEstimate:
    """A model at INT8 on one replica.

    weights_bytes: on disk. memory_mb: of a node with this replica, the service included. alone, together: tokens/s of
    one stream, and of eight. prompt: prompt tokens/s.
    """

    name: str
    weights_bytes: int
    memory_mb: int
    alone: float
    together: float
    prompt: float


def estimates(profile: Profile, cores: int) -> Iterator[CatalogEstimate]:
    """One for each generating model. cores: of the replica. Raises ProfileError."""
    times = fit(profile.points)
    alone, together = times.step(1, _CONTEXT), times.step(_STREAMS, _STREAMS * _CONTEXT)
    prompt = times.step(0, 0, _PROMPT, _PROMPT * (_PROMPT - 1) // 2)
    for entry in CATALOG.values():
        if entry.task != "generate":
            continue
        weights = entry.disk_bytes("int8")
        engine = msgspec.structs.replace(profile.engine, model=entry.name, cores=cores, weights_bytes=weights)
        needed = capacity_for(engine, 1, Node(cores, _ENOUGH_MB, spare=0), 0, 1)
        slower = weights / profile.engine.weights_bytes * profile.engine.cores / cores
        yield CatalogEstimate(
            name=entry.name,
            weights_bytes=weights,
            memory_mb=needed.node_memory_mb,
            alone=1 / (alone * slower),
            together=_STREAMS / (together * slower),
            prompt=_PROMPT / (prompt * slower),
        )


def as_markdown(profile: Profile, cores: int) -> str:
    """The estimates as a table, under a line that says what was measured. Raises ProfileError."""
    engine = profile.engine
    lines = [
        f"Calculated for one replica of {plural(cores, 'core')} at INT8. Measured: the steps of {engine.model} on "
        f"{plural(engine.cores, 'core')} of {profile.machine}, {profile.measured}.",
        "",
        "| model | weights, GB | memory, GiB | tokens/s, one stream | tokens/s, eight streams | prompt tokens/s |",
        "|---|---|---|---|---|---|",
    ]
    for row in estimates(profile, cores):
        sizes = f"{row.weights_bytes / 1e9:.1f} | {row.memory_mb / 1024:.1f}"
        lines.append(f"| {row.name} | {sizes} | {row.alone:.0f} | {row.together:.0f} | {row.prompt:.0f} |")
    return "\n".join(lines)
