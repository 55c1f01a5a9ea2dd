"""The `dray` command: a function for each subcommand, in `cluster.commands`."""

import typer

from cluster.commands import cache, chat, lifecycle, models, settings, status, teams, warm

app = typer.Typer(
    help="Serve small reasoning language models on CPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog="Example: dray up --model deepseek-r1-distill-qwen-1.5b --replicas 2 --detach")(lifecycle.up)
app.command(epilog="Example: dray deploy --model ./r1-1.5b-tuned")(lifecycle.deploy)
app.command(epilog="Example: dray down")(lifecycle.down)
app.command(epilog="Example: dray status --json")(status.status)
app.command(epilog="Example: dray chat")(chat.chat)
app.command("warm", epilog="Example: dray warm questions.jsonl --at-a-time 8")(warm.warm_cache)
app.command("settings", epilog="Example: DRAY_PORT=9000 dray settings --json")(settings.show_settings)
app.add_typer(models.app, name="models")
app.add_typer(cache.app, name="cache")
app.add_typer(teams.teams, name="teams")
app.add_typer(teams.keys, name="keys")

if __name__ == "__main__":
    app()
