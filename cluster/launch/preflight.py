"""Checks before anything is started. Each refusal is one line that says what to do."""

import errno
import random
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.cores import NotEnoughCores, UsableCores, count_free, held_cores, processor_flags, usable_cores
from cluster.launch.haproxy import addresses_of
from cluster.memory import available_memory
from cluster.models.folder import KnownModel, ModelFolderError, check_readable, memory_needed, open_models
from cluster.redis_client import RedisUrlError, check_url
from cluster.serve_config import Engine, has_page
from cluster.settings import Settings, is_loopback
from cluster.units import format_bytes

_MAX_DEFAULT_CORES = 8
_CORES_FOR_TWO_ROUTERS = 4
RUNTIME_BYTES = 900 * 2**20
"""Memory of Ray with Serve, HAProxy, one router and a replica's own Python."""
_ROUTER_BYTES = 250 * 2**20
"""Of each further router."""
_PAGE_BYTES = 170 * 2**20
_MAX_STATE_DIR_CHARS = 40
_BLOCKS = range(20_000, 30_000, 100)


class LaunchError(Exception):
    """Dray cannot start here or apply a change; the message says why."""


@dataclass(frozen=True, slots=True)
class PreflightResult:
    """The engines to run, and the number of cores that may be leased in all."""

    engines: tuple[Engine, ...]
    usable: int

    @property
    def leased(self) -> int:
        """Cores that all replicas together lease."""
        return sum(engine.leased_cores for engine in self.engines)


def with_routers(settings: Settings, usable: int) -> Settings:
    """The settings with a number of routers. usable: cores of this machine.

    Where none is set: two on a machine of some size, so that the death of one breaks half of the streams and refuses no
    request. With a head one, as each machine runs at most one.
    """
    router = settings.router
    if router.replicas or settings.cluster.head or usable < _CORES_FOR_TWO_ROUTERS:
        return settings
    return settings.model_copy(update={"router": router.model_copy(update={"replicas": 2})})


def check(settings: Settings) -> PreflightResult:
    """Checks the settings against this machine. Raises LaunchError for the first one that does not fit."""
    check_state_dir(settings.state_dir)
    if settings.cluster.head and is_loopback(settings.host):
        raise LaunchError(f"host {settings.host} is reachable from this machine only; with --head, use --host 0.0.0.0")
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
    """Checks changed settings against this machine, on which these engines run.

    Returns the new engines, the number of cores that nobody leases now, and whether memory allows all new engines
    beside the running ones. Raises LaunchError where the new ones would not even fit alone.
    """
    usable = usable_cores()
    found = find_engines(settings, usable)
    free = count_free(settings.core_lock_dir, usable=usable)
    check_cores(settings, found, usable, free + sum(engine.leased_cores for engine in running))
    available = available_memory()
    check_memory(found.engines, 0, available + sum(memory_needed(engine.model) for engine in running))
    names = {engine.application for engine in running}
    added = sum(memory_needed(engine.model) for engine in found.engines if engine.application not in names)
    return found, free, added <= available


def check_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Names the processor's INT8 instructions, fastest first. Raises LaunchError without AVX2.

    cpuinfo: in the format of /proc/cpuinfo. On Arm it has no `flags` line, and nothing is required.
    """
    flags = processor_flags(cpuinfo)
    if flags and "avx2" not in flags:
        raise LaunchError(
            "this processor has no AVX2, without which INT8 models are far too slow; in a virtual machine, "
            "configure the hypervisor to pass the host's CPU model through"
        )
    fast = [name for name in ("amx_int8", "avx512_vnni", "avx_vnni", "avx2") if name in flags]
    return f"INT8 with {', '.join(fast)}" if fast else "not x86, nothing to check"


def check_state_dir(folder: Path) -> None:
    """Raises LaunchError if the paths of sockets below the folder would be too long."""
    if len(str(folder)) > _MAX_STATE_DIR_CHARS:
        raise LaunchError(
            f"state_dir {folder} is longer than {_MAX_STATE_DIR_CHARS} characters: "
            "the paths of sockets below it would exceed the kernel's limit"
        )


def find_engines(settings: Settings, usable: UsableCores) -> PreflightResult:
    """Checks each model of the settings and returns their engines. Raises LaunchError."""
    try:
        models = open_models(settings)
        for model in models:
            check_readable(model)
    except ModelFolderError as error:
        raise LaunchError(str(error)) from None
    embedder = settings.cache.similarity_model
    if embedder and not any(embedder in model.names and model.settings.task == "embed" for model in models):
        raise LaunchError(f"cache.similarity_model is {embedder!r}, but no served model of that name has task: embed")
    return PreflightResult(engines_of(settings, models, usable), usable.count)


def engines_of(settings: Settings, models: Sequence[KnownModel], usable: UsableCores) -> tuple[Engine, ...]:
    """The engines of models, present on this machine or not, with the cores of each replica."""
    cores = _cores_per_replica(models, usable.count)
    return tuple(Engine(settings, model, cores[model.name], model.settings.replicas) for model in models)


def check_port(host: str, port: int) -> None:
    """Raises LaunchError if the port is in use, or this process may not listen there."""
    for address in addresses_of(host):
        _check_port(address, port)


def _check_port(host: str, port: int) -> None:
    # Without SO_REUSEPORT: HAProxy sets it, so a second one would silently share the port.
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise LaunchError(f"port {port} on {host} is in use; choose another one with --port") from None
            raise LaunchError(f"cannot listen on {host}:{port}: {error.strerror}") from None


@contextmanager
def port_block() -> Iterator[range]:
    """Reserves ports that no other Dray on this machine uses, for as long as the block runs.

    HAProxy and Serve's replicas bind theirs with SO_REUSEPORT: two Drays on one port would share its connections.
    """
    starts = list(_BLOCKS)
    random.shuffle(starts)
    for start in starts:
        with socket.socket() as reservation:
            try:
                reservation.bind(("127.0.0.1", start))
                for port in range(start + 1, start + _BLOCKS.step):
                    with socket.socket() as probe:
                        probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            yield range(start + 1, start + _BLOCKS.step)
            return
    raise LaunchError(f"no {_BLOCKS.step} consecutive ports are free between {_BLOCKS.start} and {_BLOCKS.stop}")


def _cores_per_replica(models: Sequence[KnownModel], usable: int) -> dict[str, int]:
    """Whole cores for each replica by the model's name: as set, or an equal share of the remaining cores."""
    chosen = [(model, model.settings.cores_per_replica, model.settings.replicas) for model in models]
    remaining = usable - sum(cores * replicas for _, cores, replicas in chosen)
    sharing = sum(replicas for _, cores, replicas in chosen if not cores)
    share = max(1, min(remaining // sharing, _MAX_DEFAULT_CORES)) if sharing else 0
    return {model.name: cores or share for model, cores, _ in chosen}


def check_cores(settings: Settings, found: PreflightResult, usable: UsableCores, free: int) -> None:
    """Raises LaunchError if the engines need more cores than are free."""
    # With a head, further replicas may run on machines that join; one replica of each model must start here.
    needed = sum(engine.cores for engine in found.engines) if settings.cluster.head else found.leased
    if needed > free:
        shortage = str(NotEnoughCores(needed, free, usable, tuple(held_cores(settings.core_lock_dir))))
        sums = (f"{engine.model.name}: {engine.replicas} x {engine.cores}" for engine in found.engines)
        raise LaunchError(f"{shortage} ({', '.join(sums)})" if len(found.engines) > 1 else shortage)


def base_memory(settings: Settings) -> int:
    """Bytes needed besides the engines: by Redis, Ray, the routers and the chat page."""
    routers = RUNTIME_BYTES + (settings.router.replica_minimum - 1) * _ROUTER_BYTES
    return settings.cache.memory_mb * 2**20 + routers + (_PAGE_BYTES if has_page(settings) else 0)


def check_memory(engines: Sequence[Engine], base: int, available: int) -> str:
    """Returns what is needed and what is available, in words. Raises LaunchError if it does not suffice.

    base: bytes needed besides the engines. available: bytes.
    """
    needs = {engine.model.name: memory_needed(engine.model) for engine in engines}
    needs |= {"Redis and Ray": base} if base else {}
    total = sum(needs.values())
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in needs.items())
    if len(needs) == 1:
        balance = f"{next(iter(needs))} needs {format_bytes(total)} of memory"
    else:
        balance = f"{format_bytes(total)} of memory needed ({parts})"
    balance += f"; {format_bytes(available)} is available"
    if total > available:
        raise LaunchError(f"{balance}; use fewer replicas or a smaller model.kv_cache_mb")
    return balance
