-- Segments: devices that somebody has named, as a filter (live) or as they were one day (snapshot);
-- and versions in their order.

-- What versions are compared by, as server.fleet.versions says: of `name 2.4.1-rc1` four numbers, a
-- rank and its number. Null: there is none.
create function version_key(agent text) returns int[]
language sql immutable strict parallel safe as $$
    select array[split_part(n, '.', 1), split_part(n, '.', 2), split_part(n, '.', 3),
                 split_part(n, '.', 4)]::text[]::int[]
           || case coalesce(m[2], '') when '' then 4 when 'dev' then 0 when 'a' then 1
                  when 'alpha' then 1 when 'b' then 2 when 'beta' then 2 else 3 end
           || coalesce(m[3], '0')::int
    from (select m, m[1] || repeat('.0', 3 - length(m[1]) + length(replace(m[1], '.', '')))
          from regexp_match(substring(lower(btrim(agent)) from '[^ /]*$'),
              '^v?(\d{1,9}(?:\.\d{1,9}){0,3})(?:[-.]?(dev|alpha|a|beta|b|rc)[-.]?(\d{1,9})?)?'
              '(?:\+[0-9a-z.-]*)?$') m where m is not null) found (m, n)
$$;

-- live: whichever devices the filter finds when it is used; snapshot: those it found at taken_at.
create table segments (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    name text not null,
    filter text not null,
    follows text not null check (follows in ('live', 'snapshot')),
    created_at timestamptz not null,
    created_by text not null,
    taken_at timestamptz check ((taken_at is null) = (follows = 'live')),
    unique (organisation_id, name)
);
create table segment_devices (
    segment_id int not null references segments on delete cascade,
    device_id int not null references devices,
    organisation_id int not null references organisations,
    primary key (segment_id, device_id)
);
create index on segment_devices (device_id);

call fence(array['segments', 'segment_devices'], 'vestibule_ingest, vestibule_maint');
grant select on segments, segment_devices
    to vestibule_api, vestibule_desk, vestibule_ingest, vestibule_maint;
grant insert, delete on segments, segment_devices to vestibule_desk;

-- When credentials end is searched by.
grant select (device_id, organisation_id, state, not_after) on certificates to vestibule_api;

-- An organisation's devices in the order of pages, and from places to what stands there and back.
create index on devices (organisation_id, device);
create index on presences (organisation_id, agent);
create index on assignments (spot_id);
create index on assignments (device_id);
grant select on my_device_metrics to vestibule_desk;

update schema_compatibility set version = 14, compatible_from = 14;
