"""What a request asks, where a text that somebody has approved could answer it.

A curated answer is a plain text to a question that opens a conversation. A request that wants anything else of its
answer (JSON, a tool call, several choices, log probabilities, token ids) never gets one.
"""

from deployments.common.types import GenerationRequest

MAX_QUESTION = 2_000
"""Characters. Longer texts are documents, for which nobody approves an answer."""


def question_of(request: GenerationRequest) -> str:
    """The only message of a user, with instructions before it at most; empty if the request asks anything else."""
    messages = request.messages
    if not messages or (last := messages[-1]).role != "user" or len(last.content) > MAX_QUESTION:
        return ""
    if len(messages) > 1 and any(message.role != "system" for message in messages[:-1]):
        return ""
    return "" if _wants_more_than_text(request) else last.content.strip()


def last_text(request: GenerationRequest) -> str:
    """The last message, or the prompt if it is a text."""
    if request.messages:
        return request.messages[-1].content
    return request.prompt if isinstance(request.prompt, str) else ""


def fits(request: GenerationRequest, answer: str) -> bool:
    """Whether a request that `question_of` accepts may end with this text: it contains none of the stop strings."""
    return not any(stop in answer for stop in request.stop)


def _wants_more_than_text(request: GenerationRequest) -> bool:
    sampling = request.sampling
    return bool(
        request.schema
        or request.constraint
        or request.tool_choice.mode == "required"
        or request.num_choices > 1
        or request.continue_final_message
        or not request.add_generation_prompt
        or request.report_ids
        or request.prompt_logprobs
        or request.prompt_alternatives is not None
        or sampling.top_logprobs is not None
    )
