"""`dray privacy`: encryption of what Redis and the files of batches keep."""

from typing import Annotated

import typer

from cluster.audit import Value
from cluster.commands.auditing import audit
from cluster.commands.console import AsJson, Config, StateDir, fail, print_done
from cluster.commands.objects import batch_objects
from cluster.commands.teams import teams_redis
from cluster.objects.batch_files import Tally
from cluster.objects.resealing import reseal_files
from cluster.records.privacy import reseal
from cluster.records.sealing import SealingError, vault
from cluster.settings import PRIVACY_KEYS
from cluster.units import plural

app = typer.Typer(
    help="Manage the encryption of what Dray keeps.", no_args_is_help=True, epilog="Example: dray privacy reseal"
)


@app.command("reseal", epilog="Example: dray privacy reseal --plain")
def reseal_records(
    plain: Annotated[bool, typer.Option("--plain", help="Decrypt them, before encryption is turned off.")] = False,
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Encrypt all curated answers, feedback and files of batches anew, with the first key in DRAY_PRIVACY_KEYS.

    Do this after encryption was turned on, and before an old key is removed. Answers and stored responses expire.
    """
    try:
        if vault() is None:
            raise fail(f"{PRIVACY_KEYS} is not set here; set it as it is for Dray")
        with teams_redis(config, state_dir) as client:
            objects = batch_objects(client, config, state_dir)
            files = reseal_files(client, objects, plain=plain) if objects is not None else Tally()
            if files.fault:
                raise fail(f"not all files of batches could be written anew: {files.fault}")
            done = reseal(client, plain=plain)
    except SealingError as error:
        raise fail(str(error)) from None
    about: dict[str, Value] = {"curated": done.curated, "feedback": done.feedback, "files": files.count}
    audit(config, state_dir, "privacy.reseal", "", plain=plain, **about)
    counts = f"{plural(done.curated, 'curated answer')}, {plural(done.feedback, 'record')} of feedback"
    how = "decrypted" if plain else "encrypted"
    print_done(about, f"{how} {counts} and {plural(files.count, 'file')} of batches", as_json)


@app.callback()
def privacy() -> None:
    """Manage the encryption of what Dray keeps."""
