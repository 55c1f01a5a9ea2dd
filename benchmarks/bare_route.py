"""The baseline for cache hits: one Starlette route under uvicorn with one Redis read and nothing else."""

import sys

import redis.asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def main() -> None:
    port, url, key = sys.argv[1:4]
    client = redis.asyncio.Redis.from_url(url, protocol=3)

    async def answer(http: Request) -> Response:
        await http.body()
        return Response(await client.get(key), media_type="application/json")

    app = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
