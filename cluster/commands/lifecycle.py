"""`dray up`, `dray deploy` and `dray down`."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from typing import Annotated

import psutil
import typer
from rich.markup import escape

from cluster.commands.console import (
    Config,
    StateDir,
    catalog_names,
    err,
    fail,
    found,
    hubs,
    out,
    settled,
    weights,
)
from cluster.commands.models import obtain_all
from cluster.configuration import CONFIG_VARIABLE, environment, keep_fixed_settings
from cluster.cores import sweep
from cluster.launch.join import joined_cluster
from cluster.launch.membership import JoinError
from cluster.launch.preflight import LaunchError
from cluster.launch.ray_node import address_of, clear, token_of
from cluster.launch.state import AlreadyRunning, DeployRequest, is_held, read_record, write_deploy_request
from cluster.launch.supervisor import remove_folder_if_empty, running
from cluster.serve_config import PAGE_PREFIX, has_page
from cluster.settings import Settings, is_loopback

_TEND_S = 0.5
_DOWN_S = 60.0


Model = Annotated[
    str | None,
    typer.Option(
        help="A name of the catalog, a Hub id or a folder; none serves the bundled model.", autocompletion=catalog_names
    ),
]
Weight = Annotated[
    str | None, typer.Option(help="Weight format of a named model: int8, int4 or fp16.", autocompletion=weights)
]
Source = Annotated[
    str | None,
    typer.Option(help="Where a named model is fetched from: huggingface or modelscope.", autocompletion=hubs),
]
Replicas = Annotated[int | None, typer.Option(help="Engine replicas.")]
Cores = Annotated[int | None, typer.Option(help="Whole cores for each replica.")]


def up(
    model: Model = None,
    weight: Weight = None,
    source: Source = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    replicas: Replicas = None,
    cores: Cores = None,
    head: Annotated[bool | None, typer.Option("--head", help="Take other machines in; see `dray join`.")] = None,
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
        cluster__head=head,
        state_dir=state_dir,
    ).settings
    obtain_all(settings)
    if detach:
        _detach(settings)
        return
    try:
        with (
            err.status("starting") as status,
            running(settings, lambda stage: status.update(escape(stage))) as dray,
        ):
            status.stop()
            _greet(settings, "Ctrl-C")
            while True:
                dray.reconcile()
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
    url = settings.url
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
    if has_page(settings):
        out.print(f"  chat in the browser: {url.removesuffix('/v1')}{PAGE_PREFIX}\n", highlight=False)
    out.print(
        f"  curl {url}/chat/completions -H 'Content-Type: application/json' -d '{body}'\n",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    if record and record.keys:
        out.print("  keys are needed: dray keys list", highlight=False)
    elif is_loopback(settings.host):
        out.print("  no keys: only this machine is listened to, and needs none", highlight=False)
    else:
        out.print(
            "  no keys yet, so every request is refused: dray teams add NAME, dray keys create NAME", highlight=False
        )
    if settings.cluster.head:
        where = f"{address_of(settings.cluster)}:{settings.cluster.port}"
        out.print(
            f"  other machines: RAY_AUTH_TOKEN={token_of(settings)} dray join {where}", soft_wrap=True, highlight=False
        )
    out.print(f"  chat here: dray chat      what runs: dray status      stop: {how_to_stop}", highlight=False)


def join(
    head: Annotated[str, typer.Argument(help="HOST:PORT at which `dray up --head` takes machines in.")],
    token: Annotated[
        str, typer.Option(help="What the head has printed.", envvar="RAY_AUTH_TOKEN", prompt=True, hide_input=True)
    ],
    address: Annotated[str | None, typer.Option(help="IP address at which the head reaches this machine.")] = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Put this machine's cores at the service of another's Dray, until Ctrl-C; what runs here then ends elsewhere."""
    settings = settled(config, cluster__address=address, state_dir=state_dir).settings
    os.environ.pop("RAY_AUTH_TOKEN", None)  # Ray takes it from a file, which other users cannot read
    try:
        with (
            err.status("joining") as status,
            joined_cluster(settings, head, token, lambda stage: status.update(escape(stage))) as look,
        ):
            status.stop()
            out.print(f"[green]joined[/green] {escape(head)}; to leave: Ctrl-C", highlight=False)
            while True:
                if look():
                    err.print("Ray had ended here; started it again")
                time.sleep(_TEND_S)
    except (LaunchError, AlreadyRunning, JoinError) as error:
        raise fail(str(error)) from None
    except KeyboardInterrupt:
        err.print("left")
    finally:
        remove_folder_if_empty(settings.state_dir)


def deploy(
    model: Model = None,
    weight: Weight = None,
    source: Source = None,
    replicas: Replicas = None,
    cores: Cores = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Go over to changed settings or another model while Dray serves; no request fails, streams end where they are.

    The settings are read anew, from all their sources, as `dray up` reads them.
    """
    loaded = settled(
        config,
        model__source=model,
        model__weight=weight,
        hub=source,
        model__replicas=replicas,
        model__cores_per_replica=cores,
        state_dir=state_dir,
    )
    record = found(config, state_dir)
    obtain_all(loaded.settings)
    wish = DeployRequest(secrets.token_hex(8), keep_fixed_settings(loaded, record.settings).model_dump(mode="json"))
    write_deploy_request(loaded.settings.state_dir, wish)
    with err.status("deploying") as status:
        while record.answered != wish.id:
            time.sleep(0.1)
            record = found(config, state_dir)
            status.update(escape(record.rollout or "deploying"))
    if record.refused:
        raise fail(record.refused)
    out.print(f"now serving {escape(', '.join(record.models))}", highlight=False)


def down(state_dir: StateDir = None, config: Config = None) -> None:
    """Stop the Dray that runs here, and everything that it started; a machine that has joined another leaves it."""
    settings = settled(config, state_dir=state_dir).settings
    folder = settings.state_dir
    if folder.is_dir() and not is_held(folder):
        # A launcher that was killed could not clean up.
        clear(folder)
        sweep(settings.core_lock_dir)
        for name in ("dray.json", "wish.json", "up.lock", "dray.log", "ray-token"):
            (folder / name).unlink(missing_ok=True)
        remove_folder_if_empty(folder)
    if (record := read_record(folder)) is None:
        raise fail("Dray is not running; start it with `dray up`")
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
