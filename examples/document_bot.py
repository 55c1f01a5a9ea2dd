"""A bot that answers from one document: python examples/document_bot.py handbook.txt "When is the office open?"

export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=none
"""

import sys
from pathlib import Path

import openai

INSTRUCTION = "Answer from the text below, in one sentence. If it does not say, answer that it does not say."


def main() -> None:
    """Prints the answer, and whether it came from the cache."""
    document, question = Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[2]
    client = openai.OpenAI(max_retries=3, timeout=120)
    response = client.chat.completions.with_raw_response.create(
        model=client.models.list().data[0].id,
        messages=[
            # The same beginning for every question: its tokens are computed once.
            {"role": "system", "content": f"{INSTRUCTION}\n\n{document}"},
            {"role": "user", "content": question},
        ],
        temperature=0,  # deterministic, so the answer is cached
        max_tokens=200,
    )
    print(response.parse().choices[0].message.content)
    print(f"({response.headers['X-Dray-Cache']}, {response.elapsed.total_seconds():.2f} s)")


if __name__ == "__main__":
    main()
