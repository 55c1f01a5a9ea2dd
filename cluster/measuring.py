"""Programs that measure an engine on leased cores, and print one line of JSON for each result."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

import msgspec

from cluster.cores import CoreLease


@contextmanager
def measuring(
    program: str, request: msgspec.Struct, lease: CoreLease
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Runs a module with the request as its argument; yields the process and its output.

    The process holds the lease's cores too, and is killed at the end of the block.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", program, msgspec.json.encode(request).decode()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # It would say that there is no PyTorch.
        env=os.environ | {"TRANSFORMERS_VERBOSITY": "error"},
        pass_fds=lease.pass_fds,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield process, process.stdout
    finally:
        process.kill()
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        process.wait()
