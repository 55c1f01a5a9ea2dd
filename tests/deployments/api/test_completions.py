"""Completions, whole and streamed: the chunks add up to the whole, and offsets point into its text."""

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.api.protocol.common import StreamOptions
from deployments.api.protocol.completions import CompletionRequest
from deployments.api.protocol.completions_writer import CompletionWriter
from deployments.api.responses import merge_deltas
from deployments.common.types import Choice, Delta, GenerationResult, TokenLogprob, Usage

USAGE = Usage(1, 2, 0, 0)
text = st.text("ab 鸡é😀\n", max_size=12)


@st.composite
def choices(draw: st.DrawFn) -> Choice:
    """A choice whose tokens may split its text at any byte, also within characters."""
    written = draw(text)
    encoded = written.encode()
    cuts = sorted(draw(st.sets(st.integers(0, len(encoded)))) | {0, len(encoded)})
    tokens = [encoded[start:end] for start, end in pairwise(cuts)]
    return Choice("", written, "stop", (), tuple(TokenLogprob(tuple(token), -0.5) for token in tokens))


def _characters(prompt: str) -> list[TokenLogprob]:
    return [TokenLogprob(tuple(character.encode()), -1.5) for character in prompt]


def deltas_of(index: int, choice: Choice, cut: int) -> list[Delta]:
    """The deltas of a choice: its logprobs in deltas of `cut` tokens, then a delta with its text."""
    pieces = [
        Delta(index, logprobs=choice.logprobs[start : start + cut]) for start in range(0, len(choice.logprobs), cut)
    ]
    return [*pieces, Delta(index, text=choice.text, finish_reason="stop")]


def assembled(events: bytes, count: int) -> list[dict[str, Any]]:
    """The choices that result from the chunks of a stream."""
    whole: list[dict[str, Any]] = [{"text": "", "logprobs": {}} for _ in range(count)]
    for line in events.decode().splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                parts = whole[choice["index"]]
                parts["text"] += choice["text"]
                for name, values in (choice["logprobs"] or {}).items():
                    parts["logprobs"][name] = parts["logprobs"].get(name, []) + (values or [])
    return whole


@given(st.lists(text, min_size=1, max_size=2), st.integers(1, 2), st.data(), st.integers(1, 4), st.randoms())
def test_chunks_put_together_are_the_whole(prompts: list[str], n: int, data: Any, cut: int, order: Any) -> None:
    drawn = data.draw(st.lists(choices(), min_size=n * len(prompts), max_size=n * len(prompts)))
    drawn = [
        # With an echo, the prompt's tokens come first.
        msgspec.structs.replace(choice, logprobs=(*_characters(prompts[index // n]), *choice.logprobs))
        for index, choice in enumerate(drawn)
    ]
    result = GenerationResult(tuple(drawn), USAGE, 0.0)
    request = CompletionRequest("m", "x", n=n, logprobs=1, echo=True, stream=True, stream_options=StreamOptions())
    body = msgspec.to_builtins(CompletionWriter(request, "fp", prompts).complete(result))
    whole = [{"text": choice["text"], "logprobs": choice["logprobs"]} for choice in body["choices"]]

    queues = [deltas_of(index, choice, cut) for index, choice in enumerate(drawn)]
    streamed: list[Delta] = []
    while any(queues):
        streamed.append(order.choice([queue for queue in queues if queue]).pop(0))
    for deltas in (streamed, merge_deltas(streamed), result.deltas()):
        writer = CompletionWriter(request, "fp", prompts)
        events = b"".join([writer.start(USAGE), *map(writer.delta, deltas), writer.end(result)])
        assert assembled(events, len(drawn)) == whole

    for index, (choice, written) in enumerate(zip(drawn, whole, strict=True)):
        assert written["text"] == prompts[index // n] + choice.text
        for token, offset in zip(choice.logprobs, written["logprobs"]["text_offset"], strict=True):
            if "\ufffd" not in token.text:
                assert written["text"][offset : offset + len(token.text)] == token.text


@pytest.mark.parametrize("echo", ["", "前言:"])
def test_offsets_continue_over_the_chunks_of_a_choice(echo: str) -> None:
    writer = CompletionWriter(CompletionRequest("m", "x", logprobs=0, stream=True), "fp", [echo])
    tokens = [TokenLogprob(tuple(part), -1.0) for part in (b"ab", "鸡".encode()[:2], "鸡".encode()[2:], b"c")]
    events = writer.start(USAGE) + b"".join(writer.delta(Delta(logprobs=(token,))) for token in tokens)
    [choice] = assembled(events, 1)
    assert choice["logprobs"]["text_offset"] == [len(echo) + offset for offset in (0, 2, 2, 3)]
