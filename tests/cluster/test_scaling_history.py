"""What is noted of the autoscaling policy's decisions, and how it is shown."""

import dataclasses

from cluster.records.activity import ModelState, ReplicaState, RouterActivity, ScalingChange
from cluster.reports.models import percentiles, shown_models
from cluster.scaling_history import ScalingHistory, read_changes
from cluster.scaling_metrics import Decision

IDLE = Decision("m", 0, 0.0, 20.0, replicas=1, desired=1, min_replicas=1, max_replicas=4, office_hours=0, reason="min")
BUSY = dataclasses.replace(IDLE, waiting_tokens=9000, predicted_wait_s=45.0, desired=3, reason="load")


def test_a_change_is_noted_once_with_the_decision_that_led_to_it() -> None:
    history = ScalingHistory()
    decisions = [
        IDLE,
        BUSY,
        dataclasses.replace(BUSY, replicas=3),
        dataclasses.replace(IDLE, replicas=3),  # the delay before fewer
        dataclasses.replace(IDLE, replicas=3),
        IDLE,
        dataclasses.replace(IDLE, model="another", replicas=7),
        IDLE,
    ]
    changes = [change for at, each in enumerate(decisions) if (change := history.change(each, at)) is not None]
    assert [(change.time, change.before, change.after, change.reason) for change in changes] == [
        (2, 1, 3, "load"),
        (5, 3, 1, "min"),
    ]
    assert changes[0] == ScalingChange(2, "m", 1, 3, "load", 9000, 45.0, 20.0, 1, 4)


def test_outside_of_ray_there_are_no_changes() -> None:
    ScalingHistory().note(BUSY)
    assert read_changes(["m"]) == []


def test_models_are_shown_with_what_all_routers_know() -> None:
    change = ScalingChange(5.0, "m", 1, 3, "load", 9000, 45.0, 20.0, 1, 4)
    replicas = [ReplicaState("r1", "0,2", 3, 41.0, 0.5, 0)]
    now = 1000.0
    reports = [
        RouterActivity("old", now - 60, [], [], [ModelState("m", "generate", 4096, 50, [])], {"m": [(9.0, 0.9)]}),
        RouterActivity("a", now - 1, [], [], [ModelState("m", "generate", 4096, 2, [])], {"m": [(0.1, 0.01)]}),
        RouterActivity(
            "b",
            now,
            [],
            [],
            [ModelState("m", "generate", 4096, 3, replicas), ModelState("e", "embed", 512, 0, [])],
            {"m": [(0.2, None)] * 8},
            [change, ScalingChange(6.0, "m", 3, 1, "min", 0, 0.0, 20.0, 1, 4)],
        ),
    ]
    model, encoder = shown_models(reports, now)
    assert model.waiting == 5, "not what a router said that is silent since"
    assert [(replica.replica, replica.cpus, replica.tokens_per_s) for replica in model.replicas] == [
        ("r1", "0,2", 41.0)
    ]
    assert model.first_token_s == percentiles([0.1, *[0.2] * 8, 9.0])
    assert model.per_token_s is not None and (model.per_token_s.p50, model.per_token_s.samples) == (0.01, 2)
    assert [change.why.partition(";")[0] for change in model.changes] == [
        "From 3 to 1: the minimum in the settings",
        "From 1 to 3: the waiting tokens need them",
    ]
    assert (encoder.first_token_s, encoder.replicas, encoder.changes) == (None, [], [])
    assert shown_models([], now) == []


def test_percentiles_are_samples() -> None:
    measured = percentiles(range(1, 201))
    assert measured is not None
    assert (measured.p50, measured.p90, measured.p99, measured.samples) == (100, 180, 198, 200)
    assert percentiles([]) is None


def test_models_have_the_replicas_of_all_clusters_that_report() -> None:
    now = 1000.0

    def report(cluster: str, replica: str, time: float, *, also: str = "") -> RouterActivity:
        replicas = [ReplicaState(replica, "0", 0, 40.0, 0.0, 0)]
        models = [ModelState(name, "generate", 4096, 1, replicas) for name in ("m", also) if name]
        changes = [ScalingChange(time, "m", 0, 1, "min", 0, 0.0, 20.0, 1, 4)]
        return RouterActivity(f"{cluster}{time}", time, [], [], models, {}, changes, cluster)

    reports = [
        report("a", "older of a", now - 5),
        report("a", "a1", now - 2),
        report("b", "b1", now, also="only b's"),
        report("lost", "c1", now - 60),
    ]
    shown = shown_models(reports, now)
    assert {model.model: [replica.replica for replica in model.replicas] for model in shown} == {
        "m": ["b1", "a1"],
        "only b's": ["b1"],
    }
    assert shown[0].waiting == 3
    assert [change.time for change in shown[0].changes] == [now, now - 2]
    [[alone]] = [model.replicas for model in shown_models(reports[-1:], now)]
    assert alone.replica == "c1", "an old report is better than none"
