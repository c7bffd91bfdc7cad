"""The threat model's table is true: every row is there, and every test that it names."""

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL = (ROOT / "ops" / "THREAT_MODEL.md").read_text()
ROW = re.compile(r"^\| (X\d\d) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`")
FOLDERS = ("unit", "integration", "system", "browser")


@cache
def named_in(name: str) -> set[str]:
    """Return the tests in the files of this name, wherever they stand."""
    paths = [found for folder in FOLDERS for found in (ROOT / "tests" / folder).glob(name)]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for path in paths for node in ast.parse(path.read_text()).body]
    return {node.name for node in nodes if isinstance(node, kinds)}


def test_every_row_of_the_attack_list_has_its_line_in_order() -> None:
    assert [row[0] for row in ROW.findall(MODEL)] == [f"X{n:02}" for n in range(1, 55)]


@pytest.mark.parametrize("row", ROW.findall(MODEL), ids=lambda row: row[0])
def test_a_line_names_tests_that_there_are_or_says_why_not(row: tuple[str, str, str]) -> None:
    _, _, said = row
    named = NAMED.findall(said)
    assert named or said.startswith(("not applicable yet: ", "open: "))
    for file, test in named:
        assert test in named_in(file), f"{file}::{test}"


def test_every_test_that_is_named_by_a_row_stands_in_that_row() -> None:
    lines = {number.lower(): said for number, _, said in ROW.findall(MODEL)}
    for folder in FOLDERS:
        for path in (ROOT / "tests" / folder).glob("test_*.py"):
            for name in named_in(path.name):
                if number := re.match(r"test_(x\d\d)_", name):
                    assert f"`{path.name}::{name}`" in lines[number[1]], name


@pytest.mark.parametrize("name", ["server", "dev", "agent"])
def test_x53_everything_that_is_installed_is_held_to_its_hash(name: str) -> None:
    text = (ROOT / "ops" / "requirements" / f"{name}.txt").read_text().replace("\\\n", " ")
    pins = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert len(pins) > 3
    for pin in pins:
        assert re.match(r"[\w.\[\]-]+==[\w.+!]+ ", pin), pin[:60]
        assert "--hash=sha256:" in pin, pin[:60]
    makefile = (ROOT / "Makefile").read_text()
    installs = re.findall(r"\$\(PIP\) install .*", makefile)
    assert all("--require-hashes" in each or "--no-deps" in each for each in installs), installs
    lock = json.loads((ROOT / "ops" / "assets" / "package-lock.json").read_text())
    packages = [each for path, each in lock["packages"].items() if path]
    assert packages
    assert all(each["integrity"].startswith("sha512-") for each in packages)
