"""Answers a file of requests with OpenAI's batches: uploads it, waits, and writes what came out.

    export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=dray-...
    python examples/overnight.py requests.jsonl answers.jsonl

Stopped in between, it goes on at the server: `dray batch list` and `dray batch download` have the rest.
"""

import argparse
import time
from pathlib import Path

import openai


def answer(client: openai.OpenAI, requests: Path, pause_s: float) -> str:
    """The output file's text, once the batch has ended. Raises RuntimeError if there is none."""
    file = client.files.create(file=requests, purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    while batch.status in ("validating", "in_progress", "finalizing"):
        time.sleep(pause_s)
        batch = client.batches.retrieve(batch.id)
    if batch.output_file_id is None:
        raise RuntimeError(f"the batch is {batch.status}: {batch.errors or batch.error_file_id}")
    return client.files.content(batch.output_file_id).text


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer a file of requests.")
    parser.add_argument("requests", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--pause", type=float, default=10, help="seconds between two looks")
    args = parser.parse_args()
    with openai.OpenAI(max_retries=8) as client:
        args.answers.write_text(answer(client, args.requests, args.pause))


if __name__ == "__main__":
    main()
