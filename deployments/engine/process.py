"""The engine process as its replica sees it: started on a lease, spoken to in messages, known to be alive."""

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

import msgspec

from cluster.models.folder import ServedModel
from deployments.engine.wire import (
    Add,
    Cancel,
    EngineConfig,
    Failed,
    Load,
    Ready,
    Request,
    Step,
    ToEngine,
    Tokens,
    Unframer,
    decode_from_engine,
    frame,
)

_READ_BYTES = 1 << 20


class EngineStartError(Exception):
    """The engine process could not start; the message is the engine's own last word."""


class _Stream:
    """Tokens that have come for one request and have not been read."""

    __slots__ = ("arrived", "pending")

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.pending: Tokens | None = None

    def put(self, tokens: Tokens) -> None:
        """Joins what came with what is still unread: a slow reader gets fewer, larger messages."""
        if self.pending is not None:
            before = self.pending
            tokens = Tokens(
                before.ids + tokens.ids,
                tokens.finish,
                before.cached or tokens.cached,
                tokens.reason,
                before.logprobs + tokens.logprobs,
            )
        self.pending = tokens
        self.arrived.set()

    def take(self) -> Tokens:
        assert self.pending is not None
        tokens, self.pending = self.pending, None
        self.arrived.clear()
        return tokens


class EngineProcess:
    """One running engine process. Made by `start`; `closed` is set once it is gone."""

    def __init__(self, process: asyncio.subprocess.Process, connection: socket.socket) -> None:
        self.pid = process.pid
        self.closed = asyncio.Event()
        self.load = Load()
        self._process = process
        self._connection = connection
        self._streams: dict[int, _Stream] = {}
        self._numbers = 0
        self._heard = time.monotonic()
        self._reader: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()

    @classmethod
    async def start(
        cls, config: EngineConfig, *, timeout_s: float, keep_open: Sequence[int] = ()
    ) -> tuple["EngineProcess", Ready]:
        """Starts it and waits until it is warm.

        keep_open: file descriptors that the child holds too, such as the core locks of its lease.
        Raises EngineStartError if it ends, fails or is not ready within timeout_s.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "deployments.engine.core",
                msgspec.json.encode(config).decode(),
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(), *keep_open),
                env=_environment(),
            )
        engine = cls(process, ours)
        unframer = Unframer()
        try:
            async with asyncio.timeout(timeout_s):
                bodies = await engine._receive(unframer)
        except TimeoutError:
            await engine.stop()
            raise EngineStartError(f"not ready within {timeout_s:.0f} s") from None
        first = decode_from_engine(bodies[0]) if bodies else None
        if not isinstance(first, Ready):
            await engine.stop()
            said = first.message if isinstance(first, Failed) else f"exit status {process.returncode}"
            raise EngineStartError(said)
        engine._reader = asyncio.create_task(engine._read(unframer))
        return engine, first

    @property
    def active(self) -> int:
        """Streams under way."""
        return len(self._streams)

    @property
    def silent_s(self) -> float:
        """Seconds since the engine last said anything, while it has work; 0 while it has none."""
        return time.monotonic() - self._heard if self._streams else 0.0

    async def generate(self, request: Request) -> AsyncGenerator[Tokens, None]:
        """Streams a request's tokens as they come; the last message says why it ended.

        Ends with `lost` when the process dies. Leaving early cancels the generation.
        """
        self._numbers += 1
        number, stream = self._numbers, _Stream()
        if not self._streams:
            self._heard = time.monotonic()
        self._streams[number] = stream
        finished = False
        try:
            await self._send(Add(number, request))
            while not finished:
                await stream.arrived.wait()
                tokens = stream.take()
                finished = tokens.finish != ""
                yield tokens
        finally:
            self._streams.pop(number, None)
            if not finished:
                # Shielded: this runs while the task is being cancelled, and the engine must hear of it.
                await asyncio.shield(self._send(Cancel(number)))

    async def stop(self) -> None:
        """Kills the process and waits until it is gone. Streams under way end as `lost`."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        if self._reader is not None:
            await self._reader
        else:
            self._close()

    async def _send(self, message: ToEngine) -> None:
        # A lock, since two tasks in sock_sendall would mix their bytes.
        async with self._sending:
            with suppress(OSError):  # a dead engine: the reader sees it too and ends every stream as lost
                await asyncio.get_running_loop().sock_sendall(self._connection, frame(message))

    async def _receive(self, unframer: Unframer) -> list[bytes]:
        """The next messages, at least one; none when the engine is gone."""
        while True:
            try:
                data = await asyncio.get_running_loop().sock_recv(self._connection, _READ_BYTES)
            except OSError:
                return []
            if not data:
                return []
            if bodies := unframer.feed(data):
                return bodies

    async def _read(self, unframer: Unframer) -> None:
        while bodies := await self._receive(unframer):
            self._heard = time.monotonic()
            for body in bodies:
                message = decode_from_engine(body)
                if isinstance(message, Step):
                    self.load = message.load
                    for number, tokens in message.streams.items():
                        if stream := self._streams.get(number):
                            stream.put(tokens)
        self._close()

    def _close(self) -> None:
        self._connection.close()
        for stream in self._streams.values():
            stream.put(Tokens([], "lost"))
        self.load = Load()
        self.closed.set()


def config_for(model: ServedModel, cpus: tuple[int, ...]) -> EngineConfig:
    """What an engine process of this model on these logical CPUs needs to start."""
    chosen = model.settings
    return EngineConfig(
        model_dir=str(model.folder),
        cpus=cpus,
        kv_cache_mb=chosen.kv_cache_mb,
        max_running=chosen.max_running,
        max_batched_tokens=chosen.max_batched_tokens,
        dynamic_quantization_group_size=chosen.dynamic_quantization_group_size,
    )


def _environment() -> dict[str, str]:
    """The replica's environment without what Ray says about threads: the lease decides."""
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
