"""Keeps what was measured of a model's variants here, and chooses from it when an engine starts.

The file is `dray-tuning.json` in the model's folder, or, where that may not be written to, a file in data_dir. The
bundled model's is always in data_dir, as its folder belongs to the program. One file holds the results of several
processors: several machines may read the model from one disk.
"""

import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from cluster.cores import processor_name
from cluster.models.folder import BUNDLED_FOLDER, ServedModel
from cluster.private_files import private_folder, write_private
from cluster.settings import DEFAULT_STEP_TOKENS
from cluster.tuning.choice import choose
from cluster.tuning.variants import Variant, allowed, presumed

log = logging.getLogger("dray.tuning")

FILE = "dray-tuning.json"
_MAX_BYTES = 1 << 16
_MAX_TUNINGS = 64
"""In one file; the oldest ones go first."""

_MAX_VARIANTS = 16
_Name = Annotated[str, msgspec.Meta(max_length=256)]


class Tuning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured on a processor, with a number of cores per replica, a version of OpenVINO and a model.

    fingerprint: of the model. scores: how many times as fast as one of them each variant is, by its name; 0 if it does
    not work here. step_tokens: the chosen maximum of tokens in a step; None where that was not measured. measured_at:
    Unix time.
    """

    processor: _Name
    cores: Annotated[int, msgspec.Meta(ge=1)]
    openvino: _Name
    fingerprint: _Name
    scores: Annotated[dict[_Name, Annotated[float, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=_MAX_VARIANTS)]
    measured_at: Annotated[float, msgspec.Meta(ge=0)]
    step_tokens: Annotated[int, msgspec.Meta(ge=32, le=1 << 14)] | None = None

    @property
    def key(self) -> tuple[str, int, str, str]:
        """What it holds for."""
        return self.processor, self.cores, self.openvino, self.fingerprint


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[2]
    tunings: Annotated[list[Tuning], msgspec.Meta(max_length=_MAX_TUNINGS)]


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What an engine runs with. measured: whether it was measured that the variant is the fastest of the allowed."""

    variant: Variant
    step_tokens: int
    measured: bool


def engine_choice(model: ServedModel, cores: int, data_dir: Path | None = None) -> EngineChoice:
    """What the model's settings and what was measured amount to. data_dir: None looks only into the model's folder."""
    options, step = allowed(model, cores), model.settings.max_num_batched_tokens
    kept = find(model, cores, data_dir) if len(options) > 1 or step == "auto" else None
    scores = kept.scores if kept else {}
    tuned = kept.step_tokens if kept else None
    return EngineChoice(
        choose(options, scores) if scores else presumed(model, options),
        step if step != "auto" else tuned or DEFAULT_STEP_TOKENS,
        is_measured(options, scores),
    )


def is_measured(options: Sequence[Variant], scores: Mapping[str, float]) -> bool:
    """Whether enough is known of the options to choose one: of two, or of all."""
    return sum(option.name in scores for option in options) >= min(2, len(options))


def find(model: ServedModel, cores: int, data_dir: Path | None = None) -> Tuning | None:
    """What was kept for this model and number of cores on this processor."""
    return next((tuning for tuning in find_all(model, data_dir) if tuning.cores == cores), None)


def find_all(model: ServedModel, data_dir: Path | None = None) -> list[Tuning]:
    """What was kept for this model on this processor, for any number of cores; the newest first."""
    tunings = [tuning for path in _paths(model, data_dir) for tuning in _read(path)]
    here = processor_name(), version("openvino")
    # Without a file the model's weights need not be read.
    valid = [item for item in tunings if (item.processor, item.openvino) == here]
    valid = [item for item in valid if item.fingerprint == model.fingerprint] if valid else []
    return sorted(valid, key=lambda tuning: tuning.measured_at, reverse=True)


def keep(
    model: ServedModel, cores: int, scores: Mapping[str, float], data_dir: Path, step_tokens: int | None = None
) -> Path:
    """Keeps what was measured on this processor; returns the file. Raises OSError where it can be written nowhere."""
    tuning = Tuning(
        processor_name(), cores, version("openvino"), model.fingerprint, dict(scores), time.time(), step_tokens
    )
    *beside, private = _paths(model, data_dir)
    for path in beside:
        with suppress(OSError):
            _write(path, tuning)
            # As readable as the model: others may serve it too.
            path.chmod(0o644)
            return path
    private_folder(data_dir)
    _write(private, tuning)
    return private


def _paths(model: ServedModel, data_dir: Path | None) -> list[Path]:
    beside = [model.folder / FILE] if model.folder != BUNDLED_FOLDER.resolve() else []
    return beside + ([data_dir / f"tuning-{model.fingerprint}.json"] if data_dir is not None else [])


def _write(path: Path, tuning: Tuning) -> None:
    others = [other for other in _read(path) if other.key != tuning.key]
    newest = sorted([*others, tuning], key=lambda item: item.measured_at)[-_MAX_TUNINGS:]
    content = msgspec.json.encode(_File(2, newest))
    write_private(path, msgspec.json.format(content, indent=2).decode() + "\n")


def _read(path: Path) -> Iterator[Tuning]:
    """The file's tunings; none, with a warning, if it cannot be read or is not Dray's."""
    try:
        # O_NONBLOCK: opening a named pipe must not hang.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s is ignored: %s; nothing counts as measured", path, error.strerror)
        return
    try:
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError("it is no regular file")
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        yield from msgspec.json.decode(content, type=_File).tunings
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s is ignored: %s. Remove it and run `dray tune` again", path, error)
