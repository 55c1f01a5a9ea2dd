"""Takes secrets and personal data out of a text, by their form: what is written into the request log.

Forms, not meaning: a name or an address in words stays. The expressions look at each character a bounded number of
times, because the text is a client's.
"""

import re
from collections.abc import Callable

_SEPARATOR = r"[ .\-\u00a0]"
_PARTS: tuple[tuple[str, str], ...] = (
    (
        "key",
        r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-]{0,10000}(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?"
        r"|(?<![\w-])(?:dray-[a-z0-9]{10}-|dray-session-|sk-|sk_live_|rk_live_|gh[opsru]_|github_pat_|glpat-|hf_|xox[abeprs]-"
        r"|AKIA|ASIA|LTAI|AIza)[\w-]{12,300}"
        r"|(?<![\w.-])eyJ[\w-]{8,8000}\.[\w-]{2,8000}(?:\.[\w-]{0,8000})?",
    ),
    (
        "secret",
        r"(?i:\b(?:password|passwd|passphrase|pwd|secret|api[_ -]?key|access[_ -]?token|authorization|bearer)\b"
        r"|密码|口令|密钥)(?:\s{0,3}[:=:]\s{0,3}|\s{1,3}(?i:is|bearer|basic)\s{1,3}|是)[^\s,;,;。]{1,300}",
    ),
    (
        "email",
        r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])",
    ),
    (
        "digits",
        rf"(?<![A-Za-z0-9_.])(?:\+|00)?\(?\d(?:{_SEPARATOR}?[(]?\d[)]?){{5,18}}[Xx]?(?![A-Za-z0-9_])",
    ),
)
_PATTERN = re.compile("|".join(f"(?P<{name}>{form})" for name, form in _PARTS))
_IN_CHINA = re.compile(r"(?:86|0086)?1[3-9]\d{9}")
_NO_PHONE = re.compile(r"\d+\.\d+|\d{4}[.\-]\d{1,2}[.\-]\d{1,2}|\d{1,2}[.\-]\d{1,2}[.\-]\d{4}|\d{1,3}(?:\.\d{1,3}){3}")
"""A decimal number, a date, or an address of a machine."""
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
"""Of the digits of a Chinese resident id (GB 11643)."""
_SHOWN = {"key": "[KEY]", "secret": "[SECRET]", "email": "[EMAIL]"}


def redacted(text: str) -> str:
    """The text with [KEY], [SECRET], [EMAIL], [ID], [CARD] and [PHONE] in place of what has their form."""
    return _PATTERN.sub(_shown, text)


def _shown(match: re.Match[str]) -> str:
    kind = match.lastgroup or ""
    return _SHOWN[kind] if kind in _SHOWN else _digits(match[0])


def _digits(text: str) -> str:
    """What stands in place of a number; the number itself if it is none of a person."""
    digits = "".join(character for character in text if character.isdigit() or character in "Xx").upper()
    checks: tuple[tuple[Callable[[str], bool], str], ...] = ((_is_id, "[ID]"), (_is_card, "[CARD]"))
    for holds, shown in checks:
        if holds(digits):
            return shown
    plain = text.strip("+()").isdigit() and not text.startswith(("+", "00"))
    if _IN_CHINA.fullmatch(digits):
        return "[PHONE]"
    # A plain row of digits is more often an amount, a year with a month, or an id of something.
    return text if plain or "X" in digits or not 7 <= len(digits) <= 15 or _NO_PHONE.fullmatch(text) else "[PHONE]"


def _is_id(digits: str) -> bool:
    """Whether it is a Chinese resident id: its last character checks the others."""
    if len(digits) != 18 or not digits[:17].isdigit():
        return False
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, digits, strict=False))
    return digits[17] == "10X98765432"[total % 11]


def _is_card(digits: str) -> bool:
    """Whether it is the number of a payment card, by Luhn's check."""
    if not 13 <= len(digits) <= 19 or not digits.isdigit() or not 2 <= int(digits[0]) <= 6:
        return False
    doubled = [int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0
