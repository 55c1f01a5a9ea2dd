"""`dray plan`: how many replicas, nodes and cores, and how much memory, hold a load."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer
from rich.status import Status

from cluster.bench.lengths import parse_lengths
from cluster.commands.console import Config, err, fail, out, settled

if TYPE_CHECKING:
    from cluster.plan.profile import Profile
    from cluster.plan.report import Plan
    from cluster.plan.search import Demand, Planner, Target, Trial

app = typer.Typer(help="Plan for a load: how many replicas, nodes and cores hold it, and how much memory.")


@app.callback(
    invoke_without_command=True,
    epilog="Example: dray plan --profile r1.json --users 500 --per-hour 4 --prefix 300 --ttft 3",
)
def plan(
    context: typer.Context,
    profile: Annotated[Path | None, typer.Option(help="Step times, from `dray plan measure`.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="JSON Lines of at, prompt, output, question, session; or a log of `dray bench`.")
    ] = None,
    users: Annotated[float, typer.Option(min=0, help="In place of a trace: users.")] = 0,
    an_hour: Annotated[float, typer.Option("--per-hour", min=0, help="Questions of each an hour, over the day.")] = 1,
    peak: Annotated[float, typer.Option(min=1, help="The busiest hour's load over the day's average.")] = 2.5,
    shape: Annotated[str, typer.Option(help="Of the day: office, flat, or 24 numbers with commas.")] = "office",
    repeated: Annotated[float, typer.Option(min=0, max=1, help="Share that asks a question again.")] = 0,
    prompt: Annotated[str, typer.Option(help="Tokens: 200, 100-400 or lognormal:200:0.6.")] = "lognormal:200:0.6",
    output: Annotated[str, typer.Option(help="Tokens of each answer, in the same ways.")] = "lognormal:400:0.6",
    prefix: Annotated[int, typer.Option(min=0, help="Tokens of a system prompt that all share.")] = 0,
    ttft: Annotated[float, typer.Option(help="Target: p95 time to first token, seconds.")] = 3.0,
    tpot: Annotated[float, typer.Option(help="Target: p95 time per output token, seconds.")] = 0.2,
    node_cores: Annotated[int, typer.Option(min=1, help="Cores of a node.")] = 8,
    node_memory_mb: Annotated[int, typer.Option(min=1, help="Memory of a node, MiB.")] = 16384,
    spare_cores: Annotated[int, typer.Option(min=0, help="Cores of a node that no engine gets.")] = 1,
    policy: Annotated[
        Literal["dray", "least-waiting"], typer.Option(help="How a replica is chosen: as the routers do, or simpler.")
    ] = "dray",
    cache: Annotated[bool, typer.Option(help="With the answer cache.")] = True,
    overhead_ms: Annotated[float, typer.Option(min=0, help="Router and network, before the first token.")] = 10,
    step_overhead_ms: Annotated[float, typer.Option(min=0, help="Of each step, beyond the engine's own.")] = 0,
    router_tokens_per_s: Annotated[float, typer.Option(min=1, help="Tokens/s that one router passes on.")] = 2500,
    least: Annotated[
        int, typer.Option(min=0, help="Scale over the day between so many replicas and those of the peak. 0: do not.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Draws the load.")] = 0,
    to_json: Annotated[Path | None, typer.Option("--json", help="Write all of it to this file; - prints it.")] = None,
    chart: Annotated[
        Path | None, typer.Option(help="Draw load, replicas and latency over the day: .svg or .png.")
    ] = None,
) -> None:
    """Say what holds the target, from a discrete-event model that steps as the engine was measured to."""
    if context.invoked_subcommand:
        return
    try:
        import simpy  # noqa: F401
    except ImportError:
        raise fail("`dray plan` needs simpy: pip install 'dray[plan]'") from None
    from cluster.plan.load import DAY_S
    from cluster.plan.nodes import Node, capacity_for
    from cluster.plan.profile import fit
    from cluster.plan.report import Plan
    from cluster.plan.search import Planner, Target, day
    from cluster.plan.service import Scaling, ServiceModel

    if profile is None:
        raise fail("no --profile; measure one on a machine of the kind you plan for: `dray plan measure MODEL`")
    measured = _profile(profile)
    demand = _demand(trace, users, an_hour, peak, shape, repeated, prompt, output, prefix, seed)
    terms = ServiceModel(
        policy=policy,
        overhead_s=overhead_ms / 1000,
        step_overhead_s=step_overhead_ms / 1000,
        ttl_s=DAY_S if cache else 0.0,
    )
    planner = Planner(demand, measured.engine, fit(measured.points), terms)
    with err.status("simulating the busiest time") as status:
        tried = _least(planner, Target(ttft, tpot), status)
        status.update("simulating the day")
        slices, share, stored = day(planner, tried.replicas, Scaling(least) if least else None)
    rate = demand.peak[2]
    tokens_per_s = rate * tried.seen.tokens / max(tried.seen.requests, 1)
    node = Node(node_cores, node_memory_mb, spare_cores)
    try:
        need = capacity_for(measured.engine, tried.replicas, node, tokens_per_s, router_tokens_per_s)
    except ValueError as error:
        raise fail(str(error)) from None
    _tell(Plan(Target(ttft, tpot), need, tried, rate, slices, share, stored), measured, to_json, chart)


def _profile(path: Path) -> "Profile":
    from cluster.plan.profile import ProfileError, read_profile

    try:
        return read_profile(path)
    except (ProfileError, OSError) as error:
        raise fail(str(error)) from None


def _least(planner: "Planner", target: "Target", status: Status) -> "Trial":
    """The try with the fewest replicas that hold the target, or the end of the command."""
    alone = planner.times.step(1, 1) + planner.terms.step_overhead_s
    if alone > target.tpot_s:
        wanted = f"a TPOT of {target.tpot_s:g} s"
        raise fail(f"no number of replicas holds {wanted}: a stream that is alone takes {alone:.3f} s a token")

    def on_try(tried: "Trial") -> None:
        status.update(f"simulated {tried.replicas} replicas: TTFT p95 {tried.seen.ttft.at(0.95):.2f} s")

    found = planner.least(target, on_try)
    if found is None:
        most = max(planner.tried)
        best = planner.tried[most].seen
        times = f"{best.ttft.at(0.95):.2f} s to the first token and {best.tpot.at(0.95):.3f} s for each further one"
        raise fail(f"no number of replicas holds the target: with {most} of them, p95 is {times}")
    return planner.tried[found]


def _tell(made: "Plan", measured: "Profile", to_json: Path | None, chart: Path | None) -> None:
    from cluster.charts import ChartError, draw
    from cluster.plan.profile import fit
    from cluster.plan.report import as_dict, charts, table
    from cluster.plan.search import SAMPLE

    if to_json == Path("-"):
        out.print_json(data=as_dict(made))
    else:
        out.print(table(made))
        if made.peak.share < 1:
            share = f"{SAMPLE} replicas under {made.peak.share:.2%} of the load"
            out.print(f"Simulated: {share}; the others are taken to be alike.", highlight=False)
        engine, error = measured.engine, fit(measured.points).error
        where = f"{engine.model} on {engine.cores} core(s) of {measured.machine}, {measured.measured}"
        out.print(f"Step times: {where}; median error of the fit {error:.1%}.", highlight=False)
    try:
        if to_json is not None and to_json != Path("-"):
            to_json.write_text(json.dumps(as_dict(made), indent=2) + "\n", encoding="utf-8")
        if chart is not None:
            draw(charts(made), chart)
    except (ChartError, OSError) as error:
        raise fail(str(error)) from None


@app.command(epilog="Example: dray plan measure deepseek-r1-distill-qwen-1.5b --cores 4 --out r1.json")
def measure(
    model: Annotated[str, typer.Argument(help="`bundled`, a name of the catalog, a Hub id or a folder.")],
    to: Annotated[
        Path | None, typer.Option("--out", help="File of the profile. MODEL.steps.json if not given.")
    ] = None,
    cores: Annotated[int, typer.Option(min=1, help="Cores of a replica.")] = 1,
    config: Config = None,
) -> None:
    """Measure how long the engine's steps take on this machine. It takes minutes, and the cores to itself."""
    from cluster.cores import NotEnoughCores
    from cluster.models.folder import ModelFolderError
    from cluster.plan.measure import measure as measure_steps
    from cluster.plan.profile import Profile, ProfileError, fit

    settings = settled(config).settings
    chosen = settings.model.model_copy(update={"source": model, "name": ""})
    try:
        with err.status("loading the model") as status:
            for count, one in enumerate(measure_steps(chosen, settings.models_dir, cores, settings.core_lock_dir), 1):
                if isinstance(one, Profile):
                    path = to or Path(f"{one.engine.model}.steps.json")
                    path.write_bytes(msgspec.json.encode(one))
                    times = fit(one.points)
                else:
                    status.update(f"{count} kinds of steps; {one.decoding} decoding, {one.prefill} prompt tokens")
    except (ModelFolderError, NotEnoughCores, ProfileError, OSError) as error:
        raise fail(str(error)) from None
    out.print(
        f"{path}: {1 / times.step(1, 64):.1f} tokens/s of a stream alone, {8 / times.step(8, 512):.1f} of eight, "
        f"{256 / times.step(0, 0, 256, 32640):.0f} prompt tokens/s; median error of the fit {times.error:.1%}",
        highlight=False,
    )


def _demand(
    trace: Path | None,
    users: float,
    an_hour: float,
    peak: float,
    shape: str,
    repeated: float,
    prompt: str,
    output: str,
    prefix: int,
    seed: int,
) -> "Demand":
    from cluster.plan.load import SHAPES, Described, LoadError, read_trace
    from cluster.plan.search import TraceDemand, UserDemand

    if (trace is None) == (not users):
        raise fail("give a load: --trace FILE, or --users N")
    try:
        if trace is not None:
            return TraceDemand(read_trace(trace))
        hours = SHAPES.get(shape) or tuple(float(part) for part in shape.split(","))
        if len(hours) != 24 or min(hours) < 0 or max(hours) <= 0:
            raise LoadError(f"--shape is office, flat or 24 numbers, and {shape!r} is none of these")
        lengths = parse_lengths(prompt), parse_lengths(output)
    except (LoadError, ValueError, OSError) as error:
        raise fail(str(error)) from None
    return UserDemand(Described(users, an_hour, *lengths, repeated, peak, hours, prefix), seed)
