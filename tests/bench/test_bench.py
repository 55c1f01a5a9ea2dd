"""The `dray bench` command, against a server that records the time of each token, and against Dray."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks.emitter import account, emitting
from cluster.cli import app
from tests.conftest import MODEL, Dray, wait_for

FIRST_S, GAP_S = 0.04, 0.01


@pytest.fixture(scope="module")
def emitter() -> Iterator[str]:
    with emitting(FIRST_S, GAP_S) as url:
        yield url


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner(env={"OPENAI_API_KEY": "", "COLUMNS": "300"}).invoke(app, ["bench", *arguments])
    return done.exit_code, done.stdout, done.stderr


def measure(*arguments: str) -> dict[str, Any]:
    """Runs `dray bench` with these arguments and returns its report."""
    code, out, err = run(*arguments, "--warmup", "0", "--json", "-")
    assert code == 0, err
    report: dict[str, Any] = json.loads(out)
    return report


def test_the_report_agrees_with_what_the_server_recorded(emitter: str) -> None:
    before = account(emitter)
    report = measure("--url", emitter, "--concurrency", "4", "--requests", "12", "--prompt", "100", "--output", "20")
    after = account(emitter)
    (load,) = report["loads"]
    (stats,) = load["rounds"]
    assert stats["requests"] == 12 and stats["failed"] == 0 and stats["output_tokens"] == 12 * 20
    ttft = median(after["ttft"][len(before["ttft"]) + 2 :])
    assert 0 <= stats["ttft_s"]["p50"] - ttft < 0.02
    assert stats["tpot_s"]["p50"] == pytest.approx(median(after["tpot"][len(before["tpot"]) + 2 :]), rel=0.1)
    assert stats["e2e_s"]["p50"] == pytest.approx(FIRST_S + 19 * GAP_S, rel=0.25)
    # Three rounds of four parallel streams, each as long as a single stream.
    assert stats["tokens_per_s"] == pytest.approx(240 / (3 * (FIRST_S + 19 * GAP_S)), rel=0.25)
    # The emitter counts two tokens per word and ten for the template.
    assert stats["prompt_tokens"] == pytest.approx(12 * 100, rel=0.02)


def test_the_seed_fixes_arrivals_and_lengths_of_a_rate(emitter: str, tmp_path: Path) -> None:
    def requests(seed: str) -> list[tuple[float, int]]:
        log = tmp_path / "log.jsonl"
        measure(
            *("--url", emitter, "--rate", "40", "--seconds", "1", "--output", "2-30"), "--seed", seed, "--log", str(log)
        )
        lines = sorted((json.loads(line) for line in log.read_text().splitlines()), key=lambda line: line["at"])
        assert not any(line["error"] for line in lines)
        return [(line["at"] - lines[0]["at"], line["output"]) for line in lines]

    first, again, other = requests("1"), requests("1"), requests("2")
    assert len(first) == pytest.approx(40, abs=20)
    assert [at for at, _ in first[:15]] == pytest.approx([at for at, _ in again[:15]], abs=0.1)
    assert [output for _, output in first[:15]] == [output for _, output in again[:15]]
    assert [output for _, output in first[:15]] != [output for _, output in other[:15]]


def test_several_servers_are_compared_as_ratios_in_alternating_rounds(emitter: str, tmp_path: Path) -> None:
    chart = tmp_path / "chart.svg"
    with emitting(FIRST_S, 2 * GAP_S) as slower:
        report = measure(
            *("--url", emitter, "--url", slower, "--rounds", "2", "--concurrency", "1,4", "--requests", "4"),
            *("--output", "8", "--chart", str(chart)),
        )
    ratios = [load["ratio"] for load in report["loads"] if load["server"] == 1]
    assert len(ratios) == 2
    for ratio in ratios:
        assert ratio["TPOT p50"] == pytest.approx(2, rel=0.1)
        slower_s, faster_s = FIRST_S + 14 * GAP_S, FIRST_S + 7 * GAP_S
        assert ratio["tokens/s"] == pytest.approx(faster_s / slower_s, rel=0.15)
    assert all(len(load["rounds"]) == 2 for load in report["loads"])
    texts = [element.text for element in ElementTree.parse(chart).iter("{http://www.w3.org/2000/svg}text")]
    assert f"B: {slower}" in texts and texts.count("4 at a time") == 4


def test_without_streams_and_with_a_png_chart(emitter: str, tmp_path: Path) -> None:
    chart = tmp_path / "chart.png"
    report = measure(
        *(
            "--url",
            emitter,
            "--no-stream",
            "--requests",
            "2",
            "--concurrency",
            "1",
            "--output",
            "5",
            "--chart",
            str(chart),
        )
    )
    (stats,) = report["loads"][0]["rounds"]
    assert stats["requests"] == 2 and stats["output_tokens"] == 10 and stats["ttft_s"]["p50"] == 0
    with Image.open(chart) as image:
        assert image.size == (760, 600)


def test_a_failed_measurement_is_one_line_of_error() -> None:
    with emitting(FIRST_S, GAP_S, key="secret") as locked:
        for arguments, message in (
            (("--url", "http://127.0.0.1:1/v1"), "does not answer"),
            (("--url", "nonsense"), "does not answer"),
            (("--url", locked), "401"),
            (("--url", locked, "--model", "m"), "401"),
            (("--url", locked.removesuffix("/v1") + "/account", "--key", "secret"), "lists no model"),
            (("--url", locked, "--rate", "1", "--concurrency", "1"), "exclude"),
            (("--url", locked, "--concurrency", "0"), "no list of loads"),
            (("--url", locked, "--prompt", "many"), "no length"),
            (("--url", locked, "--extra", "[]"), "must be a JSON object"),
            (("--tokens-per-s", "40"), "need --cost"),
            (("--cost", "--tokens-per-s", "40", "--assume", "gpu.colour=3"), "gpu.colour"),
        ):
            code, _, err = run(*arguments)
            assert code == 1 and message in err and len(err.strip().splitlines()) == 1, (arguments, err)
        report = measure("--url", locked, "--key", "secret", "--requests", "1", "--concurrency", "1", "--output", "3")
        assert report["loads"][0]["rounds"][0]["requests"] == 1


def test_ctrl_c_reports_the_results_so_far(emitter: str) -> None:
    def request_count() -> int:
        return len(account(emitter)["asked"])

    before, start = request_count(), time.perf_counter()
    options = ("--url", emitter, "--concurrency", "2", "--output", "5", "--warmup", "0", "--seconds", "600")
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", "bench", *options, "--json", "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Two requests calibrate; of the others, all but the two in flight have ended.
    wait_for(lambda: process.poll() is not None or request_count() >= before + 10, 60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    elapsed = time.perf_counter() - start
    assert process.returncode == 130 and "stopped" in err, err
    (load,) = json.loads(out)["loads"]
    (stats,) = load["rounds"]
    assert not stats["whole"] and stats["requests"] >= 4
    assert 0 < stats["seconds"] < elapsed and stats["tokens_per_s"] > 0


def test_cost_without_measuring() -> None:
    code, out, _ = run("--cost", "--tokens-per-s", "40", "--json", "-")
    assert code == 0 and json.loads(out)["gpu_wins_beyond"]["pcs"] == 19


def test_the_cost_uses_the_measured_speed_of_dray(dray: Dray) -> None:
    done = dray.run(
        *("bench", "--concurrency", "1,4", "--requests", "8", "--prompt", "80", "--output", "24", "--warmup", "0"),
        *("--cost", "--json", "-"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["servers"] == [{"url": dray.url, "model": MODEL}]
    for load in report["loads"]:
        (stats,) = load["rounds"]
        assert stats["requests"] == 8 and stats["failed"] == 0 and stats["output_tokens"] == 8 * 24
        assert stats["prompt_tokens"] == pytest.approx(8 * 80, rel=0.1)
        assert 0 < stats["ttft_s"]["p50"] < stats["e2e_s"]["p50"]
    best = max(load["median"]["tokens/s"] for load in report["loads"])
    speed = report["cost"]["assumptions"]["pc.tokens_per_s"]
    assert speed["value"] == pytest.approx(best) and "measured" in speed["source"]
