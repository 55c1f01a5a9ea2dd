"""The engine process as its replica sees it: start, messages, signs of life, stop."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

import msgspec

from cluster.child import ending
from deployments.common.framing import Unframer, frame
from deployments.common.messages import (
    KILLED_FROM_OUTSIDE,
    TYPICAL_COMPLETION_TOKENS,
    Add,
    Cancel,
    EngineConfig,
    EngineLoad,
    EngineRequest,
    PendingWork,
    Ready,
    StartFailed,
    StepResult,
    ToEngine,
    TokenBatch,
    decode_from_engine,
)
from deployments.engine.stream import Stream

_READ_BYTES = 1 << 20
_LENGTH_SAMPLES = 20
"""Completions over which the typical length is averaged."""
_EXIT_WAIT_S = 2.0
_MIN_PATIENCE_S = 10.0
"""Another process may take the cores for some seconds, and a virtual machine may be stopped for them."""
_PATIENCE = 10
"""The speed was measured over short prompts; a token deep in a long context takes several times as long."""


class EngineStartError(Exception):
    """The engine process could not start. The message is the engine's own last error."""


class EngineProcess:
    """One running engine process. Create it with `start`.

    closed: set once the process is gone. computed_tokens: of prompts and completions, since the start.
    """

    def __init__(self, process: asyncio.subprocess.Process, connection: socket.socket) -> None:
        self.pid = process.pid
        self.closed = asyncio.Event()
        self.load = EngineLoad()
        self._process = process
        self._connection = connection
        self._streams: dict[int, Stream] = {}
        self._last_number = 0
        self._owing_since: float | None = None
        self._next_tokens = 0
        self._stuck = False
        self._reader: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()
        self._typical_length = float(TYPICAL_COMPLETION_TOKENS)
        self.computed_tokens = 0
        self._queues: dict[str, tuple[int, float]] = {}

    @classmethod
    async def start(
        cls, config: EngineConfig, *, timeout_s: float, keep_open: Sequence[int] = ()
    ) -> tuple["EngineProcess", Ready]:
        """Starts a process and waits until it is warm.

        keep_open: file descriptors that the child inherits, such as the core locks of its lease.
        Raises EngineStartError if the process ends, fails or is not ready within timeout_s.
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
            await engine._wait_for_exit()
            await engine.stop()
            raise EngineStartError(
                first.message if isinstance(first, StartFailed) else _death(process.returncode or 0, config.variant)
            )
        engine.load = first.load
        engine._reader = asyncio.create_task(engine._read(unframer))
        return engine, first

    @property
    def active(self) -> int:
        """Number of streams."""
        return len(self._streams)

    def send_heartbeats(self) -> None:
        """Sends an empty batch in every stream: the process is alive, though it may have generated nothing new."""
        for stream in self._streams.values():
            stream.put(TokenBatch([]))

    def queues_since(self, earliest: float) -> dict[str, tuple[int, float]]:
        """Tokens that wait in each router's queue, and the Unix time of that report.

        earliest: Unix time; older reports are forgotten.
        """
        self._queues = {router: report for router, report in self._queues.items() if report[1] > earliest}
        return self._queues

    @property
    def pending(self) -> dict[str, PendingWork]:
        """Work still to do, by router id."""
        pending: dict[str, PendingWork] = {}
        for stream in self._streams.values():
            router, (prompt, completion) = stream.request.router, stream.pending_tokens(self._typical_length)
            work = pending.get(router, PendingWork())
            pending[router] = PendingWork(
                work.prompt_tokens + prompt, work.completion_tokens + completion, work.streams + 1
            )
        return pending

    @property
    def scaling_tokens(self) -> int:
        """Tokens still to compute for which replicas are added. Other work only keeps one replica awake."""
        counted = (stream for stream in self._streams.values() if stream.request.scales)
        tokens = sum(sum(stream.pending_tokens(self._typical_length)) for stream in counted)
        return tokens or min(1, self.active)

    @property
    def patience_s(self) -> float:
        """Seconds of silence after which the engine counts as hung: many times what its step should take."""
        rate = self.load.prefill_tokens_per_s
        return max(_MIN_PATIENCE_S, _PATIENCE * self._next_tokens / rate if rate else 0.0)

    @property
    def silent_s(self) -> float:
        """Seconds for which the engine has owed a message, else 0. It owes one while it works."""
        return 0.0 if self._owing_since is None else time.monotonic() - self._owing_since

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenBatch, None]:
        """Streams the tokens of a request. The last batch has a finish reason, `lost` if the process died.

        Closing the generator cancels the generation.
        """
        if self.closed.is_set():
            yield TokenBatch([], "lost", reason=KILLED_FROM_OUTSIDE)
            return
        self._last_number += 1
        number, stream = self._last_number, Stream(request)
        self._streams[number] = stream
        self._queues[request.router] = (request.queued_tokens, time.time())
        finished = False
        try:
            # Shielded, because a message that is cut off would corrupt all that follow.
            await asyncio.shield(self._send(Add(number, request)))
            while not finished:
                await stream.arrived.wait()
                batch = stream.take()
                finished = batch.finish_reason != ""
                yield batch
        finally:
            self._streams.pop(number, None)
            self._typical_length += (stream.generated - self._typical_length) / _LENGTH_SAMPLES
            if not finished:
                # Shielded: the task is being cancelled, and the engine must still receive this.
                await asyncio.shield(self._send(Cancel(number)))

    async def stop(self, *, stuck: bool = False) -> None:
        """Kills the process and waits until it is gone. Its streams end as `lost`.

        stuck: the process made no progress, and one of its streams may be the cause.
        """
        self._stuck = stuck
        # `self._process.kill()` would first ask for the exit status, and take it from the thread of asyncio that waits
        # for it: the process would seem to have ended with status 255.
        with suppress(ProcessLookupError):
            if self._process.returncode is None:
                os.kill(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        if self._reader is not None:
            await self._reader
        else:
            self._close()

    async def _send(self, message: ToEngine) -> None:
        # Kept if it is set: clients that come and go must not hide that the engine hangs.
        self._owing_since = self._owing_since or time.monotonic()
        # Two tasks in sock_sendall would mix their bytes.
        async with self._sending:
            with suppress(OSError):  # the engine is dead: the reader notices it too, and ends all streams as lost
                await asyncio.get_running_loop().sock_sendall(self._connection, frame(message))

    async def _receive(self, unframer: Unframer) -> list[bytes]:
        """The next message bodies; empty when the engine is gone."""
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
            for body in bodies:
                message = decode_from_engine(body)
                if isinstance(message, StepResult):
                    self.load, self._next_tokens = message.load, message.next_tokens
                    for number, batch in message.streams.items():
                        if stream := self._streams.get(number):
                            prompt = 0 if stream.generated else len(stream.request.prompt_ids) - batch.cached_tokens
                            self.computed_tokens += len(batch.ids) + (prompt if batch.ids else 0)
                            stream.put(batch)
            busy = self._next_tokens or any(not stream.ended for stream in self._streams.values())
            self._owing_since = time.monotonic() if busy else None
        await self._wait_for_exit()
        self._close()

    async def _wait_for_exit(self) -> None:
        """The socket has closed; the exit status follows in a moment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_WAIT_S):
                await self._process.wait()

    def _close(self) -> None:
        self._connection.close()
        killed = self._process.returncode in (-signal.SIGKILL, -signal.SIGTERM) and not self._stuck
        for stream in self._streams.values():
            stream.put(TokenBatch([], "lost", reason=KILLED_FROM_OUTSIDE if killed else ""))
        self.load = EngineLoad()
        self.closed.set()


def _environment() -> dict[str, str]:
    """The replica's environment without Ray's thread count: the lease decides."""
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


def _death(status: int, variant: str) -> str:
    """How the process ended before it was ready, what it was trying, and what to do."""
    hint = (
        "memory may have run out"
        if status == -signal.SIGKILL
        else "the setting `model.precision: exact` takes the most cautious variant"
    )
    return f"{ending(status)} while it compiled and tried the model (variant {variant}); {hint}"
