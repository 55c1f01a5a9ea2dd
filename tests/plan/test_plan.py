"""`dray plan`: loads, the search, the nodes needed, and the command."""

import json
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from typer.testing import CliRunner

from cluster.bench.lengths import Lengths
from cluster.cli import app
from cluster.plan.load import DAY_S, HOUR_S, SHAPES, LoadError, TraceRequest, UserLoad
from cluster.plan.nodes import Node, capacity_for
from cluster.plan.profile import fit
from cluster.plan.search import SAMPLE, Planner, Target, TraceDemand, Trial, UserDemand, confirmed, day
from cluster.plan.service import Measurements, ServiceModel
from cluster.plan.trace import Trace, read_trace
from tests.plan.profiles import ENGINE, profile

TIMES = fit(profile().points)
TERMS = ServiceModel(policy="least-waiting")


def user_load(users: float, repeated: float = 0.0) -> UserLoad:
    return UserLoad(users, 4, Lengths(50, 350), Lengths(50, 150), repeated, 2.5, SHAPES["office"])


def planner(users: float, repeated: float = 0.0, sample: int = SAMPLE) -> Planner:
    """A planner with few requests, because these tests compare plans and need no exact figures."""
    demand = UserDemand(user_load(users, repeated), 0)
    return Planner(demand, ENGINE, TIMES, TERMS, sample=sample, requests=1000)


def test_a_day_of_users_has_the_requested_load_peak_and_repetition() -> None:
    load = user_load(200, repeated=0.3)
    requests = list(load.requests(0, DAY_S, 1.0, 0))
    assert len(requests) == pytest.approx(200 * 4 * 24, rel=0.05)
    hours = [sum(hour * HOUR_S <= request.at < (hour + 1) * HOUR_S for request in requests) for hour in range(24)]
    assert max(hours) == pytest.approx(2.5 * 200 * 4, rel=0.1) and min(hours) < 0.1 * max(hours)
    new = len({request.question for request in requests})
    assert new == pytest.approx(0.7 * len(requests), rel=0.03)
    tenth = list(load.requests(0, DAY_S, 0.1, 0))
    assert len(tenth) == pytest.approx(len(requests) / 10, rel=0.1)


def test_a_thinned_trace_keeps_conversations_and_repetition_whole() -> None:
    trace = [TraceRequest(number, 10, 5, f"q{number % 300}") for number in range(3000)]
    trace += [TraceRequest(number, 10, 5, session=f"s{number % 200}") for number in range(1000)]
    sample = list(Trace(trace).requests(0, DAY_S, 0.3))
    assert len(sample) == pytest.approx(1200, rel=0.25)
    counts = Counter(f"{request.question}{request.session}" for request in sample)
    assert set(counts.values()) == {10, 5}


def test_the_fewest_replicas_meet_the_target_and_one_less_does_not() -> None:
    target, plan = Target(ttft_s=3.0, tpot_s=0.1), planner(1500)
    fewest = plan.fewest_replicas(target, lambda trial: None)
    assert fewest is not None and 2 < fewest < 16
    assert target.is_met(plan.peak(fewest).measured) and not target.is_met(plan.peak(fewest - 1).measured)


def test_repeated_questions_need_fewer_replicas() -> None:
    target = Target(ttft_s=3.0, tpot_s=0.1)
    without, often = (planner(1500, share).fewest_replicas(target, lambda trial: None) for share in (0.0, 0.6))
    assert without is not None and often is not None and often <= 0.6 * without


def test_a_hundred_times_the_users_need_about_a_hundred_times_the_replicas_and_no_more_simulation() -> None:
    target = Target(ttft_s=3.0, tpot_s=0.1)
    small, large = planner(2000), planner(200_000)
    replicas = small.fewest_replicas(target, lambda trial: None)
    hundredfold = large.fewest_replicas(target, lambda trial: None)
    assert replicas is not None and hundredfold is not None
    assert hundredfold == pytest.approx(100 * replicas, rel=0.2)
    # No trial has simulated more than the sample.
    assert all(round(trial.replicas * trial.share) <= SAMPLE for trial in large.tried.values())
    assert max(trial.measured.requests for trial in large.tried.values()) < 2500


def test_a_sample_of_the_replicas_shows_the_times_of_all() -> None:
    sampled, whole = planner(20_000).peak(64), planner(20_000, sample=64).peak(64)
    assert (sampled.share, whole.share) == (0.25, 1.0)
    for estimate, true in ((sampled.measured.ttft, whole.measured.ttft), (sampled.measured.tpot, whole.measured.tpot)):
        assert estimate.at(0.5) == pytest.approx(true.at(0.5), rel=0.1)
        assert estimate.at(0.95) == pytest.approx(true.at(0.95), rel=0.15)


def test_what_the_sample_found_is_confirmed_with_a_larger_part_simulated_whole() -> None:
    plan, tried = planner(20_000), list[Trial]()
    trial, error = confirmed(plan, Target(10, 10), 64, tried.append)
    assert [one.replicas for one in tried] == [64] and trial.share == 1.0
    assert error is not None and error.replicas == 64
    assert abs(error.ttft) < 0.3 and abs(error.tpot) < 0.2
    assert confirmed(planner(2000), Target(10, 10), 8, tried.append)[1] is None, "all 8 were simulated"


def test_where_the_larger_part_misses_the_target_more_replicas_are_tried() -> None:
    plan, tried = planner(3000, sample=2), list[Trial]()
    trial, _ = confirmed(plan, Target(10, 1e-6), 8, tried.append)
    assert [one.replicas for one in tried] == [8, 9, 10, 11, 12] and trial.replicas == 12


def test_a_day_of_ten_million_requests_is_planned_with_a_few_thousand() -> None:
    plan = planner(10_000_000 / 96)
    assert plan.demand.count == pytest.approx(1e7)
    slices, share, _ = day(plan, 4000)
    simulated = sum(stretch.measured.requests for stretch in slices)
    assert 1000 < simulated < 4000 and simulated / share == pytest.approx(1e7, rel=0.1)


def test_a_trace_takes_few_bytes_for_a_request() -> None:
    names = ("", 7, "7", "refund", "refund ")
    requests = [TraceRequest(10_000 - n, 1 + n, 2, names[n % 5], f"s{n % 9}", "", n % 3) for n in range(10_000)]
    trace = Trace(requests)
    assert trace.bytes_per_request <= 64
    again = list(trace.requests(0, 10_000))
    assert [(one.at, one.prompt, one.prefix_tokens) for one in again] == [
        (one.at, one.prompt, one.prefix_tokens) for one in reversed(requests)
    ]
    keys = {name: {one.question for one in again if names[(one.prompt - 1) % 5] == name} for name in names}
    assert keys[""] == {""} and keys[7] == keys["7"] != keys["refund"] != keys["refund "]
    assert all(len(found) == 1 for found in keys.values())


def test_a_plan_is_the_same_each_time() -> None:
    first, again = (planner(400).peak(30).measured for _ in range(2))
    assert (first.requests, first.ttft.at(0.95), first.tpot.at(0.95)) == (
        again.requests,
        again.ttft.at(0.95),
        again.tpot.at(0.95),
    )
    assert first.requests > 1000


def test_no_number_of_replicas_makes_a_prompt_faster() -> None:
    assert planner(50).fewest_replicas(Target(ttft_s=0.01, tpot_s=0.1), lambda trial: None) is None


def test_a_target_limits_the_share_of_refused_requests() -> None:
    measured = Measurements(requests=1000, refused=2)
    assert not Target(1, 1).is_met(measured)
    measured.refused = 1
    assert Target(1, 1).is_met(measured)


def test_the_peak_of_a_trace_is_its_busiest_half_hour() -> None:
    quiet = [TraceRequest(60.0 * number, 100, 10) for number in range(600)]
    busy = [TraceRequest(20_000 + number, 100, 10) for number in range(1500)]
    begin, end, rate = TraceDemand(Trace([*busy, *quiet])).peak
    assert begin <= 20_010 and end >= 21_490 and rate == pytest.approx(1530 / 1800, rel=0.05)


def test_nodes_are_filled_by_cores_and_by_memory() -> None:
    # 1.8 GB of weights: each replica needs 1.06 times that, 512 MiB of KV cache and 150 MiB; a node needs the mapped
    # file and 1,200 MiB more.
    need = capacity_for(ENGINE, 20, Node(cores=8, memory_mb=64_000), 100, 2500)
    assert (need.on_a_node, need.nodes, need.cores, need.routers) == (7, 3, 23, 1)
    small = capacity_for(ENGINE, 20, Node(cores=8, memory_mb=10_000), 6000, 2500)
    assert (small.on_a_node, small.nodes, small.routers) == (2, 10, 3)
    assert small.node_memory_mb <= 10_000
    with pytest.raises(ValueError, match="holds no replica"):
        capacity_for(ENGINE, 1, Node(cores=1, memory_mb=64_000), 1, 2500)


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["plan", *arguments])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "profile.json"
    path.write_bytes(msgspec.json.encode(profile()))
    return str(path)


def test_the_command_plans_for_users_and_draws_the_day(file: str, tmp_path: Path) -> None:
    chart, out = tmp_path / "day.svg", tmp_path / "plan.json"
    code, text, err = run(
        *("--profile", file, "--users", "300", "--per-hour", "3", "--prompt", "100-300", "--output", "300-600"),
        *("--repeated", "0.2", "--tpot", "0.1", "--min-replicas", "1", "--chart", str(chart), "--json", str(out)),
    )
    assert code == 0, err
    plan: dict[str, Any] = json.loads(out.read_text())
    assert (
        plan["needed"]["replicas"] > 1 and plan["peak"]["tpot_s"]["p95"] <= 0.1 and plan["peak"]["ttft_s"]["p95"] <= 3
    )
    assert f"{plan['needed']['replicas']}" in text and "no machine" in text
    slices = plan["day"]["slices"]
    assert len(slices) == 48 and slices[0]["replicas"] < max(stretch["replicas"] for stretch in slices)
    texts = [element.text for element in ElementTree.parse(chart).iter("{http://www.w3.org/2000/svg}text")]
    assert {"Load", "Replicas", "Time to first token", "Time per output token"} <= set(texts)


def test_the_command_replays_a_trace(file: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    lines = [{"at": 0.5 * number, "prompt": 100, "output": 50, "question": number % 40} for number in range(400)]
    trace.write_text("\n".join(map(json.dumps, [*lines, {"at": 1, "prompt": 0, "output": 0, "error": "503"}])))
    code, out, err = run("--profile", file, "--trace", str(trace), "--json", "-")
    assert code == 0, err
    plan = json.loads(out)
    assert plan["peak"]["requests"] == 400 and plan["peak"]["hits"] > 300
    trace.write_text('{"at": 1, "prompt": 5, "output": 5}\n{"at": 2}\n')
    with pytest.raises(LoadError, match="line 2"):
        read_trace(trace)


def test_an_error_is_one_line(file: str, tmp_path: Path) -> None:
    for arguments, words in (
        (("--users", "5"), "dray plan measure"),
        (("--profile", str(tmp_path / "none.json"), "--users", "5"), "none.json"),
        (("--profile", file), "--trace FILE, or --users N"),
        (("--profile", file, "--users", "5", "--shape", "1,2"), "24 numbers"),
        (("--profile", file, "--users", "5", "--tpot", "0.001"), "no number of replicas"),
        (("--profile", file, "--users", "5", "--ttft", "0.001"), "no number of replicas"),
        (("--profile", file, "--users", "5", "--node-cores", "1"), "holds no replica"),
        (("--profile", file, "--users", "5", "--prompt", "x"), "no length"),
        (("measure", str(tmp_path)), "lacks"),
    ):
        code, _, err = run(*arguments)
        assert code == 1 and words in err and len(err.strip().splitlines()) == 1, (arguments, err)


@pytest.mark.slow
def test_a_real_engine_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "demo.json"
    code, text, err = run("measure", "bundled", "--out", str(out))
    assert code == 0, err
    measured = msgspec.json.decode(out.read_bytes())
    assert measured["engine"]["model"] == "dray-demo" and len(measured["points"]) > 30 and "tokens/s" in text
    code, text, err = run("--profile", str(out), "--users", "100")
    assert code == 0, err
