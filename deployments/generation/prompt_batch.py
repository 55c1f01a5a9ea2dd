"""Several prompts of one request, generated together as one result."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from deployments.common.errors import ApiError
from deployments.common.types import Choice, Delta, GenerationResult, Usage
from deployments.generation.broadcast import Broadcast, Subscriber
from deployments.generation.context import RequestContext
from deployments.generation.generation import Generation
from deployments.generation.job import GenerationServices
from deployments.generation.merging import merge_streams
from deployments.generation.sources import EngineSource


async def broadcast_prompts(services: GenerationServices, contexts: Sequence[RequestContext]) -> Subscriber:
    """Starts to answer all prompts, and subscribes to the result. Raises ApiError 400, 429.

    contexts: one for each prompt; they differ in nothing but the prompt.
    """
    sources = [services.engine_source(context) for context in contexts]
    if estimated := sum(map(services.large_prompt_tokens, contexts, sources)):
        await contexts[0].grant.reserve(estimated)
    try:
        each = zip(contexts, sources, strict=True)
        generations = [await services.prepare(context, source) for context, source in each]
    except ApiError as error:
        contexts[0].name_field(error)
        raise
    finally:
        if estimated:
            await contexts[0].grant.settle(0)
    await asyncio.gather(*map(services.locate_prefix, generations, sources))
    prompts, completions = zip(*map(services.expected_tokens, contexts, generations), strict=True)
    await contexts[0].grant.reserve(sum(prompts), sum(completions))

    async def complete() -> GenerationResult:
        results = [generation.result for generation in generations if generation.result is not None]
        for context, generation, result in zip(contexts, generations, results, strict=True):
            services.accounting.count_generated(context, generation, result.usage, "bypass")
        return _merged(results)

    broadcast = Broadcast(_deltas(contexts[0], generations, sources), complete)
    return broadcast.subscribe(contexts[0].deadline)


async def _deltas(
    context: RequestContext, generations: Sequence[Generation], sources: Sequence[EngineSource]
) -> AsyncGenerator[Delta, None]:
    choices_each = context.request.num_choices

    async def renumbered(index: int) -> AsyncGenerator[Delta, None]:
        async for delta in generations[index].deltas():
            usage = _total([generation.usage for generation in generations])
            yield msgspec.structs.replace(delta, choice=index * choices_each + delta.choice, usage=usage)

    try:
        async with aclosing(merge_streams([renumbered(index) for index in range(len(generations))])) as merged:
            async for delta in merged:
                yield delta
    except ApiError as error:
        context.name_field(error)
        raise
    finally:
        for source in sources:
            source.close()
        prompts, completions = zip(*(generation.charged_tokens for generation in generations), strict=True)
        await context.grant.settle(sum(prompts), sum(completions))


def _merged(results: Sequence[GenerationResult]) -> GenerationResult:
    """One result with the choices of all, in order."""
    choices: list[Choice] = [choice for result in results for choice in result.choices]
    usage = _total([result.usage for result in results])
    return GenerationResult(tuple(choices), usage, max(result.created for result in results))


def _total(usages: Sequence[Usage]) -> Usage:
    return Usage(
        sum(usage.prompt_tokens for usage in usages),
        sum(usage.completion_tokens for usage in usages),
        sum(usage.reasoning_tokens for usage in usages),
        sum(usage.cached_tokens for usage in usages),
    )
