"""Keywords of a route are plain text, and looking for them takes time in proportion to the client's text."""

from functools import partial

import pytest

from deployments.common.messages import Sampling
from deployments.common.types import GenerationRequest, Message
from deployments.routing.rules import has_keyword, traits_of
from tests.security.test_regular_expressions import check_linear


@pytest.mark.parametrize("keyword", ["a", "ab", "a" * 100, "a" * 99 + "b", "b" + "a" * 99, "ab" * 50, "(a+)+b", "a a"])
def test_looking_for_a_keyword_is_linear(keyword: str) -> None:
    for part in ("a", "ab", "a ", "b" + "a" * 99):
        texts = partial(text_of, part)
        check_linear(partial(has_keyword, keyword=keyword), texts, 1 << 18, keyword)


def text_of(part: str, size: int) -> str:
    return part * (size // len(part))


def test_of_a_long_message_only_a_part_is_looked_at() -> None:
    message = Message("user", "证明 " * 1_000_000)
    traits = traits_of(GenerationRequest((message,), Sampling(1)), asks_thinking=False)
    assert len(traits.question) < 20_000 and traits.characters == 3_000_000
