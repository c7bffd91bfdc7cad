"""The dashboard and the page of metrics name what `/metrics` serves, and nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import prometheus_client

import server.metrics

OPS = Path(server.metrics.__file__).parents[1] / "ops"
DASHBOARD = json.loads((OPS / "dashboards/fleet.json").read_text())
_NAME = re.compile(r"\bvestibule_[a-z_]+")


def served() -> dict[str, set[str]]:
    """Return the names that `/metrics` serves, each with the labels that it has."""
    found: dict[str, set[str]] = {}
    for each in vars(server.metrics).values():
        if not isinstance(each, prometheus_client.metrics.MetricWrapperBase):
            continue
        for family in each.describe():
            labels = set(each._labelnames)
            if family.type == "counter":
                found[f"{family.name}_total"] = labels
            elif family.type == "histogram":
                found |= {f"{family.name}_{end}": labels for end in ("sum", "count")}
                found[f"{family.name}_bucket"] = labels | {"le"}
            else:
                found[family.name] = labels
    return found


def questions() -> list[tuple[str, dict[str, Any]]]:
    return [
        (panel["title"], target)
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]


def test_the_text_that_is_served_has_these_names() -> None:
    server.metrics.PRESENCES.labels("healthy").set(1)
    text = prometheus_client.generate_latest().decode()
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line[:1] != "#"}
    assert "vestibule_health_devices" in names
    ours = {name for name in names if name.startswith("vestibule_")}
    assert {name for name in ours if not name.endswith("_created")} <= served().keys()


def test_every_panel_asks_for_what_is_served_by_labels_that_it_has() -> None:
    names = served()
    assert len(questions()) > 15
    for title, target in questions():
        asked = _NAME.findall(target["expr"])
        assert asked, title
        for name in asked:
            assert name in names, f"{title}: {name}"
        labels = {
            label.strip() for by in re.findall(r"\bby \(([^)]*)\)", target["expr"])
            for label in by.split(",")
        }  # fmt: skip
        labels |= set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert labels <= set().union(*(names[name] for name in asked)), title


def test_panels_do_not_lie_over_each_other_and_have_a_sentence_each() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or panel["description"].endswith("."), panel["title"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_the_page_of_metrics_names_each_once() -> None:
    table = [line for line in (OPS / "METRICS.md").read_text().splitlines() if line[:3] == "| `"]
    told = {line.split("`")[1]: set(re.findall(r"`(\w+)`", line.split("|")[3])) for line in table}
    wanted = {
        name.removesuffix("_bucket"): labels - {"le"}
        for name, labels in served().items()
        if not name.endswith(("_sum", "_count"))
    }
    assert told == wanted
