"""`dray` commands, each in a process of its own, without the second in which each would import the same modules.

A process imports them once and forks for each command, which then has its own number, environment, folder, files and
signals, as one from a shell has. What only a new interpreter shows is run in one: imports, and what they read.
"""

import atexit
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

import cluster.cli

_REQUEST_BYTES = 2**18
"""Arguments and environment of a command."""


class ForkedCommands:
    """Runs `dray` commands. modules: imported before, beside those of the command; environment: for these imports."""

    def __init__(self, modules: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # It ends when this end of the socket closes, be it because this process ends.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forked", str(theirs.fileno()), *modules],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "COLUMNS": "200", **(environment or {})},
                cwd=Path(__file__).parents[1],
            )

    def run(
        self, *arguments: str, env: Mapping[str, str], cwd: Path | None = None, timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs `dray` with these arguments and waits until it ends.

        Raises subprocess.TimeoutExpired, after it has killed the command.
        """
        request = json.dumps([arguments, dict(env), str(cwd or Path.cwd())]).encode()
        reading, writing = os.pipe()
        with (
            Path(os.devnull).open("rb") as nothing,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
            os.fdopen(reading) as report,
        ):
            with os.fdopen(writing, "w") as told:
                files = [file.fileno() for file in (nothing, out, err, told)]
                socket.send_fds(self._socket, [request], files)
            pid = int(report.readline())
            if not select.select([report], [], [], timeout)[0]:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(["dray", *arguments], timeout or 0.0)
            code = int(report.readline())
            texts = [(file.seek(0), file.read().decode())[1] for file in (out, err)]
        return subprocess.CompletedProcess(["dray", *arguments], code, *texts)

    @property
    def running(self) -> int:
        """The number of processes that run commands or wait for them."""
        return len(psutil.Process(self._process.pid).children(recursive=True))

    def close(self) -> None:
        """Ends the process that forks; commands that still run go on."""
        self._socket.close()
        self._process.wait()


@cache
def forked_commands() -> ForkedCommands:
    """What this process runs its commands with."""
    commands = ForkedCommands()
    atexit.register(commands.close)
    return commands


def serve(requests: socket.socket) -> None:
    """Forks for each request. Returns at the end of the requests, and in each process that runs a command."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that report
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # after Ctrl-C, tests still clear away with commands
    while True:
        request, files, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 4)
        if not request:
            sys.exit()
        if os.fork() == 0:
            requests.close()
            arguments, env, cwd = json.loads(request)
            _report_on_command(arguments, env, cwd, files)
            return
        for file in files:
            os.close(file)


def _report_on_command(arguments: list[str], env: dict[str, str], cwd: str, files: list[int]) -> None:
    """Writes the number of the process that runs a command, and its exit code. Returns in that process."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    report = files.pop()
    if (pid := os.fork()) == 0:
        os.close(report)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.environ.clear()
        os.environ.update(env)
        os.chdir(cwd)
        sys.argv = [cluster.cli.__file__, *arguments]
        return
    os.write(report, f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    with suppress(BrokenPipeError):  # it was killed, and nobody asks for its exit code
        os.write(report, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    # The program's name in its help, as of `python -m cluster.cli`.
    sys.modules[__name__].__package__ = "cluster"
    for module in sys.argv[2:]:
        importlib.import_module(module)
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        serve(connection)
    cluster.cli.main()
