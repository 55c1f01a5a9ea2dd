"""What must hold before anything is started, each refusal one line that says what to do."""

import errno
import random
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.cores import NotEnoughCores, count_free, held_cores, usable_cores
from cluster.models.folder import ModelFolderError, ServedModel, memory_needed, open_model
from cluster.settings import Settings

_MOST_CORES = 8
_RUNTIME_BYTES = 900 * 2**20
_LONGEST_STATE_DIR = 40
_OWN_PORTS = range(20_000, 30_000)
_CGROUP_MEMORY = Path("/sys/fs/cgroup")


class LaunchError(Exception):
    """Dray cannot start here, and why."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What the checks found: the model to serve, whole cores for each replica, and cores in all."""

    model: ServedModel
    cores: int
    usable: int


def check(settings: Settings) -> Checked:
    """Holds the settings against the machine. Raises LaunchError with the first thing that does not fit."""
    if len(str(settings.state_dir)) > _LONGEST_STATE_DIR:
        raise LaunchError(
            f"state_dir {settings.state_dir} is longer than {_LONGEST_STATE_DIR} characters: "
            "the paths of the sockets below it would not fit"
        )
    _check_port(settings.host, settings.port)
    try:
        model = open_model(settings.model)
    except ModelFolderError as error:
        raise LaunchError(str(error)) from None
    _check_readable(model)
    cores, usable = _check_cores(settings)
    _check_memory(settings, model)
    return Checked(model, cores, usable)


def _check_port(host: str, port: int) -> None:
    # Without SO_REUSEPORT: HAProxy sets it, so a second one would share the port in silence.
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise LaunchError(f"port {port} on {host} is in use; choose another with --port") from None
            raise LaunchError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def free_port() -> int:
    """A TCP port on which nothing listens, on any address.

    Drawn from between the ports of Ray's workers and those of Serve's replicas, and below the range from which the
    kernel gives ports to clients: there, another connection could take it before it is used.
    """
    while True:
        port = random.choice(_OWN_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port


def _check_readable(model: ServedModel) -> None:
    import openvino

    try:
        openvino.Core().read_model(str(model.folder / "openvino_model.xml"))
    except RuntimeError as error:
        raise LaunchError(f"model folder {model.folder} is broken: {str(error).strip().splitlines()[-1]}") from None


def _check_cores(settings: Settings) -> tuple[int, int]:
    usable = usable_cores()
    wished = settings.model
    cores = wished.cores_per_replica or max(1, min(usable.count // wished.replicas, _MOST_CORES))
    needed = cores * wished.replicas
    free = count_free(settings.core_lock_dir, usable=usable)
    if needed > free:
        raise LaunchError(str(NotEnoughCores(needed, free, usable, tuple(held_cores(settings.core_lock_dir)))))
    return cores, usable.count


def _check_memory(settings: Settings, model: ServedModel) -> None:
    needed = memory_needed(model, settings.model) + settings.cache.memory_mb * 2**20 + _RUNTIME_BYTES
    there = available_memory()
    if needed > there:
        raise LaunchError(
            f"{model.name} with {settings.model.replicas} replica(s) needs {needed / 2**30:.1f} GiB of memory and "
            f"{there / 2**30:.1f} GiB is available; use fewer replicas or a smaller model.kv_cache_mb"
        )


def available_memory() -> int:
    """Bytes that may still be used: the machine's, or less where a cgroup says so."""
    there = int(psutil.virtual_memory().available)
    try:
        limit = (_CGROUP_MEMORY / "memory.max").read_text().strip()
        used = int((_CGROUP_MEMORY / "memory.current").read_text())
    except (OSError, ValueError):
        return there
    return there if limit == "max" else min(there, int(limit) - used)
