"""Redaction: secrets and personal data go, and what only looks like them stays."""

import base64
import json

import pytest

from cluster.redaction import redacted

PART = base64.urlsafe_b64encode(json.dumps({"alg": "RS256"}).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Write to ann.lee+vpn@mail.example.com, please.", "Write to [EMAIL], please."),
        ("邮箱是wang@example.cn。", "邮箱是[EMAIL]。"),
        ("手机13812345678,谢谢", "手机[PHONE],谢谢"),
        ("call +86 138 1234 5678 now", "call [PHONE] now"),
        ("call +49 (30) 901820-12 now", "call [PHONE] now"),
        ("call (555) 123-4567 now", "call [PHONE] now"),
        ("身份证11010519491231002X", "身份证[ID]"),
        ("id 110105 19491231 002X.", "id [ID]."),
        ("card 4111 1111 1111 1111, 12/27", "card [CARD], 12/27"),
        ("card 6222021234567890128", "card [CARD]"),
        (f"key dray-abcdefghij-{'a' * 43}!", "key [KEY]!"),
        ("sk-proj-abcdefghijklmnop and ghp_abcdefghijklmnopqrst", "[KEY] and [KEY]"),
        ("AKIAIOSFODNN7EXAMPLE", "[KEY]"),
        (f"token {PART}.{PART}.c2ln", "token [KEY]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----", "[KEY]"),
        ("my password: hunter2, ok?", "my [SECRET], ok?"),
        ("PASSWORD=hunter2", "[SECRET]"),
        ("密码:开门大吉,对吗?", "[SECRET],对吗?"),
        ("Authorization: Bearer abc.def", "[SECRET] abc.def"),
    ],
)
def test_what_is_of_a_person_or_opens_something_goes(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "一个笼子里有鸡和兔子共35只,脚共94只,问各有多少?",
        "12345 + 67890 = 80235, and 3.14159265",
        "It opens on 2026-11-27 and ends 31.12.2026.",
        "Order 4711000012, version 10.20.30, port 8000",
        "a@b, @ann, 4111 1111 1111 1112, 110105194912310021",
        "How do I reset my password?",
        "The token budget is 8192; a bearer carries it.",
        "1000000000000",
        "http://10.0.0.1:6379/path and 192.168.100.200",
    ],
)
def test_what_is_of_nobody_stays(text: str) -> None:
    assert redacted(text) == text
