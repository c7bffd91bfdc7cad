-- Presence: what each device's connection says, what happened, and whether anybody can tell.

-- One row a device, made with it. The session's columns are written by ingest as hellos, wills and
-- goodbyes arrive, the rest by whoever judges (server.health.watch) under the row's lock. A frame
-- of a device that is not healthy makes it due; of one that is, nothing is written.
create table presences (
    device_id int primary key references devices on delete cascade,
    organisation_id int not null references organisations,
    state text not null default 'never seen' check (state in ('healthy', 'no data',
        'no heartbeat', 'offline planned', 'offline', 'never seen')),
    since timestamptz not null default now(),
    session text not null default 'none' check (session in ('none', 'open', 'lost', 'left')),
    epoch bigint check (epoch between 0 and 4294967295),
    session_at timestamptz,
    reason text not null default '',
    until timestamptz,
    closed bigint[] not null default '{}',
    heartbeat_at timestamptz,
    data_at timestamptz,
    due_at timestamptz,
    noted_at timestamptz,
    judged_at timestamptz,
    heartbeat_s int not null default 2700 check (heartbeat_s between 60 and 604800),
    data_s int not null default 5400 check (data_s between 60 and 604800),
    agent text not null default '',
    boot_id bigint,
    ordinal bigint,
    check ((session = 'none') = (session_at is null))
) with (fillfactor = 70);
comment on column presences.closed is 'epochs that are over, the latest last: none opens again';
comment on column presences.due_at is 'when to look again, in the time of the watermark; null: never';
comment on column presences.noted_at is 'when ingest last asked for a look';
comment on column presences.agent is 'name and version, as its last hello said';
create index presences_due on presences (due_at) where due_at is not null;
create index presences_unwell on presences (device_id) where state <> 'healthy';
create index presences_lost on presences (session_at) where session = 'lost';
create index on presences (organisation_id, state);

-- What happened to a device: its connections and starts as they arrived, its states as judged.
create table device_events (
    id bigint generated always as identity primary key,
    organisation_id int not null references organisations,
    device_id int not null references devices,
    at timestamptz not null,
    kind text not null check (kind in ('connected', 'lost', 'goodbye', 'boot', 'version', 'state')),
    epoch bigint,
    state text not null default '',
    reason text not null default '',
    detail jsonb not null default '{}'
);
comment on column device_events.detail is 'what it was judged by, or what it said beside';
create index on device_events (device_id, at, id);
create index on device_events (at);

-- One row, once there is anything to say: what is heard of ourselves. watermark: everything said before it has been stored.
create table platform (
    singleton boolean primary key default true check (singleton),
    watermark timestamptz,
    moved_at timestamptz,
    broker_since timestamptz,
    broker_seen timestamptz
);
comment on column platform.broker_since is 'since when the broker has a new run, as ingest found it';
comment on column platform.broker_seen is 'the run that has been dealt with';

-- Stretches in which nobody could tell how the devices are; one is open at a time.
create table platform_unknown (
    id int generated always as identity primary key,
    since timestamptz not null,
    until timestamptz check (until >= since),
    cause text not null check (cause in ('behind', 'broker', 'uplink'))
);
create unique index platform_unknown_open on platform_unknown ((true)) where until is null;

create function add_presence() returns trigger language plpgsql security definer
set search_path = public as $$
begin
    insert into presences (device_id, organisation_id) values (new.id, new.organisation_id)
    on conflict (device_id) do update set organisation_id = excluded.organisation_id;
    return null;
end $$;
create trigger devices_presence after insert or update of organisation_id on devices
    for each row execute function add_presence();
insert into presences (device_id, organisation_id) select id, organisation_id from devices;

-- The broker sends no will of a device that it is told to throw out.
create function end_presence() returns trigger language plpgsql security definer
set search_path = public as $$
begin
    update presences set session = 'lost', session_at = new.state_since, reason = 'not admitted',
        until = null, closed = (closed || epoch)[greatest(1, cardinality(closed) - 14):],
        due_at = new.state_since, noted_at = null
    where device_id = new.id and session = 'open';
    return null;
end $$;
create trigger devices_thrown_out after update of state on devices
    for each row when (old.admitted and not new.admitted) execute function end_presence();

call fence(array['presences', 'device_events'], 'vestibule_ingest, vestibule_maint');
grant select on presences, device_events, platform, platform_unknown
    to vestibule_api, vestibule_desk, vestibule_ingest, vestibule_maint;
grant update on presences to vestibule_ingest, vestibule_maint;
grant update (heartbeat_s, data_s, due_at, noted_at) on presences to vestibule_desk;
grant insert on device_events to vestibule_ingest, vestibule_maint;
grant delete on device_events to vestibule_maint;
grant insert, update on platform to vestibule_ingest, vestibule_maint;
grant insert, update on platform_unknown to vestibule_maint;

update schema_compatibility set version = 10, compatible_from = 10;
