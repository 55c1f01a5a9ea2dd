"""One generation: token ids from a source, parsed into the deltas that clients get."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

import msgspec

from deployments.common.messages import EngineRequest, Grammar, Sampling, TokenBatch, TokenLogprobs
from deployments.common.types import Choice, Delta, GenerationRequest, GenerationResult, Usage
from deployments.generation.control_tokens import END_THINK, THINK
from deployments.generation.endpoint import ModelEndpoint
from deployments.generation.grammar import grammar_of
from deployments.generation.merging import merge_streams
from deployments.generation.output_parser import OutputParser, ParsedDelta
from deployments.generation.prompts import RenderedPrompt
from deployments.generation.sources import TokenSource
from deployments.observability.tracing import Span, current

_CLOSE_THINKING = f"\n{END_THINK}\n\n"
_AFTER_THINKING = "\n\n"
_ANSWER, _THINKING = 0, 1
"""Stages of a choice: the thinking, if it is generated apart; and the answer, or all of it."""


def grammar_for(request: GenerationRequest, endpoint: ModelEndpoint, max_parts: int) -> Grammar | None:
    """The grammar that constrains the answer; None: nothing does. Raises ApiError 400 for an unsupported schema.

    max_parts: maximum size of the schemas.
    """
    prompts = endpoint.prompts
    return grammar_of(request, prompts.tool_format, prompts.vocabulary.special_markers, max_parts)


@dataclass(slots=True)
class Generation:
    """Generates one answer. Its `result` is set when `deltas` has ended.

    seed: for the sampling of choices, unless the request has a seed. namespace: of the caller's answers.
    first_token_at, last_token_at: on time.perf_counter's clock; 0 before the first token.
    """

    request: GenerationRequest
    prompt: RenderedPrompt
    grammar: Grammar | None
    endpoint: ModelEndpoint
    source: TokenSource
    seed: int
    namespace: str
    result: GenerationResult | None = None
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    cached_tokens: int = 0
    replica: str = ""
    _parsers: list[OutputParser] = field(default_factory=list)
    _finish_reasons: dict[int, str] = field(default_factory=dict)
    _reported_ids: dict[int, int] = field(default_factory=dict)
    """How many token ids of each choice its deltas have had."""

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """New thinking, text and tool calls of every choice, as they arrive. Closing it ends the work.

        Raises ApiError.
        """
        choices = range(self.request.num_choices)
        self._parsers = [self.endpoint.prompts.parser(self.request, self.prompt) for _ in choices]
        operation = "chat" if self.request.messages else "text_completion"
        with current.get().child(f"{operation} {self.endpoint.model.name}") as span:
            # This generation's work runs in this context; nothing else does.
            current.set(span)
            try:
                async with aclosing(merge_streams([self._choice(index) for index in choices])) as deltas:
                    async for delta in deltas:
                        yield delta
                        if delta.finish_reason:
                            self.source.done(delta.choice)
            finally:
                if span.traceparent:
                    self._describe(span, operation)
        self.result = GenerationResult(tuple(map(self._answer, choices)), self.usage, time.time(), self.replica)

    def _describe(self, span: Span, operation: str) -> None:
        """Sets attributes by the names of OpenTelemetry's semantic conventions for generative AI."""
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
                "gen_ai.response.finish_reasons": [
                    self._finish_reasons[index] for index in sorted(self._finish_reasons)
                ],
                "gen_ai.usage.input_tokens": usage.prompt_tokens,
                "gen_ai.usage.output_tokens": usage.completion_tokens,
                "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
                "dray.replica": self.replica,
            }
        )

    @property
    def usage(self) -> Usage:
        """The tokens so far."""
        return Usage(
            len(self.prompt.ids),
            sum(parser.tokens for parser in self._parsers),
            sum(parser.reasoning_tokens for parser in self._parsers),
            self.cached_tokens,
        )

    @property
    def charged_tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens that the team is charged. A generation that ends before its first token costs
        nothing."""
        usage = self.usage
        return (usage.prompt_tokens, usage.completion_tokens) if self.first_token_at else (0, 0)

    async def _choice(self, index: int) -> AsyncGenerator[Delta, None]:
        """One choice. If a grammar constrains the answer or the thinking is limited, the thinking is generated first
        and apart, as no grammar applies to it."""
        parser, request = self._parsers[index], self.request
        sampling = self._sampling(index)
        ids, left = list(self.prompt.ids), sampling.max_tokens
        if self._thinks_apart:
            if not parser.thinking:
                begin = self.endpoint.prompts.encode(f"{THINK}\n")[:left]
                parser.feed(begin)
                ids += begin
                left -= len(begin)
            budget = left if request.max_thinking_tokens is None else min(left, request.max_thinking_tokens)
            async with aclosing(self._think(index, parser, ids, sampling, budget)) as thoughts:
                async for delta in thoughts:
                    yield delta
            end = self.endpoint.prompts.encode(_CLOSE_THINKING if parser.thinking else _AFTER_THINKING)
            left = sampling.max_tokens - parser.tokens - len(end)
            if left <= 0:
                self._finish_reasons[index] = "length"
                yield self._delta(index, _NOTHING, "length")
                return
            parser.feed(end)
            ids += end
        # The log probabilities of a prompt come with the token after it, which a request for none does not get.
        sampling = msgspec.structs.replace(sampling, max_tokens=max(1, left), grammar=self.grammar)
        echoes = request.prompt_logprobs
        engine_request = EngineRequest(ids, sampling, namespace=self.namespace, prompt_logprobs=echoes)
        async with aclosing(self._tokens(index, _ANSWER, engine_request)) as stream:
            async for batch in stream:
                if echoes and batch.ids:
                    echoes = False
                    yield self._delta(index, parser.feed_prompt(ids, batch.prompt_logprobs))
                if left == 0:
                    batch = TokenBatch([], batch.finish_reason and "length")
                parsed, finish_reason = parser.feed(batch.ids, batch.logprobs), batch.finish_reason
                if parser.stopped:
                    finish_reason = "stop"
                if finish_reason:
                    rest = parser.finish(finish_reason)
                    self._finish_reasons[index] = finish_reason
                    yield self._delta(index, _joined(parsed, rest), parser.choice(finish_reason).finish_reason)
                    return
                if parsed != _NOTHING:
                    yield self._delta(index, parsed)

    def _answer(self, index: int) -> Choice:
        """The whole of a choice that has ended."""
        parser, request = self._parsers[index], self.request
        choice = parser.choice(self._finish_reasons[index])
        if request.report_ids or parser.prompt:
            ids = (tuple(parser.ids), tuple(self.prompt.ids)) if request.report_ids else ((), ())
            choice = msgspec.structs.replace(choice, ids=ids[0], prompt_ids=ids[1], prompt=parser.prompt)
        return choice

    def _delta(self, index: int, parsed: ParsedDelta, finish_reason: str = "") -> Delta:
        parser, ids, prompt_ids = self._parsers[index], tuple[int, ...](), tuple[int, ...]()
        if self.request.report_ids:
            if index not in self._reported_ids:
                prompt_ids = tuple(self.prompt.ids)
            ids = tuple(parser.ids[self._reported_ids.get(index, 0) :])
            self._reported_ids[index] = len(parser.ids)
        return Delta(
            index,
            parsed.reasoning,
            parsed.text,
            parsed.tool_calls,
            parsed.logprobs,
            finish_reason,
            (parser.stopped_by or parser.stop_token) if finish_reason else None,
            self.usage,
            ids,
            prompt_ids,
        )

    @property
    def _thinks_apart(self) -> bool:
        limit = self.request.max_thinking_tokens
        needed = self.grammar is not None or limit is not None or bool(self.request.sampling.stop_ids)
        return needed and (self.prompt.starts_in_thinking or (self.prompt.may_think and limit != 0))

    async def _think(
        self, index: int, parser: OutputParser, ids: list[int], sampling: Sampling, budget: int
    ) -> AsyncGenerator[Delta, None]:
        """The thinking alone, up to its end or its limit; appends the generated tokens to `ids`."""
        if budget <= 0:
            return
        end = self.endpoint.prompts.vocabulary.end_think
        sampling = msgspec.structs.replace(
            sampling, max_tokens=budget, min_tokens=0, ignore_eos=False, top_logprobs=None, stop_ids=(end,)
        )
        request = EngineRequest(list(ids), sampling, namespace=self.namespace)
        async with aclosing(self._tokens(index, _THINKING, request)) as stream:
            async for batch in stream:
                thoughts = batch.ids
                if batch.finish_reason == "stop" and thoughts and thoughts[-1] != end:
                    thoughts = thoughts[:-1]  # the model ended its turn while thinking; the thinking is closed for it
                ids += thoughts
                parsed = parser.feed(thoughts)
                if parsed != _NOTHING:
                    yield self._delta(index, parsed)

    def _sampling(self, index: int) -> Sampling:
        """The sampling of one choice: with its own seed, known here, so that it can be sampled again."""
        sampling = self.request.sampling
        room = self.endpoint.model.context_tokens - len(self.prompt.ids)
        seed = (self.seed if sampling.seed is None else sampling.seed) + index if sampling.temperature else None
        return msgspec.structs.replace(sampling, max_tokens=min(sampling.max_tokens, room), seed=seed)

    async def _tokens(self, index: int, stage: int, request: EngineRequest) -> AsyncGenerator[TokenBatch, None]:
        alternatives = None if index or self._parsers[0].prompt else self.request.prompt_alternatives
        requested = request.sampling.top_logprobs
        if alternatives is not None:
            sampling = msgspec.structs.replace(request.sampling, top_logprobs=max(alternatives, requested or 0))
            request = msgspec.structs.replace(request, sampling=sampling, prompt_logprobs=True)
        async with aclosing(self.source.tokens(index, stage, request)) as stream:
            async for batch in stream:
                self.last_token_at = time.perf_counter()
                if not self.first_token_at:
                    self.first_token_at, self.cached_tokens = self.last_token_at, batch.own_cached_tokens
                self.replica = batch.replica or self.replica
                if alternatives is not None and batch.ids:
                    self._note_prompt(batch.prompt_logprobs, alternatives)
                    lists = {"logprobs": batch.logprobs, "prompt_logprobs": batch.prompt_logprobs}
                    batch = msgspec.structs.replace(batch, **{k: _cut(v, requested) for k, v in lists.items()})
                yield batch
                if batch.finish_reason:
                    return

    def _note_prompt(self, logprobs: Sequence[TokenLogprobs], alternatives: int) -> None:
        """Keeps the log probabilities of the prompt, which come with the first token. The request of a choice whose
        thinking is generated apart may have more tokens than the prompt."""
        if not self._parsers[0].prompt:
            self._parsers[0].add_prompt(self.prompt.ids, logprobs[: len(self.prompt.ids) - 1], alternatives)


def _cut(logprobs: list[TokenLogprobs], top: int | None) -> list[TokenLogprobs]:
    """With only so many alternatives; none at all for None."""
    return [] if top is None else [TokenLogprobs(each.chosen, each.top[:top]) for each in logprobs]


_NOTHING = ParsedDelta()


def _joined(first: ParsedDelta, second: ParsedDelta) -> ParsedDelta:
    return ParsedDelta(
        first.reasoning + second.reasoning,
        first.text + second.text,
        first.tool_calls + second.tool_calls,
        first.logprobs + second.logprobs,
    )
