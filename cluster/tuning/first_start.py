"""Measures an engine's variants at a model's first start on a processor: two of them, each alone, within seconds.

One at a time takes no more memory than the engine that starts afterwards. `dray tune` measures more carefully.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.cores import CoreLease
from cluster.models.folder import ServedModel
from cluster.tuning.choice import Dropped, Timed, scores_of
from cluster.tuning.kept import engine_choice, find, is_measured, keep
from cluster.tuning.tasks import TimeTask, TuneError, run_task
from cluster.tuning.variants import SMALL_BYTES, allowed

log = logging.getLogger("dray.tuning")

_MAX_SECONDS = 90.0
_MAX_SHARE = 1 / 3
"""Of the time that an engine has for its start."""
_VARIANTS = 2
_POLL_S = 0.2


def is_due(model: ServedModel, cores: int, data_dir: Path | None, *, min_bytes: int = SMALL_BYTES) -> bool:
    """Whether the next start of the model's engines measures. min_bytes: of the weights; smaller models never do."""
    if model.settings.task != "generate" or model.weights_bytes < min_bytes:
        return False
    options = allowed(model, cores)
    if len(options) == 1:
        return False
    kept = find(model, cores, data_dir)
    return not is_measured(options, kept.scores if kept else {})


def measure_once(
    model: ServedModel, models_dir: Path, lease: CoreLease, data_dir: Path, *, min_bytes: int = SMALL_BYTES
) -> None:
    """Measures the variants and keeps the scores, unless that is not due. Blocks for seconds.

    Of several replicas one measures, and the others wait for it. Whatever goes wrong is logged, and the engine starts
    with the variant that is taken unmeasured.
    """
    cores = len(lease.cpus)
    deadline = time.monotonic() + min(_MAX_SECONDS, _MAX_SHARE * model.settings.start_timeout_s)
    if not is_due(model, cores, data_dir, min_bytes=min_bytes):
        return
    try:
        with _alone(model.folder, deadline):
            if is_due(model, cores, data_dir, min_bytes=min_bytes):
                began = time.monotonic()
                scores = _measure(model, models_dir, lease, deadline)
                file = keep(model, cores, scores, data_dir)
                seconds = round(time.monotonic() - began, 1)
                found = {"model": model.name, "scores": scores, "seconds": seconds, "file": str(file)}
                log.info("measured how to multiply", extra=found)
    except (TuneError, OSError) as error:
        log.warning(
            "%s: %s; the engine starts with %s. `dray tune` measures without haste",
            model.name,
            error,
            engine_choice(model, cores, data_dir).variant,
        )


def _measure(model: ServedModel, models_dir: Path, lease: CoreLease, deadline: float) -> dict[str, float]:
    timed: list[Timed] = []
    dropped: list[Dropped] = []
    options = allowed(model, len(lease.cpus))
    for variant in options:
        if len(timed) == _VARIANTS or variant.longer is not None:
            break
        left = deadline - time.monotonic()
        if left <= 0:
            raise TuneError("measuring took too long")
        result = run_task(model, models_dir, lease, TimeTask(variant), left)
        if isinstance(result, Timed):
            timed.append(result)
        elif isinstance(result, Dropped):
            log.warning("%s: %s does not work here: %s", model.name, variant, result.reason)
            dropped.append(result)
    if not timed:
        raise TuneError(f"no variant of the engine works here ({dropped[-1].reason})")
    return scores_of(timed, dropped, options)


@contextmanager
def _alone(folder: Path, deadline: float) -> Iterator[None]:
    """Holds a lock on the model's folder during the block. Raises TuneError if another process keeps it too long."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TuneError("another process is measuring the model and does not end") from None
                time.sleep(_POLL_S)
            except OSError:  # as on NFS, where what is open for reading cannot be locked: then several measure
                break
        yield
    finally:
        os.close(descriptor)
