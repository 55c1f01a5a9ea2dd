"""Checks what Dray understood of a model, in a process of its own: its tokenizer and templates may be anybody's."""

import subprocess
import sys
from pathlib import Path

import msgspec

_PROGRAM = "deployments.checking.program"
_SECONDS = 120


class CheckedItem(msgspec.Struct, frozen=True):
    """One line of what was found. problem: what is wrong and what to do; empty if nothing is."""

    subject: str
    found: str
    problem: str = ""


def check_model(folder: Path) -> list[CheckedItem]:
    """What Dray understood of the generating model in this folder."""
    try:
        ended = subprocess.run(
            [sys.executable, "-m", _PROGRAM, str(folder)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
        return msgspec.json.decode(ended.stdout, type=list[CheckedItem])
    except subprocess.TimeoutExpired:
        problem = f"reading it takes more than {_SECONDS} s; get its files again from their makers"
    except msgspec.DecodeError:
        lines = ended.stderr.decode(errors="replace").strip().splitlines()
        problem = lines[-1] if lines else f"reading it ends the process (exit {ended.returncode})"
    return [CheckedItem("files", str(folder), problem)]
