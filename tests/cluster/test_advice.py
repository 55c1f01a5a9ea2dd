"""Advice on errors is about errors that exist."""

import re
from pathlib import Path

from cluster.reports import advice

SOURCES = "".join(path.read_text() for path in (Path(__file__).parents[2] / "deployments").rglob("*.py"))


def test_advice_is_given_on_codes_that_the_service_sends() -> None:
    codes = set(re.findall(r'"([a-z_]{3,40})"', SOURCES))
    assert set(advice._BY_CODE) <= codes
    for status in {int(status) for status in re.findall(r"ApiError\(\s*(\d{3})", SOURCES)}:
        text = advice.advice(status, "some_other_code")
        assert text.endswith(".") and len(text) < 140
    assert advice.advice(429, "insufficient_quota") != advice.advice(429, "rate_limit_exceeded") != ""
    assert "dray logs" in advice.advice(599, "") and "refused" in advice.advice(499, "")
