"""What the texts ask for: every row has one standing, and all that it leads to is there."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple, cast

import asyncpg
import pytest

from server.api.openapi import Described
from server.api.routes import ACTS, READS
from server.config import Secret, Settings
from server.insight.definitions import REGISTRY
from server.people.sealing import Seal
from server.portal.pages import add_portal
from server.survey.pages import add_survey
from server.web.passes import Passes
from server.web.site import build_site

ROOT = Path(__file__).parents[2]
SEEDS = (ROOT / "ops" / "SEEDS.md").read_text()
STANDINGS = ("built", "not yet", "refused")
ASKED = {"1": 17, "2": 7, "3": 10, "4": 8, "5": 9}
"""How many things each text asks for."""
LINK = re.compile(r"\[[^\]]+\]\(([^)]+)\)")
CODE = re.compile(r"`([^`]+)`")
TEST = re.compile(r"(test_\w+\.py)::(test_\w+)")
ROUTE = re.compile(r"([A-Z]+) /v1(/\S+)")


class Row(NamedTuple):
    """One thing that is asked."""

    number: str
    asked: str
    standing: str
    said: str


def rows_of(text: str) -> list[Row]:
    """Return the tables' rows; a row of too few or too many columns is kept, as no row can be."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and re.match(r"\d", cells[0]):
            found.append(Row(*cells) if len(cells) == 4 else Row(cells[0], line, "", ""))
    return found


@cache
def pages() -> frozenset[str]:
    """Return the paths of the portal and of the survey's pages."""
    pool, secret = cast("asyncpg.Pool", None), Secret("x" * 43)
    settings = Settings(secret, secret, secret, Path(), session_secret=secret)
    site, seal = build_site(desk=pool, settings=settings), Seal(secret)
    passes = cast("Passes", None)
    add_portal(site, pool=pool, desk=pool, settings=settings, passes=passes)
    add_survey(site, desk=pool, seal=seal)
    return frozenset(
        resource.canonical for resource in site.app.router.resources() if resource.canonical
    )


@cache
def routes() -> frozenset[str]:
    """Return the routes that the OpenAPI description is made of."""
    everything: tuple[Described, ...] = (*READS, *ACTS)
    return frozenset(f"{route.method} {route.path}" for route in everything)


@cache
def named_in(name: str) -> frozenset[str]:
    """Return the tests in the files of this name, wherever they stand."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [
        node for path in ROOT.glob(f"tests/*/{name}") for node in ast.parse(path.read_text()).body
    ]
    return frozenset(node.name for node in nodes if isinstance(node, kinds))


def missing(code: str) -> bool:
    """Return whether what stands in code marks is not there; what has no known form is not."""
    if test := TEST.fullmatch(code):
        return test[2] not in named_in(test[1])
    if route := ROUTE.fullmatch(code):
        return f"{route[1]} {route[2]}" not in routes()
    return code not in pages() and code not in REGISTRY


def faults(row: Row) -> list[str]:
    """Return what is wrong with a row, each with the name of what is."""
    found = [path for path in LINK.findall(row.said) if not (ROOT / "ops" / path).is_file()]
    found += [code for code in CODE.findall(row.said) if missing(code)]
    if row.standing not in STANDINGS:
        found.append(f"no standing: {row.standing!r}")
    if row.standing == "built" and not (LINK.search(row.said) and TEST.search(row.said)):
        found.append("built, without a place and a test that shows it")
    if row.standing == "refused" and not row.said.startswith("because "):
        found.append("refused, without a reason")
    if row.standing == "not yet" and not row.said:
        found.append("not yet, and nothing is said of it")
    return found


@pytest.mark.parametrize("row", rows_of(SEEDS), ids=lambda row: row.number)
def test_a_row_has_one_standing_and_all_that_it_leads_to_is_there(row: Row) -> None:
    assert row.asked
    assert faults(row) == []


def test_every_thing_that_is_asked_has_a_row_in_order() -> None:
    parts: dict[str, str] = {}
    for row in rows_of(SEEDS):
        number, letter = re.fullmatch(r"(\d+\.\d+)([a-z]?)", row.number).groups()  # type: ignore[union-attr]
        parts[number] = parts.get(number, "") + (letter or "-")
    assert list(parts) == [f"{text}.{n + 1}" for text, many in ASKED.items() for n in range(many)]
    for number, letters in parts.items():
        assert letters in ("-", "ab", "abc", "abcd"), number


def test_each_standing_is_told_and_some_rows_have_it() -> None:
    for standing in STANDINGS:
        assert f"- **{standing}**:" in SEEDS
        assert any(row.standing == standing for row in rows_of(SEEDS)), standing


@pytest.mark.parametrize(
    ("there", "wrong"),
    [
        ("(../agent/screen/screen.py)", "../agent/screen/screens.py"),
        ("(evaluations/experiments.py)", "../evaluations/experiments.py"),
        ("`GET /v1/comparison`", "POST /v1/comparison"),
        ("`GET /v1/definitions`", "GET /v1/definition"),
        ("`/trends`", "/trend"),
        ("`/s/{token}`", "/s/{code}"),
        ("`atv.v1`", "atv.v0"),
        ("test_metrics.py::test_what_is_missing_is_null_and_said", "test_metrics.py::test_nothing"),
        ("test_audit_chain.py::", "test_audit_chains.py::test_an_altered_row_is_named"),
    ],
)
def test_a_wrong_link_is_found_by_its_name(there: str, wrong: str) -> None:
    text = next(row.said for row in rows_of(SEEDS) if there in row.said)
    bare = there.strip("()`")
    put = wrong.removesuffix("test_an_altered_row_is_named") if there.endswith("::") else wrong
    altered = Row("9.1", "something", "built", text.replace(bare, put, 1))
    assert faults(Row("9.1", "something", "built", text)) == []
    assert faults(altered) == [wrong]


@pytest.mark.parametrize("standing", ["", "built, not yet", "Built", "done"])
def test_a_row_without_exactly_one_standing_is_found(standing: str) -> None:
    row = rows_of(SEEDS)[0]._replace(standing=standing)
    assert faults(row) == [f"no standing: {standing!r}"]
    assert faults(rows_of(f"| 1.1 | asked | {standing} |")[0])


@pytest.mark.parametrize(
    ("standing", "said"),
    [
        ("built", "[there](../agent/screen/screen.py), nothing shows it"),
        ("refused", "no"),
        ("not yet", ""),
    ],
)
def test_a_standing_without_what_it_takes_is_found(standing: str, said: str) -> None:
    assert len(faults(Row("9.1", "something", standing, said))) == 1
