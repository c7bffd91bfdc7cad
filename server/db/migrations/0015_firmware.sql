-- New versions and how they reach devices: releases, rollouts with their waves, each device's
-- execution, what devices say that they run, and when nothing may change.

-- One approved version of one component, as its offline signed TUF target says. The operator's.
create table releases (
    id int generated always as identity primary key,
    ref text not null unique,
    component text not null check (component in ('agent', 'kiosk')),
    version text not null,
    floor text not null,
    requires text,
    target text not null unique,
    length bigint not null check (length > 0),
    sha256 text not null check (sha256 ~ '^[0-9a-f]{64}$'),
    hardware text[] not null check (cardinality(hardware) > 0),
    notes text not null default '',
    published_at timestamptz not null,
    withdrawn_at timestamptz,
    unique (component, version)
);
comment on column releases.floor is 'no version below it follows this one; at most its own';
comment on column releases.requires is 'the least version from which it may be installed';

-- Releases that are installed together, in this order.
create table bundles (
    id int generated always as identity primary key,
    ref text not null unique,
    name text not null unique,
    releases int[] not null check (cardinality(releases) between 1 and 8),
    created_at timestamptz not null
);

-- One change on its way to devices of one organisation (server.firmware.rollout). Its state is the
-- fold of rollout_events. fence: counts the leases; who holds an older number writes nothing.
-- tokens: offers that may be made at once, as of tokens_at. bytes: what one device fetches.
create table rollouts (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    name text not null,
    payload text not null check (payload in ('bundle', 'settings', 'questionnaire')),
    bundle_id int references bundles,
    content jsonb not null default '{}',
    bytes bigint not null default 0 check (bytes >= 0),
    policy jsonb not null,
    plan jsonb not null default '{}',
    state text not null default 'draft' check (state in ('draft', 'planned', 'awaiting approval',
        'scheduled', 'running', 'paused', 'halted', 'reverting', 'reverted', 'cancelling',
        'cancelled', 'completed', 'completed with stragglers')),
    since timestamptz not null,
    reason text not null default '',
    epoch int not null default 0 check (epoch >= 0),
    revert text not null default 'keep' check (revert in ('keep', 'revert failed', 'revert all')),
    devices int not null default 0,
    author text not null,
    approver text not null default '',
    approved_at timestamptz,
    starts_at timestamptz,
    due_at timestamptz,
    lease_until timestamptz,
    fence bigint not null default 0,
    tokens double precision not null default 0,
    tokens_at timestamptz,
    health_at timestamptz,
    counted jsonb not null default '{}',
    counted_at timestamptz,
    joiners_at timestamptz,
    reverses int references rollouts,
    check (payload <> 'bundle' or bundle_id is not null or reverses is not null)
) with (fillfactor = 70);
comment on column rollouts.epoch is 'how often somebody acknowledged what had failed, by resuming';
comment on column rollouts.revert is 'what the last halt wants taken back, and nobody has yet';
comment on column rollouts.counted is
    'by wave, what the guard by counts found last (server.firmware.watching)';
comment on column rollouts.joiners_at is 'when it was last looked for devices that join it';
create index rollouts_due on rollouts (due_at) where due_at is not null;
create index on rollouts (organisation_id, id);
create unique index rollouts_reverse on rollouts (reverses) where state not in ('cancelled');

-- Each transition of a rollout or of one of its waves, with the counters at that moment. Only ever
-- added to.
create table rollout_events (
    id bigint generated always as identity primary key,
    organisation_id int not null references organisations,
    rollout_id int not null references rollouts,
    at timestamptz not null,
    event text not null,
    actor text not null,
    reason text not null default '',
    counters jsonb not null,
    detail jsonb not null default '{}'
);
create index on rollout_events (rollout_id, id);
create index on rollout_events (organisation_id);

-- Number 0 is where stragglers are counted: devices whose wave had passed when they appeared. The
-- tail is who joined later. total: counters since the start; baseline: of them, acknowledged.
create table waves (
    rollout_id int not null references rollouts,
    number smallint not null check (number >= 0),
    organisation_id int not null references organisations,
    kind text not null default 'wave' check (kind in ('wave', 'stragglers', 'tail')),
    state text not null default 'pending'
        check (state in ('pending', 'open', 'soaking', 'passed', 'failed', 'skipped')),
    opened_at timestamptz,
    met_at timestamptz,
    size int not null default 0 check (size >= 0),
    total jsonb not null default '{}',
    baseline jsonb not null default '{}',
    primary key (rollout_id, number)
) with (fillfactor = 70);
create index on waves (organisation_id);

-- One device in one rollout (server.firmware.life). pool: the wave that it is counted in. due_at:
-- when to look at it again. releases: what it is to install in order, where that isn't the
-- rollout's bundle. epoch: the rollout's when it ended. tries: class of failure to how often.
create table executions (
    id bigint generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    rollout_id int not null references rollouts,
    wave smallint not null,
    pool smallint not null,
    device_id int not null references devices,
    site_id int references sites,
    spot_id int references spots,
    door_id int references doors,
    region_id int references regions,
    state text not null default 'planned' check (state in ('planned', 'excluded', 'offered',
        'accepted', 'downloading', 'ready', 'waiting window', 'waiting idle', 'installing',
        'rebooting', 'trial', 'confirmed', 'failed', 'reverted by device', 'timed out', 'lost',
        'rejected', 'superseded', 'cancelled', 'unreachable')),
    attempt int not null default 1 check (attempt > 0),
    seq int not null default 0,
    attempted boolean not null default false,
    epoch int not null default 0,
    due_at timestamptz,
    offered_at timestamptz,
    accepted_at timestamptz,
    phase_at timestamptz,
    deferred_at timestamptz,
    ended_at timestamptz,
    code text not null default '',
    class text not null default '',
    bytes bigint not null default 0,
    tries jsonb not null default '{}',
    releases int[],
    from_versions jsonb not null default '{}',
    excluded text not null default '',
    assigned_until timestamptz,
    settings jsonb,
    told bigint,
    shows int references questionnaires,
    shut boolean not null default false,
    unique (rollout_id, device_id),
    check ((ended_at is null) = (state in ('planned', 'offered', 'accepted', 'downloading', 'ready',
        'waiting window', 'waiting idle', 'installing', 'rebooting', 'trial')))
) with (fillfactor = 70);
comment on column executions.site_id is 'where the device stood when it was planned';
comment on column executions.attempted is 'it was accepted once';
comment on column executions.excluded is 'why it is not offered at all';
comment on column executions.assigned_until is
    'until when its device may begin by itself, as long as it has not said how that ended';
create index executions_assigned on executions (site_id) where assigned_until is not null;
comment on column executions.settings is
    'what it lays over a layer of its device, from its grant on: {scope, of, entries}';
comment on column executions.told is 'the version of settings in which the device was told so';
comment on column executions.shows is
    'the questionnaire that its kiosk shows besides what is published, from its grant on';
comment on column executions.shut is
    'it was put off at the last look: a freeze was on where its device stands, or no window soon';
create index executions_shut on executions (organisation_id, rollout_id) where shut;
create index executions_shows on executions (device_id) where shows is not null;
create index executions_settings on executions (organisation_id, device_id)
    where settings is not null;
create unique index executions_open on executions (device_id) where ended_at is null;
create index executions_waiting on executions (rollout_id, pool, due_at) where state = 'planned';
create index executions_due on executions (rollout_id, due_at) where state in ('offered', 'accepted',
    'downloading', 'ready', 'waiting window', 'waiting idle', 'installing', 'rebooting', 'trial');
create index executions_flying on executions (site_id) where state in ('offered', 'accepted',
    'downloading', 'ready', 'waiting window', 'waiting idle', 'installing', 'rebooting', 'trial');
create index on executions (rollout_id, state);
create index on executions (device_id, id);
create index on executions (organisation_id);

-- What devices said of executions, once each; at is the device's own time.
create table execution_reports (
    execution_id bigint not null references executions,
    attempt int not null check (attempt > 0),
    seq int not null check (seq > 0),
    organisation_id int not null references organisations,
    phase text not null,
    code text not null default '',
    class text not null default '',
    bytes bigint not null default 0,
    at timestamptz,
    heard_at timestamptz not null,
    detail jsonb not null default '{}',
    primary key (execution_id, attempt, seq)
);
create index on execution_reports (organisation_id);

-- What each device runs, as it last signed. components: name to {version, sha256, floor}; floors:
-- the highest floor of each component that was ever reported. nonce_given: ours, which its next
-- report answers; nonce_asked: its own, which our assignment bears.
create table device_firmware (
    device_id int primary key references devices,
    organisation_id int not null references organisations,
    hardware text not null default '',
    components jsonb not null default '{}',
    floors jsonb not null default '{}',
    slot text not null default '',
    nonce_given text not null default '',
    nonce_asked text not null default '',
    report bytea,
    reported_at timestamptz
) with (fillfactor = 70);
create index on device_firmware (organisation_id);

-- When nothing may change: in all of an organisation, or at the sites that a filter finds.
create table freezes (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    name text not null,
    starts_at timestamptz not null,
    ends_at timestamptz not null check (ends_at > starts_at),
    sites text not null default '',
    reason text not null,
    author text not null,
    created_at timestamptz not null,
    ended_at timestamptz,
    ended_by text not null default '',
    check ((ended_at is null) = (ended_by = ''))
);
comment on column freezes.sites is 'a filter of devices; empty: all';
create index on freezes (organisation_id, ends_at);

call fence(
    array['rollouts', 'rollout_events', 'waves', 'executions', 'execution_reports',
        'device_firmware', 'freezes'],
    'vestibule_ingest, vestibule_maint'
);
grant select on releases, bundles, rollouts, rollout_events, waves, executions, execution_reports,
    device_firmware, freezes to vestibule_api, vestibule_desk, vestibule_ingest, vestibule_maint;
grant insert, update (withdrawn_at) on releases to vestibule_desk, vestibule_maint;
grant insert on bundles to vestibule_desk, vestibule_maint;
grant insert, update on rollouts to vestibule_desk, vestibule_maint;
grant update on rollouts to vestibule_ingest;
grant insert on rollout_events to vestibule_desk, vestibule_ingest, vestibule_maint;
grant insert, update on waves to vestibule_desk, vestibule_maint;
grant update on waves to vestibule_ingest;
grant insert on executions to vestibule_desk, vestibule_maint;
grant update on executions to vestibule_desk, vestibule_ingest, vestibule_maint;
grant insert on execution_reports to vestibule_ingest;
grant insert, update on device_firmware to vestibule_ingest;
grant insert, update (name, starts_at, ends_at, sites, reason, ended_at, ended_by) on freezes
    to vestibule_desk;

-- A rollout of settings that is over: the layer itself says what it brought. Where it was cancelled,
-- devices keep as their own what they have of it: not what a nearer layer says, be it by another
-- rollout, nor what was of a site that they left. Of devices' own layers a later edit counts. Where
-- it was taken back, nothing of it is left.
create function settle_settings(rollout int, at timestamptz) returns void
language plpgsql security definer set search_path = public as $$
declare r rollouts;
begin
    select * into r from rollouts where id = rollout and payload = 'settings' and reverses is null
        and state in ('completed', 'completed with stragglers', 'cancelled', 'reverted');
    if r.state like 'completed%' and r.content ->> 'scope' <> 'device' then
        insert into settings_layers as l (organisation_id, scope, model, site_id, entries,
            changed_at)
        select r.organisation_id, r.content ->> 'scope',
               case r.content ->> 'scope' when 'model' then r.content ->> 'of' else '' end,
               case r.content ->> 'scope' when 'site' then (select id from sites
                   where organisation_id = r.organisation_id and ref = r.content ->> 'of') end,
               e.settings -> 'entries', at
        from executions e where e.rollout_id = r.id and e.settings is not null
        order by e.id limit 1
        on conflict (organisation_id, scope, model, site_id, device_id) do update
        set entries = l.entries || excluded.entries, version = l.version + 1,
            changed_at = excluded.changed_at;
    elsif r.state <> 'reverted' then
        insert into settings_layers as l (organisation_id, scope, device_id, entries, changed_at)
        select r.organisation_id, 'device', e.device_id, kept.entries, at
        from executions e join devices d on d.id = e.device_id
            and d.organisation_id = e.organisation_id
        left join lateral (
            select s.id, s.ref from assignments a join spots p on p.id = a.spot_id
            join sites s on s.id = p.site_id
            where a.device_id = e.device_id and a.valid @> at limit 1) w on true
        cross join lateral (
            select jsonb_object_agg(x.key, x.value) as entries
            from jsonb_each(e.settings -> 'entries') x
            where case e.settings ->> 'scope'
                when 'site' then w.ref = e.settings ->> 'of'
                when 'model' then d.model = e.settings ->> 'of' else true end
            and not exists (
                select from settings_layers n where n.organisation_id = r.organisation_id
                and n.entries ? x.key and case n.scope
                    when 'device' then n.device_id = e.device_id
                        and (e.settings ->> 'scope' <> 'device'
                            or (n.entries -> x.key ->> 'number')::bigint
                                > (x.value ->> 'number')::bigint)
                    when 'site' then n.site_id = w.id
                        and e.settings ->> 'scope' in ('model', 'organisation')
                    when 'organisation' then e.settings ->> 'scope' = 'model' end)
            and not exists (
                select from executions o where o.organisation_id = e.organisation_id
                and o.device_id = e.device_id and o.id <> e.id and o.settings is not null
                and o.settings -> 'entries' ? x.key
                and case o.settings ->> 'scope'
                    when 'device' then e.settings ->> 'scope' <> 'device'
                    when 'site' then o.settings ->> 'of' = w.ref
                        and e.settings ->> 'scope' in ('model', 'organisation')
                    when 'organisation' then e.settings ->> 'scope' = 'model' end)) kept
        where e.rollout_id = r.id and e.settings is not null and kept.entries is not null
        on conflict (organisation_id, scope, model, site_id, device_id) do update
        set entries = l.entries || excluded.entries, version = l.version + 1,
            changed_at = excluded.changed_at;
    end if;
    update executions set settings = null where rollout_id = r.id and settings is not null;
end $$;
-- The same of a questionnaire: it is published at the spots of those kiosks, unless it was retired.
create function settle_questionnaire(rollout int, at timestamptz) returns void
language sql security definer set search_path = public as $$
    select from questionnaires  -- who retires it does so before, or ends what is published here
    where id in (select shows from executions where rollout_id = rollout) for share;
    insert into publications (organisation_id, ref, questionnaire_id, site_id, spot_id,
        published_at)
    select r.organisation_id, 'publication-' || substr(md5(random()::text), 1, 16), e.shows,
           s.site_id, s.id, e.offered_at
    from rollouts r join executions e on e.rollout_id = r.id and e.shows is not null
    join questionnaires q on q.id = e.shows and q.retired_at is null
    join assignments a on a.device_id = e.device_id and a.valid @> at
    join spots s on s.id = a.spot_id and s.kind = 'kiosk'
        and s.organisation_id = r.organisation_id
    where r.id = rollout and r.state in ('completed', 'completed with stragglers', 'cancelled');
    update executions e set shows = null from rollouts r
    where r.id = rollout and e.rollout_id = r.id and e.shows is not null
      and r.state in ('completed', 'completed with stragglers', 'cancelled', 'reverted');
$$;
revoke all on function settle_settings, settle_questionnaire from public;
grant execute on function settle_settings, settle_questionnaire to vestibule_maint;

update schema_compatibility set version = 15, compatible_from = 15;
