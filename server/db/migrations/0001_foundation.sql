-- Foundation: organisations to assignments, cursors, hypertables, rollups, isolation.
--
-- Roles exist before (ops/services or ops/postgres/roles.sql): vestibule_owner runs this;
-- vestibule_ingest writes what devices send; vestibule_api reads one organisation at a time;
-- vestibule_maint derives rollups and drops old chunks. No foreign key points at a hypertable.

create extension if not exists btree_gist;

create function current_organisation() returns int language sql stable parallel safe as
$$ select nullif(current_setting('app.organisation', true), '')::int $$;

-- One row: which history this database tells. It changes after a restore, so consumers resync.
create table dataset (
    id bigint not null,
    singleton boolean primary key default true check (singleton),
    created_at timestamptz not null default now()
);

create table organisations (
    id int generated always as identity primary key,
    ref text not null unique,
    name text not null unique,
    created_at timestamptz not null default now()
);

create table api_keys (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    prefix text not null unique,
    secret_sha256 bytea not null check (octet_length(secret_sha256) = 32),
    scopes text[] not null default '{read}',
    note text not null default '',
    created_at timestamptz not null default now(),
    revoked_at timestamptz
);

create table sites (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    name text not null,
    time_zone text not null,
    currency text not null default 'EUR' check (currency ~ '^[A-Z]{3}$'),
    opens_on date,
    closes_on date,
    created_at timestamptz not null default now()
);
create index on sites (organisation_id);

-- Minutes after local midnight; closes above 1440 runs past midnight. No row: always open.
-- A site with rows is closed on a weekday (0 Monday) without one.
create table opening_hours (
    organisation_id int not null references organisations,
    site_id int not null references sites,
    weekday smallint not null check (weekday between 0 and 6),
    opens smallint not null check (opens between 0 and 1439),
    closes smallint not null check (closes > opens and closes <= 2880),
    primary key (site_id, weekday, opens)
);

-- A day's own hours instead of its weekday's; opens null: closed all day.
create table opening_exceptions (
    organisation_id int not null references organisations,
    site_id int not null references sites,
    day date not null,
    opens smallint check (opens between 0 and 1439),
    closes smallint check (closes > opens and closes <= 2880),
    note text not null default '',
    unique nulls not distinct (site_id, day, opens)
);

create table doors (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    site_id int not null references sites,
    ref text not null unique,
    name text not null
);
create index on doors (site_id);

create table spots (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    site_id int not null references sites,
    door_id int references doors,
    ref text not null unique,
    name text not null,
    kind text not null check (kind in ('counter', 'kiosk')),
    created_at timestamptz not null default now()
);
create index on spots (site_id);
create index on spots (organisation_id);

-- How raw counts of a physical line become visits; applied at query, named in the answer.
create table calibrations (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    spot_id int not null references spots,
    line smallint not null check (line between 0 and 3),
    valid tstzrange not null default tstzrange(null, null),
    reversed boolean not null default false,
    factor numeric(6, 4) not null default 1 check (factor > 0),
    reason text not null default '',
    created_at timestamptz not null default now(),
    exclude using gist (spot_id with =, line with =, valid with &&)
);

create table devices (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    device text not null unique check (device ~ '^[a-z0-9][a-z0-9-]{6,34}[a-z0-9]$'),
    kind text not null check (kind in ('counter', 'kiosk')),
    serial text not null default '',
    model text not null default '',
    state text not null default 'claimed'
        check (state in ('claimed', 'provisioned', 'in service', 'revoked')),
    assignment_version int not null default 0,
    enrolled_at timestamptz,
    created_at timestamptz not null default now()
);
comment on column devices.assignment_version is
    'raised with each edit of its assignments, here and in its boots: what was placed before fails';
create index on devices (organisation_id);

-- Which device stood at which spot when. Counts belong to the spot at the reading's time.
create table assignments (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    device_id int not null references devices,
    spot_id int not null references spots,
    valid tstzrange not null check (not isempty(valid)),
    created_at timestamptz not null default now(),
    exclude using gist (device_id with =, valid with &&),
    exclude using gist (spot_id with =, valid with &&)
);

-- Audited leave to store counts from before a device's usual window: imports and replays.
create table backfill_grants (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    spot_id int not null references spots,
    valid tstzrange not null check (not isempty(valid)),
    reason text not null,
    granted_by text not null,
    created_at timestamptz not null default now()
);
create index on backfill_grants (spot_id);

-- A one-time right to enrol one device; repeated by the same key it answers the same.
create table claims (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    device_id int not null references devices,
    secret_sha256 bytea not null unique check (octet_length(secret_sha256) = 32),
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    used_at timestamptz,
    spki_sha256 bytea
);

-- Recorded before it is signed: `chain` is filled afterwards.
create table certificates (
    serial text primary key,
    organisation_id int not null references organisations,
    device_id int not null references devices,
    spki_sha256 bytea not null,
    recorded_at timestamptz not null default now(),
    not_after timestamptz,
    chain text,
    revoked_at timestamptz
);
create index on certificates (device_id);

-- The cursor of a boot: frames below next_seq are stored. Never lost, so nothing delayed becomes
-- new again: what has ended moves to closed_boots. boot_id is the wire's u64 as a signed bigint.
-- totals: in, out by line; answers: flat (question, answer, total); totals_open: a frame since
-- them could not be read.
create table boots (
    id int generated always as identity primary key,
    device_id int not null references devices,
    boot_id bigint not null,
    ordinal bigint not null,
    next_seq bigint not null default 0,
    digest bigint not null default 0,
    stored_to timestamptz,
    quality smallint not null default 0,
    offset_ms bigint,
    totals bigint[] not null default '{0,0,0,0,0,0,0,0}',
    answers bigint[] not null default '{}',
    totals_open boolean not null default false,
    assignment_version int not null default 0,
    first_seen timestamptz not null default now(),
    last_stored timestamptz,
    unique (device_id, boot_id)
) with (fillfactor = 50);

-- Boots that have ended, under the id that their rows name: all that is needed to answer for one,
-- and to go on with it. totals without the lines that never counted; null: none, as for answers.
create table closed_boots (
    id int not null,
    device_id int not null references devices,
    boot_id bigint not null,
    ordinal bigint not null,
    next_seq bigint not null,
    digest bigint not null,
    stored_to timestamptz,
    first_seen timestamptz not null,
    offset_ms bigint,
    quality smallint not null,
    totals_open boolean not null,
    totals bigint[],
    answers bigint[],
    primary key (device_id, boot_id)
);

-- Every boot there ever was, once: for what looks back further than boots do.
create view all_boots as
    select id, device_id, boot_id, ordinal, next_seq, digest, stored_to, quality, offset_ms,
           totals, answers, totals_open, first_seen, false as closed
    from boots
    union all
    select id, device_id, boot_id, ordinal, next_seq, digest, stored_to, quality, offset_ms,
           coalesce(totals, '{}')
               || array_fill(0::bigint, array[8 - coalesce(cardinality(totals), 0)]),
           coalesce(answers, '{}'), totals_open, first_seen, true
    from closed_boots;

-- Frames whose time is not known, or not to be believed; placed when it is.
create table undated_frames (
    boot int not null references boots,
    seq bigint not null,
    reason text not null check (reason in ('undated', 'wild clock')),
    received_at timestamptz not null default now(),
    frame bytea not null,
    primary key (boot, seq)
);

-- What is known to be missing. counts: in, out by line that the range covered (unplaced);
-- answers: flat (question, answer, presses). filled_at: a re-drive has filled it.
create table gaps (
    id bigint generated always as identity primary key,
    organisation_id int not null references organisations,
    device_id int not null references devices,
    boot int not null references boots,
    spot_id int references spots,
    from_seq bigint not null,
    to_seq bigint not null,
    from_at timestamptz,
    until_at timestamptz,
    reason text not null
        check (reason in ('thinned', 'rotted', 'forgotten', 'quarantined', 'totals')),
    counts bigint[] not null default '{0,0,0,0,0,0,0,0}',
    answers bigint[] not null default '{}',
    recorded_at timestamptz not null default now(),
    filled_at timestamptz
);
create index on gaps (spot_id, from_at);
create index on gaps (boot, from_seq);

-- What was seen and should not have been: another digest, another shard, a cloned boot ...
-- boot may be a closed one, so it refers to no table.
create table findings (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    device_id int references devices,
    boot int,
    seq bigint,
    finding text not null,
    detail jsonb not null default '{}'
);
create index on findings (device_id, at);

-- Raw counts: one row per frame and line, the intervals' in, out, in, out ... as an array.
-- time is the first interval's start; the row observed [time + lead, time + lead + span).
-- line -1: no counts, a kiosk's frame observed that stretch.
create table readings (
    time timestamptz not null,
    spot int not null,
    boot int not null,
    seq int not null,
    digest int not null,
    lead_ms int not null,
    span_ms int not null,
    line smallint not null,
    interval_s smallint not null,
    counts smallint[] not null
);
select create_hypertable('readings', by_range('time', interval '7 days'), create_default_indexes => false);
create index readings_spot_time on readings (spot, time);

create table presses (
    time timestamptz not null,
    questionnaire bigint not null,
    spot int not null,
    boot int not null,
    seq int not null,
    digest int not null,
    visit int not null,
    question smallint not null,
    answer smallint not null,
    source smallint not null
);
select create_hypertable('presses', by_range('time', interval '30 days'), create_default_indexes => false);
create index presses_spot_time on presses (spot, time);

create table metric_names (
    id smallint generated always as identity primary key,
    name text not null unique,
    introduced_by int references devices -- who sent it first: each may bring so many
);

create table device_metrics (
    time timestamptz not null,
    device int not null,
    boot int not null,
    seq int not null,
    digest int not null,
    metric smallint not null,
    value double precision not null
);
select create_hypertable('device_metrics', by_range('time', interval '7 days'), create_default_indexes => false);
create index device_metrics_device_time on device_metrics (device, metric, time);

-- Bytes that could not be read, by the device that sent them. gap: the range it left open.
create table quarantine (
    received_at timestamptz not null default now(),
    id bigint generated always as identity,
    device text not null,
    boot int,
    seq bigint,
    reason smallint not null,
    detail text not null default '',
    frame bytea not null,
    gap bigint,
    redriven_at timestamptz
);
select create_hypertable('quarantine', by_range('received_at', interval '30 days'), create_default_indexes => false);
create index quarantine_id on quarantine (id);

-- 15 minutes, written with the readings. Raw counts by physical line; observed is a mask of
-- 60 slots of 15 s; resolution is the coarsest reading interval in it; revision counts the
-- transactions that changed it after it was complete; origin 1 is import; masked are the slots that
-- a fault has made untrue (masks says which), null: none. Coverage leaves them out, counts stay.
-- A batch updates whole pages at once, so room for a second copy of each row keeps the index still.
create table rollup_15m (
    bucket timestamptz not null,
    observed bigint not null default 0,
    spot int not null,
    in0 int, out0 int, in1 int, out1 int, in2 int, out2 int, in3 int, out3 int,
    revision int not null default 0,
    resolution_s smallint not null,
    origin smallint not null default 0,
    masked bigint
) with (fillfactor = 50);
select create_hypertable('rollup_15m', by_range('bucket', interval '90 days'), create_default_indexes => false);
create unique index rollup_15m_key on rollup_15m (spot, bucket);

create table presses_15m (
    bucket timestamptz not null,
    questionnaire bigint not null,
    spot int not null,
    presses int not null,
    revision int not null default 0,
    question smallint not null,
    answer smallint not null
) with (fillfactor = 70);
select create_hypertable('presses_15m', by_range('bucket', interval '90 days'), create_default_indexes => false);
create unique index presses_15m_key on presses_15m (spot, bucket, questionnaire, question, answer);

-- Derived off the hot path from the 15-minute rows that rollup_dirty names. observed_s is without
-- masked_s, the observed seconds that are masked (null: none).
create table rollup_hour (
    bucket timestamptz not null,
    spot int not null,
    in0 int, out0 int, in1 int, out1 int, in2 int, out2 int, in3 int, out3 int,
    observed_s smallint not null,
    revision int not null,
    resolution_s smallint not null,
    origin smallint not null default 0,
    masked_s smallint
);
select create_hypertable('rollup_hour', by_range('bucket', interval '365 days'), create_default_indexes => false);
create unique index rollup_hour_key on rollup_hour (spot, bucket);

-- A local day of the spot's site: all hours, and the opening hours alone.
create table rollup_day (
    day date not null,
    spot int not null,
    in0 int, out0 int, in1 int, out1 int, in2 int, out2 int, in3 int, out3 int,
    open_in0 int, open_out0 int, open_in1 int, open_out1 int,
    open_in2 int, open_out2 int, open_in3 int, open_out3 int,
    observed_s int not null,
    open_observed_s int not null,
    revision int not null,
    resolution_s smallint not null,
    origin smallint not null default 0,
    masked_s int
);
select create_hypertable('rollup_day', by_range('day', interval '730 days'), create_default_indexes => false);
create unique index rollup_day_key on rollup_day (spot, day);

create table presses_day (
    day date not null,
    questionnaire bigint not null,
    spot int not null,
    presses int not null,
    open_presses int not null,
    revision int not null,
    question smallint not null,
    answer smallint not null
);
select create_hypertable('presses_day', by_range('day', interval '730 days'), create_default_indexes => false);
create unique index presses_day_key on presses_day (spot, day, questionnaire, question, answer);

-- One row per writing transaction; the deriver takes them in order and deletes what it did.
create table rollup_dirty (
    id bigint generated always as identity primary key,
    spots int[] not null,
    buckets timestamptz[] not null
);

-- Sites whose opening hours or zone changed: the deriver computes their days anew.
create table rollup_stale (
    site_id int primary key references sites
);

create function mark_site_stale() returns trigger language plpgsql security definer
set search_path = public as $$
begin
    insert into rollup_stale (site_id)
    select case tg_table_name when 'sites' then (to_jsonb(changed) ->> 'id')::int
                else (to_jsonb(changed) ->> 'site_id')::int end
    from (select coalesce(new, old) as changed) x
    on conflict (site_id) do update set site_id = excluded.site_id; -- locks: see the deriver
    return null;
end $$;
create trigger opening_hours_stale after insert or update or delete on opening_hours
    for each row execute function mark_site_stale();
create trigger opening_exceptions_stale after insert or update or delete on opening_exceptions
    for each row execute function mark_site_stale();
create trigger sites_stale after update of time_zone, opens_on, closes_on on sites
    for each row execute function mark_site_stale();

create table questionnaires (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    hash bigint not null,
    name text not null,
    definition jsonb not null,
    unique (organisation_id, hash)
);

-- Sales from the tills. at is the till's own time; amounts are ex VAT in the site's currency.
create table transactions (
    id bigint generated always as identity primary key,
    organisation_id int not null references organisations,
    site_id int not null references sites,
    transaction_ref text not null,
    at timestamptz not null,
    kind text not null default 'sale' check (kind in ('sale', 'return', 'pickup', 'void')),
    amount numeric(14, 2) not null,
    units int not null default 1,
    unique (site_id, transaction_ref)
);
create index on transactions (site_id, at);

-- Which transactions count as sales, everywhere: above 0 with one unit or more; no void, no return,
-- no pick-up of what was paid before. In a query it is worked out in place, not called.
create function counts_as_sale(kind text, amount numeric, units int) returns boolean
language sql immutable parallel safe as $$ select kind = 'sale' and amount > 0 and units > 0 $$;

-- The oldest server release that may still run on this schema.
create table schema_compatibility (
    singleton boolean primary key default true check (singleton),
    version int not null,
    compatible_from int not null
);
insert into schema_compatibility (version, compatible_from) values (1, 1);

-- A row per interval and line for SQL users; a bare view would exclude no chunk.
create function readings_between(wanted_spot int, from_at timestamptz, until_at timestamptz)
returns table (at timestamptz, spot int, line smallint, entered smallint, left_ smallint,
               interval_s smallint, boot int, seq int)
language sql stable parallel safe as $$
    select r.time + make_interval(secs => r.interval_s * (n - 1)::float8), r.spot, r.line,
           r.counts[2 * n - 1], r.counts[2 * n], r.interval_s, r.boot, r.seq
    from readings r, generate_series(1, cardinality(r.counts) / 2) n
    where r.spot = wanted_spot
      and r.time > from_at - interval '1 day' and r.time < until_at
      and r.time + make_interval(secs => r.interval_s * (n - 1)::float8) >= from_at
      and r.time + make_interval(secs => r.interval_s * (n - 1)::float8) < until_at
$$;

-- Isolation. Plain tables: row-level security. Hypertables: views only, since chunks inherit
-- grants but not policies.
do $$
declare t text;
begin
    foreach t in array array['organisations', 'api_keys', 'sites', 'opening_hours',
        'opening_exceptions', 'doors', 'spots', 'calibrations', 'devices', 'assignments',
        'backfill_grants', 'claims', 'certificates', 'gaps', 'questionnaires', 'transactions']
    loop
        execute format('alter table %I enable row level security', t);
        execute format(
            'create policy own on %I to vestibule_api using (%s = current_organisation())', t,
            case t when 'organisations' then 'id' else 'organisation_id' end);
        execute format('create policy every on %I to vestibule_ingest, vestibule_maint using (true)', t);
    end loop;
end $$;

grant usage on schema public to vestibule_ingest, vestibule_api, vestibule_maint;

grant select on organisations, sites, opening_hours, opening_exceptions, doors, spots,
    calibrations, devices, assignments, backfill_grants, gaps, questionnaires, transactions,
    dataset, schema_compatibility to vestibule_api;
grant select (id, name) on metric_names to vestibule_api;

grant select on all tables in schema public to vestibule_ingest;
grant insert on readings, presses, device_metrics, quarantine, rollup_dirty, findings,
    metric_names, certificates to vestibule_ingest;
grant insert, update on boots, gaps, rollup_15m, presses_15m to vestibule_ingest;
grant insert, update, delete on undated_frames, closed_boots to vestibule_ingest;
grant delete on boots to vestibule_ingest; -- into closed_boots, in one statement
grant update on readings, presses to vestibule_ingest;
grant update on claims, devices, certificates, quarantine to vestibule_ingest;
grant delete on rollup_15m, presses_15m, readings, presses to vestibule_ingest;

grant select on all tables in schema public to vestibule_maint;
grant insert, update, delete on rollup_hour, rollup_day, presses_day, rollup_15m, presses_15m
    to vestibule_maint;
grant select, insert, delete, update on rollup_dirty, rollup_stale to vestibule_maint;
grant update on dataset to vestibule_maint;

do $$
declare t text;
begin
    foreach t in array array['readings', 'presses', 'rollup_15m', 'presses_15m', 'rollup_hour',
        'rollup_day', 'presses_day']
    loop
        execute format(
            'create view my_%1$s with (security_barrier) as select r.*, s.site_id from %1$s r '
            'join spots s on s.id = r.spot where s.organisation_id = current_organisation()', t);
        execute format('grant select on my_%s to vestibule_api', t);
    end loop;
end $$;

create view my_boots with (security_barrier) as
    select b.id, b.device_id, b.next_seq, b.stored_to, b.quality, b.first_seen, b.last_stored
    from boots b join devices d on d.id = b.device_id
    where d.organisation_id = current_organisation();
create view my_undated with (security_barrier) as
    select b.device_id, u.boot, u.seq, u.reason, u.received_at
    from undated_frames u join boots b on b.id = u.boot join devices d on d.id = b.device_id
    where d.organisation_id = current_organisation();
create view my_device_metrics with (security_barrier) as
    select m.time, m.device, n.name, m.value
    from device_metrics m join metric_names n on n.id = m.metric
    join devices d on d.id = m.device
    where d.organisation_id = current_organisation();
create view my_rollup_dirty with (security_barrier) as
    select d.spot, d.bucket
    from (select unnest(spots) as spot, unnest(buckets) as bucket from rollup_dirty) d
    join spots s on s.id = d.spot where s.organisation_id = current_organisation();
create view my_rollup_stale with (security_barrier) as
    select r.site_id from rollup_stale r join sites s on s.id = r.site_id
    where s.organisation_id = current_organisation();
grant select on my_boots, my_undated, my_device_metrics, my_rollup_dirty, my_rollup_stale
    to vestibule_api;

insert into dataset (id) values ((random() * 9e18)::bigint);

-- Who holds the key with this prefix: asked before any organisation is known.
create function api_key_holder(wanted text)
returns table (organisation_id int, secret_sha256 bytea, scopes text[])
language sql stable security definer set search_path = public as $$
    select k.organisation_id, k.secret_sha256, k.scopes
    from api_keys k where k.prefix = wanted and k.revoked_at is null
$$;
revoke all on function api_key_holder(text) from public;
grant execute on function api_key_holder(text) to vestibule_api;
