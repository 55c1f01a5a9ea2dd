"""Converts a model folder to INT8 that processors compute in: symmetric weights, smoothed on a text.

The graph and its weights are rewritten by `program`, in a process of its own. Nothing is visible before it is whole.
"""

import ctypes
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cluster.child import dies_with_parent
from cluster.models.identity import (
    GRAPH_FILE,
    MANIFEST,
    WEIGHTS_FILE,
    Conversion,
    Recipe,
    StoredWeights,
    fingerprint,
    graph_digest,
    read_json,
    weights_digest,
)
from cluster.models.int8.messages import Converted, ConvertRequest, Event, Refused, Step, calibration_digest
from cluster.models.int8.smoothing import ALPHA
from cluster.private_files import parent_folder, writable_folder

CONVERTER = 1
"""Raise it with every change of what the converter writes: models that differ must have different fingerprints."""
_NOT_COPIED = (GRAPH_FILE, WEIGHTS_FILE, MANIFEST, "dray-tuning.json", "*.gguf")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class ConversionError(Exception):
    """The model cannot be converted; the message says why."""


def convert_folder(source: Path, target: Path, on_step: Callable[[Step], None]) -> Conversion:
    """Writes the converted model into the folder `target`, completely or not at all.

    target: a new folder, or the source itself, which is then replaced at once when the new one is whole. Who reads the
    old files goes on reading them. Raises ConversionError, OSError, and NotPrivate where another user may change what
    is beside the target.
    """
    source, target = source.resolve(), target.resolve()
    if target != source and target.exists():
        raise ConversionError(f"{target} already exists; remove it or choose another name")
    before = fingerprint(source)
    parent_folder(target.parent)
    with _work_folder(target) as work:
        shutil.copytree(source, work, ignore=shutil.ignore_patterns(*_NOT_COPIED), dirs_exist_ok=True)
        done = _run(ConvertRequest(str(source), str(work)), source, on_step)
        recipe = Recipe(CONVERTER, before, ALPHA, calibration_digest())
        conversion = Conversion(recipe, graph_digest(work), done.tokens, done.matrices, done.smoothed)
        _write_record(source, work, conversion)
        _sync(work)
        if fingerprint(source) != before:
            raise ConversionError(f"{source} changed while it was converted; try again")
        if target == source:
            _exchange(work, target)
        else:
            work.rename(target)
    return conversion


def work_name(name: str) -> str:
    """The name of the folder that a model is converted in, before it gets its own."""
    return f".{name}.converting"


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """An empty folder next to the target, so that the last step is a rename within one file system.

    It is deleted at the end, with what an earlier conversion left that was killed.
    """
    outer = target.with_name(work_name(target.name))
    writable_folder(outer)
    with (outer / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConversionError(f"another process is converting {target} now") from None
        try:
            shutil.rmtree(outer / "model", ignore_errors=True)
            (outer / "model").mkdir()
            yield outer / "model"
        finally:
            shutil.rmtree(outer, ignore_errors=True)


def _run(request: ConvertRequest, source: Path, on_step: Callable[[Step], None]) -> Converted:
    command = [sys.executable, "-W", "ignore", "-m", "cluster.models.int8.program"]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [*command, msgspec.json.encode(request).decode()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            preexec_fn=dies_with_parent(signal.SIGKILL),
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                match msgspec.json.decode(line, type=Event):
                    case Step() as step:
                        on_step(step)
                    case Converted() as converted:
                        return converted
                    case Refused(reason):
                        raise ConversionError(f"{source} cannot be converted: {reason}")
        finally:
            process.kill()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines()
    how = said[-1] if said else "its process was killed; is there enough memory?"
    raise ConversionError(f"{source} could not be converted: {how}")


def _write_record(source: Path, work: Path, conversion: Conversion) -> None:
    old = read_json(source / MANIFEST) if (source / MANIFEST).is_file() else {"source": source.name}
    record = old | {
        "weights_blake2b": weights_digest(work),
        "weights": StoredWeights.INT8_SYMMETRIC_SMOOTHED,
        "conversion": msgspec.to_builtins(conversion),
    }
    (work / MANIFEST).write_text(json.dumps(record, indent=2) + "\n")


def _sync(folder: Path) -> None:
    """Waits until the files are on the disk: a power cut right after the rename must not cost the model."""
    for file in folder.iterdir():
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _exchange(new: Path, old: Path) -> None:
    """Gives each folder the other's name, at one moment. What is called `new` afterwards is the old one."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, os.strerror(number), str(old))
    # File systems that cannot exchange, such as NFS: for a moment there is no model.
    aside = old.with_name(f".{old.name}.replaced")
    old.rename(aside)
    new.rename(old)
    aside.rename(new)
