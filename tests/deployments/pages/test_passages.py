"""Which parts of a file are shown below an answer."""

import pytest

from deployments.pages.passages import MAX_PASSAGES, passages

RULES = """# Access
Passwords are changed every ninety days. An account is locked after five wrong attempts.

Visitors get a badge at the reception.
The reception is open from 8 to 18.
- The server room needs two people.
"""
CHINESE = "密码每九十天更换一次。连续输错五次后，账户会被锁定！访客在前台领取胸牌。前台八点到十八点开放。"


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        (RULES, "It says: an account is locked after five wrong attempts.", ["An account is locked"]),
        (RULES, "You must change passwords every ninety days.", ["Passwords are changed"]),
        (RULES, "Passwords are changed every ninety days. The room needs two people.", ["Passwords", "- The server"]),
        (RULES, "I do not know.", []),
        (RULES, "", []),
        ("", "anything at all, however long it may be", []),
        (CHINESE, "账户在连续输错五次后会被锁定。", ["连续输错五次后"]),
        (CHINESE, "密码应当每九十天更换一次", ["密码每九十天"]),
        (CHINESE, "今天天气很好。", []),
    ],
)
def test_sentences_whose_words_are_in_the_answer_are_found(text: str, answer: str, found: list[str]) -> None:
    assert [start for start in found if not any(passage.startswith(start) for passage in passages(text, answer))] == []
    assert bool(found) == bool(passages(text, answer))


def test_they_are_few_and_short_and_in_the_files_order() -> None:
    text = "".join(f"Rule {number} says that nobody runs in corridor {number}. " for number in range(40))
    found = passages(text, text)
    assert len(found) == MAX_PASSAGES and list(found) == sorted(found, key=text.index)
    [whole] = passages("a long sentence " * 19, "a long sentence " * 19)
    assert len(whole) <= 300
    assert all(len(passage) <= 300 for passage in passages("no full stop here " * 100, "no full stop here " * 9))
