"""The same cores as one replica or as several: tokens a second of all replicas together, at work at the same time."""

from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

from cluster.cores import CoreLease
from cluster.models.folder import ServedModel
from cluster.tuning.choice import STREAMS
from cluster.tuning.tasks import Loaded, Rate, RateTask, started
from cluster.tuning.variants import Variant

_SECONDS = 4.0


class Split(msgspec.Struct, frozen=True):
    """Replicas of `cores` each, and what they do in a second together. streams: of all replicas."""

    replicas: int
    cores: int
    variant: Variant
    streams: int
    decoded_tokens_per_s: float
    prompt_tokens_per_s: float


def measure_split(
    model: ServedModel,
    models_dir: Path,
    lease: CoreLease,
    variant: Variant,
    replicas: int,
    seconds: float = _SECONDS,
) -> Split | None:
    """Runs this many processes, each on its share of the lease's cores and of the streams; None if one fails.

    seconds: of each load.
    """
    cores = len(lease.cpus) // replicas
    streams = min(STREAMS[-1] // replicas, model.settings.max_num_seqs)
    task = RateTask(variant, streams, seconds)
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                started(model, models_dir, lease, lease.cpus[replica * cores : (replica + 1) * cores], task)
            )
            for replica in range(replicas)
        ]
        if not all(isinstance(next(results, None), Loaded) for _, results in processes):
            return None
        for process, _ in processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it has just died; then there is no rate
                process.stdin.write(b"\n")
                process.stdin.flush()
        rates = [rate for _, results in processes if isinstance(rate := next(results, None), Rate)]
    if len(rates) < replicas:
        return None
    decoded, prompt = sum(rate.decode for rate in rates), sum(rate.prompt for rate in rates)
    return Split(replicas, cores, variant, streams * replicas, decoded, prompt)
