"""Export: transformers weights become an OpenVINO model with compressed weights. Needs the extra `export`."""

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from hashlib import blake2b
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cluster.models.folder import MANIFEST, WEIGHTS_FILE

WEIGHTS = ("int8", "int4", "fp16", "fp32")
_CARRIED = ("chat_template.jinja", "generation_config.json")
_NEEDED = {"torch": "torch", "optimum.intel": "optimum-intel", "nncf": "nncf"}


class ExportError(Exception):
    """The export cannot be done; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Compression:
    """How weights are stored. For int4: weights that share a scale (group_size; -1: a whole row), and the share of
    layers that is int4, the rest being int8 (ratio). None leaves the exporter's choice for this model."""

    weight: str = "int8"
    group_size: int | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        if self.weight not in WEIGHTS:
            raise ExportError(f"weight format {self.weight!r} is none of {', '.join(WEIGHTS)}")
        if not self.plain and self.weight != "int4":
            raise ExportError(f"group size and ratio are for int4; the weight format is {self.weight}")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ExportError(f"ratio must be over 0 and at most 1, got {self.ratio}")

    @property
    def plain(self) -> bool:
        """Whether nothing but the weight format is chosen."""
        return self.group_size is None and self.ratio is None

    @property
    def options(self) -> list[str]:
        """As optimum's command takes them."""
        chosen = {"--weight-format": self.weight, "--group-size": self.group_size, "--ratio": self.ratio}
        return [text for name, value in chosen.items() if value is not None for text in (name, str(value))]


def check_export_extra() -> None:
    """Raises ExportError where the extra `export` is not installed."""
    missing = [package for module, package in _NEEDED.items() if not _installed(module)]
    if missing:
        raise ExportError(f"export needs {', '.join(missing)}: pip install 'dray[export]'")


def export_model(
    source: Path,
    target: Path,
    compression: Compression,
    *,
    remote_code: bool = False,
    origin: dict[str, str] | None = None,
) -> None:
    """Writes `target`, whole or not at all.

    remote_code: run the model's own Python code from the source folder. origin: where the source came from.
    Raises ExportError: without the extra, for a source that holds no model, or a target that exists.
    """
    config = source / "config.json"
    if not config.is_file():
        raise ExportError(f"{source} holds no config.json; give the folder of a transformers model")
    if target.exists() or target.is_symlink():
        raise ExportError(f"{target} exists already; remove it or choose another name")
    check_export_extra()
    if _brings_code(json.loads(config.read_text())) and not remote_code:
        raise ExportError(
            f"{origin['source'] if origin else source} needs Python code of its own to be run; "
            "read it, and allow it with --trust-remote-code"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work:
        made = Path(work) / "model"
        # A process of its own: torch's threads and gigabytes end with it, and its many warnings stay out of sight.
        command = [sys.executable, "-W", "ignore", "-m", "optimum.commands.optimum_cli", "export", "openvino"]
        command += ["-m", str(source), "--task", "text-generation-with-past", *compression.options]
        command += ["--trust-remote-code", str(made)] if remote_code else [str(made)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            lines = ended.stderr.strip().splitlines()
            raise ExportError(
                f"optimum could not export {source}: {lines[-1] if lines else f'exit {ended.returncode}'}"
            )
        for name in _CARRIED:
            if (source / name).is_file() and not (made / name).is_file():
                shutil.copy(source / name, made / name)
        manifest = (origin or {"source": source.resolve().name}) | _manifest(made, compression)
        (made / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        made.rename(target)


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _brings_code(config: dict[str, Any]) -> bool:
    """Whether the model's classes lie beside its weights and not in transformers."""
    from transformers import CONFIG_MAPPING

    return "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING


def _manifest(made: Path, compression: Compression) -> dict[str, Any]:
    digest = blake2b(digest_size=16)
    with (made / WEIGHTS_FILE).open("rb") as weights:
        while piece := weights.read(1 << 22):
            digest.update(piece)
    packages = ("openvino", "optimum-intel", "nncf", "transformers", "torch")
    return {
        **{name: value for name, value in asdict(compression).items() if value is not None},
        "weights_blake2b": digest.hexdigest(),
        "versions": {name: version(name) for name in packages},
    }
