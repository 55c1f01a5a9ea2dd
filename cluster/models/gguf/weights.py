"""Converts a GGUF file's weights to OpenVINO IR, in a process of its own. Needs the extra `gguf`.

The process takes OpenVINO GenAI's threads and gigabytes with it. The file is foreign, and GenAI's reader is written in
C++: should it crash on a file that `header` lets through, only this process ends.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from cluster.extras import install_command
from cluster.models.gguf.header import GgufError

_LINK = "model.gguf"
_MODEL = "openvino_model"
_CORRECTED = "corrected"


def check_gguf_extra() -> None:
    """Raises GgufError where the extra `gguf` is not installed."""
    if find_spec("openvino_genai") is None:
        raise GgufError(f"converting a GGUF file needs openvino-genai; install with: {install_command('gguf')}")


def convert_weights(file: Path, folder: Path, frequencies: Sequence[float]) -> None:
    """Writes openvino_model.xml and openvino_model.bin into the folder. Raises GgufError.

    frequencies: by which the model rotates each pair of a head's units, from one position to the next.
    """
    link = folder / _LINK
    link.symlink_to(file.resolve())  # GenAI writes beside the path that it is given
    command = [sys.executable, "-W", "ignore", "-m", __name__, str(link), json.dumps(list(frequencies))]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if ended.returncode:
        lines = ended.stderr.strip().splitlines()
        raise GgufError(f"OpenVINO GenAI cannot convert {file}: {lines[-1] if lines else f'exit {ended.returncode}'}")
    for other in [link, *folder.glob("openvino_*tokenizer.*")]:
        other.unlink()


def _convert(link: Path, frequencies: Sequence[float]) -> None:
    from openvino_genai import LLMPipeline

    try:
        LLMPipeline(str(link), "CPU", enable_save_ov_model=True, ATTENTION_BACKEND="SDPA")
    except IndexError:
        # It knows no SentencePiece tokenizers, and misses their merges only after it has saved the model (2026.4).
        if not (link.parent / f"{_MODEL}.xml").is_file():
            raise
    _correct_frequencies(link.parent, frequencies)


def _correct_frequencies(folder: Path, frequencies: Sequence[float]) -> None:
    """Writes the rotary frequencies into the converted model.

    GenAI computes them from their base alone, whatever the file says of scaling, and saves most models' as 16-bit
    numbers, which are wrong by several radians after 8,000 positions (2026.4).
    """
    import numpy as np
    import openvino

    file = folder / f"{_MODEL}.xml"
    model = openvino.Core().read_model(str(file))
    shape = [1, len(frequencies), 1]
    constants = [node for node in model.get_ops() if node.get_type_name() == "Constant" and list(node.shape) == shape]
    if len(constants) != 1:
        raise SystemExit(f"its graph has {len(constants)} tables of rotary frequencies instead of one")
    [found] = constants
    wanted = np.array(frequencies, np.float32).reshape(shape)
    is_exact = found.get_element_type() == openvino.Type.f32 and np.allclose(found.data, wanted, rtol=1e-6, atol=0)
    if is_exact:
        return
    replacement = openvino.opset13.constant(wanted, openvino.Type.f32).output(0)
    targets = list(found.output(0).get_target_inputs())
    for node in [target.get_node() for target in targets]:
        if node.get_type_name() == "Convert":  # to 32 bits
            targets += node.output(0).get_target_inputs()
    for target in targets:
        if target.get_node().get_type_name() != "Convert":
            target.replace_source_output(replacement)
    openvino.save_model(model, str(folder / f"{_CORRECTED}.xml"), compress_to_fp16=False)
    del model, constants, found, targets
    for suffix in (".xml", ".bin"):
        (folder / f"{_CORRECTED}{suffix}").replace(folder / f"{_MODEL}{suffix}")


if __name__ == "__main__":
    _convert(Path(sys.argv[1]), json.loads(sys.argv[2]))
