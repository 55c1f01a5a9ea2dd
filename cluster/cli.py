"""The `dray` command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.markup import escape
from rich.table import Table

from cluster.client import ServerError, metrics, stream_chat
from cluster.console import AsJson, Config, StateDir, err, fail, out, settled
from cluster.launch import base_url, clear, remove_folder_if_empty, running
from cluster.models.commands import app as models_app
from cluster.models.commands import obtain_all
from cluster.preflight import LaunchError
from cluster.settings import (
    CONFIG_VARIABLE,
    Settings,
    describe,
    environment,
    leaves,
    variable,
)
from cluster.state import AlreadyRunning, Record, is_held, read_record

app = typer.Typer(
    help="Serve small reasoning language models on CPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(models_app, name="models")

_TEND_S = 0.5
_DOWN_S = 60.0


def found(config: Path | None, state_dir: Path | None) -> Record:
    """The record of the running Dray, or the end of the command."""
    folder = settled(config, state_dir=state_dir).settings.state_dir
    record = read_record(folder)
    if record is None:
        raise fail("Dray is not running; start it with `dray up`")
    return record


@app.command(epilog="Example: dray up --model deepseek-r1-distill-qwen-1.5b --replicas 2 --detach")
def up(
    model: Annotated[
        str | None,
        typer.Option(help="A name of the catalog, a Hub id or a folder; none serves the bundled model."),
    ] = None,
    weight: Annotated[str | None, typer.Option(help="Weight format of a named model: int8, int4 or fp16.")] = None,
    source: Annotated[
        str | None, typer.Option(help="Where a named model is fetched from: huggingface or modelscope.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Engine replicas.")] = None,
    cores: Annotated[int | None, typer.Option(help="Whole cores for each replica.")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return once it is ready.")] = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Start Redis, Ray and the service on this machine; Ctrl-C stops all of it."""
    settings = settled(
        config,
        model__source=model,
        model__weight=weight,
        hub=source,
        host=host,
        port=port,
        model__replicas=replicas,
        model__cores_per_replica=cores,
        state_dir=state_dir,
    ).settings
    obtain_all(settings)
    if detach:
        _detach(settings)
        return
    try:
        with (
            err.status("starting") as status,
            running(settings, lambda stage: status.update(escape(stage))) as tend,
        ):
            status.stop()
            _greet(settings, "Ctrl-C")
            while True:
                tend()
                time.sleep(_TEND_S)
    except (LaunchError, AlreadyRunning) as error:
        raise fail(str(error)) from None
    except KeyboardInterrupt:
        err.print("stopped")
    finally:
        remove_folder_if_empty(settings.state_dir)


def _detach(settings: Settings) -> None:
    """Starts `dray up` in a session of its own and waits for its record to say ready."""
    folder = settings.state_dir
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = folder / "dray.log"
    # The settings as they are in force here travel whole, so that the child reads no other file or flag.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DRAY_")}
    inherited |= environment(settings) | {CONFIG_VARIABLE: os.devnull}
    with log.open("w") as sink:
        child = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", "up"],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            env=inherited,
        )
    try:
        with err.status("starting") as status:
            while child.poll() is None:
                record = read_record(folder)
                if record and record.pid == child.pid:
                    status.update(escape(record.stage))
                    if record.stage == "ready":
                        break
                time.sleep(0.1)
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise typer.Exit(1) from None
    if child.returncode is not None:
        said = log.read_text(errors="replace").strip().splitlines()
        if not is_held(folder):
            log.unlink(missing_ok=True)
            remove_folder_if_empty(folder)
        raise fail(said[-1].removeprefix("error: ") if said else "it ended at once")
    _greet(settings, "dray down")


def _greet(settings: Settings, how_to_stop: str) -> None:
    record = read_record(settings.state_dir)
    names = record.models if record else []
    url = base_url(settings)
    body = json.dumps(
        {
            "model": names[0] if names else "",
            "messages": [{"role": "user", "content": "一个笼子里有鸡和兔子共35只,脚共94只,问各有多少?"}],
        },
        ensure_ascii=False,
    )
    out.print(
        f"[green]Dray is ready[/green] at [bold]{url}[/bold], serving {escape(', '.join(names))}\n", highlight=False
    )
    out.print(
        f"  curl {url}/chat/completions -H 'Content-Type: application/json' -d '{body}'\n",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    out.print(f"  chat here: dray chat      what runs: dray status      stop: {how_to_stop}", highlight=False)


@app.command(epilog="Example: dray down")
def down(state_dir: StateDir = None, config: Config = None) -> None:
    """Stop the Dray that runs here, and everything that it started."""
    folder = settled(config, state_dir=state_dir).settings.state_dir
    if folder.is_dir() and not is_held(folder):
        clear(folder)  # a launcher that was killed could not clean up
    record = found(config, state_dir)
    try:
        process = psutil.Process(record.pid)
        process.send_signal(signal.SIGTERM)
        with err.status("stopping"):
            process.wait(_DOWN_S)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        raise fail(f"process {record.pid} has not ended within {_DOWN_S:.0f} s") from None
    (folder / "dray.log").unlink(missing_ok=True)
    remove_folder_if_empty(folder)
    out.print("stopped")


@app.command(epilog="Example: dray status --json")
def status(as_json: AsJson = False, state_dir: StateDir = None, config: Config = None) -> None:
    """Show the replicas, their cores, the model, tokens a second, cache hits and Redis."""
    record = found(config, state_dir)
    if record.stage != "ready":
        out.print(record.stage)
        raise typer.Exit(3)
    try:
        report = _report(record)
    except ServerError as error:
        raise fail(str(error)) from None
    if as_json:
        out.print_json(data=report)
        return
    table = Table("model", "replica", "cores", "engine pid", "running", "tokens/s", "KV used", "restarts")
    for one in report["replicas"]:
        table.add_row(
            one["model"],
            one["replica"],
            one["cpus"],
            str(one["engine_pid"]),
            str(one["running"]),
            f"{one['tokens_per_s']:.0f}",
            f"{one['kv_used']:.0%}",
            str(one["restarts"]),
        )
    awake = {one["model"] for one in report["replicas"]}
    for name in report["models"]:
        if name not in awake:
            table.add_row(name, "(asleep)")
    out.print(f"{', '.join(report['models'])} at {report['url']}", highlight=False)
    out.print(table)
    answers = report["answers"]
    out.print(
        f"answers: {answers['hit']} from the cache, {answers['miss']} generated, {answers['bypass']} uncached; "
        f"Redis: {report['redis']}",
        highlight=False,
    )


def _report(record: Record) -> dict[str, Any]:
    samples = metrics(record.url)

    def by_replica(name: str) -> dict[str, float]:
        return {labels["replica"]: value for labels, value in samples.get(name, [])}

    running_now, rates = by_replica("dray_engine_running"), by_replica("dray_engine_tokens_per_second")
    kv_used, restarts = by_replica("dray_engine_kv_used_ratio"), by_replica("dray_engine_restarts_total")
    replicas = [
        {
            "model": labels["model"],
            "replica": labels["replica"],
            "cpus": labels["cpus"],
            "engine_pid": int(labels["engine_pid"]),
            "running": int(running_now.get(labels["replica"], 0)),
            "tokens_per_s": rates.get(labels["replica"], 0.0),
            "kv_used": kv_used.get(labels["replica"], 0.0),
            "restarts": int(restarts.get(labels["replica"], 0)),
        }
        for labels, value in samples.get("dray_engine_info", [])
        if value == 1
    ]
    counted = {labels["result"]: int(value) for labels, value in samples.get("dray_answer_cache_total", [])}
    return {
        "models": record.models,
        "url": record.url,
        "replicas": replicas,
        "answers": {name: counted.get(name, 0) for name in ("hit", "miss", "bypass")},
        "redis": _redis_state(record.redis),
    }


def _redis_state(url: str) -> str:
    if not url:
        return "off"
    import redis

    try:
        with redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1) as client:
            used: dict[str, Any] = client.info("memory")
            return f"{client.dbsize()} answers, {used['used_memory_human']} of {used['maxmemory_human']}"
    except (redis.RedisError, OSError):
        return "not reachable; requests go on uncached"


@app.command(epilog="Example: dray chat")
def chat(
    url: Annotated[str | None, typer.Option(help="Base URL of another server, ending in /v1.")] = None,
    model: Annotated[str | None, typer.Option(help="Model to ask; the first that is served if not given.")] = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Chat in the terminal; thinking is dimmed. An empty line ends it."""
    if url is None or model is None:
        record = found(config, state_dir)
        url, model = url or record.url, model or record.models[0]
    turns: list[dict[str, str]] = []
    while True:
        try:
            question = out.input("[bold]you>[/bold] ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not question:
            return
        turns.append({"role": "user", "content": question})
        try:
            turns.append({"role": "assistant", "content": _answer(url, model, turns)})
        except ServerError as error:
            turns.pop()
            err.print(f"[red]error:[/red] {escape(str(error))}")
        except KeyboardInterrupt:
            turns.pop()
            out.print("\n(stopped)")


def _answer(url: str, model: str, turns: list[dict[str, str]]) -> str:
    began, text, usage = time.monotonic(), "", None
    for delta in stream_chat(url, model, turns):
        out.print(delta.reasoning, end="", style="dim", markup=False, highlight=False, soft_wrap=True)
        if delta.text and not text:
            out.print()
        out.print(delta.text, end="", markup=False, highlight=False, soft_wrap=True)
        text, usage = text + delta.text, delta.usage or usage
    out.print()
    if usage:
        out.print(
            f"({usage['completion_tokens']} tokens, {time.monotonic() - began:.1f} s)",
            style="dim",
            highlight=False,
        )
    return text


@app.command("settings", epilog="Example: DRAY_PORT=9000 dray settings --json")
def show_settings(as_json: AsJson = False, config: Config = None) -> None:
    """Print every setting in force, where it came from, and what it does."""
    loaded = settled(config)
    values, texts = leaves(loaded.settings.model_dump(mode="json")), describe()
    if as_json:
        out.print_json(
            data={
                name: {"value": values[name], "origin": loaded.origins[name], "variable": variable(name)}
                for name in values
            }
        )
        return
    table = Table("setting", "value", "from", "what it does")
    for name, value in values.items():
        table.add_row(name, escape(str(value)), loaded.origins[name], texts[name])
    out.print(table)


if __name__ == "__main__":
    app()
