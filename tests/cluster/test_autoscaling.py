"""The autoscaling policy: enough replicas to meet the target wait, and no flapping under a square wave."""

import os
import subprocess
import sys
from datetime import datetime, time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.autoscaling import (
    PACE,
    QUEUED,
    REPORTED_AT,
    TOKENS,
    LoadSample,
    PredictedWait,
    desired_replicas,
    predicted_wait_s,
    sample_of,
)
from cluster.scaling_metrics import Decision, read_decisions
from cluster.settings import ModelSettings, OfficeHours


def test_enough_replicas_meet_the_target_wait() -> None:
    assert desired_replicas(LoadSample(0, 200, 1), 1, 20) == 0
    assert desired_replicas(LoadSample(3_900, 200, 1), 1, 20) == 1
    assert desired_replicas(LoadSample(4_100, 200, 1), 1, 20) == 2
    assert desired_replicas(LoadSample(40_000, 200, 2), 2, 20) == 10
    assert desired_replicas(LoadSample(40_000, 0, 0), 3, 20) == 3, "no pace is known yet"


def test_replicas_are_removed_only_if_the_rest_stay_well_within_the_target() -> None:
    assert desired_replicas(LoadSample(3_900, 200, 2), 2, 20) == 2
    assert desired_replicas(LoadSample(3_100, 200, 2), 2, 20) == 1


def test_a_routers_queue_counts_once_by_its_latest_report() -> None:
    metrics = {
        TOKENS: {"a": 100.0, "b": 50.0},
        PACE: {"a": 300.0, "b": 100.0},
        f"{QUEUED}x": {"a": 7.0, "b": 1000.0},
        f"{REPORTED_AT}x": {"a": 20.0, "b": 18.0},
        f"{QUEUED}y": {"b": 30.0},
        f"{REPORTED_AT}y": {"b": 19.0},
        f"{QUEUED}gone": {"b": 5000.0},
        f"{REPORTED_AT}gone": {"b": 1.0},
    }
    sample = sample_of(metrics)
    assert sample == LoadSample(187.0, 200.0, 2)
    assert predicted_wait_s(sample) == pytest.approx(187 / 400)
    assert predicted_wait_s(sample_of({})) == 0


def context(tokens: float, current: int, at: float, state: dict[str, Any] | None = None) -> Any:
    from ray.serve.config import AutoscalingConfig

    config = AutoscalingConfig(min_replicas=1, max_replicas=8, upscale_delay_s=0, downscale_delay_s=300)
    return SimpleNamespace(
        target_num_replicas=current,
        current_num_replicas=current,
        total_num_requests=0,
        raw_metrics={TOKENS: {"a": [SimpleNamespace(value=tokens)]}, PACE: {"a": [SimpleNamespace(value=200.0)]}},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        policy_state=state or {},
        config=config,
        current_time=at,
    )


def test_replicas_survive_a_square_wave_and_are_removed_after_a_lasting_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve import autoscaling_policy as serve_policy

    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(serve_policy, "time", SimpleNamespace(time=lambda: clock.now))
    # Wrapped in Serve's own delays, as in the controller.
    policy = serve_policy._apply_autoscaling_config(PredictedWait("m", 20))
    replicas, changes = 1, []
    state: dict[str, Any] = {}
    for second in range(2400):
        clock.now = float(second)
        loaded = second < 1200 and second % 120 < 60
        desired, state = policy(context(16_500 if loaded else 0, replicas, clock.now, state))
        if desired != replicas:
            changes.append((second, desired))
            replicas = desired
    assert changes[0] == (0, 5)
    assert len(changes) == 2, changes
    assert changes[1][1] == 1
    assert 1140 + 300 <= changes[1][0] <= 1140 + 310


def test_office_hours_may_span_midnight() -> None:
    week = OfficeHours(replicas=3)
    assert week.covers(datetime(2026, 11, 24, 9))
    assert not week.covers(datetime(2026, 11, 24, 18))
    assert not week.covers(datetime(2026, 11, 28, 9)), "a Saturday"
    night = OfficeHours(days=("fri",), start=time(22), end=time(6), replicas=2)
    assert night.covers(datetime(2026, 11, 27, 23))
    assert night.covers(datetime(2026, 11, 28, 5))
    assert not night.covers(datetime(2026, 11, 27, 5))


def test_office_hours_raise_the_minimum_without_load() -> None:
    hours = OfficeHours(days=("mon", "tue", "wed", "thu", "fri", "sat", "sun"), start=time(0), end=time(0), replicas=4)
    always = hours.model_copy(update={"end": time(23, 59, 59, 999999)}).model_dump(mode="json")
    assert PredictedWait("m", 20, [always])(context(0, 1, 0.0))[0] == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replicas": 3, "max_replicas": 2}, "less than replicas"),
        ({"max_replicas": 2, "sleep_after_s": 60}, "excludes max_replicas"),
        ({"office_hours": [{"replicas": 2}]}, "need max_replicas"),
    ],
)
def test_contradictory_bounds_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelSettings(**settings)


DECIDE = """
from types import SimpleNamespace as Of
from cluster.autoscaling import PACE, TOKENS, PredictedWait

days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
hours = {"days": days, "start": "00:00", "end": "23:59:59.999999", "replicas": 4}
cases = [("a", 0.0, 1, []), ("b", 9_000.0, 1, []), ("c", 9_000.0, 1, [hours]), ("d", 90_000.0, 8, [])]
for model, tokens, current, office_hours in cases:
    metrics = {TOKENS: {"a": [Of(value=tokens)]}, PACE: {"a": [Of(value=200.0)]}}
    bounds = {"capacity_adjusted_min_replicas": 1, "capacity_adjusted_max_replicas": 8}
    PredictedWait(model, 20, office_hours)(Of(target_num_replicas=current, raw_metrics=metrics, **bounds))
PredictedWait("e", 20)(Of(target_num_replicas=2, raw_metrics={}, **bounds))
PredictedWait("f", 20, [hours])(Of(target_num_replicas=2, raw_metrics={}, **bounds))
"""


def test_decisions_are_exported_with_their_reasons(tmp_path: Path) -> None:
    # In its own process, like Serve's controller: it writes its metrics into the folder.
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", DECIDE], env=environment, check=True, timeout=60)
    assert read_decisions(tmp_path) == [
        Decision("a", 0, 0, 20, replicas=1, desired=1, min_replicas=1, max_replicas=8, office_hours=0, reason="min"),
        Decision(
            "b", 9_000, 45, 20, replicas=1, desired=3, min_replicas=1, max_replicas=8, office_hours=0, reason="load"
        ),
        Decision(
            "c",
            9_000,
            45,
            20,
            replicas=1,
            desired=4,
            min_replicas=1,
            max_replicas=8,
            office_hours=4,
            reason="office_hours",
        ),
        Decision(
            "d", 90_000, 450, 20, replicas=8, desired=8, min_replicas=1, max_replicas=8, office_hours=0, reason="max"
        ),
        Decision(
            "e", 0, 0, 20, replicas=2, desired=2, min_replicas=1, max_replicas=8, office_hours=0, reason="unknown"
        ),
        Decision(
            "f", 0, 0, 20, replicas=2, desired=4, min_replicas=1, max_replicas=8, office_hours=4, reason="office_hours"
        ),
    ]
    assert read_decisions(tmp_path / "nowhere") == []
