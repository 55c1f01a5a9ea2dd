"""`dray cache`: what the answer cache holds, and taking answers out of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cluster.client import ServerError, metrics
from cluster.commands.console import AsJson, Config, StateDir, fail, found, out, redis_at, settled
from cluster.records.cache import clear, show, stats

app = typer.Typer(
    help="Look into the answer cache, and clear it.", no_args_is_help=True, epilog="Example: dray cache stats"
)


@contextmanager
def _redis(config: Config, state_dir: StateDir) -> Iterator[Any]:
    """The cache's Redis: of the running Dray, or of the settings where none runs here."""
    named = settled(config, state_dir=state_dir).settings.cache.url
    url = named or found(config, state_dir).redis
    if not url:
        raise fail("the answer cache is off (cache.enabled)")
    with redis_at(url) as client:
        yield client


@app.command("stats", epilog="Example: dray cache stats --json")
def show_stats(as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """Answers by model and namespace, memory, and how requests were answered."""
    with _redis(config, state_dir) as client:
        seen = stats(client)
    try:
        samples = metrics(found(config, state_dir).url).get("dray_answer_cache_total", [])
    except (ServerError, typer.Exit):
        samples = []
    results: dict[str, int] = {}
    for labels, value in samples:
        results[labels["result"]] = results.get(labels["result"], 0) + int(value)
    if as_json:
        rows = [
            {"model": model, "namespace": space, "answers": n} for (model, space), n in sorted(seen.answers.items())
        ]
        memory = {"bytes": seen.bytes, "max_bytes": seen.max_bytes, "evicted": seen.evicted}
        out.print_json(data={"answers": rows, "memory": memory, "requests": results})
        return
    table = Table("model", "namespace", "answers")
    for (model, space), count in sorted(seen.answers.items()):
        table.add_row(escape(model), escape(space), str(count))
    out.print(table)
    most = f" of {seen.max_bytes / 2**20:.0f}" if seen.max_bytes else ""
    out.print(f"Redis: {seen.bytes / 2**20:.1f}{most} MiB, {seen.evicted} keys evicted", highlight=False)
    if results:
        said = ", ".join(f"{count} {name}" for name, count in sorted(results.items()))
        out.print(f"requests: {said}", highlight=False)


@app.command("clear", epilog="Example: dray cache clear --model dray-demo --namespace support")
def clear_answers(
    model: Annotated[str, typer.Option(help="Only this model's answers.")] = "",
    namespace: Annotated[str, typer.Option(help="Only this namespace's answers.")] = "",
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Take answers out of the cache; all, if neither model nor namespace is given."""
    with _redis(config, state_dir) as client:
        gone = clear(client, model, namespace)
    out.print(f"cleared {gone} answers", highlight=False)


@app.command("show", epilog="Example: dray cache show 0f3a... (an answer's X-Dray-Cache-Key)")
def show_answer(
    key: Annotated[str, typer.Argument(help="The X-Dray-Cache-Key of an answer, or its key in Redis.")],
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Print a stored answer."""
    with _redis(config, state_dir) as client:
        answer = show(client, key)
    if answer is None:
        raise fail("no answer is stored under this key")
    if as_json:
        out.print_json(data=answer)
        return
    made = datetime.fromtimestamp(answer["made"]).isoformat(sep=" ", timespec="seconds")
    out.print(
        f"{answer['model']} in namespace {answer['namespace']}, made {made}, kept for {answer['expires_in_s']} s more, "
        f"{answer['bytes']} bytes",
        style="dim",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for choice in answer["choices"]:
        out.print(choice["reasoning"], style="dim", markup=False, highlight=False, soft_wrap=True)
        out.print(choice["text"], markup=False, highlight=False, soft_wrap=True)
