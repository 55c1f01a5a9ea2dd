"""`dray forget`."""

from dataclasses import asdict
from typing import Annotated

import typer

from cluster.commands.auditing import audit
from cluster.commands.console import (
    AsJson,
    Config,
    StateDir,
    load_settings,
    out,
    print_json,
    redis_client,
    running_record,
)
from cluster.commands.teams import teams_redis
from cluster.records.forget import forget, user_tag
from cluster.units import plural


def forget_user(
    user: Annotated[str, typer.Argument(help="The user, as requests name it: safety_identifier, user, or user_id.")],
    team: Annotated[str, typer.Option(help="The team whose user it is. Default: callers without a key.")] = "",
    as_json: AsJson = False,
    state_dir: StateDir = None,
    config: Config = None,
) -> None:
    """Delete a user's cached answers, stored responses and feedback.

    Curated answers are the team's and stay, also those made of the user's corrections. Files of batches are not looked
    into: delete them, or let them expire.
    """
    settings = load_settings(config, state_dir=state_dir).settings
    url = settings.cache.url or running_record(config, state_dir).redis
    tag = user_tag(f"team.{team}" if team else settings.cache.namespace, user)
    with teams_redis(config, state_dir) as teams:
        if url:
            with redis_client(url) as answers:
                done = forget(teams, answers, tag)
        else:
            done = forget(teams, None, tag)
    audit(config, state_dir, "user.forget", tag, team=team)
    if as_json:
        print_json(asdict(done))
        return
    counts = (plural(done.answers, "answer"), plural(done.responses, "stored response"))
    out.print(f"deleted {', '.join(counts)} and {plural(done.feedback, 'record')} of feedback", highlight=False)
