"""The register's routes of /v1: regions, sites with their hours, doors, spots and devices."""

from dataclasses import replace
from typing import Any

import msgspec

from server.api.acts import Act, ActRoute
from server.api.types import (
    DoorRecord,
    DoorWrite,
    NewDoor,
    NewRegion,
    NewSite,
    NewSpot,
    Page,
    RegionRecord,
    RegionWrite,
    SiteRecord,
    SiteWrite,
    SpotRecord,
    SpotWrite,
)
from server.fleet import doors, hours, organisations, sites, spots
from server.fleet.checks import Known
from server.fleet.doors import Door
from server.fleet.organisations import Region
from server.fleet.sites import Site
from server.fleet.spots import Spot

# -- regions -----------------------------------------------------------------------------------


def _region_record(known: Known[Region]) -> RegionRecord:
    return RegionRecord(known.ref, known.facts.name, known.version)


async def _regions(act: Act) -> Page[RegionRecord]:
    found = await organisations.regions(act.connection, act.organisation)
    return Page([_region_record(region) for region in found])


async def _get_region(act: Act) -> RegionRecord:
    return _region_record(
        await organisations.find_region(act.connection, act.organisation, act.ref)
    )


async def _add_region(act: Act, body: NewRegion) -> RegionRecord:
    return _region_record(
        await organisations.add_region(
            act.connection, act.organisation, Region(body.name), **act.by
        )
    )


async def _edit_region(act: Act, body: RegionWrite) -> RegionRecord:
    known = await organisations.find_region(act.connection, act.organisation, act.ref)
    name = known.facts.name if body.name is msgspec.UNSET else body.name
    return _region_record(
        await organisations.edit_region(
            act.connection, act.organisation, act.ref, Region(name), seen=act.seen, **act.by
        )
    )


# -- sites -------------------------------------------------------------------------------------


def _site_record(known: Known[Site]) -> SiteRecord:
    facts = known.facts
    return SiteRecord(
        known.ref,
        facts.name,
        facts.time_zone,
        facts.currency,
        facts.address,
        facts.region,
        hours.write(facts.opening),
        facts.opens_on,
        facts.closes_on,
        known.version,
    )


async def _get_site(act: Act) -> SiteRecord:
    return _site_record(await sites.find(act.connection, act.organisation, act.ref))


async def _add_site(act: Act, body: NewSite) -> SiteRecord:
    wanted = _patched_site(Site(body.name, body.time_zone), body)
    return _site_record(await sites.add(act.connection, act.organisation, wanted, **act.by))


async def _edit_site(act: Act, body: SiteWrite) -> SiteRecord:
    known = await sites.find(act.connection, act.organisation, act.ref)
    wanted = _patched_site(known.facts, body)
    return _site_record(
        await sites.edit(act.connection, act.organisation, act.ref, wanted, seen=act.seen, **act.by)
    )


def _patched_site(site: Site, body: NewSite | SiteWrite) -> Site:
    given = _given(body)
    if "hours" in given:
        given["opening"] = hours.read(given.pop("hours"))
    return replace(site, **given)


def _given(body: msgspec.Struct) -> dict[str, Any]:
    """Return the fields that a body has."""
    found = {name: getattr(body, name) for name in body.__struct_fields__}
    return {name: value for name, value in found.items() if value is not msgspec.UNSET}


# -- doors -------------------------------------------------------------------------------------


async def _door_record(act: Act, ref: str) -> DoorRecord:
    row, known = await doors.find(act.connection, act.organisation, ref)
    site = await act.connection.fetchval("select ref from sites where id = $1", row)
    return DoorRecord(ref, site, known.facts.name, known.facts.behind, known.version)


async def _get_door(act: Act) -> DoorRecord:
    return await _door_record(act, act.ref)


async def _add_door(act: Act, body: NewDoor) -> DoorRecord:
    made = await doors.add(
        act.connection, act.organisation, body.site, Door(body.name, body.behind), **act.by
    )
    return await _door_record(act, made.ref)


async def _edit_door(act: Act, body: DoorWrite) -> DoorRecord:
    _, known = await doors.find(act.connection, act.organisation, act.ref)
    wanted = replace(known.facts, **_given(body))
    await doors.edit(act.connection, act.organisation, act.ref, wanted, seen=act.seen, **act.by)
    return await _door_record(act, act.ref)


# -- spots -------------------------------------------------------------------------------------


async def _spot_record(act: Act, ref: str) -> SpotRecord:
    row, known = await spots.find(act.connection, act.organisation, ref, now=act.now)
    site = await act.connection.fetchval("select ref from sites where id = $1", row)
    facts = known.facts
    return SpotRecord(
        *(ref, site, facts.name, facts.kind, facts.door, facts.purpose, facts.height_cm),
        known.version,
    )


async def _get_spot(act: Act) -> SpotRecord:
    return await _spot_record(act, act.ref)


async def _add_spot(act: Act, body: NewSpot) -> SpotRecord:
    wanted = Spot(body.name, body.kind, body.door, body.purpose, body.height_cm)
    made = await spots.add(act.connection, act.organisation, body.site, wanted, **act.by)
    return await _spot_record(act, made.ref)


async def _edit_spot(act: Act, body: SpotWrite) -> SpotRecord:
    _, known = await spots.find(act.connection, act.organisation, act.ref, now=act.now)
    wanted = replace(known.facts, **_given(body))
    await spots.edit(act.connection, act.organisation, act.ref, wanted, seen=act.seen, **act.by)
    return await _spot_record(act, act.ref)


ACTS = (
    ActRoute("GET", "/regions", "Regions, by name", Page[RegionRecord], _regions),
    ActRoute("POST", "/regions", "Add a region", RegionRecord, _add_region, NewRegion),
    ActRoute("GET", "/regions/{ref}", "One region", RegionRecord, _get_region),
    ActRoute("PATCH", "/regions/{ref}", "Rename a region", RegionRecord, _edit_region, RegionWrite),
    ActRoute("POST", "/sites", "Add a site", SiteRecord, _add_site, NewSite),
    ActRoute("GET", "/sites/{ref}/record", "One site, as it may be edited", SiteRecord, _get_site),
    ActRoute("PATCH", "/sites/{ref}", "Change a site", SiteRecord, _edit_site, SiteWrite),
    ActRoute("POST", "/doors", "Add a door", DoorRecord, _add_door, NewDoor),
    ActRoute("GET", "/doors/{ref}", "One door", DoorRecord, _get_door),
    ActRoute("PATCH", "/doors/{ref}", "Change a door", DoorRecord, _edit_door, DoorWrite),
    ActRoute("POST", "/spots", "Add a spot", SpotRecord, _add_spot, NewSpot),
    ActRoute("GET", "/spots/{ref}", "One spot", SpotRecord, _get_spot),
    ActRoute("PATCH", "/spots/{ref}", "Change a spot", SpotRecord, _edit_spot, SpotWrite),
)
