"""Answers a CSV file of questions, several at a time, at lower priority than people. Start it again to continue.

    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=dray-...
    python examples/batch.py questions.csv answers.csv --at-a-time 8

questions.csv has the columns `id` and `question`; answers.csv gets `id`, `question`, `answer`, `tokens`, `error`.
"""

import argparse
import asyncio
import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import openai

FIELDS = ("id", "question", "answer", "tokens", "error")


def unanswered(questions: Path, answers: Path) -> Iterator[dict[str, str]]:
    """The questions without an answer, those that failed included."""
    done = set()
    if answers.exists():
        with answers.open(newline="") as file:
            done = {row["id"] for row in csv.DictReader(file) if not row["error"]}
    with questions.open(newline="") as file:
        yield from (row for row in csv.DictReader(file) if row["id"] not in done)


async def answer(client: openai.AsyncOpenAI, model: str, question: str) -> dict[str, str]:
    """The columns to add to a question."""
    try:
        completion = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            service_tier="flex",  # lower priority than people
        )
    except openai.APIError as error:
        return {"error": str(error)}
    tokens = completion.usage.completion_tokens if completion.usage else 0
    return {"answer": completion.choices[0].message.content or "", "tokens": str(tokens)}


async def run(rows: Iterator[dict[str, str]], sink: TextIO, model: str, at_a_time: int) -> int:
    """Answers the rows and writes each as soon as it is answered. Returns how many failed."""
    writer, failed = csv.DictWriter(sink, FIELDS), 0

    async def work() -> None:
        nonlocal failed
        for row in rows:  # shared by all workers
            columns = await answer(client, model, row["question"])
            writer.writerow({"id": row["id"], "question": row["question"]} | columns)
            sink.flush()
            failed += "error" in columns

    # The client retries 429 and 503 after the time in Retry-After.
    async with openai.AsyncOpenAI(max_retries=8, timeout=600) as client, asyncio.TaskGroup() as workers:
        for _ in range(at_a_time):
            workers.create_task(work())
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer a CSV of questions.")
    parser.add_argument("questions", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--at-a-time", type=int, default=8)
    args = parser.parse_args()
    rows = unanswered(args.questions, args.answers)
    new = not args.answers.exists()
    with args.answers.open("a", newline="") as sink:
        if new:
            csv.DictWriter(sink, FIELDS).writeheader()
        failed = asyncio.run(run(rows, sink, os.environ.get("MODEL", "dray-demo"), args.at_a_time))
    if failed:
        raise SystemExit(f"{failed} failed; start again to retry them")


if __name__ == "__main__":
    main()
