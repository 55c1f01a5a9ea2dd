"""Which rule of a routed model a request meets."""

import pytest

from cluster.settings import RouteRule
from deployments.common.messages import Sampling
from deployments.common.types import Constraint, GenerationRequest, Message, Tool, ToolChoice
from deployments.routing.rules import has_keyword, language_of, matches, traits_of


def request(*texts: str, **fields: object) -> GenerationRequest:
    """A conversation in which user and assistant take turns."""
    messages = tuple(Message("assistant" if place % 2 else "user", text) for place, text in enumerate(texts))
    return GenerationRequest(messages, Sampling(10), **fields)  # type: ignore[arg-type]


def holds(asked: GenerationRequest, *, asks_thinking: bool = False, **conditions: object) -> bool:
    return matches(RouteRule(to="x", **conditions), traits_of(asked, asks_thinking=asks_thinking))


def test_lengths_are_inclusive_and_leave_out_system_messages() -> None:
    asked = request("a" * 10)
    assert holds(asked, max_chars=10, min_chars=10) and not holds(asked, max_chars=9) and not holds(asked, min_chars=11)
    with_system = GenerationRequest((Message("system", "s" * 100), *asked.messages), Sampling(1))
    assert holds(with_system, max_chars=10)
    results = (*request("a", "b", "c").messages, Message("tool", "r" * 50))
    assert holds(GenerationRequest(results, Sampling(1)), min_chars=53), "results of tools are read too"
    assert holds(GenerationRequest((), Sampling(1), prompt="abc"), max_chars=3, min_chars=3, max_turns=1)


def test_turns_are_messages_of_the_user() -> None:
    assert holds(request("a"), max_turns=1) and not holds(request("a"), min_turns=2)
    assert holds(request("a", "b", "c"), min_turns=2, max_turns=2)


def test_all_conditions_must_hold() -> None:
    asked = request("Prove that 1 + 1 = 2.")
    assert holds(asked, keywords=["prove"], max_chars=100)
    assert not holds(asked, keywords=["prove"], max_chars=5)
    assert holds(asked)


@pytest.mark.parametrize(
    ("text", "keyword", "found"),
    [
        ("Please PROVE it", "prove", True),
        ("prove", "Prove", True),
        ("improve, approve, proven", "prove", False),
        ("improve? no: prove!", "prove", True),
        ("请证明这个定理", "证明", True),
        ("C++ is hard", "c++", True),
        ("C+++", "c++", True),
        ("a sub-step", "sub", True),
        ("step2", "step", False),
        ("Straße", "STRASSE", True),
        ("докажи", "докажи", True),
        ("недокажи", "докажи", False),
        ("how does a  b", "a b", False),
        ("用python写", "python", True),
        (".*", ".*", True),
        ("abc", "a.c", False),
    ],
)
def test_keywords_are_whole_words_in_plain_text(text: str, keyword: str, found: bool) -> None:
    assert has_keyword(text.casefold(), keyword) is found
    assert holds(request(text), keywords=["never there", keyword]) is found


def test_keywords_are_looked_for_in_the_last_question_only() -> None:
    assert not holds(request("prove it", "done", "thanks"), keywords=["prove"])
    assert holds(request("x" * 50_000 + " prove"), keywords=["prove"])
    assert holds(request("prove " + "x" * 50_000), keywords=["prove"])


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("一个笼子里有鸡和兔子共35只,脚共94只,问各有多少?", "chinese"),
        ("用 Python 写一个 hello world 程序", "chinese"),
        ("繁體中文也是", "chinese"),
        ("Translate 你好 to English", "other"),
        ("How many rabbits?", "other"),
        ("ウサギは何羽いますか", "other"),
        ("東京都の人口を教えてください", "other"),
        ("토끼가 몇 마리?", "other"),
        ("1 + 1 = ?", "other"),
        ("", "other"),
    ],
)
def test_the_language_is_that_of_the_script(text: str, language: str) -> None:
    assert language_of(text) == language
    assert holds(request(text), language=language)


def test_what_an_answer_must_be() -> None:
    tools = (Tool("f", "", "{}"),)
    assert holds(request("a", tools=tools), tools=True) and holds(request("a"), tools=False)
    assert holds(request("a", tools=tools, tool_choice=ToolChoice("none")), tools=False)
    assert holds(request("a", schema="{}"), structured=True) and holds(request("a"), structured=False)
    assert holds(request("a", constraint=Constraint("choice", ("x",))), structured=True)


def test_thinking_is_what_the_request_asks_for() -> None:
    assert holds(request("a"), thinking=False) and not holds(request("a"), thinking=True)
    assert holds(request("a"), asks_thinking=True, thinking=True)
    for arguments, asked in (
        ('{"enable_thinking":true}', True),
        ('{"enable_thinking":false}', False),
        ('{"reasoning_effort":"low"}', True),
        ('{"enable_thinking":false,"reasoning_effort":"none"}', False),
        ('{"other":1}', False),
    ):
        assert holds(request("a", template_args=arguments), thinking=asked), arguments
    assert holds(request("a", max_thinking_tokens=100), thinking=True)
    assert holds(request("a", max_thinking_tokens=0), thinking=False)
