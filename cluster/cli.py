"""The `dray` command. Its subcommands are functions in `cluster.commands`."""

from importlib import metadata
from typing import Annotated

import typer

from cluster.child import obey_sigterm
from cluster.commands import (
    activity,
    answers,
    auditing,
    batch,
    bench,
    cache,
    chat,
    doctor,
    feedback,
    forget,
    keys,
    kubernetes,
    lifecycle,
    logs,
    model_replicas,
    models,
    plan,
    privacy,
    ps,
    run,
    settings,
    status,
    teams,
    tune,
    usage,
    warm,
)
from cluster.commands.console import fail, out
from cluster.cores import LeasesUnavailable
from cluster.private_files import NotPrivate


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"dray {metadata.version('dray')}", highlight=False)
        raise typer.Exit


app = typer.Typer(
    epilog="Example: dray up --detach, then dray chat\n\n"
    "Exit codes: 0 success; 1 failure, with the reason in one line on standard error; 2 unknown option or argument; "
    "3 (status) Dray is still starting. Output is coloured only on terminals; NO_COLOR turns colour off.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def dray(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Serve small reasoning language models on CPUs."""


app.command(epilog="Example: dray up --model deepseek-r1-distill-qwen-1.5b --replicas 2 --detach")(lifecycle.up)
app.command(epilog="Example: dray join 10.0.0.1:6379")(lifecycle.join)
app.command(epilog="Example: dray deploy --model ./r1-1.5b-tuned")(lifecycle.deploy)
app.command(epilog="Example: dray down")(lifecycle.down)
app.command(epilog="Example: dray doctor --model deepseek-r1-distill-qwen-1.5b --offline")(doctor.doctor)
app.command(epilog="Example: dray tune deepseek-r1-distill-qwen-1.5b --cores 4")(tune.tune)
app.command(epilog="Example: dray status --json")(status.status)
app.command(epilog="Example: dray ps")(ps.ps)
app.command(epilog="Example: dray logs --follow")(logs.logs)
app.command(epilog="Example: dray run --system 'Answer in one sentence.' 'What is a lease of cores?'")(run.run)
app.command(epilog="Example: dray chat")(chat.chat)
app.command(epilog="Example: dray bench --concurrency 1,4,16 --prompt 200 --output 128 --chart bench.svg")(bench.bench)
app.command("warm", epilog="Example: dray warm questions.jsonl --at-a-time 8")(warm.warm_cache)
app.command("forget", epilog="Example: dray forget user-4711 --team support")(forget.forget_user)
app.command(epilog="Example: dray usage --days 7 --by day,team")(usage.usage)
app.command("requests", epilog="Example: dray requests --team support --errors")(activity.requests)
app.command("errors", epilog="Example: dray errors --json")(activity.show_errors)
app.command("settings", epilog="Example: DRAY_PORT=9000 dray settings --json")(settings.show_settings)
models.app.command("replicas", epilog="Example: dray models replicas --json")(model_replicas.replicas)
app.add_typer(models.app, name="models")
app.add_typer(plan.app, name="plan")
app.add_typer(kubernetes.app, name="k8s")
app.add_typer(cache.app, name="cache")
app.add_typer(batch.app, name="batch")
app.add_typer(answers.app, name="answers")
app.add_typer(auditing.app, name="audit")
app.add_typer(feedback.app, name="feedback")
app.add_typer(privacy.app, name="privacy")
app.add_typer(teams.app, name="teams")
app.add_typer(keys.app, name="keys")


def main() -> None:
    """Runs the command. If another user could have prepared one of its folders, it ends and says what to do."""
    obey_sigterm()
    try:
        app()
    except (NotPrivate, LeasesUnavailable) as error:
        raise SystemExit(fail(str(error)).exit_code) from None


if __name__ == "__main__":
    main()
