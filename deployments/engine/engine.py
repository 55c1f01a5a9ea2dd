"""The engine: streams in, tokens out, one forward pass over all of them at a time."""

import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Sequence_
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deployments.common.messages import (
    Add,
    Cancel,
    EngineConfig,
    EngineLoad,
    EngineRequest,
    Sampling,
    StepResult,
    StreamFinish,
    TokenBatch,
)
from deployments.common.prefix import BLOCK_TOKENS
from deployments.engine.blocks import BlockPool
from deployments.engine.compilations import Compilations
from deployments.engine.drafter import Drafter
from deployments.engine.drafts import Draft
from deployments.engine.grammar import GrammarCompiler, GrammarError, Mask, Matcher
from deployments.engine.model import Chunk, Interrupted, PagedModel, stop_token_ids
from deployments.engine.pace import StepPace
from deployments.engine.protocol import nobody
from deployments.engine.sampler import Row, Sampled, sample
from deployments.engine.sampling_state import SamplingState
from deployments.engine.scheduler import Scheduler, Work
from deployments.engine.sequence import Sequence

_RATE_SMOOTHING_S = 5.0
_PROBE_TOKENS = 32
_PROBING_S = 0.2
_MIN_PREFILL_SAMPLE = 64
"""Minimum prompt tokens in a step for the step to count in the prefill speed."""
_PREFILL_SPEED_WEIGHT = 0.2
_MAX_INTERRUPTIONS = 8
"""In a row. However often people ask, batch work goes on in the end."""


class Engine:
    """A model, its KV cache, and the streams that it generates."""

    def __init__(self, config: EngineConfig, properties: Mapping[str, Any] = MappingProxyType({})) -> None:
        """properties: of OpenVINO's CPU plugin; they override those that Dray sets.

        Raises RuntimeError, OSError, ValueError or KeyError for a model that cannot be loaded.
        """
        self._model = PagedModel(config, properties)
        folder = Path(config.model_dir)
        self._stop_ids = stop_token_ids(folder)
        self._compilations = Compilations(GrammarCompiler(folder, self._model.vocabulary, self._stop_ids))
        self._max_step_tokens = config.max_num_batched_tokens
        self._pool = BlockPool(self._model.blocks)
        self._pace = StepPace(config.decode_slowdown, config.max_num_batched_tokens, BLOCK_TOKENS)
        self._scheduler = Scheduler(self._pool, self._pace, config.max_num_seqs, config.max_num_batched_tokens)
        self._isolate = config.isolate_prefixes
        self._drafter = Drafter(self._pace)
        self._guess_tokens = config.guess_tokens
        self._sequences: dict[int, Sequence] = {}
        self._masker = ThreadPoolExecutor(1, "mask")
        """Computes masks beside the forward pass."""
        self._refused: dict[int, TokenBatch] = {}
        self._arrivals = self._decoded_tokens = self._interruptions = 0
        self._decode_rate = self._prefill_rate = 0.0

    @property
    def busy(self) -> bool:
        return bool(self._sequences or self._refused)

    @property
    def kv_tokens(self) -> int:
        return self._pool.capacity * BLOCK_TOKENS

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(
            len(self._scheduler.running),
            self._decode_rate,
            self._pool.used / self._pool.capacity,
            self._decoded_tokens,
            self._prefill_rate,
            self._drafter.guessed,
            self._drafter.accepted,
            self._pool.evicted_before,
        )

    @property
    def next_tokens(self) -> int:
        running = len(self._scheduler.running)
        return max(running, self._max_step_tokens if self._scheduler.prefills else 0)

    def warm_up(self) -> str:
        """Runs a short prompt and a few steps, as the first inference repacks the weights; longer prompts would prepare
        nothing more. Then measures this node's prefill speed: other start-up work slows all but the fastest prompt."""
        length = min(_PROBE_TOKENS, self.kv_tokens // 4)
        self._run([token % self._model.vocabulary for token in range(length)], 4)
        first, end = 0, time.perf_counter() + _PROBING_S
        while (started := time.perf_counter()) < end:
            first += 1  # each probe begins differently, or the prefix cache would answer it
            self._run([(first - token) % self._model.vocabulary for token in range(length)], 1)
            self._prefill_rate = max(self._prefill_rate, length / (time.perf_counter() - started))
        return self._model.multiplications

    def _run(self, prompt: list[int], tokens: int) -> None:
        self.add(Add(-1, EngineRequest(prompt, Sampling(max_tokens=tokens, ignore_eos=True))))
        while self.busy:
            self.step()

    def add(self, message: Add) -> None:
        """Begins a stream, which waits for a place. A refused stream ends as `invalid` or `overloaded`."""
        request = message.request
        prompt = request.prompt_ids
        if not prompt or min(prompt) < 0 or max(prompt) >= self._model.vocabulary:
            self._refused[message.id] = TokenBatch([], "invalid", reason="token ids outside the vocabulary")
            return
        if len(prompt) + 1 > self.kv_tokens:
            self._refused[message.id] = TokenBatch([], "overloaded")
            return
        self._arrivals += 1
        sequence = self._sequence(message.id, request)
        self._sequences[message.id] = sequence
        if request.sampling.grammar is None:
            self._scheduler.add(sequence)
        else:
            self._compilations.start(message.id, request)

    def _sequence(self, number: int, request: EngineRequest) -> Sequence:
        sampling = SamplingState(
            request.sampling, request.prompt_ids, request.generated_tokens, self._stop_ids, self._model.vocabulary
        )
        draft = Draft(request.prompt_ids) if self._guess_tokens else None
        salt = request.namespace.encode() if self._isolate else b""
        return Sequence(number, self._arrivals, request, sampling, draft, salt)

    def _add_compiled(self) -> None:
        """Lets the sequences wait for a place whose grammars are compiled."""
        idle = len(self._sequences) == len(self._compilations)
        for number, compiled in self._compilations.done(idle=idle):
            if isinstance(compiled, GrammarError):
                del self._sequences[number]
                self._refused[number] = TokenBatch([], "invalid", reason=str(compiled))
            else:
                self._sequences[number].matcher = compiled
                self._scheduler.add(self._sequences[number])

    def cancel(self, message: Cancel) -> None:
        """Ends a stream that nobody reads. Does nothing if it has ended."""
        self._refused.pop(message.id, None)
        if self._compilations.cancel(message.id):
            del self._sequences[message.id]
        elif (sequence := self._sequences.get(message.id)) is not None:
            self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        del self._sequences[sequence.number]
        self._scheduler.remove(sequence)

    def step(self, people_wait: Callable[[], bool] = nobody) -> StepResult:
        """Runs one forward pass over the batch and returns what it generated. people_wait: as SteppedEngine says."""
        self._add_compiled()
        batches, self._refused = self._refused, {}
        started = time.perf_counter()
        guesses = {} if self._scheduler.prefills else self._drafter.guess(self._scheduler.running)
        plan = self._scheduler.plan(guesses)
        for sequence in self._scheduler.starved:
            del self._sequences[sequence.number]
            batches[sequence.number] = TokenBatch([], "overloaded")
        self._scheduler.starved.clear()
        if plan:
            self._compute(plan, batches, started, people_wait)
        return self.result(batches)

    def result(self, batches: dict[int, TokenBatch]) -> StepResult:
        return StepResult(batches, self.load, self.next_tokens)

    def _compute(
        self, plan: list[Work], batches: dict[int, TokenBatch], started: float, people_wait: Callable[[], bool]
    ) -> None:
        chunks = [_chunk(work) for work in plan]
        masks = {
            work.sequence.number: self._masker.submit(work.sequence.matcher.masks, work.guesses)
            for work in plan
            if work.samples and work.sequence.matcher is not None
        }
        gives_way = self._interruptions < _MAX_INTERRUPTIONS and all(work.is_batch for work in plan)
        try:
            logits = self._model.forward(chunks, people_wait if gives_way else None)
        except Interrupted:
            self._interruptions += 1
            wait(masks.values())  # the grammars are at the same places in the next step
            return
        if any(work.is_batch for work in plan):
            self._interruptions = 0
        rows: list[Row] = []
        kept: list[int] = []
        end = 0
        for work, chunk in zip(plan, chunks, strict=True):
            end += chunk.rows
            if work.sequence.reports_prompt:
                work.sequence.report_prompt(work.count, logits[end - chunk.rows : end])
            if work.samples:
                own = self._rows(work, masks.get(work.sequence.number), batches)
                rows += own
                kept += range(end - len(own), end)
        sampled = sample(logits if len(kept) == end else logits[kept], rows)
        decoding = sum(len(chunk.tokens) for chunk, work in zip(chunks, plan, strict=True) if work.decodes)
        prompt_tokens = sum(len(chunk.tokens) for chunk in chunks) - decoding
        generated = taken = 0
        for work in plan:
            if work.samples:
                count = 1 + len(work.guesses)
                generated += self._append(work, sampled[taken : taken + count], batches)
                taken += count
            else:
                self._scheduler.computed(work)
        self._measure(decoding, generated, prompt_tokens, time.perf_counter() - started)

    def _rows(self, work: Work, masks: Future[list[Mask]] | None, batches: dict[int, TokenBatch]) -> list[Row]:
        """The rows of logits to sample from: after the text, and after each guess."""
        allowed: Sequence_[Mask | None] = ()
        if masks is not None:
            try:
                allowed = masks.result()
            except GrammarError as error:
                batches[work.sequence.number] = TokenBatch([], "invalid", reason=str(error))
        # After a guess that the grammar forbids there is no mask, and what is sampled there is not used.
        padded = zip_longest(allowed, range(len(work.guesses) + 1))
        return [Row(work.sequence.sampling, work.guesses[:ahead], mask) for mask, ahead in padded]

    def _append(self, work: Work, sampled: list[Sampled], batches: dict[int, TokenBatch]) -> int:
        """Adds to a stream the token after its text, and those that follow while the guesses are right.

        Ends the stream if one of them was its last. Returns how many were added.
        """
        sequence = work.sequence
        if sequence.number in batches:  # its grammar has failed
            self._end(sequence)
            return 0
        first = sequence.generated == 0
        ids: list[int] = []
        finish: StreamFinish = ""
        reason = ""
        for index, row in enumerate(sampled):
            ids.append(row.token)
            finish = sequence.sampling.finish_reason(row.token)
            sequence.sampling.append(row.token)
            if sequence.matcher is not None and not finish:
                finish, reason = _follow(sequence.matcher, row.token)
            if finish or index == len(work.guesses) or row.token != work.guesses[index]:
                break
        sequence.append(ids)
        self._scheduler.computed(work, len(ids) - 1)
        self._drafter.checked(sequence, len(work.guesses), len(ids) - 1)
        if finish:
            self._end(sequence)
            self._drafter.ended(sequence)
        cached, own = (sequence.cached, sequence.own_cached) if first else (0, 0)
        logprobs = [row.logprobs for row in sampled[: len(ids)] if row.logprobs is not None]
        prompt_logprobs = sequence.prompt_logprobs if first else []
        batches[sequence.number] = TokenBatch(
            ids, finish, cached, reason, logprobs, own_cached_tokens=own, prompt_logprobs=prompt_logprobs
        )
        return len(ids)

    def _measure(self, decoding: int, generated: int, prompt_tokens: int, seconds: float) -> None:
        self._pace.observe(decoding, prompt_tokens, seconds)
        self._decoded_tokens += generated
        weight = min(1.0, seconds / _RATE_SMOOTHING_S)
        self._decode_rate += (generated / max(seconds, 1e-6) - self._decode_rate) * weight
        if prompt_tokens >= _MIN_PREFILL_SAMPLE:
            rate = prompt_tokens / max(seconds, 1e-6)
            self._prefill_rate += (rate - self._prefill_rate) * _PREFILL_SPEED_WEIGHT


def _chunk(work: Work) -> Chunk:
    sequence = work.sequence
    tokens = [*sequence.tokens[sequence.computed : sequence.computed + work.count], *work.guesses]
    return Chunk(tokens, sequence.computed, sequence.table, work.rows)


def _follow(matcher: Matcher, token: int) -> tuple[StreamFinish, str]:
    """Goes on in a grammar by a sampled token; returns why the stream ends with it, if it does."""
    try:
        matcher.consume([token])
    except GrammarError as error:
        return "invalid", str(error)
    return ("stop" if matcher.finished else ""), ""
