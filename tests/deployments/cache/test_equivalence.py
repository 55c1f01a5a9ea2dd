"""Equivalent questions: the differences that are ignored, and those that never are."""

from pathlib import Path

import pytest

from benchmarks import near_twins
from deployments.cache.equivalence import equivalent, normalize
from deployments.cache.paraphrases import canonical_chinese, canonical_english

ALIKE = [
    ("What is 3 + 4?", "what is  3 + 4"),
    ("What is ３＋４？", "What is 3+4?"),
    ("How do I enable 2FA?", "Hi, could you please tell me how to turn on 2FA? Thanks!"),
    ("How can I reset my password?", "How do I reset my password"),
    ("What's the capital of France?", "What is the capital of France"),
    ("Please tell me the opening hours.", "Tell me the opening hours"),
    ("请问一个笼子里有鸡和兔子共35只，脚共94只，问各有多少？", "一个笼子里有鸡和兔子共 35 只,脚共 94 只,问各有多少?"),
    ("怎么重置密码？", "你好，请问如何重置密码呢？谢谢"),
]
TWINS = [
    ("35 heads, 94 legs: how many rabbits?", "36 heads, 94 legs: how many rabbits?"),
    ("How do I enable 2FA?", "How do I disable 2FA?"),
    ("A beats B. Who lost?", "B beats A. Who lost?"),
    ("Can I cancel my order?", "Can I not cancel my order?"),
    ("I can pay by card", "I can't pay by card"),
    ("Flights from Rome to Oslo", "Flights to Rome from Oslo"),
    ("How much is 5 kg in pounds?", "How much is 5 g in pounds?"),
    ("What is 5!?", "What is 5?"),
    ("What is 3 - 4?", "What is 3 + 4?"),
    ("What is 1.5 times 2?", "What is 15 times 2?"),
    ("Is it 3:15 or 3.15?", "Is it 3.15 or 3:15?"),
    ("Do US taxes apply?", "Do us taxes apply?"),
    ("What is the price of the Pro plan?", "What is the price of the Team plan?"),
    ("Few people came", "A few people came"),
    ("如何启用两步验证？", "如何禁用两步验证？"),
    ("会员可以退款吗？", "会员不可以退款吗？"),
    ("甲打败了乙，谁输了？", "乙打败了甲，谁输了？"),
    ("100天后是星期几？", "100年后是星期几？"),
    ("How do I enable 2FA?", "怎么启用2FA？"),
    ("What does `a  b` print?", "What does `a b` print?"),
]


@pytest.mark.parametrize(("first", "second"), ALIKE)
def test_questions_with_the_same_meaning_are_equivalent(first: str, second: str) -> None:
    assert equivalent(first, second) and equivalent(second, first)


@pytest.mark.parametrize(("first", "second"), TWINS)
def test_questions_with_different_meanings_are_not(first: str, second: str) -> None:
    assert not equivalent(first, second) and not equivalent(second, first)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_written_twin_is_confused_and_most_paraphrases_are_found(language: str) -> None:
    twins = pairs_of(f"twins.{language}")
    assert len(twins) == 100 and not [pair for pair in twins if equivalent(*pair) or equivalent(*reversed(pair))]
    found = [pair for pair in pairs_of(f"paraphrases.{language}") if equivalent(*pair) and equivalent(*reversed(pair))]
    assert len(found) >= 70


def pairs_of(name: str) -> list[tuple[str, str]]:
    lines = (Path(near_twins.__file__).with_name("questions") / f"{name}.txt").read_text().splitlines()
    return [(one, other) for one, other in (line.split(" | ") for line in lines)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("twenty-seven", "27"),
        ("twenty seven", "27"),
        ("one hundred and five", "105"),
        ("two hundred forty", "240"),
        ("nineteen", "19"),
        ("twenty seven eight", "twenty seven eight"),
        ("two thousand", "two thousand"),
        ("one", "one"),
        ("ones", "ones"),
        ("seventh", "seventh"),
    ],
)
def test_numbers_in_words(text: str, words: str) -> None:
    assert equivalent(f"Room {text} is where?", f"Room {words} is where?")
    assert (text == words) == (canonical_english(text) == text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("一百零五加十二", "105 + 12"),
        ("二十除以5", "20 ÷ 5"),
        ("一百五加十二", "一百五加十二"),
        ("三五加十二", "三五加十二"),
        ("三加二千", "三加二千"),
        ("十分好", "十分好"),
    ],
)
def test_chinese_numbers_in_calculations(text: str, words: str) -> None:
    assert canonical_chinese(text) == words


def test_normalizing_changes_no_meaning() -> None:
    assert normalize(" 请问  １＋１ 等于 几？ ") == normalize("请问1+1等于几?")
    for text in ("5!", "x²", "  if a:\n    b", "a  `b  c`"):
        assert normalize(text) == text.strip()
    for first, second in TWINS:
        assert normalize(first) != normalize(second)
