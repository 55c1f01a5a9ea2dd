"""`dray cache`: what the answer cache holds, and clearing it."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

import msgspec
import typer

from cluster.client import ServerError, metrics
from cluster.commands.auditing import audit
from cluster.commands.console import (
    AsJson,
    Config,
    StateDir,
    fail,
    load_settings,
    out,
    print_done,
    print_json,
    printable,
    redis_client,
    running_record,
)
from cluster.launch.state import read_record
from cluster.records.cache import clear, show, stats
from cluster.records.cache_search import CachedAnswer, CacheError, delete, search
from cluster.records.client import BlockingRedis
from cluster.records.responses import clear_responses
from cluster.records.sealing import SealingError, Unreadable
from cluster.records.team_records import NotFound
from cluster.tables import DataTable
from cluster.units import plural

app = typer.Typer(help="Inspect and clear the answer cache.", no_args_is_help=True, epilog="Example: dray cache stats")

_SENTENCES = ("question", "answer")


@contextmanager
def _redis(config: Config, state_dir: StateDir) -> Iterator[BlockingRedis]:
    """The cache's Redis: the one in the settings, else that of the running Dray."""
    url = load_settings(config, state_dir=state_dir).settings.cache.url or running_record(config, state_dir).redis
    if not url:
        raise fail("the answer cache is off (cache.enabled)")
    with redis_client(url) as client:
        yield client


@app.command("stats", epilog="Example: dray cache stats --json")
def show_stats(as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """Show answers by model and namespace, memory, and how requests were answered."""
    with _redis(config, state_dir) as client:
        cached = stats(client)
    record = read_record(load_settings(config, state_dir=state_dir).settings.state_dir)
    try:
        samples = metrics(record.url).get("dray_answer_cache_total", []) if record else []
    except ServerError:
        samples = []
    requests: dict[str, int] = {}
    for labels, value in samples:
        requests[labels["result"]] = requests.get(labels["result"], 0) + int(value)
    if as_json:
        rows = [
            {"model": model, "namespace": namespace, "answers": count}
            for (model, namespace), count in sorted(cached.answers.items())
        ]
        memory = {"bytes": cached.bytes, "max_bytes": cached.max_bytes, "evicted": cached.evicted}
        print_json({"answers": rows, "memory": memory, "requests": requests})
        return
    out.print(answers_table(cached.answers))
    limit = f" of {cached.max_bytes / 2**20:.0f}" if cached.max_bytes else ""
    out.print(f"Redis: {cached.bytes / 2**20:.1f}{limit} MiB, {plural(cached.evicted, 'key')} evicted", highlight=False)
    if requests:
        counts = ", ".join(f"{count} {result}" for result, count in sorted(requests.items()))
        out.print(f"requests: {counts}", highlight=False)


def answers_table(answers: Mapping[tuple[str, str], int]) -> DataTable:
    """Cached answers by model and namespace."""
    table = DataTable("model", "namespace", "answers", right=["answers"])
    for (model, namespace), count in sorted(answers.items()):
        table.add_row(model, namespace, str(count))
    return table


@app.command("clear", epilog="Example: dray cache clear --model dray-demo --namespace support")
def clear_answers(
    model: Annotated[str, typer.Option(help="Only this model's answers.")] = "",
    namespace: Annotated[str, typer.Option(help="Only this namespace's answers.")] = "",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Delete answers from the cache, and stored responses: all of them, unless a model or namespace is given.

    With a model, stored responses are left: they belong to a team and not to a model. A team's namespace is team.NAME.
    """
    with _redis(config, state_dir) as client:
        answers = clear(client, model, namespace)
        responses = 0 if model else clear_responses(client, namespace)
    audit(config, state_dir, "cache.clear", model=model, namespace=namespace)
    more = f" and {plural(responses, 'stored response')}" if responses else ""
    cleared = {"answers": answers, "responses": responses}
    print_done(cleared, f"cleared {plural(answers, 'answer')}{more}", as_json)


@app.command("show", epilog="Example: dray cache show 0f3a... (an answer's X-Dray-Cache-Key)")
def show_answer(
    key: Annotated[str, typer.Argument(help="The X-Dray-Cache-Key of an answer, or its key in Redis.")],
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Print a cached answer."""
    try:
        with _redis(config, state_dir) as client:
            answer = show(client, key)
    except (Unreadable, SealingError) as error:
        raise fail(str(error)) from None
    if answer is None:
        raise fail("no answer is cached under this key")
    if as_json:
        print_json(answer)
        return
    generated = datetime.fromtimestamp(answer["made"]).isoformat(sep=" ", timespec="seconds")
    out.print(
        f"{answer['model']} in namespace {answer['namespace']}, generated {generated}, "
        f"expires in {answer['expires_in_s']} s, {answer['bytes']} bytes",
        style="dim",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for choice in answer["choices"]:
        out.print(choice["reasoning"], style="dim", markup=False, highlight=False, soft_wrap=True)
        out.print(choice["text"], markup=False, highlight=False, soft_wrap=True)


@app.command("search", epilog="Example: dray cache search password --team support")
def search_answers(
    text: Annotated[str, typer.Argument(help="What the question or the answer contains; empty: anything.")] = "",
    model: Annotated[str, typer.Option(help="Only this model's answers.")] = "",
    namespace: Annotated[str, typer.Option(help="Only this namespace's answers.")] = "",
    team: Annotated[str, typer.Option(help="Only the own answers of this team.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=200, help="About how many.")] = 50,
    cursor: Annotated[str, typer.Option(help="Where an earlier search ended, to go on from there.")] = "",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Search the cached answers. A search reads at most some thousand answers and prints the cursor to go on with."""
    wanted = f"team.{team}" if team else namespace
    with _redis(config, state_dir) as client:
        try:
            page = search(client, text, model=model, namespace=wanted, cursor=cursor, limit=limit)
        except CacheError as error:
            raise fail(str(error)) from None
    if as_json:
        print_json(msgspec.to_builtins(page))
        return
    out.print(found_table(page.data))
    if page.next:
        out.print(f"there may be more: --cursor {page.next}", highlight=False)


def found_table(found: Iterable[CachedAnswer]) -> DataTable:
    """Cached answers with their questions."""
    heads = ("key", "namespace", "model", "question", "answer")
    table = DataTable(*heads, drop=("model", "namespace", "answer"), sentences=_SENTENCES)
    for answer in found:
        texts = (answer.namespace, answer.model, *(" ".join(part.split()) for part in (answer.question, answer.answer)))
        table.add_row(answer.key, *map(printable, texts))
    return table


@app.command("delete", epilog="Example: dray cache delete 0f3a... (an answer's X-Dray-Cache-Key)")
def delete_answer(
    key: Annotated[str, typer.Argument(help="The X-Dray-Cache-Key of an answer, or its key in Redis.")],
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Delete one cached answer."""
    with _redis(config, state_dir) as client:
        try:
            model, namespace = delete(client, key)
        except NotFound as error:
            raise fail(str(error)) from None
    audit(config, state_dir, "cache.delete", key, model=model, namespace=namespace)
    print_done({"key": key, "model": model, "namespace": namespace}, f"deleted {key}", as_json)
