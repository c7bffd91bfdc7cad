"""A new rollout: what to whom in which waves under which guards, looked at before anything is done.

The preview is a dry run and changes nothing. What is asked for then is planned anew; should that
reach others than were shown, nothing is done, and the page shows what it would reach now.
"""

import hashlib
from dataclasses import dataclass

import asyncpg
import msgspec
from aiohttp import web

from server.console import policies
from server.console.office import (
    Handlers,
    Here,
    Office,
    Problem,
    asked,
    form_of,
    here,
    number_of,
    tried,
)
from server.console.searching import wished
from server.errors import RefusedError
from server.firmware import acts, drafting, planning, reads
from server.firmware.change import read_settings
from server.firmware.drafting import Told
from server.firmware.planning import DryRun
from server.firmware.policy import OnHalt
from server.fleet import segments
from server.fleet.checks import FieldError
from server.fleet.filters import FIELDS, MOST_CHARACTERS, printed
from server.people.roles import Permission

_LAYER, _SHOWS = "layer:", "questionnaire-"
"""How a choice begins that is no bundle."""
_MOST = 500  # models, sites or questionnaires in a list
MOST_NAMED = 8
"""Devices that are named for each reason to be left out."""
_FIELDS = (
    *("name", "bundle", "settings", "q", "segment", "preset", "even", "when", "on_halt"),
    *policies.NUMBERS,
    *policies.TICKS,
    *(f"{what}{n}" for n in range(1, policies.WAVES + 1) for what in ("wave", "filter")),
)


def add_rollout_new(app: web.Application, office: Office, base: str) -> None:
    """Add the routes below an organisation's address."""
    pages = Pages(office)
    app.router.add_get(f"{base}/rollouts/new", pages.show)
    app.router.add_post(f"{base}/rollouts/new", pages.keep)


class Pages(Handlers):
    """The handlers."""

    async def show(self, request: web.Request) -> web.Response:
        """The form; with `do=look` what would be done."""
        at = await self._here(request)
        form = {name: asked(request, name, most=MOST_CHARACTERS) for name in _FIELDS}
        do = asked(request, "do")
        if do != "look":
            preset = do if do in policies.PRESETS else "usual"
            form |= policies.form_of(policies.PRESETS[preset]) | {"preset": preset}
            return await self._page(request, at, form)
        return await self._looked(request, at, form)

    async def keep(self, request: web.Request) -> web.Response:
        """Draft it and ask for approval, if it still reaches whom it was shown to reach."""
        at = await self._here(request)
        sent = await form_of(request)
        form = {name: sent.get(name, "") for name in _FIELDS}

        async def act() -> str:
            async with at.acting("console new rollout") as connection:
                made = await drafting.draft(
                    connection,
                    at.id,
                    form["name"],
                    _asked(form),
                    actor=at.visitor.actor,
                    now=self._office.now(),
                )
                if _digest(made.dry) != sent.get("shown", ""):
                    raise RefusedError("changed", "it would reach other devices by now")
                await acts.submit(
                    connection, at.id, made.ref, actor=at.visitor.actor, now=self._office.now()
                )
                return made.ref

        done = await tried(act)
        if isinstance(done, Problem):
            return await self._looked(request, at, form, problem=done)
        raise web.HTTPSeeOther(f"{at.path}/rollouts/{done}")

    async def _looked(
        self,
        request: web.Request,
        at: Here,
        form: dict[str, str],
        *,
        problem: Problem | None = None,
    ) -> web.Response:
        async def look() -> DryRun:
            wanted = _asked(form)
            async with at.acting("console rollout's dry run") as connection:
                return await planning.dry_run(connection, at.id, wanted, now=self._office.now())

        looked = await tried(look)
        if isinstance(looked, Problem):
            return await self._page(request, at, form, problem=problem or looked)
        return await self._page(request, at, form, dry=looked, problem=problem)

    async def _page(
        self,
        request: web.Request,
        at: Here,
        form: dict[str, str],
        *,
        dry: DryRun | None = None,
        problem: Problem | None = None,
    ) -> web.Response:
        async with at.acting("console new rollout's form") as connection:
            bundles = [each for each in await reads.bundles(connection) if each.fit]
            kept = await segments.every(connection, at.id)
            others = await _others(connection, at.id)
            told = None if dry is None else drafting.told(dry)
            rollouts = await rollout_names(connection, at.id, told)
        chosen = next((each for each in bundles if each.ref == form["bundle"]), None)
        return self._office.page(
            request,
            "rollout_new.html",
            at=at,
            form=form,
            bundles=bundles,
            chosen=chosen,
            others=others,
            kept=kept,
            fields=FIELDS,
            policies=policies,
            hows=list(OnHalt),
            told=told,
            left_out=grouped(told),
            rollouts=rollouts,
            shown="" if dry is None else _digest(dry),
            problem=problem,
        )

    async def _here(self, request: web.Request) -> Here:
        at = await here(self._office, request, Permission.ROLL_OUT)
        at.demand(Permission.ROLL_OUT)
        return at


def grouped(told: Told | None) -> list[tuple[str, int, list[drafting.LeftOut]]]:
    """Return why devices are left out, the most frequent first, with some of each."""
    if told is None:
        return []
    found: dict[str, list[drafting.LeftOut]] = {}
    for each in told.excluded:
        found.setdefault(each.why, []).append(each)
    ordered = sorted(told.reasons.items(), key=lambda each: (-each[1], each[0]))
    return [(why, many, found.get(why, [])[:MOST_NAMED]) for why, many in ordered]


def _asked(form: dict[str, str]) -> planning.Asked:
    """Return what is to be planned. Raises FieldError, FilterError, PolicyError."""
    what = form["bundle"]
    if not what:
        raise FieldError("bundle", "choose what is to be rolled out")
    change = None
    if what.startswith(_LAYER):
        scope, _, of = what.removeprefix(_LAYER).partition(":")
        change = read_settings(
            msgspec.json.encode({"values": values_of(form["settings"]), "scope": scope, "of": of})
        )
    shows = what if what.startswith(_SHOWS) else None
    return planning.Asked(
        bundle="" if change or shows else what,
        change=change,
        questionnaire=shows,
        filter=printed(wished(form["q"])),
        segment=form["segment"] or None,
        policy=policies.policy_of(form),
    )


def values_of(text: str) -> dict[str, int | str]:
    """Return the settings that a line names, as `health_s = 300, log_level = info`. FieldError."""
    found: dict[str, int | str] = {}
    for part in text.replace("\n", ",").split(","):
        key, equals, value = (each.strip() for each in part.partition("="))
        if not part.strip():
            continue
        if not equals or not key or key in found:
            raise FieldError("settings", "expected name = value, each once, with commas between")
        number = number_of(value)
        found[key] = value if number is None else number
    return found


@dataclass(frozen=True, slots=True)
class _Others:
    """What can be rolled out that is no bundle: layers of settings, and questionnaires."""

    layers: tuple[tuple[str, str, str], ...]  # value, scope, and of what
    questionnaires: tuple[tuple[str, str], ...]  # ref, and how it is called


async def _others(connection: asyncpg.Connection, organisation: int) -> _Others:
    models = await connection.fetch(
        "select distinct model as of, model as name from devices where organisation_id = $1 "
        "and model <> '' order by 1 limit $2",
        *(organisation, _MOST),
    )
    sites = await connection.fetch(
        "select ref as of, name from sites where organisation_id = $1 order by name limit $2",
        *(organisation, _MOST),
    )
    versions = await connection.fetch(
        "select ref, name, version from questionnaires where organisation_id = $1 "
        "and retired_at is null and content is not null order by name, version desc limit $2",
        *(organisation, _MOST),
    )
    named = [("model", row) for row in models] + [("site", row) for row in sites]
    layers = [(f"{_LAYER}{scope}:{row['of']}", scope, row["name"]) for scope, row in named]
    own = [(f"{_LAYER}{scope}:", scope, "") for scope in ("organisation", "device")]
    shown = [(row["ref"], f"{row['name']} {row['version']}") for row in versions]
    return _Others((*own, *layers), tuple(shown))


def _digest(dry: DryRun) -> str:
    """Return a digest of whom a plan reaches, in how many waves."""
    names = sorted(device.name for wave in dry.plan.waves for device in wave.devices)
    sizes = [len(wave.devices) for wave in dry.plan.waves]
    return hashlib.sha256(repr((names, sizes)).encode()).hexdigest()[:16]


async def rollout_names(
    connection: asyncpg.Connection, organisation: int, told: Told | None
) -> dict[str, str]:
    """Return the names of the rollouts that have, or want, devices of a plan."""
    if told is None:
        return {}
    refs = [each.rollout for each in told.conflicts] + [each.rollout for each in told.pending]
    rows = await connection.fetch(
        "select ref, name from rollouts where organisation_id = $1 and ref = any($2::text[])",
        *(organisation, refs),
    )
    return {row["ref"]: row["name"] for row in rows}
