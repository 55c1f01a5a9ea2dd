"""What router, replica and engine process say to each other: every message type, and how it is framed.

Router and replica exchange `Request` and `Tokens` as MessagePack over a Ray handle (with embedders: texts, and vectors
as little-endian float32); replica and engine process exchange the rest over a socket pair, each message behind its
length.
"""

import struct
from typing import Literal

import msgspec

StreamFinish = Literal["", "stop", "length", "overloaded", "lost", "invalid"]
"""Why a stream ended; "" while it goes on. `overloaded`: the KV cache cannot hold it. `lost`: the engine
process died with it, and another can carry it on. `invalid`: the engine refused it."""


HEARTBEAT_S = 2.0
"""A replica lets a stream hear of it at least so often, in seconds."""

KILLED_FROM_OUTSIDE = "from outside"
"""Why a stream is lost where its engine did not die by itself: its replica or its node is gone, or somebody killed it.
A request that kills engines makes them crash or hang."""

TYPICAL_COMPLETION_TOKENS = 256
"""What a completion is thought to take, until it is known better."""


class GrammarTag(msgspec.Struct, frozen=True, array_like=True):
    """Text that starts with `begin`, goes on as the grammar (EBNF) says, and finishes with `end`."""

    begin: str
    grammar: str
    end: str


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """What the completion is held to: all of it to `ebnf`; or, where that is empty, free text in which each tag, once
    its `trigger` has come, is held to its grammar. EBNF as XGrammar reads it, with `root` as its first rule."""

    ebnf: str = ""
    trigger: str = ""
    tags: tuple[GrammarTag, ...] = ()


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How to choose tokens, and when to stop. temperature 0 is greedy. top_k 0, min_p 0: off.

    stop_ids: tokens that end it, beside the model's own. logprobs: whether each token's is wanted.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: bool = False
    stop_ids: tuple[int, ...] = ()
    grammar: Grammar | None = None


class EngineRequest(msgspec.Struct, frozen=True, array_like=True):
    """A prompt as token ids, and how to go on from it.

    router: names the router that asks. queued: tokens of requests that wait in that router for their turn.
    avoid: replicas that have failed on it; they take it if no other is there.
    traceparent: the span that the engine's are a part of, as W3C Trace Context writes it; empty: no trace is made.
    number: the router's own for this attempt; 0: none.
    home: a replica that another router had compute the prompt's first `held` tokens; empty: none is known.
    """

    prompt_ids: list[int]
    sampling: Sampling
    router: str = ""
    queued_tokens: int = 0
    avoid_replicas: tuple[str, ...] = ()
    traceparent: str = ""
    attempt_id: int = 0
    prefix_replica: str = ""
    prefix_tokens: int = 0


class TokenBatch(msgspec.Struct, frozen=True, array_like=True):
    """Token ids made since the last message of this stream; none at its beginning, and now and then while none come,
    so that a router hears that the replica is alive.

    cached: prompt tokens found in the prefix cache; sent with a stream's first message, else 0.
    reason: for `invalid`, what the engine said. logprobs: natural logarithms, one a token, where they were wanted.
    replica: which one makes them; sent with a stream's first message, else empty.
    """

    ids: list[int]
    finish_reason: StreamFinish = ""
    cached_tokens: int = 0
    reason: str = ""
    logprobs: list[float] = []
    replica: str = ""


class EngineConfig(msgspec.Struct, frozen=True):
    """What an engine process needs to start: `cpus` are the logical CPUs of its lease."""

    model_dir: str
    cpus: tuple[int, ...]
    kv_cache_mb: int
    max_num_seqs: int
    max_num_batched_tokens: int
    dynamic_quantization_group_size: int


class Add(msgspec.Struct, frozen=True, tag=True):
    """To the engine: begin a stream. `id` is the replica's own number for it."""

    id: int
    request: EngineRequest


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """To the engine: nobody reads this stream any more."""

    id: int


class EngineLoad(msgspec.Struct, frozen=True):
    """How busy an engine is. tokens_per_s: decoded, smoothed over the last seconds of work. decoded: since it
    started. speed: prompt tokens that it computes a second, smoothed over the last steps that were full of them."""

    running: int = 0
    decode_tokens_per_s: float = 0.0
    kv_used: float = 0.0
    decoded_tokens: int = 0
    prefill_tokens_per_s: float = 0.0


class Ready(msgspec.Struct, frozen=True, tag=True):
    """From the engine: warmed up. Times in seconds, sizes in tokens."""

    load_s: float
    warmup_s: float
    kv_tokens: int
    load: EngineLoad = EngineLoad()


class StartFailed(msgspec.Struct, frozen=True, tag=True):
    """From the engine: it cannot start, and why."""

    message: str


class StepResult(msgspec.Struct, frozen=True, tag=True):
    """From the engine: all that one step made, by stream id."""

    streams: dict[int, TokenBatch]
    load: EngineLoad


class PendingWork(msgspec.Struct, frozen=True):
    """What is still to be computed of some streams: tokens of their prompts and of their completions."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    streams: int = 0


class ReplicaStats(msgspec.Struct, frozen=True):
    """What a replica tells the routers: prompt tokens it computes a second, tokens that its KV cache holds, and what it
    has still to compute, by the router that wants it."""

    prefill_tokens_per_s: float = 0.0
    kv_tokens: int = 0
    pending: dict[str, PendingWork] = {}


ToEngine = Add | Cancel
FromEngine = Ready | StartFailed | StepResult

_HEADER = struct.Struct("<I")

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(EngineRequest).decode
decode_tokens = msgspec.msgpack.Decoder(TokenBatch).decode
decode_texts = msgspec.msgpack.Decoder(list[str]).decode
decode_vectors = msgspec.msgpack.Decoder(list[bytes]).decode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode


def frame(message: ToEngine | FromEngine) -> bytes:
    """The message as bytes behind its length (4 bytes, little-endian)."""
    body = encode(message)
    return _HEADER.pack(len(body)) + body


class Unframer:
    """Cuts a byte stream back into message bodies."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Takes what arrived; gives the bodies that are now complete."""
        self._buffer += data
        bodies, start = [], 0
        while len(self._buffer) - start >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._buffer, start)
            end = start + _HEADER.size + size
            if end > len(self._buffer):
                break
            bodies.append(bytes(self._buffer[start + _HEADER.size : end]))
            start = end
        del self._buffer[:start]
        return bodies
