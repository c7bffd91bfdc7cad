"""Whom a change of settings reaches: the devices of its layer, and who gets nothing by it.

A layer is changed for all of its devices, or each device's own for those that a filter finds. Of a
change of a shared layer nobody stays in no wave: whoever is left out gets it, too, once it has
completed, so all that can be tried first has to be.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from server.desired import settings
from server.desired.layers import Layer, Overlay, Scope, merged, overlaid
from server.errors import RefusedError
from server.firmware import steering
from server.firmware.change import Change, SettingsChange, decides
from server.firmware.plan import Plan, Why
from server.firmware.policy import Policy
from server.firmware.showing import Showing
from server.fleet.checks import FieldError

_THIS = "this rollout"
_LATER = 1 << 60  # the number of a writing that is later than all there are

Given = Mapping[int, tuple[Why, str]]


@dataclass(frozen=True, slots=True)
class Reach:
    """What is carried, the devices (rows) that it is for, and why some of them are left out."""

    change: Change | Showing
    rows: tuple[int, ...]
    given: Given


async def reach(
    connection: asyncpg.Connection,
    organisation: int,
    asked: SettingsChange,
    found: Sequence[int] | None,
    *,
    now: datetime,
) -> Reach:
    """Return whom a change reaches; `found`: whom a filter has found, None: there was none.

    Raises FieldError, NotFoundError, ConflictError.
    """
    change, place = await steering.known(connection, organisation, asked)
    if place is not None and found is not None:
        raise FieldError("filter", "a layer is changed for all of its devices; name scope 'device'")
    own = place or settings.Place(Scope.ORGANISATION, "")
    devices = await settings.devices(connection, organisation, own, now=now)
    if place is None and found is not None:
        wanted = set(found)
        devices = [device for device in devices if device.id in wanted]
    stacks = await settings.stacks(connection, organisation, devices)
    said = await connection.fetch(
        "select device_id, report from device_settings where organisation_id = $1 "
        "and report is not null",
        organisation,
    )
    reports = {row["device_id"]: json.loads(row["report"]) for row in said}
    given = await asyncio.to_thread(left_out, change, devices, stacks, reports)
    return Reach(change, tuple(device.id for device in devices), given)


def left_out(
    change: Change,
    devices: Sequence[settings.Device],
    stacks: Mapping[int, Sequence[Layer]],
    reports: Mapping[int, Mapping[str, Any]],
) -> dict[int, tuple[Why, str]]:
    """Return who gets nothing by a change, and why, by the first reason that holds. Pure."""
    entries = change.entries(_LATER, at=0, by=_THIS)
    found: dict[int, tuple[Why, str]] = {}
    for device in devices:
        report = reports.get(device.id)
        if report is None:
            found[device.id] = Why.NEVER_REPORTED, "it has never said what its settings are"
            continue
        of = device.device if change.scope is Scope.DEVICE else change.of
        laid = overlaid(stacks[device.id], [Overlay(change.scope, of, entries)])
        effective = merged(laid, kind=device.kind)
        keys = decides(change, effective, _THIS)
        unknown = [key for key in keys if key not in report["known"]]
        if unknown:
            text = f"its agent {report['agent']} knows no {', '.join(unknown)}"
            found[device.id] = Why.UNKNOWN_SETTING, text
        elif not any(key in effective for key in change.values):
            text = f"a {device.kind} has no {', '.join(change.values)}"
            found[device.id] = Why.UNKNOWN_SETTING, text
        elif not keys:
            here = [effective[key].here for key in change.values if key in effective]
            nearest = {each.scope.value for each in here}
            text = f"its {' and its '.join(sorted(nearest))} says otherwise, and is nearer"
            found[device.id] = Why.NEARER_LAYER, text
        elif all(report["values"].get(key) == change.values[key] for key in keys):
            found[device.id] = Why.ALREADY, "it has these values"
    return found


def demand_waves(change: Change | Showing, made: Plan) -> None:
    """Raise RefusedError if a shared layer's change leaves devices in no wave."""
    number = made.reasons.get(Why.NO_WAVE, 0)
    shared = isinstance(change, Change) and change.scope is not Scope.DEVICE
    if number and shared:
        raise RefusedError(
            "in_no_wave",
            f"{number} devices are in no wave and would get it untried at the end: "
            "let the last wave take all",
        )


def second_person(change: Change | Showing, made: Plan, policy: Policy) -> list[str]:
    """Return why somebody else than its author approves a change, beside what its plan says.

    Who is in no wave and gets a shared layer's change in the end counts for the blast radius.
    """
    shared = isinstance(change, Change) and change.scope is not Scope.DEVICE
    late = sum(made.reasons.get(why, 0) for why in _IN_THE_END) if shared else 0
    if made.devices <= policy.blast_radius < made.devices + late:
        return [f"{late} devices more get it in the end: above {policy.blast_radius} with them"]
    return []


_IN_THE_END = (Why.OTHER_ROLLOUT, Why.NOWHERE, Why.FROZEN, Why.NO_WINDOW)
