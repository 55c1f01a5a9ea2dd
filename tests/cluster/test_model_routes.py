"""Settings of routed models and fallbacks: what is refused, and that they start nothing."""

from pathlib import Path
from typing import Any

import pytest

from cluster.configuration import SettingsError, load, parse
from cluster.models.folder import ModelFolderError, open_models
from cluster.serve_config import Engine, Routers, serve_config
from cluster.settings import Settings

SMALL, LARGE = {"name": "small", "aliases": ["tiny"]}, {"name": "large", "fallback": "small"}
ROUTE = [{"to": "tiny", "max_chars": 300, "keywords": [" 证明 "]}, {"to": "large"}]
AUTO = {"name": "auto", "aliases": ["bot"], "route": ROUTE}


def settings_of(*models: dict[str, Any], **others: Any) -> Settings:
    return parse({"models": list(models), "page": False, **others})


def test_a_route_is_read_from_the_file_and_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "dray.yaml"
    file.write_text(
        "model:\n  kv_cache_mb: 64\nmodels:\n- name: small\n- name: large\n  fallback: small\n"
        "- name: auto\n  route:\n  - {to: small, max_chars: 300, max_turns: 1, language: chinese, tools: false}\n"
        "  - to: large\n"
    )
    settings = load(config=file).settings
    assert [model.name for model in settings.served] == ["small", "large"]
    [auto] = settings.routed
    assert (auto.name, [rule.to for rule in auto.route]) == ("auto", ["small", "large"])
    assert (settings.served[0].kv_cache_mb, auto.route[0].language, auto.route[0].tools) == (64, "chinese", False)
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_a_routed_model_starts_nothing_and_a_fallback_changes_no_engine() -> None:
    def applications(settings: Settings) -> list[dict[str, Any]]:
        engines = tuple(Engine(settings, model, 1, 1) for model in open_models(settings))
        config = serve_config(Routers(settings, "", "", engines))["applications"]
        return [application for application in config if application["name"] != "dray"]

    plain = applications(settings_of(SMALL, {"name": "large"}))
    assert len(plain) == 2
    assert applications(settings_of(SMALL, LARGE, AUTO)) == plain


def test_one_model_may_have_another_name_by_a_route() -> None:
    settings = settings_of({"name": "auto", "route": [{"to": "one"}]}, model={"name": "one"})
    assert [model.name for model in settings.served] == ["one"]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([SMALL, AUTO], "rule 2 of the route of auto leads to 'large', but no model has this .* there is small, tiny"),
        ([{"source": "bundled"}, {"name": "auto", "route": [{"to": "dray-demo"}]}], "'dray-demo'.* none has a `name`"),
        ([SMALL, {"name": "auto", "route": [{"to": "auto"}]}], "leads to auto, which has a route itself"),
        ([SMALL, {"name": "large", "fallback": "auto"}, AUTO], "fallback of large leads to auto, which has a route"),
        ([SMALL, LARGE | {"fallback": "huge"}], "the fallback of large leads to 'huge', but no model has this"),
        ([SMALL, LARGE | {"fallback": "large"}], "circle: large -> large"),
        ([SMALL | {"fallback": "large"}, LARGE], "circle: small -> large -> small"),
        ([{"name": "e", "task": "embed"}, {"name": "auto", "route": [{"to": "e"}]}], "e, which generates no text"),
        ([SMALL, {"name": "e", "task": "rerank", "fallback": "small"}], "fallback is for models that generate text"),
        ([SMALL, LARGE, AUTO | {"route": ROUTE[:1]}], "the route of auto has no default"),
        ([SMALL, LARGE, AUTO | {"route": ROUTE[::-1]}], "the route of auto has no default"),
        ([SMALL, LARGE, AUTO | {"route": [{"to": "small"}, *ROUTE]}], "rule 1 of the route of auto has no condition"),
        (
            [SMALL, LARGE, AUTO | {"replicas": 2, "fallback": "small"}],
            "auto has a route, .* leave out replicas, fallback",
        ),
        ([SMALL, LARGE, {"route": ROUTE}], "a model with a route needs a `name`"),
        ([SMALL, LARGE, AUTO | {"route": [{"to": "small", "max_char": 3}]}], r"models\.2\.route\.0\.max_char: unknown"),
        ([SMALL, LARGE, AUTO | {"route": [{"max_chars": 3}]}], r"models\.2\.route\.0\.to: Field required"),
        ([SMALL, LARGE, AUTO | {"route": [{"to": "small", "language": "zh"}]}], r"route\.0\.language: .*'chinese' or"),
        ([SMALL, LARGE, AUTO | {"route": [{"to": "small", "keywords": [" "]}]}], r"keywords\.0: .*must not be empty"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(models: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_of(*models)


def test_a_route_belongs_into_the_list() -> None:
    with pytest.raises(SettingsError, match="a model with a route is an entry of `models`"):
        parse({"model": {"name": "auto", "route": [{"to": "auto"}]}})


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(ModelFolderError, match="two models have the name 'dray-demo'"):
        open_models(settings_of({"aliases": ["small"]}, {"name": "dray-demo", "route": [{"to": "small"}]}))
