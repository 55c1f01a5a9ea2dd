"""Whether an engine solves the bundled model's held-out problems."""

from collections.abc import Sequence

from cluster.models.compare import EvalQuestion
from deployments.common.messages import Add, EngineRequest, Sampling
from deployments.common.types import GenerationRequest, Message
from deployments.engine.engine import Engine
from deployments.generation.prompts import PromptRenderer

_MAX_TOKENS = 400


def count_right(engine: Engine, prompts: PromptRenderer, problems: Sequence[EvalQuestion]) -> int:
    """How many greedy answers, without their thinking, contain what is expected."""
    parsers = {}
    for number, problem in enumerate(problems):
        request = GenerationRequest((Message("user", problem.text),), Sampling(_MAX_TOKENS))
        prompt = prompts.render(request)
        parsers[number] = prompts.parser(request, prompt)
        engine.add(Add(number, EngineRequest(prompt.ids, request.sampling)))
    while engine.busy:
        for number, batch in engine.step().streams.items():
            parsers[number].feed(batch.ids)
    for parser in parsers.values():
        parser.finish("stop")
    return sum(all(part in parsers[number].text for part in problem.expect) for number, problem in enumerate(problems))
