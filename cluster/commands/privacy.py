"""`dray privacy`: encryption of what Redis keeps."""

from typing import Annotated

import typer

from cluster.commands.auditing import audit
from cluster.commands.console import Config, StateDir, fail, out
from cluster.commands.teams import teams_redis
from cluster.records.privacy import reseal
from cluster.records.sealing import SealingError, vault
from cluster.settings import PRIVACY_KEYS
from cluster.units import plural

app = typer.Typer(
    help="Manage the encryption of what Redis keeps.", no_args_is_help=True, epilog="Example: dray privacy reseal"
)


@app.command("reseal", epilog="Example: dray privacy reseal --plain")
def reseal_records(
    plain: Annotated[bool, typer.Option("--plain", help="Decrypt them, before encryption is turned off.")] = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Encrypt all curated answers and feedback anew, with the first key in DRAY_PRIVACY_KEYS.

    Do this after encryption was turned on, and before an old key is removed. Answers and stored responses expire.
    """
    try:
        if vault() is None:
            raise fail(f"{PRIVACY_KEYS} is not set here; set it as it is for Dray")
        with teams_redis(config, state_dir) as client:
            done = reseal(client, plain=plain)
    except SealingError as error:
        raise fail(str(error)) from None
    audit(config, state_dir, "privacy.reseal", plain=plain, curated=done.curated, feedback=done.feedback)
    counts = f"{plural(done.curated, 'curated answer')} and {plural(done.feedback, 'record')} of feedback"
    out.print(f"{'decrypted' if plain else 'encrypted'} {counts}", highlight=False)


@app.callback()
def privacy() -> None:
    """Manage the encryption of what Redis keeps."""
