"""The part of Ray Serve's deployment handle that routers use; Serve's own is not typed (ray 2.60)."""

from collections.abc import AsyncIterator, Awaitable
from typing import Protocol


class StreamingResponse(Protocol):
    """A running call that streams messages. `cancel` stops it at the replica."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def cancel(self) -> object: ...


class StreamingMethod(Protocol):
    """A replica's method that streams."""

    def remote(self, payload: bytes, /) -> StreamingResponse: ...


class EngineHandle(Protocol):
    """A handle on the engine replicas of one application."""

    def options(self, *, stream: bool, method_name: str) -> StreamingMethod: ...


class UnaryMethod(Protocol):
    """A replica's method that returns one message."""

    def remote(self, payload: bytes, /) -> Awaitable[bytes]: ...


class EncoderHandle(Protocol):
    """A handle on the replicas of an embedding model or a cross-encoder."""

    @property
    def run(self) -> UnaryMethod: ...
