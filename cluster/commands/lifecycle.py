"""`dray up`, `dray join`, `dray deploy` and `dray down`."""

import math
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Annotated

import psutil
import typer
from rich.markup import escape

from cluster.commands.auditing import audit
from cluster.commands.console import (
    AsJson,
    Config,
    StateDir,
    catalog_names,
    err,
    fail,
    hub_names,
    load_settings,
    out,
    print_done,
    running_record,
    weight_formats,
)
from cluster.commands.downloads import obtain_all
from cluster.commands.greeting import greet
from cluster.configuration import CONFIG_VARIABLE, environment, keep_fixed_settings
from cluster.cores import sweep
from cluster.launch import log_file
from cluster.launch.join import joined_cluster
from cluster.launch.membership import JoinError
from cluster.launch.preflight import LaunchError
from cluster.launch.ray_node import RayEndedError, clear
from cluster.launch.startup import running
from cluster.launch.state import (
    DEPLOY_REQUEST_FILE,
    LOCK_FILE,
    RECORD_FILE,
    AlreadyRunning,
    DeployRequest,
    is_held,
    read_record,
    remove_folder_if_empty,
    write_deploy_request,
)
from cluster.launch.unmeasured import unmeasured
from cluster.private_files import private_folder
from cluster.serve_config import Engine
from cluster.settings import Settings

_RECONCILE_S = 0.5
_DOWN_TIMEOUT_S = 60.0
_MIN_UPTIME_S = 10.0
"""A Ray that ends sooner after the start would end again: Dray is not restarted then."""

Model = Annotated[
    str | None,
    typer.Option(help="Catalog name, Hub id or folder. Default: the bundled model.", autocompletion=catalog_names),
]
Weight = Annotated[
    str | None, typer.Option(help="Weight format of a named model: int8, int4 or fp16.", autocompletion=weight_formats)
]
Source = Annotated[
    str | None,
    typer.Option(help="Hub to fetch a named model from: huggingface or modelscope.", autocompletion=hub_names),
]
Replicas = Annotated[int | None, typer.Option(help="Number of engine replicas.")]
Cores = Annotated[int | None, typer.Option(help="Whole cores per replica.")]


def up(
    model: Model = None,
    weight: Weight = None,
    source: Source = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    replicas: Replicas = None,
    cores: Cores = None,
    head: Annotated[bool | None, typer.Option("--head", help="Let other machines join; see `dray join`.")] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Run in the background; return once Dray is ready.")
    ] = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Start Redis, Ray and the service on this machine; Ctrl-C stops all of it."""
    settings = load_settings(
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
    measured = unmeasured(settings)
    if detach:
        _detach(settings, measured)
        return
    inherited = dict(os.environ)  # the start adds Ray's variables
    ready_at = math.inf
    try:
        with (
            err.status("starting") as status,
            running(settings, lambda stage: status.update(escape(stage))) as dray,
        ):
            status.stop()
            greet(settings, "Ctrl-C", measured)
            ready_at = time.monotonic()
            while True:
                dray.reconcile()
                time.sleep(_RECONCILE_S)
    except RayEndedError as error:
        if time.monotonic() - ready_at < _MIN_UPTIME_S:
            raise fail(f"{error}; Dray stops") from None
        err.print(f"{error}; Dray starts again", highlight=False, markup=False)
        # In a new process, under the same number: Ray cannot be started twice in one.
        os.execve(sys.executable, [sys.executable, "-m", "cluster.cli", *sys.argv[1:]], inherited)
    except (LaunchError, AlreadyRunning) as error:
        raise fail(str(error)) from None
    except KeyboardInterrupt:
        err.print("stopped")
    finally:
        remove_folder_if_empty(settings.state_dir)


def _detach(settings: Settings, measured: Sequence[Engine]) -> None:
    """Starts `dray up` in its own session and waits until its record says that it is ready.

    measured: engines that find out how they run fastest.
    """
    folder = settings.state_dir
    private_folder(folder)
    log_file.remove(folder)
    log = folder / log_file.LOG_FILE
    # The child gets the settings in force here as variables, so that it reads no file or flag of its own.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("DRAY_")}
    inherited |= environment(settings) | {CONFIG_VARIABLE: os.devnull}
    with log.open("a") as sink:  # appending, so that it can be cut off
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
        lines = log.read_text(errors="replace").strip().splitlines()
        if not is_held(folder):
            log_file.remove(folder)
            remove_folder_if_empty(folder)
        raise fail(
            lines[-1].removeprefix("error: ") if lines else f"`dray up` ended at once; exit code {child.returncode}"
        )
    greet(settings, "dray down", measured)


def join(
    head: Annotated[str, typer.Argument(help="HOST:PORT that `dray up --head` printed.")],
    token: Annotated[
        str,
        typer.Option(help="The token that the head printed.", envvar="RAY_AUTH_TOKEN", prompt=True, hide_input=True),
    ],
    address: Annotated[str | None, typer.Option(help="IP address of this machine, as the head reaches it.")] = None,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Lend this machine's cores to another Dray until Ctrl-C. Unfinished requests then move to other machines."""
    settings = load_settings(config, cluster__address=address, state_dir=state_dir).settings
    os.environ.pop("RAY_AUTH_TOKEN", None)  # Ray reads it from a file that other users cannot read
    try:
        with (
            err.status("joining") as status,
            joined_cluster(settings, head, token, lambda stage: status.update(escape(stage))) as restart_if_ended,
        ):
            status.stop()
            out.print(f"[green]joined[/green] {escape(head)}; to leave: Ctrl-C", highlight=False)
            while True:
                if restart_if_ended():
                    err.print("Ray had ended on this machine and was restarted")
                time.sleep(_RECONCILE_S)
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
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Apply new settings or switch models without downtime. Running streams finish on the old version.

    Reads the settings again from all their sources, as `dray up` does.
    """
    loaded = load_settings(
        config,
        model__source=model,
        model__weight=weight,
        hub=source,
        model__replicas=replicas,
        model__cores_per_replica=cores,
        state_dir=state_dir,
    )
    record = running_record(config, state_dir)
    obtain_all(loaded.settings)
    request = DeployRequest(secrets.token_hex(8), keep_fixed_settings(loaded, record.settings).model_dump(mode="json"))
    write_deploy_request(loaded.settings.state_dir, request)
    with err.status("deploying") as status:
        while record.answered != request.id:
            time.sleep(0.1)
            record = running_record(config, state_dir)
            status.update(escape(record.rollout or "deploying"))
    audit(config, state_dir, "deploy", models=record.models, refused=record.refused)
    if record.refused:
        raise fail(record.refused)
    print_done({"models": record.models}, f"now serving {', '.join(record.models)}", as_json)


def down(state_dir: StateDir = None, config: Config = None) -> None:
    """Stop the Dray on this machine and everything that it started; a machine that joined another leaves it."""
    settings = load_settings(config, state_dir=state_dir).settings
    folder = settings.state_dir
    if folder.is_dir() and not is_held(folder):
        # Its launcher was killed and could not clean up.
        clear(folder)
        sweep(settings.core_lock_dir)
        for name in (RECORD_FILE, DEPLOY_REQUEST_FILE, LOCK_FILE, "ray-token"):
            (folder / name).unlink(missing_ok=True)
        log_file.remove(folder)
        remove_folder_if_empty(folder)
    if (record := read_record(folder)) is None:
        raise fail("Dray is not running; start it with `dray up`")
    try:
        process = psutil.Process(record.pid)
        process.send_signal(signal.SIGTERM)
        with err.status("stopping"):
            process.wait(_DOWN_TIMEOUT_S)
    except psutil.NoSuchProcess:
        pass
    except psutil.TimeoutExpired:
        raise fail(f"process {record.pid} did not end within {_DOWN_TIMEOUT_S:.0f} s") from None
    log_file.remove(folder)
    remove_folder_if_empty(folder)
    out.print("stopped")
