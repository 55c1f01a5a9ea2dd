"""Checks the documentation against the code."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import pytest
import yaml
from typer.main import get_command

from cluster.cli import app
from cluster.configuration import OTHER_VARIABLES, SettingsError, parse, setting_descriptions, variable
from deployments.api.protocol.chat import ChatRequest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
API = (DOCS / "api.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "demo" / "README.md", ROOT / "examples" / "README.md"])


def test_every_parameter_is_in_the_table_and_no_other() -> None:
    table = API.split("## Parameters of chat completions")[1].split("##")[0]
    documented = {
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert documented == set(ChatRequest.__struct_fields__)


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Builds the documentation as `make docs` does."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the built documentation."""
    folder = tmp_path_factory.mktemp("site")
    result = build(ROOT, folder)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_a_link_or_an_anchor_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    with (tmp_path / "docs" / "index.md").open("a") as page:
        page.write("[a page](nowhere.md) and [an anchor](api.md#nowhere)")
    result = build(tmp_path, tmp_path / "site")
    assert result.returncode == 1
    assert "'nowhere.md'" in result.stderr and "'#nowhere'" in result.stderr


def test_the_site_has_the_readme_the_results_and_the_changelog(site: Path) -> None:
    for page, text in (("readme", "When not to use it"), ("results", "benchmarks."), ("changelog", "Unreleased")):
        assert text in (site / page / "index.html").read_text()
    assert 'src="../images/chat.png"' in (site / "readme" / "index.html").read_text()


@pytest.mark.parametrize("name", ["chat", "console"])
def test_each_language_shows_the_pages_as_its_readers_see_them(name: str, site: Path) -> None:
    shown = [(site / language / "images" / f"{name}.png").read_bytes() for language in ("", "zh")]
    assert shown == [(DOCS / "images" / file).read_bytes() for file in (f"{name}.png", f"{name}.zh.png")]
    assert f'images/{name}.png"' in (site / "zh" / "guides" / name / "index.html").read_text()


ACTIONS = {"cache.clear", "cache.delete"}
"""Of the audit log, named like settings."""
CHINESE = sorted(DOCS.rglob("*.zh.md"))
FENCE = re.compile(r"^ *```\w*\n(.*?)^ *```", re.M | re.S)


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: str(page.relative_to(DOCS)))
def test_chinese_pages_have_what_the_english_ones_have(page: Path) -> None:
    """Who changes an English page changes the Chinese one too."""
    chinese, english = (path.read_text() for path in (page, page.with_name(page.name.replace(".zh.md", ".md"))))
    assert [re.sub(r" +# .*", "", line) for line in code_lines(chinese)] == [
        re.sub(r" +# .*", "", line) for line in code_lines(english)
    ]
    chinese, english = (FENCE.sub("```", text) for text in (chinese, english))
    assert "{#" not in chinese, 'a heading\'s anchor is written <a id="name"></a>'
    assert layout(chinese) == layout(english)
    assert sorted(re.findall(r"\]\(([^)\s]+)\)", chinese)) == sorted(re.findall(r"\]\(([^)\s]+)\)", english))
    for quoted in (r"(?<!`)`([^`]+)`(?!`)", r"\d(?:[\d.,]*\d)?"):  # names, then figures
        names = [{" ".join(name.split()) for name in re.findall(quoted, text)} for text in (chinese, english)]
        assert names[0] == names[1]


def layout(page: str) -> list[str]:
    """How each line begins that is a heading, an item of a list, a row of a table, or the place of code."""
    return [match[0] for line in page.splitlines() if (match := re.match(r"#+ | *(?:\d+\.|-) |\||```", line))]


@pytest.mark.parametrize("page", CHINESE, ids=lambda page: str(page.relative_to(DOCS)))
def test_chinese_pages_are_on_the_chinese_site(page: Path, site: Path) -> None:
    name = page.relative_to(DOCS).as_posix().removesuffix(".zh.md").removesuffix("index")
    title = page.read_text().splitlines()[0].removeprefix("# ")
    assert title in (site / "zh" / name / "index.html").read_text()


def test_the_navigation_of_the_chinese_site_is_chinese(site: Path) -> None:
    configuration = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    languages = {language["locale"]: language for language in configuration["plugins"][1]["i18n"]["languages"]}
    chinese = languages["zh"]["nav_translations"]
    assert set(nav_titles(configuration["nav"])) - {"Dray", "INT8", "Kubernetes", "LangChain"} == chinese.keys()
    page = (site / "zh" / "index.html").read_text()
    assert all(title in page for title in chinese.values())


def nav_titles(nav: list[Any]) -> Iterator[str]:
    """The titles of all pages and groups of pages."""
    for entry in nav:
        for title, content in entry.items():
            yield title
            if isinstance(content, list):
                yield from nav_titles(content)


def test_every_guide_has_a_chinese_edition() -> None:
    (guides,) = (
        part["Guides"] for part in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] if "Guides" in part
    )
    pages = ["tutorial.md", *(page for guide in guides for page in guide.values())]
    assert len(pages) > 30
    assert [page for page in pages if not (DOCS / page).with_suffix(".zh.md").is_file()] == []


def test_the_chinese_site_has_english_pages_where_there_is_no_chinese_one(site: Path) -> None:
    for name in ("api", "reference/settings", "results"):
        assert (site / "zh" / name / "index.html").is_file()


def code_lines(page: str) -> list[str]:
    """The lines of all fenced code."""
    return [line for block in FENCE.findall(page) for line in block.splitlines()]


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))
    for page in pages:
        urls = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=[\"']?([^\"'> ]+)", page.read_text())
        urls += re.findall(
            r"<link[^>]*rel=[\"']?(?:style|preconnect|icon)[^>]*href=[\"']?([^\"'> ]+)", page.read_text()
        )
        assert urls
        assert not [url for url in urls if url.startswith(("http", "//"))], page
    assert not any(re.search(r"url\([\"']?(https?:)?//", sheet.read_text()) for sheet in site.rglob("*.css"))


def test_the_reference_lists_every_setting_metric_and_command(site: Path) -> None:
    def page(name: str) -> str:
        return (site / "reference" / name / "index.html").read_text()

    assert all(f"<code>{name}</code>" in page("settings") for name in setting_descriptions())
    dashboard = (ROOT / "k8s" / "monitoring" / "dray.json").read_text()  # tests/k8s checks that every metric is there
    metrics = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\bdray_[a-z_]+\w", dashboard)}
    assert len(metrics) > 20
    assert all(f"<code>{name}</code>" in page("metrics") for name in metrics)
    headings = set(re.findall(r"<h2 id=\"?dray-([\w-]+)", page("command")))
    assert headings == {name.replace(" ", "-") for name in commands(get_command(app))}


def commands(group: Any, path: str = "") -> Iterator[str]:
    """The full name of every command that can be run."""
    for name, command in group.commands.items():
        full_name = f"{path} {name}".strip()
        if not hasattr(command, "commands") or command.invoke_without_command:
            yield full_name
        if hasattr(command, "commands"):
            yield from commands(command, full_name)


def blocks(language: str) -> list[tuple[Path, str]]:
    """The fenced code blocks of a language, each with its page."""
    fence = re.compile(rf"^( *)```{language}\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
    return [(page, dedent(text)) for page in PAGES for _, text in fence.findall(page.read_text())]


def test_code_in_guides_is_code_that_runs() -> None:
    sources = [*(ROOT / "examples").glob("*.py"), *(ROOT / "deployments").rglob("*.py")]
    code = "\n".join(source.read_text() for source in sources)
    quotes = [(page, text) for page, text in blocks("python") if page.parent.name in ("guides", "contributing")]
    assert len(quotes) >= 5
    for page, text in quotes:
        assert any(indent(text, " " * depth) in code for depth in (0, 4, 8)), f"{page}: {text}"


def test_commands_in_the_documentation_exist() -> None:
    checked = 0
    for page, text in blocks("bash"):
        for line in re.findall(r"(?<!-n )(?<![\w-])dray ([a-z][^#|&\n]*)", text):
            words = line.split()
            command: Any = get_command(app)
            while words and words[0] in getattr(command, "commands", {}):
                command = command.commands[words.pop(0)]
            assert not hasattr(command, "commands") or command.invoke_without_command, f"{page}: dray {line}"
            options = {option for parameter in command.params for option in parameter.opts}
            assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options, (
                f"{page}: dray {line}"
            )
            checked += 1
    assert checked > 20


def test_settings_in_the_documentation_exist() -> None:
    names = setting_descriptions()
    variables = {variable(name) for name in names} | OTHER_VARIABLES
    groups = "|".join({name.partition(".")[0] for name in names if "." in name})
    for page in PAGES:
        assert set(re.findall(r"\bDRAY_(?!TEST_)[A-Z_]+[A-Z]", page.read_text())) <= variables, page
        if page.name != "CHANGELOG.md":  # which lists former names
            named = set(re.findall(rf"`((?:{groups})\.(?!py`)[a-z_]+)`", page.read_text()))
            assert named <= names.keys() | ACTIONS, page


def test_blocks_of_settings_in_the_documentation_are_accepted() -> None:
    names = {name.partition(".")[0] for name in setting_descriptions()}
    accepted = 0
    for page, text in blocks("yaml"):
        documents = list(yaml.safe_load_all(text))
        if "…" in text or len(documents) > 1 or not isinstance(documents[0], dict) or not documents[0].keys() <= names:
            continue  # the rest of another block, or a file of another program
        try:
            parse(documents[0])
        except SettingsError as error:
            raise AssertionError(f"{page}: {error}") from None
        accepted += 1
    assert accepted > 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_exist(page: Path) -> None:
    """Also in pages outside docs/, which MkDocs does not check."""
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", page.read_text()):
        target = (link[0] or link[1]).partition("#")[0]
        if target and "://" not in target and not target.startswith(("reference/", "../reference/")):
            assert (page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"\btests/[\w/.-]*\.py\b", page.read_text()):
        assert (ROOT / name).is_file(), name


CONTRIBUTORS_PAGES = [
    ROOT / "CONTRIBUTING.md",
    *(page for page in PAGES if page.parent.name in ("concepts", "contributing")),
]


@cache
def paths_and_words() -> tuple[str, frozenset[str]]:
    """The paths of the project's files and folders, one a line, and all words of its code."""
    # Not ROOT.rglob: it would walk through the virtual environment.
    tops = [top for top in ROOT.iterdir() if not top.name.startswith((".", "build"))]
    files = [path for top in tops for path in (top, *top.rglob("*"))]
    paths = "\n".join(f"/{path.relative_to(ROOT)}" + "/" * path.is_dir() for path in files) + "\n"
    code = "\n".join(path.read_text() for path in files if path.suffix == ".py" and path != Path(__file__))
    return paths, frozenset(re.findall(r"\w+", code))


@pytest.mark.parametrize("page", CONTRIBUTORS_PAGES, ids=lambda page: page.name)
def test_names_in_pages_for_contributors_exist(page: Path) -> None:
    """Files and folders, also by the end of their path, and names in the code."""
    paths, words = paths_and_words()
    for name in re.findall(r"`([^`\n]+)`", page.read_text()):
        if re.fullmatch(r"\w[\w/.-]*(/|\.(py|json|html|yaml|svg))", name):
            assert f"/{name}\n" in paths, name
        elif re.fullmatch(r"[A-Za-z_][\w.]*(\([\w, ]*\))?", name) and re.search(r"[A-Z_]", name):
            assert set(re.findall(r"\w+", name)) <= words, name


READMES = [(ROOT / name).read_text() for name in ("README.md", "README.zh.md")]


@pytest.mark.parametrize("text", READMES, ids=["en", "zh"])
def test_figures_in_the_readme_are_measured(text: str) -> None:
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    measured = set(re.findall(r"\d+(?:\.\d+)?", results))
    rows = re.split(r"## (?:Measured|实测)\n", text)[1].split("\n## ")[0].splitlines()
    cells = [row.split("|")[2:4] for row in rows if row.startswith("| ") and "---" not in row][1:]
    assert len(cells) >= 8
    for cell, command in cells:
        figures = set(re.findall(r"\d+(?:\.\d+)?", cell))
        assert figures and figures <= measured, cell
        assert command.strip() in results, command


def test_the_two_readmes_say_the_same() -> None:
    def skeleton(text: str) -> tuple[list[str], ...]:
        code = "\n".join(re.findall(r"```(?:bash|yaml)\n(.*?)```", text, re.DOTALL))
        commands = [line.partition("    #")[0].rstrip() for line in code.splitlines()]
        links = [link.replace(".zh.", ".") for link in re.findall(r"\]\(([^)]+)\)", text)]
        links = [link for link in links if not link.startswith("README")]
        shapes = [match[0] for line in text.splitlines() if (match := re.match(r"#+|\||- \*\*", line))]
        return [re.sub(r" +# .*", "", command) for command in commands], links, shapes

    assert skeleton(READMES[0]) == skeleton(READMES[1])
    assert "](README.zh.md)" in READMES[0] and "](README.md)" in READMES[1]


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_readers_of_a_readme_find_every_guide_in_their_language(name: str) -> None:
    """Who has only the README must get from it to each task."""
    linked = set(re.findall(r"\]\((docs/[^)#]+\.(?:md|png))", (ROOT / name).read_text()))
    guides = {str(page.relative_to(ROOT)) for page in (DOCS / "guides").glob("*.md")}
    if name == "README.md":
        assert linked >= {page for page in guides if ".zh." not in page}
        assert not {page for page in linked if ".zh." in page}
    else:
        assert linked >= {page for page in guides if ".zh." in page}
        in_chinese = {page: (ROOT / page).with_suffix("").with_suffix(f".zh{Path(page).suffix}") for page in linked}
        assert not {page for page, chinese in in_chinese.items() if ".zh." not in page and chinese.exists()}


@pytest.mark.parametrize("text", READMES, ids=["en", "zh"])
def test_every_command_is_in_the_readme(text: str) -> None:
    table = re.split(r"## (?:The command|命令)\n", text)[1].split("\n## ")[0]
    cells = " ".join(row.split("|")[1] for row in table.splitlines() if row.startswith("| `"))
    names = set(re.findall(r"[a-z][a-z0-9-]*", cells))
    assert {name.split()[0] for name in commands(get_command(app))} <= names
