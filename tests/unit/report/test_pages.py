"""The pages: their links lead somewhere, what they name is there, their commands are real, and no study is left out."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from minedraft.cli.main import command as minedraft
from minedraft.settings.service import Settings
from minedraft.settings.worker import WorkerSettings
from scripts.lib.report.parts import PARTS
from scripts.lib.report.results import Results
from scripts.lib.report.studies import COMMANDS
from scripts.lib.tour import curl_line

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
MOST_WORDS_ON_THE_FIRST_PAGE = 1200
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)

SETTINGS = Settings.model_fields.keys() | WorkerSettings.model_fields.keys()
SOURCES = "".join(
    path.read_text()
    for folder in ("minedraft", "workers", "scripts", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
FOREIGN_FLAGS = {"now", "junitxml", "vllm"}  # of systemctl and pytest; of scripts/test, which is no Python

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", FENCE.sub("", page.read_text())):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        assert other.exists(), target
        assert not anchor or anchor in _anchors(other), target


@pages
def test_files_that_are_named_are_there(page: Path) -> None:
    text = COMMENT.sub("", FENCE.sub("", page.read_text()))
    for name in re.findall(r"`((?:scripts|tests|docs|protos|workers|minedraft)/[\w./-]+)", text):
        assert (ROOT / name).exists(), name


@pages
def test_commands_of_the_pages_are_commands(page: Path) -> None:
    context = click.Context(minedraft)
    for block in FENCE.findall(page.read_text()):
        for line in block.splitlines():
            words = line.split("#")[0].removeprefix("near$ ").removeprefix("any$ ").split()
            if words[:1] == ["minedraft"]:
                assert words[1] in minedraft.list_commands(context), line
            elif words and words[0].startswith("scripts/"):
                assert (ROOT / words[0]).is_file(), line


def _flags(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])--([a-z][a-z-]+)", text)


def _is_flag(flag: str) -> bool:
    declared = any(f"{before}--{flag}" in SOURCES for before in ('"', "/"))  # "--real/--no-real"
    return declared or flag.removeprefix("no-").replace("-", "_") in SETTINGS


@pages
def test_flags_of_the_pages_are_flags(page: Path) -> None:
    for flag in _flags(COMMENT.sub("", page.read_text())):
        assert flag in FOREIGN_FLAGS or _is_flag(flag), flag


def test_flags_of_commands_in_help_texts_are_flags() -> None:
    calls = re.findall(r"\bminedraft(?:-launch|-worker|-scheduler|-http)? .*--.*", SOURCES)
    assert len(calls) > 30
    assert {flag for call in calls for flag in _flags(call) if not _is_flag(flag)} == set()


def test_the_first_page_fits_a_few_screens_and_has_the_call_that_the_quickstart_prints() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(COMMENT.sub("", text).split()) <= MOST_WORDS_ON_THE_FIRST_PAGE
    call = shlex.split(curl_line("127.0.0.1:8000", "smollm2-135m-instruct"))
    found = re.search(r"^curl (?:.*\\\n)*.*$", text, re.MULTILINE)
    assert found is not None
    assert shlex.split(found[0].replace("\\\n", "")) == call


def test_every_study_is_there_and_shown_with_its_command() -> None:
    results = Results(ROOT)
    shown = "".join(page.read_text() for page in PAGES)
    for file, line in COMMANDS.items():
        assert (ROOT / results.path(file)).is_file()
        assert f"<!-- begin: made {file} -->" in shown, file
        assert line.split()[0] in ("minedraft", "pytest") or (ROOT / line.split()[0]).is_file(), line


def test_every_generated_part_is_on_a_page() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    used = set(re.findall(r"<!-- begin: (\S+)", text))
    assert set(PARTS) == used - {"NAME"}
