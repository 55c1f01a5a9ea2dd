"""Exports a transformers model to OpenVINO with compressed weights. Needs the extra `export`."""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cluster.extras import install_command
from cluster.models.identity import MANIFEST, StoredWeights, read_json, weights_digest
from cluster.models.int8.convert import ConversionError, convert_folder
from cluster.models.int8.messages import Step
from cluster.models.tasks import POOLING_FILE, SENTENCE_FILES, Task, trained_task
from cluster.models.tokenizer_files import keep_tokenizer
from cluster.private_files import parent_folder

WEIGHTS = ("int8", "int4", "fp16", "fp32")
_COPIED = ("chat_template.jinja", "generation_config.json", POOLING_FILE, *SENTENCE_FILES)
_TASKS = {"generate": "text-generation-with-past", "embed": "feature-extraction", "rerank": "text-classification"}
"""Optimum's names of the tasks."""
_PACKAGES = {"torch": "torch", "optimum.intel": "optimum-intel", "nncf": "nncf"}


class ExportError(Exception):
    """The export is not possible; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Compression:
    """How weights are stored.

    For int4 only, where None leaves the choice to the exporter: group_size, the number of weights that share a scale
    (-1: a whole row); ratio, the share of layers in int4, where the rest are int8.
    """

    weight: str = "int8"
    group_size: int | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        if self.weight not in WEIGHTS:
            raise ExportError(f"weight format must be one of {', '.join(WEIGHTS)}, got {self.weight!r}")
        if not self.plain and self.weight != "int4":
            raise ExportError(f"group size and ratio apply to int4 only; the weight format is {self.weight}")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ExportError(f"ratio must be above 0 and at most 1, got {self.ratio}")

    @property
    def plain(self) -> bool:
        """Whether only the weight format was chosen."""
        return self.group_size is None and self.ratio is None

    @property
    def options(self) -> list[str]:
        """Arguments for optimum's command."""
        values = {"--weight-format": self.weight, "--group-size": self.group_size, "--ratio": self.ratio}
        return [text for name, value in values.items() if value is not None for text in (name, str(value))]


def check_export_extra() -> None:
    """Raises ExportError where the extra `export` is not installed."""
    missing = [package for module, package in _PACKAGES.items() if not _installed(module)]
    if missing:
        raise ExportError(f"export needs {', '.join(missing)}; install with: {install_command('export')}")


def export_model(
    source: Path,
    target: Path,
    compression: Compression,
    *,
    remote_code: bool = False,
    origin: dict[str, str] | None = None,
    convert: bool = True,
    on_stage: Callable[[str], None] = lambda _: None,
) -> None:
    """Exports the model in `source` to the new folder `target`, completely or not at all; its files say for which task.

    remote_code: allow the model's own Python code in the source folder to run. origin: where the source was fetched
    from, for the manifest. convert: make INT8 weights ready for arithmetic in INT8. on_stage: called with what is done
    next. Raises ExportError: without the extra, if the source holds no model, or the target exists; NotPrivate where
    another user may change what is beside the target.
    """
    config = source / "config.json"
    if not config.is_file():
        raise ExportError(f"{source} holds no config.json; give the folder of a transformers model")
    if target.exists() or target.is_symlink():
        raise ExportError(f"{target} already exists; remove it or choose another name")
    parent = parent_folder(target.parent)
    check_export_extra()
    values = json.loads(config.read_text())
    task: Task = trained_task(source, values) or "generate"
    if _brings_code(values) and not remote_code:
        raise ExportError(
            f"{origin['source'] if origin else source} contains Python code that the export must run; "
            "review it, then allow it with --trust-remote-code"
        )
    # Next to the target, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=parent) as work:
        exported = Path(work) / "model"
        # In a separate process, which takes torch's threads and gigabytes with it and keeps its many warnings hidden.
        command = [sys.executable, "-W", "ignore", "-m", "optimum.commands.optimum_cli", "export", "openvino"]
        command += ["-m", str(source), "--task", _TASKS[task], *compression.options]
        if task != "generate":
            # Optimum's other library would put pooling into the graph, and needs sentence-transformers.
            command += ["--library", "transformers"]
        command += ["--trust-remote-code", str(exported)] if remote_code else [str(exported)]
        # Nothing may ask on the terminal, such as whether to trust the code that a model brings.
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if ended.returncode:
            lines = ended.stderr.strip().splitlines()
            raise ExportError(
                f"optimum could not export {source}: {lines[-1] if lines else f'exit {ended.returncode}'}"
            )
        for name in _COPIED:
            if (source / name).is_file() and not (exported / name).is_file():
                (exported / name).parent.mkdir(exist_ok=True)
                shutil.copy(source / name, exported / name)
        keep_tokenizer(source, exported)
        manifest = (origin or {"source": source.resolve().name}) | _manifest(exported, compression)
        (exported / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        if convert and compression.weight == "int8":
            finish_int8(exported, target, on_stage)
        else:
            exported.rename(target)


def finish_int8(folder: Path, target: Path, on_stage: Callable[[str], None]) -> None:
    """Moves a complete model folder to `target`, with its weights converted if it generates text and that is possible.

    Raises OSError.
    """
    config = folder / "config.json"
    if config.is_file() and trained_task(folder, read_json(config)) in ("embed", "rerank"):
        folder.rename(target)
        return
    shown = set()

    def on_step(step: Step) -> None:
        if step.name not in shown:
            shown.add(step.name)
            on_stage(f"converting INT8 weights: {step.name}")

    try:
        convert_folder(folder, target, on_step)
    except ConversionError as error:
        on_stage(f"{error}. The weights stay as they are")
        folder.rename(target)
    else:
        shutil.rmtree(folder)


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _brings_code(config: dict[str, Any]) -> bool:
    """Whether the model's classes come with its weights rather than with transformers."""
    from transformers import CONFIG_MAPPING

    return "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING


def _manifest(folder: Path, compression: Compression) -> dict[str, Any]:
    packages = ("openvino", "optimum-intel", "nncf", "transformers", "torch")
    return {
        **{name: value for name, value in asdict(compression).items() if value is not None},
        **({"weights": StoredWeights.INT8_ASYMMETRIC} if compression.weight == "int8" else {}),
        "weights_blake2b": weights_digest(folder),
        "versions": {name: version(name) for name in packages},
    }
