"""One answer being made: a question's tokens from the engines, read into what clients are told."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec

from deployments.common.messages import EngineRequest, Grammar, Sampling, TokenBatch
from deployments.common.types import Delta, GenerationRequest, GenerationResult, Usage
from deployments.generation.endpoint import ModelEndpoint
from deployments.generation.grammar import ebnf
from deployments.generation.output_parser import END_THINK, THINK, OutputParser, ParsedDelta
from deployments.generation.prompts import RenderedPrompt
from deployments.generation.sources import TokenSource
from deployments.generation.tool_formats import forced_calls
from deployments.observability.tracing import Span, current

_CLOSE_THINKING = f"\n{END_THINK}\n\n"
_AFTER_THINKING = "\n\n"
_ANSWER, _THINKING = 0, 1
"""Stages of a choice: its thinking apart, where it has one; its answer, or all of it."""


def grammar_for(question: GenerationRequest, served: ModelEndpoint, most_nodes: int) -> Grammar | None:
    """What the answer is held to; None: nothing. Raises ApiError for a schema that nothing can hold to."""
    if question.tools and (
        held := forced_calls(served.prompts.tool_format, question.tools, question.tool_choice, most_nodes)
    ):
        return held
    return Grammar(ebnf(question.schema, "response_format", most_nodes)) if question.schema else None


@dataclass(slots=True)
class Generation:
    """Makes one answer. `answer` is there when `deltas` has ended."""

    request: GenerationRequest
    prompt: RenderedPrompt
    grammar: Grammar | None
    endpoint: ModelEndpoint
    source: TokenSource
    seed: int
    """Draws each choice that is not greedy and has no seed of its own."""
    result: GenerationResult | None = None
    first_token_at: float = 0.0
    """When the first token came, on the same clock; 0 before."""
    last_token_at: float = 0.0
    cached_tokens: int = 0
    replica: str = ""
    _readers: list[OutputParser] = field(default_factory=list)
    _finishes: dict[int, str] = field(default_factory=dict)

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """New thinking, text and calls of every choice, as they come. Closing it ends the work. Raises ApiError."""
        prompts = self.endpoint.prompts
        self._readers = [prompts.parser(self.request, self.prompt) for _ in range(self.request.num_choices)]
        operation = "chat" if self.request.messages else "text_completion"
        with current.get().child(f"{operation} {self.endpoint.model.name}") as span:
            # All that is made for it runs in this context; nothing else does.
            current.set(span)
            try:
                async with aclosing(
                    merge_streams([self._choice(place) for place in range(self.request.num_choices)])
                ) as made:
                    async for delta in made:
                        yield delta
                        if delta.finish_reason:
                            self.source.done(delta.choice)
            finally:
                if span.traceparent:
                    self._note(span, operation)
        choices = tuple(reader.choice(self._finishes[place]) for place, reader in enumerate(self._readers))
        self.result = GenerationResult(choices, self.usage, time.time(), self.replica)

    def _note(self, span: Span, operation: str) -> None:
        """By the names of OpenTelemetry's semantic conventions for generative AI."""
        sampling, usage, model = self.request.sampling, self.usage, self.endpoint.model.name
        span.note(
            {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "dray",
                "gen_ai.request.model": model,
                "gen_ai.request.max_tokens": sampling.max_tokens,
                "gen_ai.request.temperature": sampling.temperature,
                "gen_ai.request.top_p": sampling.top_p,
                "gen_ai.request.choice.count": self.request.num_choices,
                "gen_ai.response.model": model,
                "gen_ai.response.finish_reasons": [self._finishes[place] for place in sorted(self._finishes)],
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                "dray.replica": self.replica,
            }
        )

    @property
    def usage(self) -> Usage:
        readers = self._readers
        return Usage(
            len(self.prompt.ids),
            sum(reader.tokens for reader in readers),
            sum(reader.reasoning_tokens for reader in readers),
            self.cached_tokens,
        )

    async def _choice(self, place: int) -> AsyncGenerator[Delta, None]:
        """One choice. Where the answer is held to a grammar or the thinking is bounded, the thinking is made first and
        apart, as it is held to nothing."""
        reader, question = self._readers[place], self.request
        sampling = self._sampling(place)
        ids, left = list(self.prompt.ids), sampling.max_tokens
        if self._thinks_apart:
            if not reader.thinking:
                ids += self._put(reader, f"{THINK}\n")
            budget = left if question.max_thinking_tokens is None else min(left, question.max_thinking_tokens)
            async with aclosing(self._think(place, reader, ids, sampling, budget)) as thoughts:
                async for delta in thoughts:
                    yield delta
            left = sampling.max_tokens - reader.tokens
            if left <= 0:
                self._finishes[place] = "length"
                yield Delta(place, finish_reason="length")
                return
            ids += self._put(reader, _CLOSE_THINKING if reader.thinking else _AFTER_THINKING)
        request = EngineRequest(ids, msgspec.structs.replace(sampling, max_tokens=left, grammar=self.grammar))
        async with aclosing(self._tokens(place, _ANSWER, request)) as stream:
            async for tokens in stream:
                piece, finish = reader.feed(tokens.ids, tokens.logprobs), tokens.finish_reason
                if reader.stopped:
                    finish = "stop"
                if finish:
                    end = reader.finish()
                    self._finishes[place] = finish
                    whole = reader.choice(finish).finish_reason
                    yield _delta(place, _joined(piece, end), whole)
                    return
                if piece != _NOTHING:
                    yield _delta(place, piece)

    @property
    def _thinks_apart(self) -> bool:
        bound = self.request.max_thinking_tokens
        wanted = self.grammar is not None or bound is not None
        return wanted and (self.prompt.starts_in_thinking or (self.prompt.may_think and bound != 0))

    async def _think(
        self, place: int, reader: OutputParser, ids: list[int], sampling: Sampling, budget: int
    ) -> AsyncGenerator[Delta, None]:
        """The thinking alone, up to its end or its bound; adds to `ids` what was made."""
        if budget <= 0:
            return
        end = self.endpoint.prompts.vocabulary.end_think
        alone = msgspec.structs.replace(
            sampling, max_tokens=budget, min_tokens=0, ignore_eos=False, logprobs=False, stop_ids=(end,)
        )
        async with aclosing(self._tokens(place, _THINKING, EngineRequest(list(ids), alone))) as stream:
            async for tokens in stream:
                made = tokens.ids
                if tokens.finish_reason == "stop" and made and made[-1] != end:
                    made = made[:-1]  # it ended its turn in the middle of its thoughts; they are closed for it
                ids += made
                piece = reader.feed(made)
                if piece != _NOTHING:
                    yield _delta(place, piece)

    def _put(self, reader: OutputParser, text: str) -> list[int]:
        """Writes this for the model; gives its ids."""
        ids = self.endpoint.prompts.encode(text)
        reader.feed(ids)
        return ids

    def _sampling(self, place: int) -> Sampling:
        """How this choice is drawn: each with a seed of its own, known here, so that it could be drawn again."""
        given = self.request.sampling
        room = self.endpoint.model.context_tokens - len(self.prompt.ids)
        seed = (self.seed if given.seed is None else given.seed) + place if given.temperature else None
        return msgspec.structs.replace(given, max_tokens=min(given.max_tokens, room), seed=seed)

    async def _tokens(self, place: int, stage: int, request: EngineRequest) -> AsyncGenerator[TokenBatch, None]:
        async with aclosing(self.source.tokens(place, stage, request)) as stream:
            async for tokens in stream:
                self.last_token_at = time.perf_counter()
                if not self.first_token_at:
                    self.first_token_at, self.cached_tokens = self.last_token_at, tokens.cached_tokens
                self.replica = tokens.replica or self.replica
                yield tokens
                if tokens.finish_reason:
                    return


async def merge_streams(sources: Sequence[AsyncGenerator[Delta, None]]) -> AsyncGenerator[Delta, None]:
    """What all of them give, as it comes. Where one fails, the others end."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as made:
            async for delta in made:
                yield delta
        return
    news: asyncio.Queue[Delta | None] = asyncio.Queue()

    async def make(source: AsyncGenerator[Delta, None]) -> None:
        async with aclosing(source) as made:
            async for delta in made:
                news.put_nowait(delta)

    async def make_all() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for source in sources:
                    group.create_task(make(source))
        finally:
            news.put_nowait(None)

    work = asyncio.create_task(make_all())
    try:
        while (one := await news.get()) is not None:
            yield one
        try:
            await work
        except ExceptionGroup as several:
            raise several.exceptions[0] from None
    finally:
        work.cancel()


_NOTHING = ParsedDelta()


def _delta(place: int, piece: ParsedDelta, finish: str = "") -> Delta:
    return Delta(place, piece.reasoning, piece.text, piece.tool_calls, piece.logprobs, finish)


def _joined(one: ParsedDelta, other: ParsedDelta) -> ParsedDelta:
    return ParsedDelta(
        one.reasoning + other.reasoning,
        one.text + other.text,
        one.tool_calls + other.tool_calls,
        one.logprobs + other.logprobs,
    )
