"""`dray warm`: answers the questions of a file in advance, and skips those that are cached."""

import json
from typing import Any

import httpx

from tests.conftest import Dray
from tests.service.test_cache import ask, new_question


def warm(dray: Dray, lines: list[Any], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Runs `dray warm` on a file of these lines; returns its exit code and report."""
    file = dray.folder / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    done = dray.run("warm", str(file), "--json", *arguments)
    report: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, report


def test_warmed_questions_are_hits_and_not_generated_again(dray: Dray, http: httpx.Client) -> None:
    questions = [new_question() for _ in range(3)]
    lines: list[Any] = [
        questions[0],
        {"question": questions[1]},
        {"messages": [{"role": "user", "content": questions[2]}], "temperature": 0},
    ]
    assert warm(dray, lines) == (0, {"warmed": 3, "left": 0, "lines": []})
    assert [ask(http, question).headers["x-dray-cache"] for question in questions] == ["hit"] * 3
    assert warm(dray, [*lines, new_question()]) == (0, {"already_there": 3, "warmed": 1, "left": 0, "lines": []})


def test_the_report_names_the_failed_lines_and_why(dray: Dray) -> None:
    lines = [
        new_question(),
        {"no": "question"},
        {"question": new_question(), "temperature": 0.9},
        {"question": new_question(), "top_p": 7},
        {"question": new_question(), "model": "nobody"},
    ]
    code, report = warm(dray, lines)
    assert code == 1 and (report["warmed"], report["failed"], report["not_kept"]) == (1, 3, 1)
    assert [(line["line"], line["outcome"]) for line in report["lines"]] == [
        (2, "failed"),
        (3, "not kept"),
        (4, "failed"),
        (5, "failed"),
    ]
    assert "top_p" in report["lines"][2]["why"] and "nobody" in report["lines"][3]["why"]


def test_a_missing_file_is_one_line_of_error(dray: Dray) -> None:
    done = dray.run("warm", str(dray.folder / "nothing.jsonl"))
    assert done.returncode == 1 and "nothing.jsonl" in done.stderr and len(done.stderr.splitlines()) == 1
