"""`dray plan`: the replicas, nodes, cores and memory that a load needs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer
from rich.status import Status

from cluster.bench.lengths import parse_lengths
from cluster.commands.console import AsJson, Config, err, fail, load_settings, out, print_done, print_json
from cluster.commands.plan_cost import cost
from cluster.extras import install_command
from cluster.units import plural

if TYPE_CHECKING:
    from cluster.plan.profile import Profile
    from cluster.plan.report import Plan
    from cluster.plan.search import Demand, Planner, SampleError, Target, Trial

app = typer.Typer(help="Plan capacity: the replicas, nodes, cores and memory that a load needs.")
app.command(epilog="Example: dray plan cost plan.json --assume pc.watts=65 --assume gpu.watts=350")(cost)


@app.callback(
    invoke_without_command=True,
    epilog="Example: dray plan --profile r1.json --users 500 --per-hour 4 --prefix 300 --ttft 3",
)
def plan(
    context: typer.Context,
    profile: Annotated[Path | None, typer.Option(help="Step times, measured by `dray plan measure`.")] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="JSON Lines with at, prompt, output, question, session; or a log of `dray bench`."),
    ] = None,
    users: Annotated[float, typer.Option(min=0, help="Instead of a trace: number of users.")] = 0,
    per_hour: Annotated[float, typer.Option(min=0, help="Questions per user and hour, averaged over the day.")] = 1,
    peak: Annotated[
        float, typer.Option(min=1, help="Load of the busiest hour, as a multiple of the day's average.")
    ] = 2.5,
    shape: Annotated[
        str, typer.Option(help="Shape of the day: office, flat, or 24 numbers separated by commas.")
    ] = "office",
    repeated: Annotated[float, typer.Option(min=0, max=1, help="Share of questions that repeat an earlier one.")] = 0,
    prompt: Annotated[
        str, typer.Option(help="Prompt tokens: 200, 100-400 or lognormal:200:0.6.")
    ] = "lognormal:200:0.6",
    output: Annotated[str, typer.Option(help="Completion tokens, in the same forms.")] = "lognormal:400:0.6",
    prefix: Annotated[int, typer.Option(min=0, help="Tokens of a system prompt that all requests share.")] = 0,
    ttft: Annotated[float, typer.Option(help="Target: p95 time to first token, seconds.")] = 3.0,
    tpot: Annotated[float, typer.Option(help="Target: p95 time per output token, seconds.")] = 0.2,
    node_cores: Annotated[int, typer.Option(min=1, help="Cores per node.")] = 8,
    node_memory_mb: Annotated[int, typer.Option(min=1, help="Memory per node, MiB.")] = 16384,
    spare_cores: Annotated[int, typer.Option(min=0, help="Cores per node kept free of engines.")] = 1,
    policy: Annotated[
        Literal["dray", "least-waiting"],
        typer.Option(help="How requests are assigned: as Dray's routers do, or to the shortest queue."),
    ] = "dray",
    cache: Annotated[bool, typer.Option(help="Simulate the answer cache.")] = True,
    overhead_ms: Annotated[float, typer.Option(min=0, help="Router and network time before the first token.")] = 10,
    step_overhead_ms: Annotated[float, typer.Option(min=0, help="Time added to each engine step.")] = 0,
    router_tokens_per_s: Annotated[float, typer.Option(min=1, help="Tokens/s that one router forwards.")] = 2500,
    min_replicas: Annotated[
        int, typer.Option(min=0, help="Autoscale over the day, from this many replicas to those of the peak. 0: off.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Random seed of the load.")] = 0,
    to_json: Annotated[
        Path | None, typer.Option("--json", help="Write the plan to this file as JSON; - prints it.")
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(help="Draw load, replicas and latency over the day: .svg or .png.")
    ] = None,
) -> None:
    """Find what meets the latency targets, with a discrete-event simulation that uses measured step times."""
    if context.invoked_subcommand:
        return
    try:
        import simpy  # noqa: F401
    except ImportError:
        raise fail(f"`dray plan` needs simpy; install it with: {install_command('plan')}") from None
    from cluster.plan.load import DAY_S
    from cluster.plan.nodes import Node, capacity_for
    from cluster.plan.profile import fit
    from cluster.plan.report import Plan
    from cluster.plan.search import Planner, Target, day
    from cluster.plan.service import Scaling, ServiceModel

    if profile is None:
        raise fail(
            "--profile is missing; measure one on the kind of machine that you plan for: `dray plan measure MODEL`"
        )
    measured = _read_profile(profile)
    demand = _demand(trace, users, per_hour, peak, shape, repeated, prompt, output, prefix, seed)
    terms = ServiceModel(
        policy=policy,
        overhead_s=overhead_ms / 1000,
        step_overhead_s=step_overhead_ms / 1000,
        ttl_s=DAY_S if cache else 0.0,
    )
    planner = Planner(demand, measured.engine, fit(measured.points), terms)
    with err.status("simulating the busiest time") as status:
        peak_trial, sampling = _fewest_replicas(planner, Target(ttft, tpot), status)
        status.update("simulating the day")
        slices, share, stored = day(planner, peak_trial.replicas, Scaling(min_replicas) if min_replicas else None)
    rate = demand.peak[2]
    tokens_per_s = rate * peak_trial.measured.tokens / max(peak_trial.measured.requests, 1)
    node = Node(node_cores, node_memory_mb, spare_cores)
    try:
        capacity = capacity_for(measured.engine, peak_trial.replicas, node, tokens_per_s, router_tokens_per_s)
    except ValueError as error:
        raise fail(str(error)) from None
    _report(
        Plan(Target(ttft, tpot), capacity, peak_trial, rate, slices, share, stored, sampling), measured, to_json, chart
    )


def _read_profile(path: Path) -> "Profile":
    from cluster.plan.profile import ProfileError, read_profile

    try:
        return read_profile(path)
    except (ProfileError, OSError) as error:
        raise fail(str(error)) from None


def _fewest_replicas(planner: "Planner", target: "Target", status: Status) -> "tuple[Trial, SampleError | None]":
    """The simulation with the fewest replicas that meet the target; ends the command if no number does."""
    from cluster.plan.search import confirmed

    alone = planner.times.step(1, 1) + planner.service.step_overhead_s
    if alone > target.tpot_s:
        raise fail(
            f"no number of replicas meets a TPOT of {target.tpot_s:g} s: even a single stream takes {alone:.3f} s "
            "per token"
        )

    def on_trial(trial: "Trial") -> None:
        status.update(f"simulated {plural(trial.replicas, 'replica')}: TTFT p95 {trial.measured.ttft.at(0.95):.2f} s")

    replicas = planner.fewest_replicas(target, on_trial)
    if replicas is None:
        limit = max(planner.tried)
        best = planner.tried[limit].measured
        raise fail(
            f"no number of replicas meets the targets: with {limit} of them, p95 is {best.ttft.at(0.95):.2f} s to the "
            f"first token and {best.tpot.at(0.95):.3f} s per further token"
        )
    return confirmed(planner, target, replicas, on_trial)


def _report(plan: "Plan", measured: "Profile", to_json: Path | None, chart: Path | None) -> None:
    from cluster.charts import ChartError, draw
    from cluster.plan.profile import fit
    from cluster.plan.report import as_dict, charts, table
    from cluster.plan.search import SAMPLE

    if to_json == Path("-"):
        print_json(as_dict(plan))
    else:
        out.print(table(plan))
        if error := plan.sample_error:
            out.print(
                f"Simulated: {error.replicas} replicas under {plan.peak.share:.2%} of the load; the others are assumed "
                f"to be alike. Of {SAMPLE} replicas, with which the number was searched, p95 differs from these by "
                f"{error.ttft:+.0%} (TTFT) and {error.tpot:+.0%} (TPOT).",
                highlight=False,
            )
        engine, fitted = measured.engine, fit(measured.points).error
        where = f"{engine.model} on {engine.cores} core(s) of {measured.machine}, {measured.measured}"
        out.print(f"Step times: {where}; median error of the fit {fitted:.1%}.", highlight=False)
    try:
        if to_json is not None and to_json != Path("-"):
            to_json.write_text(json.dumps(as_dict(plan), indent=2) + "\n", encoding="utf-8")
        if chart is not None:
            draw(charts(plan), chart)
    except (ChartError, OSError) as error:
        raise fail(str(error)) from None


@app.command(epilog="Example: dray plan measure deepseek-r1-distill-qwen-1.5b --cores 4 --out r1.json")
def measure(
    model: Annotated[str, typer.Argument(help="`bundled`, a catalog name, a Hub id or a folder.")],
    to: Annotated[Path | None, typer.Option("--out", help="File for the profile. Default: MODEL.steps.json.")] = None,
    cores: Annotated[int, typer.Option(min=1, help="Cores per replica.")] = 1,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Measure how long the engine's steps take on this machine. Takes minutes and needs the cores to itself."""
    from cluster.cores import NotEnoughCores
    from cluster.models.folder import ModelFolderError
    from cluster.plan.measure import measure as measure_steps
    from cluster.plan.profile import Profile, ProfileError, fit

    settings = load_settings(config).settings
    chosen = settings.model.model_copy(update={"source": model, "name": ""})
    try:
        with err.status("loading the model") as status:
            steps = measure_steps(chosen, settings.models_dir, cores, settings.core_lock_dir, settings.data_dir)
            for count, step in enumerate(steps, 1):
                if isinstance(step, Profile):
                    path = to or Path(f"{step.engine.model}.steps.json")
                    path.write_bytes(msgspec.json.encode(step))
                    times = fit(step.points)
                else:
                    status.update(f"{count} kinds of steps; {step.decoding} decoding, {step.prefill} prompt tokens")
    except (ModelFolderError, NotEnoughCores, ProfileError, OSError) as error:
        raise fail(str(error)) from None
    one, eight, prompt = 1 / times.step(1, 64), 8 / times.step(8, 512), 256 / times.step(0, 0, 256, 32640)
    done = {"file": str(path), "tokens_per_s": {"1": one, "8": eight}, "prompt_tokens_per_s": prompt}
    sentence = f"{path}: {one:.1f} tokens/s for one stream, {eight:.1f} for eight, {prompt:.0f} prompt tokens/s"
    print_done({**done, "error": times.error}, f"{sentence}; median error of the fit {times.error:.1%}", as_json)


@app.command(epilog="Example: dray plan catalog --profile r1.json --cores 8")
def catalog(
    profile: Annotated[Path, typer.Option(help="Step times of any model, measured by `dray plan measure`.")],
    cores: Annotated[int, typer.Option(min=1, help="Cores of the replica.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Estimate memory and speed of every model of the catalog, from one measured profile, as a Markdown table."""
    from cluster.plan.catalog import as_markdown, estimates
    from cluster.plan.profile import ProfileError

    measured = _read_profile(profile)
    try:
        if as_json:
            print_json([asdict(row) for row in estimates(measured, cores)])
        else:
            out.print(as_markdown(measured, cores), markup=False, highlight=False, soft_wrap=True)
    except ProfileError as error:
        raise fail(str(error)) from None


def _demand(
    trace: Path | None,
    users: float,
    per_hour: float,
    peak: float,
    shape: str,
    repeated: float,
    prompt: str,
    output: str,
    prefix: int,
    seed: int,
) -> "Demand":
    from cluster.plan.load import SHAPES, LoadError, UserLoad
    from cluster.plan.search import TraceDemand, UserDemand
    from cluster.plan.trace import read_trace

    if (trace is None) == (not users):
        raise fail("give a load: --trace FILE, or --users N")
    try:
        if trace is not None:
            return TraceDemand(read_trace(trace))
        hours = SHAPES.get(shape) or tuple(float(part) for part in shape.split(","))
        if len(hours) != 24 or min(hours) < 0 or max(hours) <= 0:
            raise LoadError(f"--shape must be office, flat or 24 numbers, got {shape!r}")
        lengths = parse_lengths(prompt), parse_lengths(output)
    except (LoadError, ValueError, OSError) as error:
        raise fail(str(error)) from None
    return UserDemand(UserLoad(users, per_hour, *lengths, repeated, peak, hours, prefix), seed)
