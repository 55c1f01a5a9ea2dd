"""Text to ids and back: the template's words, whole characters, thinking apart from the answer, stop strings."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cluster.models.folder import ServedModel
from deployments.prompts import CompletionReader, Prompts
from deployments.protocol import ApiError, Message

Encode = Callable[[str], list[int]]


@pytest.fixture(scope="module")
def prompts(bundled: ServedModel) -> Prompts:
    return Prompts(bundled)


@pytest.fixture(scope="module")
def encode(bundled: ServedModel) -> Encode:
    tokenizer = AutoTokenizer.from_pretrained(str(bundled.folder))
    return lambda text: tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def read(prompts: Prompts, ids: list[int], stop: list[str] | None = None, cut: int = 10**6) -> CompletionReader:
    """Reads a completion whose ids come in pieces of `cut`."""
    reader = prompts.reader(prompts.render([Message("user", "hi")]), stop or [])
    pieces = [reader.feed(ids[start : start + cut]) for start in range(0, len(ids), cut)]
    end = reader.finish()
    assert "".join(piece[0] for piece in pieces) == reader.reasoning
    assert "".join(piece[1] for piece in pieces) + end == reader.answer
    return reader


def test_render_is_the_models_own_template(prompts: Prompts, bundled: ServedModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(bundled.folder))
    turns = [
        Message("developer", "Be brief."),
        Message("user", "1+1?"),
        Message("assistant", "<think>\nx\n</think>\n\n2", reasoning_content="x"),
        Message("user", "你好"),
    ]
    prompt = prompts.render(turns)
    text = tokenizer.decode(prompt.ids)
    assert prompt.thinking and text.endswith("<think>\n")
    assert "Be brief." in text and "x" not in text.replace("<think>", "")
    assert text.count(tokenizer.bos_token) == 1


def test_too_long_a_prompt_is_refused(prompts: Prompts) -> None:
    with pytest.raises(ApiError) as refused:
        prompts.render([Message("user", "1 " * 5000)])
    assert refused.value.body["error"]["code"] == "context_length_exceeded"


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(thought=st.text(max_size=40), answer=st.text(max_size=40), cut=st.integers(1, 9))
def test_any_text_is_read_the_same_in_any_pieces(
    prompts: Prompts, encode: Encode, thought: str, answer: str, cut: int
) -> None:
    ids = encode(thought + "</think>" + answer)
    whole, pieces = read(prompts, ids), read(prompts, ids, cut=cut)
    assert (whole.reasoning, whole.answer) == (pieces.reasoning, pieces.answer)
    assert whole.tokens == pieces.tokens == len(ids)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=st.text(alphabet="鸡兔23只😀🐰 abé\n", min_size=1, max_size=30))
def test_characters_come_whole(prompts: Prompts, encode: Encode, answer: str) -> None:
    reader = prompts.reader(prompts.render([Message("user", "hi")]), [])
    ids = encode("</think>" + answer)
    pieces = [reader.feed([token])[1] for token in ids]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) == answer.lstrip()


def test_thinking_is_apart_from_the_answer_and_counted(prompts: Prompts, encode: Encode) -> None:
    ids = encode("想一想。\n</think>\n\n答案是42。")
    reader = read(prompts, ids, cut=1)
    assert (reader.reasoning, reader.answer) == ("想一想。", "答案是42。")
    assert 0 < reader.reasoning_tokens < reader.tokens


def test_a_completion_cut_in_its_thinking_has_no_answer(prompts: Prompts, encode: Encode) -> None:
    reader = read(prompts, encode("still thinking "))
    assert (reader.reasoning, reader.answer) == ("still thinking", "")


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    answer=st.text(alphabet="abc", max_size=30),
    stop=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3),
    cut=st.integers(1, 5),
)
def test_stop_strings_cut_where_the_first_begins(
    prompts: Prompts, encode: Encode, answer: str, stop: list[str], cut: int
) -> None:
    reader = read(prompts, encode("cab abc bca\n</think>\n\n") + encode(answer), stop, cut)
    places = [place for text in stop if (place := answer.find(text)) >= 0]
    # A stop string that comes in with a later piece may begin before one that was whole already.
    assert reader.stopped == bool(places)
    if not places:
        assert reader.answer == answer
    else:
        assert answer.startswith(reader.answer)
        assert all(text not in reader.answer for text in stop)
    assert reader.reasoning == "cab abc bca"
