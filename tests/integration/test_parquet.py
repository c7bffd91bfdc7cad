"""Answers as Parquet: what pyarrow reads back is what JSON says, with types."""

import io
import re
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import ClientSession

from server.api import answers, parquet
from server.api.examples import EXAMPLES
from server.api.problems import CODES
from server.api.reads import Route
from server.api.routes import READS
from server.api.types import Page
from tests.integration.api_world import World, utc
from tests.integration.contract_world import Contract
from tests.integration.contract_world import contract as contract

pytestmark = pytest.mark.services
ROUTES = [route for route in READS if route.row is not None]
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
ACCEPT = {"Accept": parquet.MEDIA_TYPE}


def told(value: Any, kind: pa.DataType) -> Any:
    """Return a JSON value as Parquet has it: by its own rules, not by the writer's."""
    if value is None:
        return None
    if pa.types.is_timestamp(kind):
        return datetime.fromisoformat(value).astimezone(UTC)
    if pa.types.is_date(kind):
        return date.fromisoformat(value)
    if pa.types.is_decimal(kind):
        return Decimal(value)
    if pa.types.is_string(kind):  # also where some are numbers: a column has one type
        return str(value)
    if pa.types.is_map(kind):
        return [(name, told(each, kind.item_type)) for name, each in value.items()]
    if pa.types.is_list(kind):
        return [told(each, kind.value_type) for each in value]
    if pa.types.is_struct(kind):
        return {field.name: told(value.get(field.name), field.type) for field in kind}
    return value


def read(body: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(body))


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_with_rows_has_one_schema_also_without_rows(route: Route) -> None:
    assert route.row is not None
    schema = parquet.schema_of(route.row)
    assert schema.names == [f.encode_name for f in msgspec.structs.fields(route.row)]
    body = parquet.to_parquet(Page([], None), route.row)
    assert read(body).schema.equals(schema)
    assert body == parquet.to_parquet(Page([], None), route.row)


async def test_a_file_says_what_json_says_on_every_route(contract: Contract) -> None:
    held: dict[str, int] = {}
    key = {"Authorization": f"Bearer {contract.key}"}
    async with ClientSession(headers=key) as session:
        for route in ROUTES:
            operation = f"{route.method} {route.path}"
            example = EXAMPLES[operation]
            path = re.sub(r"\{(\w+)\}", lambda found: example.path[found[1]], route.path)  # noqa: B023
            asked: dict[str, Any] = {
                "params": {k: v for k, v in example.query.items() if k != "format"},
                "json": example.body,
            }
            url = contract.url + path
            async with session.request(route.method, url, **asked) as response:
                status, plain = response.status, await response.json(content_type=None)
            async with session.request(route.method, url, headers=ACCEPT, **asked) as response:
                assert response.status == status, operation
                if example.refused:
                    assert status == CODES[example.refused].status
                    continue
                table = read(await response.read())
            assert table.to_pylist() == [
                {field.name: told(row.get(field.name), field.type) for field in table.schema}
                for row in plain["data"]
            ], operation
            for field in table.schema:  # what looks like an instant is one
                if pa.types.is_string(field.type):
                    texts = [str(row.get(field.name) or "") for row in plain["data"]]
                    assert not any(INSTANT.fullmatch(each) for each in texts), (operation, field)
            held[operation] = table.num_rows
    assert len(held) > 20
    assert sum(rows > 0 for rows in held.values()) > 15, held


async def test_counts_come_with_instants_and_what_was_not_measured_stays_null(
    world: World,
) -> None:
    own = await world.organisation("own")
    site = await world.site(own, "shop")
    spot = await world.spot(own, site, "door", assigned=utc("2026-03-01T00:00"))
    await world.minutes(spot, utc("2026-03-03T10:00"), [(3, 1)] * 30)
    path = "/counts?from=2026-03-03&to=2026-03-05&bucket=hour"
    plain = (await world.get(path))["data"]
    key = {"Authorization": f"Bearer {world.keys['own']}"}
    async with world.client.get(f"/v1{path}", headers={**key, **ACCEPT}) as response:
        assert (response.status, response.content_type) == (200, parquet.MEDIA_TYPE)
        assert response.charset is None
        etag, body = response.headers["ETag"], await response.read()
    table = read(body)
    assert table.schema.field("from").type == pa.timestamp("us", tz="UTC")
    assert table.column("visits").null_count == sum(row["visits"] is None for row in plain) > 40
    assert table.to_pylist() == [
        {f.name: told(row[f.name], f.type) for f in table.schema} for row in plain
    ]
    async with world.client.get(
        f"/v1{path}&format=parquet", headers={**key, "If-None-Match": etag}
    ) as response:
        assert response.status == 304
    async with world.client.get(
        f"/v1{path}", headers={**key, "Accept": f"application/json, {parquet.MEDIA_TYPE}"}
    ) as response:
        assert response.content_type == "application/json"


async def test_amounts_are_decimals_to_the_last_place(world: World) -> None:
    own = await world.organisation("own")
    rates = ("0.0870000001", "11.4", "1234567890.0000000001")
    for number, rate in enumerate(rates):
        await world.owner.execute(
            "insert into exchange_rates values ($1, $2, 'EUR', 'SEK', $3, 'bank')",
            *(own, date(2026, 3, 1 + number), Decimal(rate)),
        )
    key = {"Authorization": f"Bearer {world.keys['own']}"}
    async with world.client.get("/v1/rates?format=parquet", headers=key) as response:
        assert response.status == 200, await response.text()
        found = {row["day"]: row["rate"] for row in read(await response.read()).to_pylist()}
    assert [found[date(2026, 3, n)] for n in (1, 2, 3)] == [Decimal(rate) for rate in rates]


async def test_where_it_is_not_installed_it_is_refused_by_name_unless_something_else_will_do(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.organisation("own")
    monkeypatch.setattr(answers, "available", lambda: False)
    for path, headers in (("/sites?format=parquet", {}), ("/sites", ACCEPT)):
        status, problem = await world.ask(path, **headers)
        assert (status, problem["code"]) == (406, "format_not_installed")
        assert "parquet" in problem["explanation"]
    either = f"{parquet.MEDIA_TYPE}, application/json"
    assert (await world.get("/sites", Accept=either))["data"] == []
