"""Installs a GGUF file, as llama.cpp and Ollama use them: converts it once into a model folder of the store."""

import json
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from cluster.models.fetch import exclusive
from cluster.models.folder import gguf_folder
from cluster.models.gguf.description import rotary_frequencies, write_description
from cluster.models.gguf.header import GgufError, TensorInfo, read_header
from cluster.models.gguf.weights import check_gguf_extra, convert_weights
from cluster.models.identity import MANIFEST, read_json, sampled_digest, weights_digest
from cluster.models.paths import owned_child, writable_models
from cluster.units import format_bytes

_PARTIAL = ".partial"
_SPARE_BYTES = 256 << 20
_BITS_ONCE_CONVERTED = {"F32": 32.0, "Q8_0": 8.5, "Q4_0": 5.0, "Q4_1": 5.0, "Q4_K": 5.0}
"""Bits per weight. The others become 16-bit numbers."""
_ROUNDED = ("Q4_1", "Q4_K")
"""GenAI rounds the offset of each group to a whole step (2026.4): for normally distributed weights an error of 8 %, as
large as that of the quantization itself."""
_FILE_DIGEST = "gguf_blake2b"


def install_gguf(file: Path, models_dir: Path, on_stage: Callable[[str], None]) -> Path:
    """The model folder of a GGUF file, which is converted if this has not been done yet.

    Raises GgufError for a file that is none, is damaged or cannot be converted, and where another file of the same name
    is installed; FetchError while another process converts it; NotPrivate where another user may change the store;
    UnsafeNameError, OSError.
    """
    target = owned_child(models_dir, gguf_folder(file, models_dir).name)
    if _is_installed(target, file):
        return target
    if not file.is_file():
        raise GgufError(f"the GGUF file {file} does not exist")
    partial = owned_child(writable_models(models_dir), _PARTIAL)
    with exclusive(owned_child(partial, f"{target.name}.lock")):
        if _is_installed(target, file):  # by another process, until now
            return target
        check_gguf_extra()
        work = owned_child(partial, target.name)
        shutil.rmtree(work, ignore_errors=True)  # what an interrupted conversion left
        work.mkdir()
        try:
            weight = _convert(file, work, on_stage)
            manifest = {
                "source": file.name,
                "weight": weight,
                _FILE_DIGEST: sampled_digest(file),
                "weights_blake2b": weights_digest(work),
                "versions": {name: version(name) for name in ("openvino", "openvino-genai", "tokenizers")},
            }
            (work / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def _convert(file: Path, work: Path, on_stage: Callable[[str], None]) -> str:
    """Writes everything but the manifest; returns the type of most weights."""
    on_stage(f"reading {file}")
    header = read_header(file)
    bytes_of_type = _bytes_once_converted(header.tensors)
    needed, free = sum(bytes_of_type.values()), shutil.disk_usage(work).free
    try:
        write_description(header, work)
        frequencies = rotary_frequencies(header, file)
    except GgufError as error:
        raise GgufError(f"{file} cannot be served: {error}") from None
    # Twice: the weights are copied once more when the rotary frequencies are corrected.
    if (needed := 2 * needed + _SPARE_BYTES) > free:
        raise GgufError(
            f"converting {file} needs {format_bytes(needed)}, and {work.parent} has {format_bytes(free)} free; "
            "free some space or set models_dir to another disk"
        )
    weight = max(bytes_of_type, key=lambda name: bytes_of_type[name])
    if weight in _ROUNDED:
        on_stage(f"{weight} weights become less precise by this; a Q4_0 or Q8_0 file keeps its weights exactly")
    on_stage(f"converting {file}")
    convert_weights(file, work, frequencies)
    return weight.lower()


def _bytes_once_converted(tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        bits = _BITS_ONCE_CONVERTED.get(tensor.type.name, 16.0)
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + int(tensor.weights * bits / 8)
    return sizes


def _is_installed(folder: Path, file: Path) -> bool:
    """Whether the folder holds the file's model. Raises GgufError where it holds another file's."""
    if not folder.is_dir():
        return False
    try:
        installed = read_json(folder / MANIFEST).get(_FILE_DIGEST)
    except (OSError, ValueError):  # nothing that Dray has converted
        installed = None
    if file.is_file() and installed != sampled_digest(file):
        raise GgufError(
            f"{folder} was converted from another file named {file.name}; give {file} another name, or remove that "
            f"model: dray models remove {folder.name}"
        )
    return True
