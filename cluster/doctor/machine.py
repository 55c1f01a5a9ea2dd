"""Checks of this machine: NUMA nodes, limits, shared memory, disks, installed packages, other Rays."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from cluster.cores import UsableCores, cgroup_quota
from cluster.doctor.finding import Finding
from cluster.extras import install_command
from cluster.launch.environment import OBJECT_STORE_BYTES
from cluster.launch.preflight import LaunchError, check_state_dir
from cluster.launch.state import Record
from cluster.memory import memory_limit
from cluster.private_files import NotPrivate, check_writable_folder
from cluster.serve_config import has_page
from cluster.settings import Settings
from cluster.units import format_bytes, plural

_SHARED_MEMORY = Path("/dev/shm")
_LITTLE_DISK = 2**30


def check_numa(settings: Settings, usable: UsableCores) -> Finding:
    sizes = Counter(core.node for core in usable.cores)
    nodes = ", ".join(f"node {node}: {plural(size, 'core')}" for node, size in sorted(sizes.items()))
    largest, widest = max(sizes.values(), default=0), max(model.cores_per_replica for model in settings.served)
    if len(sizes) > 1 and widest > largest:
        problem = f"a replica of {plural(widest, 'core')} would read another node's memory"
        return Finding("NUMA", "warning", f"{nodes}; {problem}: set cores_per_replica to {largest} or less")
    return Finding("NUMA", "passed", nodes)


def check_limits() -> Finding:
    quota, memory = cgroup_quota(), memory_limit()
    memory_limits = "no memory limit" if memory is None else f"{format_bytes(memory)} of memory"
    limits = f"{quota or 'no CPU quota'}, {memory_limits}"
    if quota and quota.cpus != quota.cores:
        return Finding("limits", "warning", f"{limits}; only whole cores are leased, so set the quota to whole CPUs")
    return Finding("limits", "passed", limits)


def check_other_rays(record: Record | None) -> Finding:
    own = psutil.Process(record.pid).children(recursive=True) if record else []
    rays = [
        str(process.pid)
        for process in psutil.process_iter(["name"])
        if process.info["name"] == "raylet" and process not in own
    ]
    if not rays:
        return Finding("Ray", "passed", "no other Ray runs here; Dray starts its own")
    return Finding(
        "Ray", "passed", f"another Ray runs here (process {', '.join(rays)}); Dray starts its own, on other ports"
    )


def check_shared_memory() -> Finding:
    free = free_bytes(_SHARED_MEMORY)
    if free < OBJECT_STORE_BYTES:
        shortage = f"{_SHARED_MEMORY} has {format_bytes(free)} free, and Ray needs {format_bytes(OBJECT_STORE_BYTES)}"
        return Finding("shared memory", "warning", f"{shortage}; start the container with --shm-size=256m")
    return Finding("shared memory", "passed", f"{format_bytes(free)} free in {_SHARED_MEMORY}")


def check_disks(settings: Settings) -> Iterator[Finding]:
    try:
        check_state_dir(settings.state_dir)
    except LaunchError as error:
        yield Finding("disk", "failed", str(error))
    for name in ("state_dir", "data_dir", "models_dir"):
        folder: Path = getattr(settings, name)
        if not os.access(_existing(folder), os.W_OK):
            advice = f"set DRAY_{name.upper()} to a folder that you may write to"
            yield Finding("disk", "failed", f"{name} {folder} is not writable; {advice}")
        elif (free := free_bytes(folder)) < _LITTLE_DISK:
            yield Finding("disk", "warning", f"{name} {folder} has only {format_bytes(free)} free; make room")
        else:
            yield Finding("disk", "passed", f"{name} {folder}: {format_bytes(free)} free")
    try:
        check_writable_folder(settings.models_dir)
    except NotPrivate as error:
        yield Finding("disk", "warning", f"models can be read from models_dir, but not fetched into it: {error}")


def check_packages() -> Finding:
    """Ray's version matters most: Dray relies on internals of one minor version."""
    wrong = []
    for line in metadata.requires("dray") or ():
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{needed.name} {needed.specifier} is missing")
            continue
        if not needed.specifier.contains(installed, prereleases=True):
            wrong.append(f"{needed.name} {installed} is installed, but {needed.specifier} is needed")
    if wrong:
        return Finding("packages", "failed", f"{', '.join(wrong)}; install Dray again: make up")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("ray", "openvino", "tokenizers"))
    return Finding("packages", "passed", versions)


def check_chat_page(settings: Settings) -> Finding:
    if settings.page and not has_page(settings):
        return Finding("chat page", "warning", f"needs gradio; install it with: {install_command('page')}")
    return Finding("chat page", "passed", "served at /chat" if settings.page else "turned off (page: false)")


def free_bytes(folder: Path) -> int:
    """Free space on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
