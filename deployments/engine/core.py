"""The engine process: one thread that steps an engine on the cores of its lease.

It is a process of its own, so that scheduling and sampling never share a GIL with the replica's streams, and so that
its death or a hang is the engine's alone. Between steps it reads Add and Cancel messages, and during a step of batch
work, which ends when one of people has asked; after each step it sends one StepResult. It ends when the replica closes
its end of the socket.
"""

import ctypes
import selectors
import signal
import socket
import sys
import time
from collections import deque

import msgspec

from cluster.cores import pin_process
from deployments.common.framing import Unframer, frame
from deployments.common.messages import Add, EngineConfig, FromEngine, Ready, StartFailed, ToEngine, decode_to_engine
from deployments.engine.engine import Engine
from deployments.engine.model import release_weights
from deployments.engine.protocol import SteppedEngine

_PR_SET_PDEATHSIG = 1
_BEAT_S = 1.0
"""An engine at work sends a message after the first step that ends this long after the last message."""


def serve(config: EngineConfig, connection: socket.socket) -> None:
    """Loads, warms up, then steps until the connection closes."""

    def send(message: FromEngine) -> None:
        connection.sendall(frame(message))

    started = time.perf_counter()
    try:
        engine: SteppedEngine = Engine(config)
        loaded = time.perf_counter()
        multiplications = engine.warm_up()
        release_weights(config.model_dir)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        send(StartFailed(f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error) else ''}"))
        raise
    send(Ready(loaded - started, time.perf_counter() - loaded, engine.kv_tokens, engine.load, multiplications))

    inbox = _Inbox(connection)
    announced, sent_at = engine.next_tokens, time.monotonic()
    while True:
        inbox.receive(0 if engine.busy or inbox.messages else None)
        while inbox.messages:
            message = inbox.messages.popleft()
            if isinstance(message, Add):
                engine.add(message)
            else:
                engine.cancel(message)
            if not inbox.messages and not engine.busy:
                # The replica expects an answer to every message.
                announced, sent_at = engine.next_tokens, time.monotonic()
                send(engine.result({}))
            if not inbox.messages:
                inbox.receive(0)
        if inbox.closed:
            return
        if not engine.busy:
            continue
        if engine.next_tokens > announced:
            # This step takes longer than the replica expects.
            announced, sent_at = engine.next_tokens, time.monotonic()
            send(engine.result({}))
        step = engine.step(inbox.people_wait)
        if inbox.closed:
            return
        # The steps of a long prompt generate nothing, and are a sign of life all the same.
        if step.streams or not engine.busy or time.monotonic() - sent_at > _BEAT_S:
            announced, sent_at = step.next_tokens, time.monotonic()
            send(step)


class _Inbox:
    """What the replica sends. messages: that have come, the oldest first. closed: no more will come."""

    def __init__(self, connection: socket.socket) -> None:
        self.messages: deque[ToEngine] = deque()
        self.closed = False
        self._connection = connection
        self._unframer = Unframer()
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)

    def receive(self, timeout_s: float | None) -> None:
        """Takes what has come, after waiting this long for it; None: until something comes."""
        if self.closed or not self._selector.select(timeout_s):
            return
        data = self._connection.recv(1 << 20)
        self.closed = not data
        self.messages.extend(map(decode_to_engine, self._unframer.feed(data)))

    def people_wait(self) -> bool:
        """Whether one of people has asked meanwhile, or nobody listens any more."""
        self.receive(0)
        return self.closed or any(isinstance(one, Add) and one.request.priority == 0 for one in self.messages)


def main() -> None:
    """Started by the replica. argv[1]: EngineConfig as JSON. argv[2]: file descriptor of the socket."""
    # End with the replica even if its death leaves the socket open.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C in a terminal reaches every process of its group, but only the replica decides when the engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = msgspec.json.decode(sys.argv[1], type=EngineConfig)
    pin_process(config.cpus)  # with the threads that importing numpy has started
    with socket.socket(fileno=int(sys.argv[2])) as connection:
        serve(config, connection)


if __name__ == "__main__":
    main()
