"""The engine process: one thread that steps a continuous-batching pipeline on the cores of its lease.

It is a process of its own because `step()` holds the GIL during the whole forward pass. Between steps it reads Add and
Cancel messages; after each step it sends one StepResult. It ends when the replica closes its end of the socket.
"""

import ctypes
import json
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from deployments.common.messages import (
    Add,
    Cancel,
    EngineConfig,
    EngineLoad,
    EngineRequest,
    FromEngine,
    Ready,
    Sampling,
    StartFailed,
    StepResult,
    TokenBatch,
    TokenLogprobs,
    Unframer,
    decode_to_engine,
    frame,
)
from deployments.common.prefix import BLOCK_TOKENS, block_keys
from deployments.engine.admission import Admission
from deployments.engine.pipeline import (
    generation_config,
    kv_bytes_per_token,
    make_pipeline,
    release_weights,
    stop_token_ids,
    token_tensor,
)
from deployments.engine.sequence import Sequence

_PR_SET_PDEATHSIG = 1
_RATE_SMOOTHING_S = 5.0
_PROBE_TOKENS = 32
_PROBING_S = 0.2
_MIN_PREFILL_SAMPLE = 64
"""Minimum prompt tokens in a step for the step to count in the prefill speed."""
_PREFILL_SPEED_WEIGHT = 0.2
_BEAT_S = 1.0
"""An engine at work sends a message after the first step that ends this long after the last message."""


class Engine:
    """The pipeline and its sequences."""

    def __init__(self, config: EngineConfig) -> None:
        # Imported here: affinity must be set before OpenVINO loads, because it counts its threads then.
        import openvino_genai

        self._genai = openvino_genai
        model_dir = Path(config.model_dir)
        model = json.loads((model_dir / "config.json").read_text())
        self._vocabulary = int(model["vocab_size"])
        self._stop_ids = stop_token_ids(model_dir, model)
        self._blocks = max(1, config.kv_cache_mb * 2**20 // (kv_bytes_per_token(model) * BLOCK_TOKENS))
        self._admission = Admission(self._blocks, config.max_num_batched_tokens)
        self._max_step_tokens = config.max_num_batched_tokens
        self._waiting: dict[int, tuple[EngineRequest, list[bytes]]] = {}
        self._running: dict[int, Sequence] = {}
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
        if message.request.prompt_logprobs:
            reason = "this engine has no log probabilities of prompts"
            self._refused[message.id] = TokenBatch([], "invalid", reason=reason)
            return
        self._waiting[message.id] = (message.request, block_keys(_prompt_of(message.request)))

    def _admit(self) -> None:
        for number, (request, keys) in list(self._waiting.items()):
            if self._admission.full:
                return
            if not self._admission.must_wait(_prompt_of(request), keys, self._running.values()):
                del self._waiting[number]
                self._start(number, request, keys)

    def _start(self, number: int, request: EngineRequest, keys: list[bytes]) -> None:
        prompt = _prompt_of(request)
        repeated = len(request.prompt_ids) - len(prompt)
        try:
            config = generation_config(request.sampling, self._stop_ids, request.generated_tokens - repeated)
            handle = self._pipeline.add_request(number & 0xFFFFFFFF, token_tensor(prompt), config)
        except RuntimeError as error:
            self._refused[number] = TokenBatch([], "invalid", reason=str(error))
            return
        cached = self._admission.joined(prompt, keys, request.namespace)
        self._running[number] = sequence = Sequence(handle, request, keys, cached)
        sequence.tokens, sequence.repeated = list(prompt), repeated

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

    def _abort(self, number: int, sequence: Sequence) -> None:
        sequence.handle.cancel()
        self._remove(number, sequence)
        # The scheduler frees the KV blocks in its next step, and an idle engine makes no steps.
        if not self._running and self._pipeline.has_non_finished_requests():
            self._pipeline.step()

    def _remove(self, number: int, sequence: Sequence) -> None:
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
        return self.result(batches)

    def result(self, batches: dict[int, TokenBatch]) -> StepResult:
        """These batches, and what the replica should know of the next step."""
        return StepResult(batches, self.load, self.next_tokens)

    @property
    def next_tokens(self) -> int:
        """Tokens that the next step computes at most."""
        prefills = bool(self._waiting) or any(not sequence.prefilled for sequence in self._running.values())
        return max(len(self._running), self._max_step_tokens if prefills else 0)

    @property
    def load(self) -> EngineLoad:
        usage = self._pipeline.get_metrics().cache_usage / 100
        return EngineLoad(len(self._running), self._decode_rate, usage, self._decoded_tokens, self._prefill_rate)

    def _read(self, sequence: Sequence) -> TokenBatch | None:
        ids: list[int] = []
        logprobs: list[TokenLogprobs] = []
        finish: Any = ""
        while sequence.handle.can_read():
            for output in sequence.handle.read().values():
                ids += output.generated_ids
                if sequence.top_logprobs is not None:
                    # The pipeline reports the chosen token's only.
                    logprobs += [
                        TokenLogprobs(logprob, ((token, logprob),) if sequence.top_logprobs else ())
                        for token, logprob in zip(output.generated_ids, output.generated_log_probs, strict=True)
                    ]
                if output.finish_reason == self._genai.GenerationFinishReason.STOP:
                    finish = "stop"
                elif output.finish_reason == self._genai.GenerationFinishReason.LENGTH:
                    finish = "length"
        if not finish and sequence.handle.get_status() == self._genai.GenerationStatus.IGNORED:
            finish = "overloaded"
        if not ids and not finish:
            return None
        sequence.tokens += ids
        cached, own = (0, 0) if sequence.prefilled else (sequence.cached_tokens, sequence.own_cached_tokens)
        if not sequence.prefilled:
            sequence.prefilled = True
            self._admission.prefilled(sequence)
        repeated = min(sequence.repeated, len(ids))
        sequence.repeated -= repeated
        return TokenBatch(ids[repeated:], finish, cached, "", logprobs[repeated:], own_cached_tokens=own)

    def _measure(self, tokens: int, prompt_tokens: int, seconds: float) -> None:
        self._decoded_tokens += tokens
        weight = min(1.0, seconds / _RATE_SMOOTHING_S)
        self._decode_rate += (tokens / max(seconds, 1e-6) - self._decode_rate) * weight
        if prompt_tokens >= _MIN_PREFILL_SAMPLE:
            rate = prompt_tokens / max(seconds, 1e-6)
            self._prefill_rate += (rate - self._prefill_rate) * _PREFILL_SPEED_WEIGHT


def _prompt_of(request: EngineRequest) -> list[int]:
    """What the pipeline computes as the prompt. Its grammars start at their beginning, so with one, a completion that
    another engine has begun is generated again, from the same seed."""
    begun = request.generated_tokens if request.sampling.grammar is not None else 0
    return request.prompt_ids[: len(request.prompt_ids) - begun]


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
    announced, sent_at = engine.next_tokens, time.monotonic()
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
            if not engine.busy:
                # The replica expects an answer to every message.
                announced, sent_at = engine.next_tokens, time.monotonic()
                send(engine.result({}))
        if engine.next_tokens > announced:
            # This step takes longer than the replica expects.
            announced, sent_at = engine.next_tokens, time.monotonic()
            send(engine.result({}))
        step = engine.step()
        # The steps of a long prompt generate nothing, and are a sign of life all the same.
        if step.streams or not engine.busy or time.monotonic() - sent_at > _BEAT_S:
            announced, sent_at = step.next_tokens, time.monotonic()
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
