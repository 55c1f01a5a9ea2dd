"""`dray plan cost`: money, power and CO2 of a plan beside GPU servers."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.bench import read_all_assumptions
from cluster.commands.console import AsJson, fail, out, print_json
from cluster.plan.costs import GRID_KG_PER_KWH, PlanFileError, as_dict, bills, read_plan, table


def cost(
    plan: Annotated[Path, typer.Argument(help="What `dray plan --json FILE` wrote.")],
    assume: Annotated[
        list[str] | None, typer.Option(help="An assumption of a node (pc) or a GPU server, such as gpu.watts=350.")
    ] = None,
    assumptions: Annotated[Path | None, typer.Option(help="A YAML file of assumptions.")] = None,
    kg_per_kwh: Annotated[
        float, typer.Option(min=0, help="CO2 of a kWh, in kg. The default is China's in 2023 (Ember).")
    ] = GRID_KG_PER_KWH,
    as_json: AsJson = False,
) -> None:
    """Compare money, power and CO2 of a plan's nodes with those of GPU servers for the same load."""
    assumed = read_all_assumptions(assumptions, assume or [])
    try:
        nodes, gpus = bills(read_plan(plan), assumed, kg_per_kwh)
    except (PlanFileError, OSError) as error:
        raise fail(str(error)) from None
    if as_json:
        print_json(as_dict(nodes, gpus, assumed, kg_per_kwh))
        return
    out.print(table(nodes, gpus))
    for kind, machine in (("pc", assumed.pc), ("gpu", assumed.gpu)):
        figures = ", ".join(
            f"{kind}.{name} {getattr(machine, name):g} ({assumed.source(f'{kind}.{name}')})"
            for name in ("price", "life_months", "monthly", "watts", "kwh", "hours")
        )
        out.print(figures, highlight=False, soft_wrap=True)
    speed = f"gpu.tokens_per_s {assumed.gpu.tokens_per_s:g} ({assumed.source('gpu.tokens_per_s')})"
    out.print(f"{speed}; {kg_per_kwh:g} kg CO2 a kWh", highlight=False, soft_wrap=True)
