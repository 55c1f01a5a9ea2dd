"""Messages survive the transport, in whatever pieces the socket delivers them."""

from hypothesis import given
from hypothesis import strategies as st

from deployments.common.framing import Unframer, frame
from deployments.common.messages import (
    Add,
    Cancel,
    EngineLoad,
    EngineRequest,
    Sampling,
    StepResult,
    TokenBatch,
    decode_from_engine,
    decode_to_engine,
)
from deployments.common.prefix import BLOCK_TOKENS, PrefixMirror, block_keys


@given(st.lists(st.lists(st.integers(0, 151_935), max_size=50), min_size=1, max_size=6), st.data())
def test_frames_are_reassembled_however_they_are_cut(prompts: list[list[int]], data: st.DataObject) -> None:
    sent = [Add(n, EngineRequest(ids, Sampling(max_tokens=n + 1, temperature=0.5))) for n, ids in enumerate(prompts)]
    stream = b"".join(frame(message) for message in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    unframer, bodies = Unframer(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        bodies += unframer.feed(stream[start:end])
    assert [decode_to_engine(body) for body in bodies] == sent


def test_message_types_are_distinguished() -> None:
    step = StepResult({7: TokenBatch([1, 2], "stop", 32)}, EngineLoad(1, 2.5, 0.25))
    [body] = Unframer().feed(frame(step))
    assert decode_from_engine(body) == step
    [body] = Unframer().feed(frame(Cancel(3)))
    assert decode_to_engine(body) == Cancel(3)


def test_a_prefix_matches_in_whole_blocks() -> None:
    mirror, prompt = PrefixMirror(100), list(range(4 * BLOCK_TOKENS))
    assert mirror.match(block_keys(prompt[:-1])) == 0
    mirror.add(block_keys(prompt))
    assert mirror.match(block_keys(prompt)) == 4 * BLOCK_TOKENS
    assert mirror.match(block_keys(prompt[:-1])) == 3 * BLOCK_TOKENS
    assert mirror.match(block_keys([*prompt[: 2 * BLOCK_TOKENS + 5], 9])) == 2 * BLOCK_TOKENS
    assert mirror.match(block_keys([9, *prompt[:-1]])) == 0


def test_prefix_mirror_forgets_the_least_recently_used() -> None:
    mirror = PrefixMirror(4)
    first, second, third = ([n] * (2 * BLOCK_TOKENS) for n in (1, 2, 3))
    mirror.add(block_keys(first))
    mirror.add(block_keys(second))
    mirror.add(block_keys(first))
    mirror.add(block_keys(third))
    assert mirror.match(block_keys(first)) == mirror.match(block_keys(third)) == 2 * BLOCK_TOKENS
    assert mirror.match(block_keys(second)) == 0
