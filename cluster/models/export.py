"""Export: transformers weights become an OpenVINO model with compressed weights. Needs the extra `export`."""

import json
import shutil
import subprocess
import sys
import tempfile
from hashlib import blake2b
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

WEIGHTS = ("int8", "int4", "fp16", "fp32")
MANIFEST = "dray-model.json"
_CARRIED = ("chat_template.jinja", "generation_config.json")


class ExportError(Exception):
    """The export cannot be done; the message says why and what to do."""


def export_model(source: Path, target: Path, weight: str) -> None:
    """Writes `target`, whole or not at all. weight: one of WEIGHTS.

    Raises ExportError: without the extra, for a source that holds no model, or a target that exists.
    """
    if weight not in WEIGHTS:
        raise ExportError(f"weight format {weight!r} is none of {', '.join(WEIGHTS)}")
    if not (source / "config.json").is_file():
        raise ExportError(f"{source} holds no config.json; give the folder of a transformers model")
    if target.exists():
        raise ExportError(f"{target} exists already; remove it or choose another name")
    missing = [name for name in ("torch", "optimum.intel", "nncf") if not _installed(name)]
    if missing:
        raise ExportError(f"export needs {', '.join(missing)}: pip install 'dray[export]'")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as work:
        made = Path(work) / "model"
        # A process of its own: torch's threads and gigabytes end with it, and its many warnings stay out of sight.
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "optimum.commands.optimum_cli",
            "export",
            "openvino",
            "-m",
            str(source),
            "--task",
            "text-generation-with-past",
            "--weight-format",
            weight,
            str(made),
        ]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            lines = ended.stderr.strip().splitlines()
            raise ExportError(
                f"optimum could not export {source}: {lines[-1] if lines else f'exit {ended.returncode}'}"
            )
        for name in _CARRIED:
            if (source / name).is_file() and not (made / name).is_file():
                shutil.copy(source / name, made / name)
        (made / MANIFEST).write_text(json.dumps(_manifest(source, made, weight), indent=2) + "\n")
        made.rename(target)


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _manifest(source: Path, made: Path, weight: str) -> dict[str, Any]:
    digest = blake2b(digest_size=16)
    with (made / "openvino_model.bin").open("rb") as weights:
        while piece := weights.read(1 << 22):
            digest.update(piece)
    packages = ("openvino", "optimum-intel", "nncf", "transformers", "torch")
    return {
        "source": source.resolve().name,
        "weight": weight,
        "weights_blake2b": digest.hexdigest(),
        "versions": {name: version(name) for name in packages},
    }
