"""The log of a launcher that runs in the background: dray.log in the state folder."""

import os
import shutil
from itertools import pairwise
from pathlib import Path

LOG_FILE = "dray.log"
_MAX_BYTES = 10 * 2**20
_OLDER = 2


def rotate(folder: Path, max_bytes: int = _MAX_BYTES) -> None:
    """Begins the log in this state folder anew if it is large; two older ones are kept. Raises OSError.

    The file stays the same, because the launcher and what it has started have it open for appending.
    """
    log = folder / LOG_FILE
    if not log.is_file() or log.stat().st_size <= max_bytes:
        return
    files = [log, *(log.with_suffix(f".log.{number}") for number in range(1, _OLDER + 1))]
    try:
        for newer, older in reversed(list(pairwise(files[1:]))):
            if newer.exists():
                newer.replace(older)
        shutil.copyfile(log, files[1])
    finally:
        # On a full disk there is no copy, and more need for this.
        os.truncate(log, 0)


def remove(folder: Path) -> None:
    """Deletes the log and the older ones."""
    for file in folder.glob(f"{LOG_FILE}*"):
        file.unlink(missing_ok=True)
