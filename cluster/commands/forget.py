"""`dray forget`."""

from dataclasses import asdict
from typing import Annotated

import typer

from cluster.commands.auditing import audit
from cluster.commands.console import (
    AsJson,
    Config,
    StateDir,
    fail,
    load_settings,
    out,
    print_json,
    redis_client,
    running_record,
)
from cluster.commands.objects import batch_objects
from cluster.commands.teams import teams_redis
from cluster.objects.batch_files import Tally
from cluster.objects.forgetting import forget_lines
from cluster.records.forget import forget, user_tag
from cluster.units import plural


def forget_user(
    user: Annotated[str, typer.Argument(help="The user, as requests name it: safety_identifier, user, or user_id.")],
    team: Annotated[str, typer.Option(help="The team whose user it is. Default: callers without a key.")] = "",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Delete a user's cached answers, stored responses and feedback, and the user's lines in files of batches.

    Curated answers are the team's and stay, also those made of the user's corrections. Lines that wait for their answer
    end with the error `forgotten`.
    """
    settings = load_settings(config, state_dir=state_dir).settings
    url = settings.cache.url or running_record(config, state_dir).redis
    owner = f"team.{team}" if team else settings.cache.namespace
    tag = user_tag(owner, user)
    with teams_redis(config, state_dir) as teams:
        # First, so that no line gets an answer that would be stored after the others were deleted.
        objects = batch_objects(teams, config, state_dir)
        lines = forget_lines(teams, objects, owner, user) if objects is not None else Tally()
        if url:
            with redis_client(url) as answers:
                done = forget(teams, answers, tag)
        else:
            done = forget(teams, None, tag)
    audit(config, state_dir, "user.forget", tag, team=team)
    if as_json:
        print_json(asdict(done) | {"batch_lines": lines.count})
    else:
        counts = [plural(done.answers, "answer"), plural(done.responses, "stored response")]
        counts.append(f"{plural(done.feedback, 'record')} of feedback")
        out.print(f"deleted {', '.join(counts)} and {plural(lines.count, 'line')} of batches", highlight=False)
    if lines.fault:
        raise fail(f"not all files of batches were looked through: {lines.fault}")
