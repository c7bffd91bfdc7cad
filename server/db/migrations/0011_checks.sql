-- Is the count right: what is looked at when, what was judged last, what is masked and why.

-- One row a site, for its counters together, and one a device; made with it. A worker takes what
-- is due (server.health.checks). daily_on: the local day whose look at the days is done. days: the
-- site's log ratios of the last days by ordinal day, which others are compared with.
create table health_checks (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    site_id int references sites on delete cascade,
    device_id int references devices on delete cascade,
    due_at timestamptz not null default now(),
    looked_at timestamptz,
    daily_on date,
    days jsonb not null default '{}',
    check (num_nonnulls(site_id, device_id) = 1),
    unique nulls not distinct (site_id, device_id)
) with (fillfactor = 70);
create index on health_checks (due_at);
create index on health_checks (organisation_id);

create function add_health_check() returns trigger language plpgsql security definer
set search_path = public as $$
begin
    if tg_table_name = 'sites' then
        insert into health_checks (organisation_id, site_id) values (new.organisation_id, new.id)
        on conflict (site_id, device_id) do nothing;
    else
        insert into health_checks (organisation_id, device_id) values (new.organisation_id, new.id)
        on conflict (site_id, device_id)
        do update set organisation_id = excluded.organisation_id;
    end if;
    return null;
end $$;
create trigger sites_check after insert on sites
    for each row execute function add_health_check();
create trigger devices_check after insert or update of organisation_id on devices
    for each row execute function add_health_check();
insert into health_checks (organisation_id, site_id) select organisation_id, id from sites;
insert into health_checks (organisation_id, device_id) select organisation_id, id from devices;

-- What was judged last of a condition of a site, device or spot. firing and since are as last
-- known: unknown changes neither; firing null: never known. withdrawn_at: somebody has declared it
-- false, so its masks are undone, and it does not fire until it has been clear once.
create table judgements (
    id bigint generated always as identity primary key,
    organisation_id int not null references organisations,
    site_id int references sites,
    device_id int references devices,
    spot_id int references spots,
    condition text not null,
    standing text not null check (standing in ('firing', 'clear', 'unknown')),
    firing boolean,
    since timestamptz not null,
    evidence jsonb not null default '{}',
    affected_from timestamptz,
    affected_until timestamptz,
    judged_at timestamptz not null,
    changed_at timestamptz not null,
    withdrawn_at timestamptz,
    withdrawn_by text not null default '',
    withdrawn_why text not null default '',
    check (num_nonnulls(site_id, device_id, spot_id) = 1),
    unique nulls not distinct (site_id, device_id, spot_id, condition)
) with (fillfactor = 70);
comment on column judgements.changed_at is 'when standing, firing or since changed last';
create index on judgements (organisation_id) where firing;
create index on judgements (changed_at);

-- Stretches of a spot's time whose counts are not true; see server.rollup.masks.
create table masks (
    id bigint generated always as identity primary key,
    organisation_id int not null references organisations,
    spot_id int not null references spots,
    condition text not null,
    from_at timestamptz not null,
    until_at timestamptz check (until_at >= from_at),
    set_at timestamptz not null,
    withdrawn_at timestamptz
);
comment on column masks.until_at is 'null: it goes on';
comment on column masks.withdrawn_at is 'it was declared false: what it masked is unmasked';
create index on masks (spot_id, from_at);
create unique index masks_goes_on on masks (spot_id, condition)
    where until_at is null and withdrawn_at is null;

-- The slots of 15 s of a quarter that lie in a stretch, in part too: bit 0 is the first.
create function masked_slots(bucket timestamptz, from_at timestamptz, until_at timestamptz)
returns bigint language sql immutable parallel safe as $$
    select case when from_at is null then null when high <= low then 0 else ((1::bigint << (high - low)) - 1) << low end
    from (select
        greatest(0, floor(extract(epoch from from_at - bucket) / 15))::int as low,
        least(60, ceil(extract(epoch from coalesce(until_at, bucket + interval '15 minutes')
            - bucket) / 15))::int as high) slots
$$;

call fence(array['health_checks', 'judgements', 'masks'], 'vestibule_ingest, vestibule_maint');
grant select on health_checks, judgements, masks
    to vestibule_api, vestibule_desk, vestibule_ingest, vestibule_maint;
grant update (due_at) on health_checks to vestibule_desk;
grant update (withdrawn_at, withdrawn_by, withdrawn_why) on judgements to vestibule_desk;
grant update on health_checks to vestibule_maint;
grant insert, update on judgements, masks to vestibule_maint;

update schema_compatibility set version = 11, compatible_from = 11;
