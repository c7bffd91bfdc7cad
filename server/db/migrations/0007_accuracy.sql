-- Recounts of counters, and sheets that follow from them.

-- People counted by a person, beside a counter. What the counter says of the same minutes is never
-- copied: it is read anew, so what came late or was read otherwise since is compared as it is.
create table recounts (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    spot_id int not null references spots,
    method text not null check (method in ('manual', 'video')),
    counted_by text not null,
    recorded_by text not null,
    recorded_at timestamptz not null,
    withdrawn_at timestamptz,
    send_key text,
    unique (organisation_id, send_key)
);
comment on column recounts.send_key is 'drawn by the page that counted: sent again, it is kept once';
create index on recounts (spot_id);

-- A quarter of an hour, as the counter keeps them.
create table recount_blocks (
    organisation_id int not null references organisations,
    recount_id int not null references recounts,
    from_at timestamptz not null
        check (from_at = date_bin('15 minutes', from_at, '2000-01-01T00:00:00Z')),
    entered int not null check (entered between 0 and 5000),
    departed int not null check (departed between 0 and 5000),
    primary key (recount_id, from_at)
);

call fence(array['recounts', 'recount_blocks']);
grant select on recounts, recount_blocks to vestibule_api, vestibule_desk;
grant insert on recounts, recount_blocks to vestibule_desk;
grant update (withdrawn_at) on recounts to vestibule_desk;

-- A technician's walk tests that were signed off, as what came out of them is kept with the sheet:
-- a recount that began with the installation.
create view my_walk_tests with (security_barrier) as
    select t.ref, t.spot_id, p.site_id, t.signed_off_by,
           to_timestamp((t.walk ->> 'begun_ms')::bigint / 1000.0) as from_at,
           to_timestamp((t.walk ->> 'until_ms')::bigint / 1000.0) as until_at,
           (t.walk #>> '{result,entered,walked}')::int as entered,
           (t.walk #>> '{result,left,walked}')::int as departed,
           (t.walk #>> '{result,entered,counted}')::int as counted_in,
           (t.walk #>> '{result,left,counted}')::int as counted_out
    from technician_claims t join spots p on p.id = t.spot_id
    where t.organisation_id = current_organisation() and t.signed_off_at is not null
      and t.walk #>> '{result,whole}' = 'true';
grant select on my_walk_tests to vestibule_api;

update schema_compatibility set version = 7, compatible_from = 7;
