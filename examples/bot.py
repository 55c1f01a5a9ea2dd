"""The backend of a question-and-answer bot: streams answers, and has each cached for a week.

export OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=dray-...
uvicorn --app-dir examples bot:app --port 8080
curl -N http://127.0.0.1:8080/ask -d '{"question": "What is 347 times 586?"}'
"""

import os
from collections.abc import AsyncIterator
from typing import Any

import openai
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MODEL = os.environ.get("MODEL", "dray-demo")
KEPT_S = 7 * 86_400
MAX_CHARS = 2000

# The address and key come from OPENAI_BASE_URL and OPENAI_API_KEY. The client retries 429 and 503 after the time in
# Retry-After.
client = openai.AsyncOpenAI(max_retries=3, timeout=120)


async def ask(http: Request) -> Response:
    """POST /ask with {"question": "..."}: streams the answer as plain text, without the thinking."""
    question = str((await http.json()).get("question", "")).strip()
    if not 0 < len(question) <= MAX_CHARS:
        return JSONResponse({"error": f"send a question of up to {MAX_CHARS} characters"}, 400)
    try:
        answer = await client.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=[{"role": "user", "content": question}],
            temperature=0,  # deterministic, so the answer is cached
            stream=True,
            extra_headers={"X-Dray-Cache-TTL": str(KEPT_S)},
        )
    except openai.RateLimitError as error:
        later = error.response.headers.get("Retry-After", "5")
        return JSONResponse({"error": "too many questions at the moment"}, 429, {"Retry-After": later})
    except openai.APIError:
        return JSONResponse({"error": "no answers at the moment"}, 503)
    headers = {"X-Cache": answer.headers["X-Dray-Cache"]}
    return StreamingResponse(words(answer.parse()), headers=headers, media_type="text/plain; charset=utf-8")


async def words(stream: Any) -> AsyncIterator[str]:
    """The answer's text. When the bot's client disconnects, leaving the block stops the generation."""
    async with stream:
        async for chunk in stream:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                yield text


app = Starlette(routes=[Route("/ask", ask, methods=["POST"])])
