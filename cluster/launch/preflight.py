"""What must hold before anything is started, each refusal one line that says what to do."""

import errno
import random
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.cores import NotEnoughCores, UsableCores, count_free, held_cores, usable_cores
from cluster.models.folder import KnownModel, ModelFolderError, check_readable, memory_needed, open_models
from cluster.redis_client import RedisUrlError, check_url
from cluster.serve_config import Engine, has_page
from cluster.settings import Settings, is_loopback

_MOST_CORES = 8
RUNTIME_BYTES = 900 * 2**20
"""Ray with Serve, HAProxy, one router and a replica's own Python."""
_PAGE_BYTES = 170 * 2**20
_LONGEST_STATE_DIR = 40
_BLOCKS = range(20_000, 30_000, 100)
_CGROUP_MEMORY = Path("/sys/fs/cgroup")
_CPUINFO = Path("/proc/cpuinfo")


class LaunchError(Exception):
    """Dray cannot start here, and why."""


@dataclass(frozen=True, slots=True)
class PreflightResult:
    """What the checks found: the engines to run, and the cores that may be leased in all."""

    engines: tuple[Engine, ...]
    usable: int

    @property
    def leased(self) -> int:
        """Cores that all replicas lease together."""
        return sum(engine.leased for engine in self.engines)


def check(settings: Settings) -> PreflightResult:
    """Holds the settings against the machine. Raises LaunchError with the first thing that does not fit."""
    check_state_dir(settings.state_dir)
    if settings.cluster.head and is_loopback(settings.host):
        raise LaunchError(f"host {settings.host} is reached from this machine only; with --head, choose --host 0.0.0.0")
    check_port(settings.host, settings.port)
    for url in filter(None, (settings.cache.url, settings.teams.url)):
        try:
            check_url(url)
        except RedisUrlError as error:
            raise LaunchError(str(error)) from None
    check_processor()
    usable = usable_cores()
    found = find_engines(settings, usable)
    check_cores(settings, found, usable, count_free(settings.core_lock_dir, usable=usable))
    check_memory(found.engines, base_memory(settings), available_memory())
    return found


def check_change(settings: Settings, running: Sequence[Engine]) -> tuple[PreflightResult, int, bool]:
    """Holds changed settings against the machine on which these engines run.

    Gives what was found, how many cores nobody leases now, and whether there is memory for all new engines beside
    those that run. Raises LaunchError where the new ones would not fit even alone.
    """
    usable = usable_cores()
    found = find_engines(settings, usable)
    free = count_free(settings.core_lock_dir, usable=usable)
    check_cores(settings, found, usable, free + sum(engine.leased for engine in running))
    there = available_memory()
    check_memory(found.engines, 0, there + sum(memory_needed(engine.model) for engine in running))
    names = {engine.application for engine in running}
    added = sum(memory_needed(engine.model) for engine in found.engines if engine.application not in names)
    return found, free, added <= there


def check_processor(cpuinfo: Path = _CPUINFO) -> str:
    """What the processor offers to INT8, the fastest first. Raises LaunchError where that is too little.

    cpuinfo: as /proc/cpuinfo is. Arm's has no `flags`, and nothing is asked of it.
    """
    line = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
    flags = set(line.partition(":")[2].split())
    if line and "avx2" not in flags:
        raise LaunchError(
            "this processor has no AVX2, without which INT8 models are far too slow; in a virtual machine, let the "
            "hypervisor pass the host's processor through"
        )
    fast = [name for name in ("amx_int8", "avx512_vnni", "avx_vnni", "avx2") if name in flags]
    return f"INT8 by {', '.join(fast)}" if fast else "no x86, nothing to check"


def check_state_dir(folder: Path) -> None:
    """Raises LaunchError where sockets below the folder would have too long a path."""
    if len(str(folder)) > _LONGEST_STATE_DIR:
        raise LaunchError(
            f"state_dir {folder} is longer than {_LONGEST_STATE_DIR} characters: "
            "the paths of the sockets below it would not fit"
        )


def find_engines(settings: Settings, usable: UsableCores) -> PreflightResult:
    """The engines of the settings' models, each model checked. Raises LaunchError."""
    try:
        models = open_models(settings)
        for model in models:
            check_readable(model)
    except ModelFolderError as error:
        raise LaunchError(str(error)) from None
    similar = settings.cache.similarity_model
    if similar and not any(similar in model.names and model.settings.task == "embed" for model in models):
        raise LaunchError(f"cache.similarity_model is {similar!r}, but no served model of that name has task: embed.")
    return PreflightResult(engines_of(settings, models, usable), usable.count)


def engines_of(settings: Settings, models: Sequence[KnownModel], usable: UsableCores) -> tuple[Engine, ...]:
    """The engines of models, on this machine or not, each replica with its share of the cores."""
    cores = _cores_each(models, usable.count)
    return tuple(Engine(settings, model, cores[model.name], model.settings.replicas) for model in models)


def check_port(host: str, port: int) -> None:
    """Raises LaunchError where something listens there already, or nothing may."""
    # Without SO_REUSEPORT: HAProxy sets it, so a second one would share the port in silence.
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise LaunchError(f"port {port} on {host} is in use; choose another with --port") from None
            raise LaunchError(f"cannot listen on {host}:{port}: {error.strerror}") from None


@contextmanager
def port_block() -> Iterator[range]:
    """Ports that no other Dray on this machine has, for as long as the block runs.

    HAProxy and Serve's replicas bind theirs with SO_REUSEPORT: two Drays that chose one would share its connections.
    """
    starts = list(_BLOCKS)
    random.shuffle(starts)
    for start in starts:
        with socket.socket() as mark:
            try:
                mark.bind(("127.0.0.1", start))
                for port in range(start + 1, start + _BLOCKS.step):
                    with socket.socket() as probe:
                        probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            yield range(start + 1, start + _BLOCKS.step)
            return
    raise LaunchError(f"no {_BLOCKS.step} ports in a row are free between {_BLOCKS.start} and {_BLOCKS.stop}")


def _cores_each(models: Sequence[KnownModel], usable: int) -> dict[str, int]:
    """Whole cores of each model's replicas: what was wished, and equal shares of the rest."""
    wished = [(model, model.settings.cores_per_replica, model.settings.replicas) for model in models]
    left = usable - sum(cores * replicas for _, cores, replicas in wished)
    sharing = sum(replicas for _, cores, replicas in wished if not cores)
    share = max(1, min(left // sharing, _MOST_CORES)) if sharing else 0
    return {model.name: cores or share for model, cores, _ in wished}


def check_cores(settings: Settings, found: PreflightResult, usable: UsableCores, free: int) -> None:
    """Raises LaunchError where the engines want more cores than are free."""
    # What has no place here may have one on a machine that joins; one replica of each model must begin.
    needed = sum(one.cores for one in found.engines) if settings.cluster.head else found.leased
    if needed > free:
        short = str(NotEnoughCores(needed, free, usable, tuple(held_cores(settings.core_lock_dir))))
        sums = (f"{one.model.name}: {one.replicas} x {one.cores}" for one in found.engines)
        raise LaunchError(f"{short} ({', '.join(sums)})" if len(found.engines) > 1 else short)


def base_memory(settings: Settings) -> int:
    """Bytes of all that is no engine: Redis, Ray, the routers, the chat page."""
    return settings.cache.memory_mb * 2**20 + RUNTIME_BYTES + (_PAGE_BYTES if has_page(settings) else 0)


def check_memory(engines: Sequence[Engine], base: int, there: int) -> str:
    """Says what is needed and what is there. Raises LaunchError where it is too little."""
    needs = {engine.model.name: memory_needed(engine.model) for engine in engines}
    parts = [f"{name} {_gib(size)}" for name, size in needs.items()] + ([f"Redis and Ray {_gib(base)}"] if base else [])
    said = f"{' + '.join(parts)} need {_gib(base + sum(needs.values()))} of memory and {_gib(there)} is available"
    if base + sum(needs.values()) > there:
        raise LaunchError(f"{said}; use fewer replicas or a smaller model.kv_cache_mb")
    return said


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def available_memory() -> int:
    """Bytes that may still be used: the machine's, or less where a cgroup says so."""
    there = int(psutil.virtual_memory().available)
    limit = memory_limit()
    return there if limit is None else min(there, limit - int((_CGROUP_MEMORY / "memory.current").read_text()))


def memory_limit() -> int | None:
    """Bytes that this process's cgroup may use; None without a limit."""
    try:
        limit = (_CGROUP_MEMORY / "memory.max").read_text().strip()
    except OSError:
        return None
    return None if limit == "max" else int(limit)
