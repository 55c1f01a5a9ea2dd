"""The engine process as its replica sees it: started on a lease, spoken to in messages, known to be alive."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

import msgspec

from cluster.models.folder import ServedModel
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
    Unframer,
    decode_from_engine,
    frame,
)

_READ_BYTES = 1 << 20
_TYPICAL_OVER = 20
_END_S = 2.0
_APART_S = 0.033


class EngineStartError(Exception):
    """The engine process could not start; the message is the engine's own last word."""


class _Stream:
    """Tokens that have come for one request and have not been read. made: how many have come.

    A reader hears of the first ones at once, and of more at most every `_APART_S`: each message costs router, replica
    and HAProxy as much as several tokens do, and nobody reads faster.
    """

    __slots__ = ("_due", "_waits", "arrived", "made", "pending", "request")

    def __init__(self, request: EngineRequest) -> None:
        self.arrived = asyncio.Event()
        self.made = 0
        self.pending: TokenBatch | None = None
        self.request = request
        self._due = 0.0
        self._waits = False

    def put(self, tokens: TokenBatch) -> None:
        """Joins what came with what is still unread: a slow reader gets fewer, larger messages."""
        self.made += len(tokens.ids)
        if self.pending is not None:
            before = self.pending
            if before.finish_reason:
                return  # nothing comes behind its end: neither a sign of life nor the engine's death
            tokens = TokenBatch(
                before.ids + tokens.ids,
                tokens.finish_reason,
                before.cached_tokens or tokens.cached_tokens,
                tokens.reason,
                before.logprobs + tokens.logprobs,
            )
        self.pending = tokens
        if tokens.finish_reason or (now := time.monotonic()) >= self._due:
            self.arrived.set()
        elif not self._waits:
            self._waits = True
            asyncio.get_running_loop().call_later(self._due - now, self._tell)

    def _tell(self) -> None:
        self._waits = False
        if self.pending is not None:
            self.arrived.set()

    def take(self) -> TokenBatch:
        assert self.pending is not None
        tokens, self.pending = self.pending, None
        self.arrived.clear()
        self._due = time.monotonic() + _APART_S
        return tokens

    def left(self, typical: float) -> tuple[int, int]:
        """Tokens that are still to be computed for it: of its prompt, of its completion. typical: of a completion."""
        rest = max(1, min(self.request.sampling.max_tokens, round(typical)) - self.made)
        return 0 if self.made else len(self.request.prompt_ids), rest


class EngineProcess:
    """One running engine process. Made by `start`; `closed` is set once it is gone.

    computed: tokens so far, of prompts and completions.
    """

    def __init__(self, process: asyncio.subprocess.Process, connection: socket.socket) -> None:
        self.pid = process.pid
        self.closed = asyncio.Event()
        self.load = EngineLoad()
        self._process = process
        self._connection = connection
        self._streams: dict[int, _Stream] = {}
        self._numbers = 0
        self._heard = time.monotonic()
        self._stuck = False
        self._reader: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()
        self._typical = float(TYPICAL_COMPLETION_TOKENS)
        self.computed = 0
        self._queues: dict[str, tuple[int, float]] = {}

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
            said = first.message if isinstance(first, StartFailed) else f"exit status {process.returncode}"
            raise EngineStartError(said)
        engine.load = first.load
        engine._reader = asyncio.create_task(engine._read(unframer))
        return engine, first

    @property
    def active(self) -> int:
        """Streams under way."""
        return len(self._streams)

    def tell_alive(self) -> None:
        """Says in every stream that this process is there, though it may have made nothing new."""
        for stream in self._streams.values():
            stream.put(TokenBatch([]))

    def queues_since(self, earliest: float) -> dict[str, tuple[int, float]]:
        """Of each router that has asked since then, the tokens that waited in it, and the Unix time; others are
        forgotten."""
        self._queues = {router: said for router, said in self._queues.items() if said[1] > earliest}
        return self._queues

    @property
    def waiting(self) -> dict[str, PendingWork]:
        """What is still to be computed, by the router that wants it."""
        works: dict[str, PendingWork] = {}
        for stream in self._streams.values():
            router, (prompt, completion) = stream.request.router, stream.left(self._typical)
            work = works.get(router, PendingWork())
            works[router] = PendingWork(
                work.prompt_tokens + prompt, work.completion_tokens + completion, work.streams + 1
            )
        return works

    @property
    def silent_s(self) -> float:
        """Seconds since the engine last said anything, while it has work; 0 while it has none."""
        return time.monotonic() - self._heard if self._streams else 0.0

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenBatch, None]:
        """Streams a request's tokens as they come; the last message says why it ended.

        Ends with `lost` when the process dies. Leaving early cancels the generation.
        """
        if self.closed.is_set():
            yield TokenBatch([], "lost", reason=KILLED_FROM_OUTSIDE)
            return
        self._numbers += 1
        number, stream = self._numbers, _Stream(request)
        if not self._streams:
            self._heard = time.monotonic()
        self._streams[number] = stream
        self._queues[request.router] = (request.queued_tokens, time.time())
        finished = False
        try:
            # Shielded, as a message that is cut off in the middle would spoil all behind it.
            await asyncio.shield(self._send(Add(number, request)))
            while not finished:
                await stream.arrived.wait()
                tokens = stream.take()
                finished = tokens.finish_reason != ""
                yield tokens
        finally:
            self._streams.pop(number, None)
            self._typical += (stream.made - self._typical) / _TYPICAL_OVER
            if not finished:
                # This runs while the task is being cancelled, and the engine must hear of it.
                await asyncio.shield(self._send(Cancel(number)))

    async def stop(self, *, stuck: bool = False) -> None:
        """Kills the process and waits until it is gone. Streams under way end as `lost`. stuck: it had stopped to
        work, and one of them may be why."""
        self._stuck = stuck
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
                if isinstance(message, StepResult):
                    self.load = message.load
                    for number, tokens in message.streams.items():
                        if stream := self._streams.get(number):
                            prompt = 0 if stream.made else len(stream.request.prompt_ids) - tokens.cached_tokens
                            self.computed += len(tokens.ids) + (prompt if tokens.ids else 0)
                            stream.put(tokens)
        # Its socket has closed; how it ended is known in a moment.
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await self._process.wait()
        self._close()

    def _close(self) -> None:
        self._connection.close()
        killed = self._process.returncode in (-signal.SIGKILL, -signal.SIGTERM) and not self._stuck
        for stream in self._streams.values():
            stream.put(TokenBatch([], "lost", reason=KILLED_FROM_OUTSIDE if killed else ""))
        self.load = EngineLoad()
        self.closed.set()


def config_for(model: ServedModel, cpus: tuple[int, ...]) -> EngineConfig:
    """What an engine process of this model on these logical CPUs needs to start."""
    chosen = model.settings
    return EngineConfig(
        model_dir=str(model.folder),
        cpus=cpus,
        kv_cache_mb=chosen.kv_cache_mb,
        max_num_seqs=chosen.max_num_seqs,
        max_num_batched_tokens=chosen.max_num_batched_tokens,
        dynamic_quantization_group_size=chosen.dynamic_quantization_group_size,
    )


def _environment() -> dict[str, str]:
    """The replica's environment without what Ray says about threads: the lease decides."""
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
