"""Settings: every source, its strictness, and the recorded source of each value."""

import os
import tempfile
from pathlib import Path

import pytest

from cluster.configuration import SettingsError, environment, flatten, load, setting_descriptions
from cluster.settings import CLIENT_SECRET_VARIABLE, PRIVACY_KEYS, Settings


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No dray.yaml and no DRAY_* variable from outside the test."""
    for name in [name for name in os.environ if name.startswith("DRAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_the_strongest_source_wins_and_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "dray.yaml").write_text("port: 8001\nmodel:\n  replicas: 3\n  kv_cache_mb: 100\ncache:\n  ttl_s: 5\n")
    monkeypatch.setenv("DRAY_PORT", "8002")
    monkeypatch.setenv("DRAY_MODEL__REPLICAS", "4")
    loaded = load({"port": 8003, "host": None})
    model = loaded.settings.model
    assert (loaded.settings.port, model.replicas, model.kv_cache_mb, loaded.settings.cache.ttl_s) == (8003, 4, 100, 5)
    origins = loaded.origins
    assert origins["port"] == "command line"
    assert origins["model.replicas"] == "environment"
    assert origins["model.kv_cache_mb"] == "dray.yaml"
    assert origins["host"] == "default"


def test_secrets_are_variables_and_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (CLIENT_SECRET_VARIABLE, PRIVACY_KEYS):
        monkeypatch.setenv(name, "hunter2")
    loaded = load()
    assert "hunter2" not in loaded.settings.model_dump_json() + str(environment(loaded.settings))
    monkeypatch.setenv("DRAY_PRIVACY_KEY", "hunter2")
    with pytest.raises(SettingsError, match="DRAY_PRIVACY_KEY"):
        load()


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("prot: 1", "prot"),
        ("model:\n  replica: 2", "model.replica"),
        ("port: many", "port"),
        ("server:\n  allowed_hosts: [https://dray.example.com]", "server.allowed_hosts"),
        ("server:\n  allowed_hosts: ['dray.example.com:8000']", "server.allowed_hosts"),
        ("server:\n  allowed_hosts: ['*']", "server.allowed_hosts"),
        ("port: 0", "port"),
        ("model:\n  replicas: -1", "model.replicas"),
        ("cache:\n  store: some", "cache.store"),
        ("- a\n- b", "mapping"),
        ("a: [", "mapping"),
    ],
)
def test_a_wrong_file_is_refused_with_the_settings_name(tmp_path: Path, yaml: str, message: str) -> None:
    (tmp_path / "dray.yaml").write_text(yaml)
    with pytest.raises(SettingsError, match=message):
        load()


def test_unknown_variables_and_missing_files_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        load(config=tmp_path / "nothing.yaml")
    monkeypatch.setenv("DRAY_MODEL__REPLICSA", "2")
    with pytest.raises(SettingsError, match="DRAY_MODEL__REPLICSA"):
        load()


def test_every_setting_is_described_and_reachable_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptions = setting_descriptions()
    assert set(descriptions) == set(flatten(Settings().model_dump(mode="json")))
    assert all(descriptions.values())
    for name, value in environment(Settings()).items():
        monkeypatch.setenv(name, value)
    assert load().settings == Settings()
    assert set(load().origins.values()) <= {"environment", "default"}


def test_settings_travel_as_json() -> None:
    settings = load({"model.replicas": 2, "state_dir": "/tmp/x"}).settings
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_several_models_inherit_unset_values_from_model(tmp_path: Path) -> None:
    (tmp_path / "dray.yaml").write_text(
        "model:\n  kv_cache_mb: 100\n  replicas: 2\nmodels:\n- name: a\n  aliases: [x, y]\n- name: b\n  replicas: 1\n"
    )
    settings = load().settings
    served = [(model.name, model.kv_cache_mb, model.replicas, model.aliases) for model in settings.served]
    assert served == [("a", 100, 2, ("x", "y")), ("b", 100, 1, ())]
    assert Settings.model_validate_json(settings.model_dump_json()) == settings
    assert load({"model.replicas": 3}).settings.served[0].replicas == 3
    assert Settings().served == (Settings().model,)


def test_models_travel_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "dray.yaml"
    file.write_text("models:\n- name: a\n  aliases: [x]\n- name: b\n")
    settings = load().settings
    file.unlink()
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert load().settings == settings


def test_a_wrong_model_among_several_is_named(tmp_path: Path) -> None:
    (tmp_path / "dray.yaml").write_text("models:\n- name: a\n  replica: 2\n")
    with pytest.raises(SettingsError, match=r"models\.0\.replica \(dray\.yaml\): unknown setting"):
        load()


def test_the_state_folder_is_where_no_other_user_can_enter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    runtime, elsewhere = tmp_path / "runtime", tmp_path / f"dray-{os.getuid()}"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    assert load().settings.state_dir == elsewhere, "there is no such folder"
    runtime.mkdir()
    assert load().settings.state_dir == runtime / "dray"
    if os.getuid() == 0:
        os.chown(runtime, 65534, 65534)
        assert load().settings.state_dir == elsewhere, "after `su`, it is another user's"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert load().settings.state_dir == elsewhere
