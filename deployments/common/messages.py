"""Messages between router, replica and engine process.

Router and replica exchange `EngineRequest` and `TokenBatch` as MessagePack over a Ray handle (for embeddings: texts,
and vectors as little-endian float32). Replica and engine process exchange the other types over a socket pair, each
message after its length (deployments.common.framing).
"""

from typing import Literal

import msgspec

StreamFinish = Literal["", "stop", "length", "overloaded", "lost", "invalid"]
"""Why a stream ended; "" while it continues. `overloaded`: the KV cache cannot hold it. `lost`: its engine process
died, and another can continue it. `invalid`: the engine refused it."""


HEARTBEAT_S = 2.0
"""Maximum seconds between two messages of a stream; a replica with no new tokens sends an empty batch."""

KILLED_FROM_OUTSIDE = "from outside"
"""Reason of a `lost` stream whose engine did not crash: the engine was killed, or its replica or node disappeared.
A request that breaks engines makes them crash or hang, so this reason clears the request of suspicion."""

NO_PLACE = "no place"
"""Reason of a `lost` stream that the replica refused because it already decodes as many requests as it can."""

TYPICAL_COMPLETION_TOKENS = 256
"""Assumed length of a completion until measured ones are known."""


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """What a whole completion must follow. text: as llguidance takes it, in Lark or in JSON with a key `grammars`.
    foreign: its rules are a client's own, so that less may be spent on them."""

    text: str
    foreign: bool = False


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How to choose tokens and when to stop. temperature 0 is greedy; top_k 0 and min_p 0 are off.

    stop_ids: token ids that end the completion, in addition to the model's own. top_logprobs: how many of the most
    likely tokens to report with the chosen one; None: no log probabilities at all. logit_bias: what to add to the
    logits of which token ids, in ascending order of the ids.
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
    top_logprobs: int | None = None
    stop_ids: tuple[int, ...] = ()
    grammar: Grammar | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


class EngineRequest(msgspec.Struct, frozen=True, array_like=True):
    """A prompt as token ids, and how to continue it.

    router: id of the sending router. queued_tokens: tokens of the requests that wait in that router's queue, as far as
    replicas are added for them; scales: whether they are for this request.
    avoid_replicas: replicas that failed on this request; used only if there is no other.
    traceparent: parent of the engine's spans, in W3C Trace Context format; empty turns tracing off.
    attempt_id: the router's id for this attempt; 0 for none.
    prefix_replica: a replica that computed the prompt's first `prefix_tokens` for some router; empty if unknown.
    namespace: of the caller's answers; the engine says how much of the prompt this namespace has had computed before.
    generated_tokens: how many of the last prompt ids are the completion so far, which another engine generated; the
    limits, penalties and grammar of `sampling` count them. priority: 0 for people, 1 for batch work.
    prompt_logprobs: whether to report log probabilities of the prompt, with `sampling.top_logprobs` alternatives.
    may_refuse: whether a replica may refuse it because all of its places are taken, as another's may be free.
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
    namespace: str = ""
    generated_tokens: int = 0
    priority: int = 0
    prompt_logprobs: bool = False
    scales: bool = True
    may_refuse: bool = False

    @property
    def max_new_tokens(self) -> int:
        """How many tokens are left to generate."""
        return self.sampling.max_tokens - self.generated_tokens


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural logarithms of probabilities: of a chosen token, and of the most likely token ids, in descending order.

    They are the model's own, before temperature, penalties, biases and grammars.
    """

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


class TokenBatch(msgspec.Struct, frozen=True, array_like=True):
    """Token ids generated since the last message of the stream. Empty batches start a stream and serve as heartbeats.

    cached_tokens: prompt tokens found in the prefix cache; set in the first message with tokens, else 0. Not for
    clients: it would tell one team what another has asked.
    own_cached_tokens: those of them that requests of the same namespace have had computed.
    reason: the engine's message for `invalid`; KILLED_FROM_OUTSIDE, NO_PLACE or empty for `lost`.
    logprobs: one for each token, if requested.
    prompt_logprobs: one for each token of the prompt but the first, if requested; all in the first message with tokens.
    replica: the replica that generates; set in the first message, else empty.
    """

    ids: list[int]
    finish_reason: StreamFinish = ""
    cached_tokens: int = 0
    reason: str = ""
    logprobs: list[TokenLogprobs] = []
    replica: str = ""
    own_cached_tokens: int = 0
    prompt_logprobs: list[TokenLogprobs] = []


class Arithmetic(msgspec.Struct, frozen=True):
    """What a graph is compiled with.

    precision: number format of what is not quantized; auto leaves it to OpenVINO. group_size: numbers of an activation
    that share a scale when they are quantized to INT8; 0: they are not. max_tokens: of a step that it computes; None:
    any number. quantized_inputs: of attention's projections, whose inputs are quantized by token in the graph.
    """

    precision: Literal["auto", "bf16", "f32"] = "auto"
    group_size: int = 0
    max_tokens: int | None = None
    quantized_inputs: tuple[Literal["qkv", "o"], ...] = ()


class EngineConfig(msgspec.Struct, frozen=True):
    """What an engine process needs to start. cpus: the logical CPUs of its lease.

    decode_slowdown: how many times as long as a decoding step one with prompt tokens beside it may take. graphs: the
    first whose maximum suffices computes a step. guess_tokens: whether to guess tokens and check several in a step.
    isolate_prefixes: requests share cached prompts only within their namespace. variant: name of the graphs.
    """

    model_dir: str
    cpus: tuple[int, ...]
    kv_cache_mb: int
    max_num_seqs: int
    max_num_batched_tokens: int
    decode_slowdown: float
    graphs: tuple[Arithmetic, ...] = (Arithmetic(),)
    guess_tokens: bool = True
    isolate_prefixes: bool = False
    variant: str = ""


class Add(msgspec.Struct, frozen=True, tag=True):
    """To the engine: start a stream. id: the replica's number for it."""

    id: int
    request: EngineRequest


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """To the engine: end this stream, because nobody reads it any more."""

    id: int


class EngineLoad(msgspec.Struct, frozen=True):
    """How busy an engine is.

    running: sequences. decode_tokens_per_s: smoothed over the last seconds of work. kv_used: share of the KV cache,
    0 to 1. decoded_tokens: since the start; of these, accepted_tokens were guessed right, out of guessed_tokens.
    prefill_tokens_per_s: smoothed over the last steps full of prompt tokens. evicted_before: the Unix time until which
    the KV blocks were last used that it has evicted; 0: none.
    """

    running: int = 0
    decode_tokens_per_s: float = 0.0
    kv_used: float = 0.0
    decoded_tokens: int = 0
    prefill_tokens_per_s: float = 0.0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    evicted_before: float = 0.0


class Ready(msgspec.Struct, frozen=True, tag=True):
    """From the engine: warmed up. Times in seconds, sizes in tokens.

    multiplications: the operations and kernels by which its compiled graph multiplies.
    """

    load_s: float
    warmup_s: float
    kv_tokens: int
    load: EngineLoad = EngineLoad()
    multiplications: str = ""


class StartFailed(msgspec.Struct, frozen=True, tag=True):
    """From the engine: it could not start."""

    message: str


class StepResult(msgspec.Struct, frozen=True, tag=True):
    """From the engine: everything that one step generated, by stream id.

    next_tokens: as many as the next step computes at most, from which the replica knows how long it may take.
    """

    streams: dict[int, TokenBatch]
    load: EngineLoad
    next_tokens: int = 0


class PendingWork(msgspec.Struct, frozen=True, array_like=True):
    """Tokens still to compute: of prompts and of completions, over a number of streams."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    streams: int = 0


class EngineState(msgspec.Struct, frozen=True, array_like=True):
    """What people see of a replica. cpus: of its lease. restarts: of its engine process. The rest: as in EngineLoad."""

    cpus: str = ""
    running: int = 0
    tokens_per_s: float = 0.0
    kv_used: float = 0.0
    restarts: int = 0


ROUTING_STATS = "stats"
"""Key of the encoded ReplicaStats in the dict that Serve takes from a replica to the routers."""


class ReplicaStats(msgspec.Struct, frozen=True, array_like=True):
    """What a replica reports to the routers. kv_tokens: capacity of its KV cache. pending: work by router id.

    evicted_before: as in EngineLoad. Cached blocks that were used later are still there. engine: for people; nothing is
    decided by it. max_num_seqs: requests that it decodes at a time; 0 while unknown.
    """

    prefill_tokens_per_s: float = 0.0
    kv_tokens: int = 0
    pending: dict[str, PendingWork] = {}
    evicted_before: float = 0.0
    engine: EngineState = EngineState()
    max_num_seqs: int = 0


class EncoderInput(msgspec.Struct, frozen=True, array_like=True):
    """A text, or a pair of texts, for an encoder. second: where the tokens of type 1 begin; 0: there are none."""

    ids: list[int]
    second: int = 0


ToEngine = Add | Cancel
FromEngine = Ready | StartFailed | StepResult

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(EngineRequest).decode
decode_tokens = msgspec.msgpack.Decoder(TokenBatch).decode
decode_stats = msgspec.msgpack.Decoder(ReplicaStats).decode
decode_inputs = msgspec.msgpack.Decoder(list[EncoderInput]).decode
decode_vectors = msgspec.msgpack.Decoder(list[bytes]).decode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode
