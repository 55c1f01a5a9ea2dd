"""What `dray up` prints once Dray is ready."""

import json
from collections.abc import Sequence

from rich.markup import escape

from cluster.commands.console import out
from cluster.launch.ray_node import address_of, token_of
from cluster.launch.state import read_record
from cluster.launch.unmeasured import outcome
from cluster.serve_config import CONSOLE_PATH, PAGE_PREFIX, Engine, has_page
from cluster.settings import Settings, is_loopback


def greet(settings: Settings, stop: str, measured: Sequence[Engine] = ()) -> None:
    """Prints where Dray answers and what to do next. stop: how to stop it. measured: engines of which this start found
    out how they run fastest."""
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
    for engine in measured:
        out.print(f"  {escape(outcome(engine))}\n", soft_wrap=True, highlight=False)
    if has_page(settings):
        root = url.removesuffix("/v1")
        out.print(f"  chat in the browser: {root}{PAGE_PREFIX}", highlight=False)
        out.print(f"  administration in the browser: {root}{CONSOLE_PATH}\n", highlight=False)
    out.print(
        f"  curl {url}/chat/completions -H 'Content-Type: application/json' -d '{body}'\n",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    if record and record.keys:
        out.print("  An API key is required. Create one: dray keys create TEAM", highlight=False)
    elif is_loopback(settings.host):
        out.print(f"  No API keys yet: listening on {settings.host} only, no key required.", highlight=False)
    else:
        out.print(
            "  No API keys yet, so every request is refused. Create one: dray teams add TEAM, dray keys create TEAM",
            highlight=False,
        )
    if settings.cluster.head:
        where = f"{address_of(settings.cluster)}:{settings.cluster.port}"
        out.print(
            f"  on other machines: RAY_AUTH_TOKEN={token_of(settings)} dray join {where}",
            soft_wrap=True,
            highlight=False,
        )
    out.print(f"  chat here: dray chat      status: dray status      stop: {stop}", highlight=False)
