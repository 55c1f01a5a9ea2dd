"""Predicting the times of all steps from measured ones."""

from pathlib import Path

import msgspec
import pytest

from cluster.plan.profile import ProfileError, fit, read_profile
from tests.plan.profiles import profile, seconds


@pytest.mark.parametrize(
    "step", [(3, 700, 0, 0), (12, 4000, 0, 0), (5, 900, 100, 4950), (0, 0, 300, 44850 + 300 * 512)]
)
def test_the_fit_predicts_steps_that_were_not_measured(step: tuple[int, int, int, int]) -> None:
    times = fit(profile().points)
    assert times.step(*step) == pytest.approx(seconds(*step), rel=0.03)
    assert times.error < 0.01


def test_one_slow_measurement_does_not_make_more_work_faster() -> None:
    points = profile().points
    slow = msgspec.structs.replace(points[3], seconds=3 * points[3].seconds)
    times = fit([*points[:3], slow, *points[4:]])
    steps = [times.step(0, 0, rows) for rows in range(1, 512)]
    assert steps == sorted(steps)


def test_many_steps_take_as_long_as_one_by_one() -> None:
    times = fit(profile().points)
    one_by_one = sum(times.step(4, 400 + 4 * number) for number in range(50))
    assert times.decode(4, 400, 50) == pytest.approx(one_by_one)


def test_a_file_that_is_no_profile_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_bytes(msgspec.json.encode(profile()))
    assert read_profile(file) == profile()
    for wrong in (b"{}", b"no", msgspec.json.encode(msgspec.structs.replace(profile(), points=[]))):
        file.write_bytes(wrong)
        with pytest.raises(ProfileError, match=r"p\.json is no profile"):
            read_profile(file)
