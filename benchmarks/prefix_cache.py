"""Time to first token after a long system prompt, with and without its KV cache, through HTTP."""

import argparse
import asyncio
import secrets
import time
from statistics import median

import httpx

from benchmarks.service import Service, report, running


def words(count: int) -> str:
    """This many random digits."""
    return " ".join(str(secrets.randbelow(10)) for _ in range(count))


async def first_token_s(client: httpx.AsyncClient, model: str, system: str) -> tuple[float, int, int]:
    """Asks a new question after this system prompt. Returns seconds to the token, prompt tokens, and cached ones."""
    turns = [{"role": "system", "content": system}, {"role": "user", "content": words(6)}]
    began = time.perf_counter()
    given = await client.post("/chat/completions", json={"model": model, "messages": turns, "max_tokens": 1})
    took = time.perf_counter() - began
    usage = given.raise_for_status().json()["usage"]
    return took, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


async def compare(service: Service, args: argparse.Namespace) -> str:
    model = service.status()["models"][0]
    new, known = [], []
    async with httpx.AsyncClient(base_url=service.url, timeout=600) as client:
        for _ in range(args.rounds):
            system = words(args.words)
            took, length, cached = await first_token_s(client, model, system)
            if cached > length / 10:
                raise RuntimeError(f"{cached} tokens of a new prompt were cached")
            new.append(took)
            known.append(median([(await first_token_s(client, model, system))[0] for _ in range(3)]))
    ratio = median(one / other for one, other in zip(known, new, strict=True))
    rows = [["not cached", f"{1000 * median(new):.0f}", "1"], ["cached", f"{1000 * median(known):.0f}", f"{ratio:.3f}"]]
    return report(f"First token behind {length} prompt tokens, {model}", ["system prompt", "ms", "ratio"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--words", type=int, default=500, help="random digits, two tokens each")
    args = parser.parse_args()
    with running(DRAY_MODEL__SOURCE=args.model) as service:
        print(asyncio.run(compare(service, args)))


if __name__ == "__main__":
    main()
