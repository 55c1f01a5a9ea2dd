"""The engine process: one thread that steps a continuous-batching pipeline on the cores of its lease.

It runs apart from the replica because `step()` holds the GIL for as long as the forward pass takes. It
reads Add and Cancel between steps and sends one Step message for all that a step made. It ends when the
replica's end of the socket closes.
"""

import ctypes
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from deployments.common.messages import (
    Add,
    Cancel,
    EngineConfig,
    EngineLoad,
    EngineRequest,
    FromEngine,
    Grammar,
    Ready,
    Sampling,
    StartFailed,
    StepResult,
    TokenBatch,
    Unframer,
    decode_to_engine,
    frame,
)
from deployments.common.prefix import BLOCK_TOKENS, block_keys
from deployments.engine.admission import Admission

_PR_SET_PDEATHSIG = 1
_MADV_DONTNEED = 4
_WEIGHTS_FILE = "openvino_model.bin"
_RATE_SMOOTHING_S = 5.0
_PROBE_TOKENS = 32
_PROBING_S = 0.2
_FULL_STEP = 64
"""Prompt tokens in a step from which the engine's speed is learnt."""
_SPEED_WEIGHT = 0.2


def kv_bytes_per_token(config: dict[str, Any]) -> int:
    """KV cache of one token in bytes, for a transformers config.

    The CPU plugin keeps keys and values as u8; it adds 8 bytes of scale and zero point for each channel and
    block to the keys, and for each token and head to the values (openvino 2026.4).
    """
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    kv_heads = config.get("num_key_value_heads") or heads
    per_head = 2 * head_size + 8 * head_size // BLOCK_TOKENS + 8
    return int(config["num_hidden_layers"] * kv_heads * per_head)


class _Sequence:
    """A request under way: its handle in the pipeline, and the tokens so far."""

    __slots__ = ("announced", "cached", "fresh", "handle", "keys", "left", "logprobs", "tokens")

    def __init__(self, handle: Any, request: EngineRequest, keys: list[bytes], cached: int) -> None:
        self.handle = handle
        self.tokens = list(request.prompt_ids)
        self.keys = keys
        self.cached = cached
        self.announced = False
        self.fresh = False
        """Whether the last step made a token for it: all before that one is computed."""
        self.left = False
        """Whether nobody reads it any more."""
        self.logprobs = request.sampling.logprobs


def make_pipeline(
    config: EngineConfig,
    blocks: int,
    scheduler: Mapping[str, Any] = MappingProxyType({}),
    properties: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """A continuous-batching pipeline with so many KV blocks. scheduler, properties: what is set otherwise than here."""
    import openvino_genai

    chosen = openvino_genai.SchedulerConfig()
    chosen.num_kv_blocks = blocks
    chosen.max_num_seqs = config.max_num_seqs
    chosen.max_num_batched_tokens = config.max_num_batched_tokens
    chosen.dynamic_split_fuse = True
    chosen.enable_prefix_caching = True
    for name, value in scheduler.items():
        setattr(chosen, name, value)
    compiled = {
        "INFERENCE_NUM_THREADS": len(config.cpus),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": config.dynamic_quantization_group_size,
        # Sampling has its own pool, which would otherwise be as wide as the machine.
        "sampler_num_threads": len(config.cpus),
        **properties,
    }
    return openvino_genai.ContinuousBatchingPipeline(config.model_dir, chosen, "CPU", compiled)


class Engine:
    """The pipeline and the streams in it."""

    def __init__(self, config: EngineConfig) -> None:
        # Imported here: affinity must be set before OpenVINO loads and counts its threads.
        import openvino
        import openvino_genai

        self._openvino, self._genai = openvino, openvino_genai
        model_dir = Path(config.model_dir)
        model = json.loads((model_dir / "config.json").read_text())
        self._vocabulary = int(model["vocab_size"])
        self._stop_ids = _stop_ids(model_dir, model)
        self._blocks = max(1, config.kv_cache_mb * 2**20 // (kv_bytes_per_token(model) * BLOCK_TOKENS))
        self._admission = Admission(self._blocks, config.max_num_batched_tokens)
        self._waiting: dict[int, tuple[EngineRequest, list[bytes]]] = {}
        self._streams: dict[int, _Sequence] = {}
        self._ended: dict[int, TokenBatch] = {}
        self._rate = self._speed = 0.0
        self._decoded = 0

        self._pipeline = make_pipeline(config, self._blocks)

    @property
    def busy(self) -> bool:
        return bool(self._streams or self._ended or self._waiting)

    @property
    def kv_tokens(self) -> int:
        return self._blocks * BLOCK_TOKENS

    def warm_up(self) -> None:
        """Runs a short prompt and a few decode steps, as the first inference repacks the weights; then others, to learn
        how fast this node is: the fastest says so, as what else goes on at a start ends. Longer ones find nothing left
        to prepare."""
        most = min(_PROBE_TOKENS, self.kv_tokens // 4)
        self._run([token % self._vocabulary for token in range(most)], 4)
        first, ends = 0, time.perf_counter() + _PROBING_S
        while (began := time.perf_counter()) < ends:
            first += 1  # none begins like another, or it would be found in the cache
            self._run([(first - token) % self._vocabulary for token in range(most)], 1)
            self._speed = max(self._speed, most / (time.perf_counter() - began))

    def _run(self, prompt: list[int], tokens: int) -> None:
        self.add(Add(-1, EngineRequest(prompt, Sampling(max_tokens=tokens))))
        while self.busy:
            self.step()

    def add(self, message: Add) -> None:
        """Begins a stream as soon as it may join the others; one that the pipeline refuses ends as `invalid`."""
        prompt = message.request.prompt_ids
        if not prompt or min(prompt) < 0 or max(prompt) >= self._vocabulary:
            self._ended[message.id] = TokenBatch([], "invalid", reason="token ids outside the vocabulary")
            return
        if len(prompt) + 1 > self.kv_tokens:
            self._ended[message.id] = TokenBatch([], "overloaded")
            return
        self._waiting[message.id] = (message.request, block_keys(prompt))

    def _admit(self) -> None:
        for number, (request, keys) in list(self._waiting.items()):
            if self._admission.full:
                return
            if not self._admission.clashes(request.prompt_ids, keys, self._streams.values()):
                del self._waiting[number]
                self._begin(number, request, keys)

    def _begin(self, number: int, request: EngineRequest, keys: list[bytes]) -> None:
        ids = self._openvino.Tensor(_row(request.prompt_ids))
        try:
            handle = self._pipeline.add_request(number & 0xFFFFFFFF, ids, self._generation(request.sampling))
        except RuntimeError as error:
            self._ended[number] = TokenBatch([], "invalid", reason=str(error))
            return
        self._streams[number] = _Sequence(handle, request, keys, self._admission.begun(request.prompt_ids, keys))

    def cancel(self, message: Cancel) -> None:
        """Ends a stream that nobody reads; one that has ended already is no fault.

        One whose prompt is being computed ends when that is done: its KV blocks are known by all their tokens already,
        and whoever asked the same would be given them half empty.
        """
        self._waiting.pop(message.id, None)
        stream = self._streams.get(message.id)
        if stream is not None:
            stream.left = True
            if stream.fresh:
                self._leave(message.id, stream)

    def _leave(self, number: int, stream: _Sequence) -> None:
        stream.handle.cancel()
        self._end(number, stream)
        # The scheduler lets go of its KV blocks in the next step, and an idle engine makes none.
        if not self._streams and self._pipeline.has_non_finished_requests():
            self._pipeline.step()

    def _end(self, number: int, stream: _Sequence) -> None:
        del self._streams[number]
        self._admission.ended(stream)

    def step(self) -> StepResult:
        """One forward pass over all that runs; gives what it made."""
        self._admit()
        made: dict[int, TokenBatch] = self._ended
        self._ended = {}
        if self._streams:
            began = time.perf_counter()
            self._pipeline.step()
            prompt_tokens = self._admission.stepped(self._streams.values())
            count = 0
            for number, stream in list(self._streams.items()):
                tokens = self._read(stream)
                stream.fresh = tokens is not None
                if tokens is None:
                    continue
                count += len(tokens.ids)
                if not stream.left:
                    made[number] = tokens
                if tokens.finish_reason:
                    self._end(number, stream)
                elif stream.left:
                    self._leave(number, stream)
            self._measure(count, prompt_tokens, time.perf_counter() - began)
        return StepResult(made, self.load)

    @property
    def load(self) -> EngineLoad:
        usage = self._pipeline.get_metrics().cache_usage / 100
        return EngineLoad(len(self._streams), self._rate, usage, self._decoded, self._speed)

    def _read(self, stream: _Sequence) -> TokenBatch | None:
        ids: list[int] = []
        logprobs: list[float] = []
        finish: Any = ""
        while stream.handle.can_read():
            for output in stream.handle.read().values():
                ids += output.generated_ids
                if stream.logprobs:
                    logprobs += output.generated_log_probs
                if output.finish_reason == self._genai.GenerationFinishReason.STOP:
                    finish = "stop"
                elif output.finish_reason == self._genai.GenerationFinishReason.LENGTH:
                    finish = "length"
        if not finish and stream.handle.get_status() == self._genai.GenerationStatus.IGNORED:
            finish = "overloaded"
        if not ids and not finish:
            return None
        stream.tokens += ids
        cached = 0 if stream.announced else stream.cached
        if not stream.announced:
            stream.announced = True
            self._admission.computed(stream)
        return TokenBatch(ids, finish, cached, "", logprobs)

    def _generation(self, sampling: Sampling) -> Any:
        config = self._genai.GenerationConfig()
        config.apply_chat_template = False
        config.max_new_tokens = sampling.max_tokens
        config.min_new_tokens = min(sampling.min_tokens, sampling.max_tokens)
        config.ignore_eos = sampling.ignore_eos
        # With ignore_eos the model's own ends are ignored, and those that the request names are not.
        config.stop_token_ids = {*sampling.stop_ids, *(() if sampling.ignore_eos else self._stop_ids)}
        config.repetition_penalty = sampling.repetition_penalty
        config.frequency_penalty = sampling.frequency_penalty
        config.presence_penalty = sampling.presence_penalty
        config.logprobs = int(sampling.logprobs)
        config.do_sample = sampling.temperature > 0
        if config.do_sample:
            config.temperature = sampling.temperature
            config.top_p = sampling.top_p
            config.min_p = sampling.min_p
            if sampling.top_k:
                config.top_k = sampling.top_k
            # Without a seed of its own every request would draw the same numbers.
            seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
            config.rng_seed = seed & (2**63 - 1)
        if sampling.grammar is not None:
            config.structured_output_config = self._structure(sampling.grammar)
        return config

    def _structure(self, grammar: Grammar) -> Any:
        kinds = self._genai.StructuredOutputConfig
        if grammar.ebnf:
            return kinds(grammar=grammar.ebnf)
        tags = [kinds.Tag(tag.begin, kinds.EBNF(tag.grammar), tag.end) for tag in grammar.tags]
        return kinds(structural_tags_config=kinds.TriggeredTags(triggers=[grammar.trigger], tags=tags))

    def _measure(self, tokens: int, prompt_tokens: int, seconds: float) -> None:
        self._decoded += tokens
        weight = min(1.0, seconds / _RATE_SMOOTHING_S)
        self._rate += (tokens / max(seconds, 1e-6) - self._rate) * weight
        if prompt_tokens >= _FULL_STEP:
            speed = prompt_tokens / max(seconds, 1e-6)
            self._speed += (speed - self._speed) * _SPEED_WEIGHT


def _row(ids: list[int]) -> Any:
    import numpy

    return numpy.array([ids], dtype=numpy.int64)


def _stop_ids(model_dir: Path, model: dict[str, Any]) -> set[int]:
    """Ids that end a completion: generation_config.json's, else config.json's."""
    file = model_dir / "generation_config.json"
    named = (json.loads(file.read_text()) if file.is_file() else {}).get("eos_token_id", model.get("eos_token_id"))
    return set(named) if isinstance(named, list) else {named} if named is not None else set()


def give_back_weights(model_dir: str) -> None:
    """Lets go of the mapped weight file, of which the first inference has made a copy of its own (openvino 2026.4).

    The kernel need not hold its pages any more for this process; what is read again comes back by itself.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(f"{model_dir}/{_WEIGHTS_FILE}"):
            start, end = (int(number, 16) for number in line.split(" ", 1)[0].split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def serve(config: EngineConfig, connection: socket.socket) -> None:
    """Loads, warms up, then steps until the connection closes."""

    def send(message: FromEngine) -> None:
        connection.sendall(frame(message))

    began = time.perf_counter()
    try:
        engine = Engine(config)
        loaded = time.perf_counter()
        engine.warm_up()
        give_back_weights(config.model_dir)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        send(StartFailed(f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error) else ''}"))
        raise
    send(Ready(loaded - began, time.perf_counter() - loaded, engine.kv_tokens, engine.load))

    unframer = Unframer()
    selector = selectors.DefaultSelector()
    selector.register(connection, selectors.EVENT_READ)
    while True:
        while selector.select(0 if engine.busy else None):
            data = connection.recv(1 << 20)
            if not data:
                return
            for body in unframer.feed(data):
                message = decode_to_engine(body)
                if isinstance(message, Add):
                    engine.add(message)
                else:
                    engine.cancel(message)
        step = engine.step()
        if step.streams or not engine.busy:
            send(step)


def main() -> None:
    """Started by the replica: argv[1] is the EngineConfig as JSON, argv[2] the socket's file descriptor."""
    # Should the replica die without closing the socket (kill -9 of a whole group closes it too), go with it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C in a terminal reaches every process there; only the replica decides when the engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = msgspec.json.decode(sys.argv[1], type=EngineConfig)
    os.sched_setaffinity(0, config.cpus)
    with socket.socket(fileno=int(sys.argv[2])) as connection:
        serve(config, connection)


if __name__ == "__main__":
    main()
