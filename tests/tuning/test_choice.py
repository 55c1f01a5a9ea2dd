"""Choosing from given measurements."""

import pytest

from cluster.models.folder import ServedModel
from cluster.tuning.choice import (
    AnswerCheck,
    Dropped,
    LoadTimes,
    Timed,
    Trial,
    choose,
    choose_step_tokens,
    is_confirmed,
    quick_trials,
    scores_of,
    worst_scores,
)
from cluster.tuning.measure import Chosen
from cluster.tuning.report import Results
from cluster.tuning.variants import FUSED, GROUPS_64, GROUPS_128, MIXED_64, WEIGHT_ONLY, Variant

BALANCED = (GROUPS_64, FUSED, WEIGHT_ONLY)


def trial(variant: Variant, *speedups: float) -> Trial:
    loads = zip((1, 8, 32, 0), speedups, strict=True)
    return Trial(
        variant, tuple(LoadTimes(streams, streams or 512, 1.0, 1 / speedup, speedup) for streams, speedup in loads)
    )


def even(variant: Variant, speedup: float) -> Trial:
    return trial(variant, *[speedup] * 4)


def test_the_score_weighs_the_loads_alike() -> None:
    assert trial(GROUPS_128, 2, 0.5, 1, 1).score == pytest.approx(1)
    # As measured on a processor with AMX.
    assert trial(GROUPS_128, 1.9, 2.1, 1.35, 0.8).score == pytest.approx(1.44, abs=0.01)
    alone = [Timed(GROUPS_64, (1, 1, 1, 1), ""), Timed(FUSED, (1, 0.5, 0.5, 0.25), "")]
    assert scores_of(alone, [Dropped(WEIGHT_ONLY, "died")], BALANCED) == pytest.approx(
        {"groups-64": 1, "fused-mlp": 2, "weight-only": 0}
    )


def test_two_graphs_take_the_better_time_of_each_load() -> None:
    alone = [Timed(GROUPS_64, (0.5, 0.5, 1, 1), ""), Timed(FUSED, (1, 1, 0.5, 0.5), "")]
    scores = scores_of(alone, [], (*BALANCED, MIXED_64))
    assert scores == pytest.approx({"groups-64": 1, "fused-mlp": 1, "groups-64+fused-mlp": 2**0.5})
    assert choose((*BALANCED, MIXED_64), scores) == MIXED_64
    assert "groups-64+fused-mlp" not in scores_of(alone[:1], [Dropped(FUSED, "died")], (*BALANCED, MIXED_64))


def test_a_quick_round_compares_each_with_the_most_exact_one() -> None:
    loads = ((1, 1), (8, 8), (32, 32), (0, 512))
    times = {WEIGHT_ONLY: (1.0, 1.0, 1.0, 1.0), GROUPS_64: (0.5, 0.5, 1.0, 1.0), FUSED: (1.0, 1.0, 0.5, 0.5)}
    timed = [Timed(variant, seconds, "", loads) for variant, seconds in times.items()]
    trials = quick_trials(timed, [GROUPS_64, FUSED, MIXED_64])
    assert {trial.variant: round(trial.score, 2) for trial in trials} == {GROUPS_64: 1.41, FUSED: 1.41, MIXED_64: 2.0}
    assert [str(load) for load in trials[0].loads] == ["1 stream", "8 streams", "32 streams", "prompt of 512"]
    assert quick_trials(timed[:2], [GROUPS_64, MIXED_64]) == trials[:1], "one of its graphs does not work"


def test_two_graphs_must_win_five_percent_over_the_best_of_one() -> None:
    options = (*BALANCED, MIXED_64)
    for gain, chosen in ((1.04, FUSED), (1.06, MIXED_64)):
        assert choose(options, {"groups-64": 1.3, "fused-mlp": 1.6, MIXED_64.name: 1.6 * gain}) == chosen


@pytest.mark.parametrize(("score", "chosen"), [(1.04, WEIGHT_ONLY), (1.06, GROUPS_64)])
def test_a_variant_must_win_five_percent_over_the_most_exact_one(score: float, chosen: Variant) -> None:
    assert choose(BALANCED, {"groups-64": score, "fused-mlp": 1.01, "weight-only": 1.0}) == chosen


def test_the_fastest_of_the_allowed_ones_is_chosen() -> None:
    scores = {"groups-64": 1.3, "fused-mlp": 1.6, "weight-only": 1.0, "groups-128": 1.9}
    assert choose(BALANCED, scores) == FUSED
    assert choose((GROUPS_128, FUSED, WEIGHT_ONLY), scores) == GROUPS_128
    assert choose((WEIGHT_ONLY,), scores) == WEIGHT_ONLY


def test_what_kills_the_engine_is_never_chosen() -> None:
    assert choose(BALANCED, {"groups-64": 1.0, "fused-mlp": 0.0}) == GROUPS_64
    assert choose(BALANCED, {"groups-64": 0.0}) == FUSED, "that one is not measured yet"
    assert choose(BALANCED, {"groups-64": 0.0, "fused-mlp": 0.0}) == WEIGHT_ONLY
    assert choose(BALANCED, dict.fromkeys(("groups-64", "fused-mlp", "weight-only"), 0.0)) == WEIGHT_ONLY


def test_a_variant_is_chosen_only_if_a_second_trial_confirms_it() -> None:
    once = [even(FUSED, 1.3), even(GROUPS_64, 1.1)]
    assert choose(BALANCED, worst_scores(once)) == FUSED and not is_confirmed(once, FUSED)
    assert choose(BALANCED, worst_scores([*once, even(FUSED, 1.0)])) == GROUPS_64
    assert is_confirmed([*once, even(FUSED, 1.2)], FUSED) and is_confirmed(once, WEIGHT_ONLY)


def test_nothing_measured_is_what_every_processor_can_do() -> None:
    assert choose(BALANCED, {}) == GROUPS_64


def test_the_smallest_step_within_five_percent_of_the_best_is_chosen() -> None:
    assert choose_step_tokens({128: 80, 256: 96, 512: 100, 1024: 99}) == 256
    assert choose_step_tokens({128: 94, 256: 94, 512: 94, 1024: 100}) == 1024


@pytest.mark.parametrize(("right", "passed"), [(100, True), (98, True), (97, False)])
def test_a_variant_that_solves_fewer_problems_fails_the_check(right: int, passed: bool) -> None:
    assert AnswerCheck(GROUPS_128, 100, 100, right).passed == passed


def test_the_report_says_what_a_lower_precision_would_win(bundled: ServedModel) -> None:
    results = Results(bundled)
    scores = {"weight-only": 1.0, "groups-64": 1.2, "groups-128": 1.44, "fused-mlp": 0.0}
    events = (
        even(GROUPS_64, 1.2),
        even(GROUPS_128, 1.44),
        Dropped(FUSED, "killed by SIGFPE"),
        Chosen(GROUPS_64, scores, 256),
    )
    for event in events:
        results.add(event)
    text = "\n".join(results.sentences())
    assert "Fused MLPs in INT8 does not work here: killed by SIGFPE" in text
    assert "Chosen for precision balanced: INT8 in groups of 64, 1.20 times as fast" in text
    assert "INT8 in groups of 128 would be 1.44 times as fast, but loses more than precision balanced allows" in text
    assert results.as_dict()["chosen"] == {"variant": "groups-64", "max_num_batched_tokens": 256}
    results.add(AnswerCheck(GROUPS_64, 100, 100, 50))
    assert "too few" in "\n".join(results.sentences())
    results.add(even(GROUPS_64, 1.5))  # of several trials, the last one is in the table
    text = "\n".join(results.sentences())
    assert "INT8 in groups of 64, 1.50 times as fast" in text and "would be" not in text
