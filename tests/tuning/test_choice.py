"""Choosing from given measurements."""

import pytest

from cluster.tuning.choice import (
    DEFAULT,
    AnswerCheck,
    LoadTimes,
    Trial,
    Variant,
    candidates,
    choose,
    choose_step_tokens,
    forgone,
    is_confirmed,
)
from cluster.tuning.measure import Baseline, Chosen
from cluster.tuning.report import Results

F32 = Variant("f32", 128)
SMALL = Variant("auto", 32)


def trial(variant: Variant, *speedups: float) -> Trial:
    loads = zip((1, 8, 32, 0), speedups, strict=True)
    return Trial(
        variant, tuple(LoadTimes(streams, streams or 512, 1.0, 1 / speedup, speedup) for streams, speedup in loads)
    )


def even(variant: Variant, speedup: float) -> Trial:
    return trial(variant, *[speedup] * 4)


def test_the_score_weighs_the_loads_alike() -> None:
    assert trial(F32, 2, 0.5, 1, 1).score == pytest.approx(1)
    # As measured on a processor with AMX.
    assert trial(F32, 1.9, 2.1, 1.35, 0.8).score == pytest.approx(1.44, abs=0.01)


def test_what_is_less_precise_is_chosen_only_if_that_is_allowed() -> None:
    trials = [even(SMALL, 1.02), trial(F32, 1.9, 2.1, 1.35, 0.8)]
    assert choose(trials, allow_lower_precision=False) == DEFAULT
    assert choose(trials, allow_lower_precision=True) == F32
    assert forgone(trials, DEFAULT) == (F32, trials[1].score)
    assert forgone(trials, F32) is None


@pytest.mark.parametrize(("speedup", "chosen"), [(1.04, DEFAULT), (1.06, SMALL)])
def test_a_variant_must_win_five_percent(speedup: float, chosen: Variant) -> None:
    trials = [even(SMALL, speedup), even(Variant("auto", 64), 1.01)]
    assert choose(trials, allow_lower_precision=False) == chosen
    assert forgone([*trials, even(F32, (chosen == SMALL and 1.10) or 1.04)], chosen) is None


def test_a_variant_is_chosen_only_if_a_second_trial_confirms_it() -> None:
    once = [even(SMALL, 1.3), even(Variant("auto", 64), 1.1)]
    assert choose(once, allow_lower_precision=False) == SMALL and not is_confirmed(once, SMALL)
    lucky = [*once, even(SMALL, 1.0)]
    assert choose(lucky, allow_lower_precision=False) == Variant("auto", 64)
    assert is_confirmed([*once, even(SMALL, 1.2)], SMALL) and is_confirmed(once, DEFAULT)


def test_nothing_measured_is_the_default() -> None:
    assert choose([], allow_lower_precision=True) == DEFAULT


def test_f32_is_a_variant_only_where_openvino_chooses_bf16() -> None:
    assert {variant.precision for variant in candidates("f32")} == {"auto"}
    on_amx = list(candidates("bf16"))
    assert F32 in on_amx and DEFAULT not in on_amx and len(on_amx) == 5
    assert all(variant.group_size for variant in on_amx)


def test_the_smallest_step_within_five_percent_of_the_best_is_chosen() -> None:
    assert choose_step_tokens({128: 80, 256: 96, 512: 100, 1024: 99}) == 256
    assert choose_step_tokens({128: 94, 256: 94, 512: 94, 1024: 100}) == 1024


@pytest.mark.parametrize(("right", "passed"), [(100, True), (98, True), (97, False)])
def test_a_variant_that_solves_fewer_problems_fails_the_check(right: int, passed: bool) -> None:
    assert AnswerCheck(F32, 100, 100, right).passed == passed


def test_the_report_says_what_lower_precision_would_win() -> None:
    results = Results("r1")
    for event in (Baseline("bf16", 1), even(F32, 1.44), Chosen(DEFAULT, 256)):
        results.add(event)
    text = "\n".join(results.sentences())
    assert "1.44 times" in text and "dray tune r1 --allow-lower-precision" in text
    assert results.as_dict()["faster_if_less_precise"] == 1.44
    results.add(AnswerCheck(F32, 100, 100, 50))
    assert "too few" in "\n".join(results.sentences())
    chosen = Results("r1", Baseline("bf16", 1), [even(F32, 1.44)], chosen=Chosen(F32, 256))
    assert "were not checked" in "\n".join(chosen.sentences())
