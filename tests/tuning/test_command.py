"""`dray tune` on the bundled model, and what it refuses."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.configuration import SettingsError, load
from cluster.cores import lease_cores, usable_cores
from cluster.models.folder import ServedModel
from cluster.settings import ModelSettings
from cluster.tuning.kept import engine_choice
from cluster.tuning.tasks import PROBLEMS
from cluster.tuning.variants import WEIGHT_ONLY
from demo.measure import TUNE_PROBLEMS, problem_lines


def run(*arguments: str, folder: Path) -> tuple[int, str, str]:
    environment = {"DRAY_DATA_DIR": str(folder / "d"), "DRAY_LEASE_DIR": str(folder / "l"), "COLUMNS": "300"}
    result = CliRunner().invoke(app, ["tune", *arguments], env=environment)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.slow
def test_the_bundled_model_is_tuned_and_its_engines_use_it(bundled: ServedModel, tmp_path: Path) -> None:
    options = ("bundled", "--cores", "1", "--seconds", "10")
    code, text, err = run(*options, "--json", folder=tmp_path)
    assert code == 0, err
    for variant in ("INT8 weights only", "INT8 in groups of 32", "INT8 in groups of 128"):
        assert f": {variant}\n" in err, "each is announced"
        assert re.search(rf"^  {variant}(, tokens/s: 1 stream|: .* times as fast)", err, re.MULTILINE), "and measured"
    report = json.loads(text)
    kept = engine_choice(bundled, 1, tmp_path / "d")
    assert report["chosen"] == {
        "variant": kept.variant.name,
        "max_num_batched_tokens": kept.step_tokens,
    }
    assert kept.measured and report["precision"] == "balanced"
    assert [load["load"] for load in report["variants"][0]["loads"]] == [
        "1 stream",
        "8 streams",
        "32 streams",
        "prompt of 512",
    ]
    assert {each["variant"] for each in report["variants"]} == {"groups-32", "groups-128"} and not report["dropped"]
    if kept.variant != WEIGHT_ONLY:
        assert report["answers"]["passed"] and report["answers"]["exact_right"] > 95
    doctor = CliRunner().invoke(app, ["doctor", "--offline", "--json"], env={"DRAY_DATA_DIR": str(tmp_path / "d")})
    (tuning,) = [check for check in json.loads(doctor.stdout)["checks"] if check["check"] == "tuning"]
    assert f"was measured on this processor, and runs with {kept.variant}" in tuning["message"]


def test_what_cannot_be_tuned_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    assert "does not exist" in run(str(tmp_path / "none"), folder=tmp_path)[2]
    with lease_cores(usable_cores().count, tmp_path / "l", owner="another"):
        code, _, err = run("bundled", folder=tmp_path)
    assert code == 1 and "free" in err and "another" in err
    config = tmp_path / "dray.yaml"
    config.write_text("model: {kv_cache_mb: 100000000}")
    assert "of memory" in run("bundled", "--config", str(config), folder=tmp_path)[2]
    config.write_text("model: {task: embed}")
    assert "embedding" in run("bundled", "--config", str(config), folder=tmp_path)[2]
    assert not (tmp_path / "d").exists()


def test_the_problems_are_those_of_the_demo() -> None:
    assert PROBLEMS.read_text() == problem_lines(TUNE_PROBLEMS)


@pytest.mark.parametrize("name", ["max_num_batched_tokens"])
@pytest.mark.parametrize("value", ["all", -1, 1.5, True, "", 10**30])
def test_a_size_is_auto_or_a_whole_number(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=rf"model\.{name} .*must be auto, or a whole number of at least"):
        load({f"model.{name}": value})


def test_sizes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAY_MODEL__MAX_NUM_BATCHED_TOKENS", "256")
    monkeypatch.setenv("DRAY_MODEL__PRECISION", "fast")
    model = load().settings.model
    assert (model.max_num_batched_tokens, model.precision) == (256, "fast")
    assert (model.assumed_step_tokens, ModelSettings().assumed_step_tokens) == (256, 512)
