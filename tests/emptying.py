"""A migrated database that is used again: emptied, its schema proved to be as it was.

Truncating every table takes a third of a second, making a database one or two; most tests write to
a few tables only. What is deleted fires no trigger, as what is truncated would not.
"""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from ops.services.endpoints import ROLES
from ops.services.stack import Stack

KEPT = ("dataset", "schema_compatibility", "alembic_version")
"""What migrating wrote."""

_EMPTY = f"""
do $$
declare
    name text;
    chunked bool;
    used bool;
begin
    set local session_replication_role = replica;
    for name, chunked in
        select c.relname, h.id is not null from pg_class c
        left join _timescaledb_catalog.hypertable h
            on h.schema_name = 'public' and h.table_name = c.relname
        where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
            and not c.relname = any ('{{{",".join(KEPT)}}}')
            and case when h.id is null then pg_relation_size(c.oid) > 0  -- it ever held a row
                else exists (select from _timescaledb_catalog.chunk where hypertable_id = h.id) end
    loop
        if chunked then
            execute format('truncate public.%I', name);
        else
            execute format('select exists (select from public.%I)', name) into used;
            if used then
                execute format('delete from public.%I', name);
            end if;
        end if;
    end loop;
    perform setval(format('%I.%I', schemaname, sequencename)::regclass, start_value, false)
        from pg_sequences where schemaname = 'public' and last_value is not null;
end $$
"""

_SCHEMA = """
select md5(concat_ws('/',
    (select string_agg(concat_ws(' ', oid, relname, relacl, relrowsecurity, reloptions, relowner,
        relhastriggers, relnatts), ',' order by oid)
        from pg_class where relnamespace = 'public'::regnamespace),
    (select string_agg(concat_ws(' ', attrelid, attnum, attname, atttypid, attnotnull, attacl),
        ',' order by attrelid, attnum) from pg_attribute a join pg_class c on c.oid = a.attrelid
        where c.relnamespace = 'public'::regnamespace),
    (select string_agg(concat_ws(' ', oid, proname, proacl, prosrc, proconfig), ',' order by oid)
        from pg_proc where pronamespace = 'public'::regnamespace),
    (select string_agg(concat_ws(' ', oid, conname, convalidated), ',' order by oid)
        from pg_constraint where connamespace = 'public'::regnamespace),
    (select string_agg(concat_ws(' ', t.oid, tgname, tgenabled), ',' order by t.oid)
        from pg_trigger t join pg_class c on c.oid = tgrelid
        where c.relnamespace = 'public'::regnamespace),
    (select string_agg(concat_ws(' ', oid, polname, polroles, polqual, polwithcheck),
        ',' order by oid) from pg_policy),
    (select string_agg(concat_ws(' ', nspname, nspacl), ',' order by nspname) from pg_namespace
        where nspname !~ '^pg_(toast_)?temp_'),
    (select string_agg(concat_ws(' ', datconnlimit, datallowconn, datacl), ',') from pg_database
        where datname = current_database()),
    (select string_agg(concat_ws(' ', setrole, setconfig), ',' order by setrole)
        from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase
        where d.datname = current_database()),
    (select string_agg(concat_ws(' ', job_id, proc_name, schedule_interval, scheduled, config),
        ',' order by job_id) from timescaledb_information.jobs),
    (select string_agg(d::text, ',') from dataset d),
    (select string_agg(s::text, ',') from schema_compatibility s),
    (select string_agg(v::text, ',') from alembic_version v)))
"""

# the scheduler, which each database gets in time, holds nothing and comes back if it is ended
_OTHERS = (
    "from pg_stat_activity where datname = '{name}' and usename ~ '^vestibule_' and pid <> {own} "
    "and application_name is distinct from 'TimescaleDB Background Worker Scheduler'"
)


@dataclass(frozen=True, slots=True)
class Emptied:
    """A database without rows, and the digest of its schema."""

    name: str
    schema: str


async def copied(stack: Stack, migrated: str) -> Emptied:
    """Make a database as `migrated` is."""
    name = f"test_{secrets.token_hex(6)}"
    stack.postgres.create_database(name, template=migrated)
    # to pass over triggers and references, as only a superuser may
    stack.postgres.execute(f"grant set on parameter session_replication_role to {ROLES['owner']}")
    async with _owning(stack, name) as owner:
        return Emptied(name, await owner.fetchval(_SCHEMA))


def left_for_good(stack: Stack, name: str) -> None:
    """Drop a database at a run's end, if its stack outlives the run; else it goes with it."""
    if os.environ.get("VESTIBULE_TEST_STACK"):
        stack.postgres.drop_database(name)


async def left_empty(stack: Stack, had: Emptied) -> bool:
    """Empty what a test leaves, whoever holds it; False if it cannot be what it was."""
    try:
        async with _owning(stack, had.name) as owner:
            others = _OTHERS.format(name=had.name, own=owner.get_server_pid())
            if await owner.fetchval(f"select exists (select {others})"):
                stack.postgres.execute(f"select pg_terminate_backend(pid, 5000) {others}")
            if await owner.fetchval(_SCHEMA) != had.schema:
                return False
            await empty(owner)
            return True
    except asyncpg.PostgresError:  # what the test has taken away
        return False


async def empty(owner: asyncpg.Connection) -> None:
    """Leave no row of a test in the database, and let each number begin anew."""
    await owner.execute(_EMPTY)


@asynccontextmanager
async def _owning(stack: Stack, name: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(stack.endpoints.dsn("owner", name))
    try:
        yield connection
    finally:
        await connection.close()
