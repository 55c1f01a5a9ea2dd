"""The engine process: one thread that steps a continuous-batching pipeline on the cores of its lease.

It is a process of its own because `step()` holds the GIL during the whole forward pass. Between steps it reads Add and
Cancel messages; after each step it sends one StepResult. It ends when the replica closes its end of the socket.
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
_MIN_PREFILL_SAMPLE = 64
"""Minimum prompt tokens in a step for the step to count in the prefill speed."""
_PREFILL_SPEED_WEIGHT = 0.2


def kv_bytes_per_token(config: dict[str, Any]) -> int:
    """Bytes of KV cache for one token. config: the model's config.json.

    The CPU plugin stores keys and values as u8. It adds 8 bytes of scale and zero point for each channel and block of
    keys, and for each token and head of values (openvino 2026.4).
    """
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    kv_heads = config.get("num_key_value_heads") or heads
    per_head = 2 * head_size + 8 * head_size // BLOCK_TOKENS + 8
    return int(config["num_hidden_layers"] * kv_heads * per_head)


class _Sequence:
    """A sequence in the pipeline: its handle, and its tokens so far."""

    __slots__ = ("cached_tokens", "cancelled", "handle", "keys", "logprobs", "prefilled", "stepped", "tokens")

    def __init__(self, handle: Any, request: EngineRequest, keys: list[bytes], cached_tokens: int) -> None:
        self.handle = handle
        self.tokens = list(request.prompt_ids)
        self.keys = keys
        self.cached_tokens = cached_tokens
        self.prefilled = False
        """Whether the prompt is computed, so that a token was generated."""
        self.stepped = False
        """Whether the last step generated a token, so that all earlier tokens are computed."""
        self.cancelled = False
        self.logprobs = request.sampling.logprobs


def make_pipeline(
    config: EngineConfig,
    blocks: int,
    scheduler: Mapping[str, Any] = MappingProxyType({}),
    properties: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """A continuous-batching pipeline. blocks: KV blocks. scheduler, properties: override the defaults set here."""
    import openvino_genai

    scheduler_config = openvino_genai.SchedulerConfig()
    scheduler_config.num_kv_blocks = blocks
    scheduler_config.max_num_seqs = config.max_num_seqs
    scheduler_config.max_num_batched_tokens = config.max_num_batched_tokens
    scheduler_config.dynamic_split_fuse = True
    scheduler_config.enable_prefix_caching = True
    for name, value in scheduler.items():
        setattr(scheduler_config, name, value)
    plugin_config = {
        "INFERENCE_NUM_THREADS": len(config.cpus),
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": config.dynamic_quantization_group_size,
        # The sampler has its own thread pool, by default one thread for each core of the machine.
        "sampler_num_threads": len(config.cpus),
        **properties,
    }
    return openvino_genai.ContinuousBatchingPipeline(config.model_dir, scheduler_config, "CPU", plugin_config)


class Engine:
    """The pipeline and its sequences."""

    def __init__(self, config: EngineConfig) -> None:
        # Imported here: affinity must be set before OpenVINO loads, because it counts its threads then.
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
        self._running: dict[int, _Sequence] = {}
        self._refused: dict[int, TokenBatch] = {}
        self._decode_rate = self._prefill_rate = 0.0
        self._decoded_tokens = 0

        self._pipeline = make_pipeline(config, self._blocks)

    @property
    def busy(self) -> bool:
        return bool(self._running or self._refused or self._waiting)

    @property
    def kv_tokens(self) -> int:
        return self._blocks * BLOCK_TOKENS

    def warm_up(self) -> None:
        """Runs a short prompt and a few decode steps, because the first inference repacks the weights; longer prompts
        would prepare nothing more. Then measures the prefill speed of this node with more short prompts. Uses the
        fastest one: other start-up work slows the rest."""
        length = min(_PROBE_TOKENS, self.kv_tokens // 4)
        self._run([token % self._vocabulary for token in range(length)], 4)
        first, end = 0, time.perf_counter() + _PROBING_S
        while (started := time.perf_counter()) < end:
            first += 1  # each probe begins differently, or the prefix cache would answer it
            self._run([(first - token) % self._vocabulary for token in range(length)], 1)
            self._prefill_rate = max(self._prefill_rate, length / (time.perf_counter() - started))

    def _run(self, prompt: list[int], tokens: int) -> None:
        self.add(Add(-1, EngineRequest(prompt, Sampling(max_tokens=tokens))))
        while self.busy:
            self.step()

    def add(self, message: Add) -> None:
        """Queues a stream, which starts as soon as it may join the batch. A refused stream ends as `invalid`."""
        prompt = message.request.prompt_ids
        if not prompt or min(prompt) < 0 or max(prompt) >= self._vocabulary:
            self._refused[message.id] = TokenBatch([], "invalid", reason="token ids outside the vocabulary")
            return
        if len(prompt) + 1 > self.kv_tokens:
            self._refused[message.id] = TokenBatch([], "overloaded")
            return
        self._waiting[message.id] = (message.request, block_keys(prompt))

    def _admit(self) -> None:
        for number, (request, keys) in list(self._waiting.items()):
            if self._admission.full:
                return
            if not self._admission.must_wait(request.prompt_ids, keys, self._running.values()):
                del self._waiting[number]
                self._start(number, request, keys)

    def _start(self, number: int, request: EngineRequest, keys: list[bytes]) -> None:
        ids = self._openvino.Tensor(_row(request.prompt_ids))
        try:
            handle = self._pipeline.add_request(number & 0xFFFFFFFF, ids, self._generation_config(request.sampling))
        except RuntimeError as error:
            self._refused[number] = TokenBatch([], "invalid", reason=str(error))
            return
        self._running[number] = _Sequence(handle, request, keys, self._admission.joined(request.prompt_ids, keys))

    def cancel(self, message: Cancel) -> None:
        """Ends a stream that nobody reads. Does nothing if it has ended.

        During its prefill a stream cannot be cancelled yet: its KV blocks are already registered under all their
        tokens, and the next equal prompt would get them half empty. It ends when the prefill is done.
        """
        self._waiting.pop(message.id, None)
        sequence = self._running.get(message.id)
        if sequence is not None:
            sequence.cancelled = True
            if sequence.stepped:
                self._abort(message.id, sequence)

    def _abort(self, number: int, sequence: _Sequence) -> None:
        sequence.handle.cancel()
        self._remove(number, sequence)
        # The scheduler frees the KV blocks in its next step, and an idle engine makes no steps.
        if not self._running and self._pipeline.has_non_finished_requests():
            self._pipeline.step()

    def _remove(self, number: int, sequence: _Sequence) -> None:
        del self._running[number]
        self._admission.left(sequence)

    def step(self) -> StepResult:
        """Runs one forward pass over the batch and returns what it generated."""
        self._admit()
        batches: dict[int, TokenBatch] = self._refused
        self._refused = {}
        if self._running:
            started = time.perf_counter()
            self._pipeline.step()
            prompt_tokens = self._admission.stepped(self._running.values())
            generated = 0
            for number, sequence in list(self._running.items()):
                batch = self._read(sequence)
                sequence.stepped = batch is not None
                if batch is None:
                    continue
                generated += len(batch.ids)
                if not sequence.cancelled:
                    batches[number] = batch
                if batch.finish_reason:
                    self._remove(number, sequence)
                elif sequence.cancelled:
                    self._abort(number, sequence)
            self._measure(generated, prompt_tokens, time.perf_counter() - started)
        return StepResult(batches, self.load)

    @property
    def load(self) -> EngineLoad:
        usage = self._pipeline.get_metrics().cache_usage / 100
        return EngineLoad(len(self._running), self._decode_rate, usage, self._decoded_tokens, self._prefill_rate)

    def _read(self, sequence: _Sequence) -> TokenBatch | None:
        ids: list[int] = []
        logprobs: list[float] = []
        finish: Any = ""
        while sequence.handle.can_read():
            for output in sequence.handle.read().values():
                ids += output.generated_ids
                if sequence.logprobs:
                    logprobs += output.generated_log_probs
                if output.finish_reason == self._genai.GenerationFinishReason.STOP:
                    finish = "stop"
                elif output.finish_reason == self._genai.GenerationFinishReason.LENGTH:
                    finish = "length"
        if not finish and sequence.handle.get_status() == self._genai.GenerationStatus.IGNORED:
            finish = "overloaded"
        if not ids and not finish:
            return None
        sequence.tokens += ids
        cached = 0 if sequence.prefilled else sequence.cached_tokens
        if not sequence.prefilled:
            sequence.prefilled = True
            self._admission.prefilled(sequence)
        return TokenBatch(ids, finish, cached, "", logprobs)

    def _generation_config(self, sampling: Sampling) -> Any:
        config = self._genai.GenerationConfig()
        config.apply_chat_template = False
        config.max_new_tokens = sampling.max_tokens
        config.min_new_tokens = min(sampling.min_tokens, sampling.max_tokens)
        config.ignore_eos = sampling.ignore_eos
        # ignore_eos ignores the model's own stop tokens, but not those of the request.
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
            # The pipeline's default seed is constant, so every request would draw the same numbers.
            seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
            config.rng_seed = seed & (2**63 - 1)
        if sampling.grammar is not None:
            config.structured_output_config = self._structured_output(sampling.grammar)
        return config

    def _structured_output(self, grammar: Grammar) -> Any:
        kinds = self._genai.StructuredOutputConfig
        if grammar.ebnf:
            return kinds(grammar=grammar.ebnf)
        tags = [kinds.Tag(tag.begin, kinds.EBNF(tag.grammar), tag.end) for tag in grammar.tags]
        return kinds(structural_tags_config=kinds.TriggeredTags(triggers=[grammar.trigger], tags=tags))

    def _measure(self, tokens: int, prompt_tokens: int, seconds: float) -> None:
        self._decoded_tokens += tokens
        weight = min(1.0, seconds / _RATE_SMOOTHING_S)
        self._decode_rate += (tokens / max(seconds, 1e-6) - self._decode_rate) * weight
        if prompt_tokens >= _MIN_PREFILL_SAMPLE:
            rate = prompt_tokens / max(seconds, 1e-6)
            self._prefill_rate += (rate - self._prefill_rate) * _PREFILL_SPEED_WEIGHT


def _row(ids: list[int]) -> Any:
    import numpy

    return numpy.array([ids], dtype=numpy.int64)


def _stop_ids(model_dir: Path, model: dict[str, Any]) -> set[int]:
    """Token ids that end a completion: from generation_config.json, else from config.json."""
    file = model_dir / "generation_config.json"
    ids = (json.loads(file.read_text()) if file.is_file() else {}).get("eos_token_id", model.get("eos_token_id"))
    return set(ids) if isinstance(ids, list) else {ids} if ids is not None else set()


def release_weights(model_dir: str) -> None:
    """Releases the pages of the mapped weight file. The first inference made a repacked copy (openvino 2026.4).

    The kernel loads pages again if they are read after all.
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

    started = time.perf_counter()
    try:
        engine = Engine(config)
        loaded = time.perf_counter()
        engine.warm_up()
        release_weights(config.model_dir)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        send(StartFailed(f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error) else ''}"))
        raise
    send(Ready(loaded - started, time.perf_counter() - loaded, engine.kv_tokens, engine.load))

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
    """Started by the replica. argv[1]: EngineConfig as JSON. argv[2]: file descriptor of the socket."""
    # End with the replica even if its death leaves the socket open.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C in a terminal reaches every process of its group, but only the replica decides when the engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = msgspec.json.decode(sys.argv[1], type=EngineConfig)
    os.sched_setaffinity(0, config.cpus)
    with socket.socket(fileno=int(sys.argv[2])) as connection:
        serve(config, connection)


if __name__ == "__main__":
    main()
