-- Episodes of what is wrong, incidents that they are part of, who is told, and why nobody was.

-- How each condition of each subject stands, as far as it must be remembered: what fires, is open,
-- or fired lately. from_at: since when it stands so, as far as that was known; noted_at: when it
-- was first judged so; due_at: when to look again. Rows of what is well and quiet are deleted.
create table standings (
    subject text not null check (subject in ('platform', 'site', 'device', 'spot')),
    subject_id int not null check ((subject_id = 0) = (subject = 'platform')),
    condition text not null,
    organisation_id int references organisations,
    site_id int references sites,
    standing text not null check (standing in ('firing', 'clear', 'unknown')),
    judged_at timestamptz not null,
    noted_at timestamptz not null,
    from_at timestamptz not null,
    since timestamptz,
    cleared boolean not null,
    fired timestamptz[] not null default '{}',
    episode_id bigint,
    evidence jsonb not null default '{}',
    affected_from timestamptz,
    affected_until timestamptz,
    due_at timestamptz,
    primary key (subject, subject_id, condition)
);
create index standings_due on standings (due_at) where due_at is not null;
create index standings_firing on standings (subject, condition) where standing = 'firing';

-- What open episodes have in common: one condition at one site, or what explains them. told: the
-- episodes of the last message; look_at: when to decide again; decided: what was decided last.
-- stake: people who will not be counted today if nothing is done; stake_of: what that is made of.
create table incidents (
    id bigint generated always as identity primary key,
    organisation_id int references organisations,
    ref text not null unique,
    key text not null,
    subject text not null check (subject in ('platform', 'site', 'device', 'spot')),
    subject_id int not null,
    condition text not null,
    severity text not null check (severity in ('critical', 'major', 'minor', 'info')),
    site_id int references sites,
    device_id int references devices,
    spot_id int references spots,
    state text not null default 'open' check (state in ('open', 'resolved', 'merged')),
    since timestamptz not null,
    opened_at timestamptz not null,
    ended_at timestamptz check ((ended_at is null) = (state = 'open')),
    merged_into bigint references incidents,
    ready_at timestamptz not null,
    told_at timestamptz,
    told bigint[] not null default '{}',
    steps int not null default 0,
    look_at timestamptz,
    decided text not null default '',
    owner text not null default '',
    due_at timestamptz,
    stake double precision not null default 0,
    stake_of jsonb not null default '{}'
);
create unique index incidents_open on incidents (key) where state = 'open';
create index incidents_look on incidents (look_at) where state = 'open';
create index on incidents (organisation_id, id);

-- An episode: one condition of one subject, from when it opened until it resolved.
create table episodes (
    id bigint generated always as identity primary key,
    organisation_id int references organisations,
    incident_id bigint references incidents,
    subject text not null check (subject in ('platform', 'site', 'device', 'spot')),
    subject_id int not null,
    condition text not null,
    site_id int references sites,
    device_id int references devices,
    spot_id int references spots,
    since timestamptz not null,
    opened_at timestamptz not null,
    resolved_at timestamptz,
    resolved text not null default '' check (resolved in ('', 'clear', 'left')),
    times int not null default 1,
    held boolean not null default false,
    suppressed text not null default ''
        check (suppressed in ('', 'inhibited', 'maintenance', 'visit')),
    suppressed_by text not null default '',
    suppressed_until timestamptz,
    acknowledged_by text not null default '',
    acknowledged_at timestamptz,
    acknowledged_until timestamptz,
    evidence jsonb not null default '{}',
    affected_from timestamptz,
    affected_until timestamptz,
    check ((resolved_at is null) = (resolved = ''))
);
create unique index episodes_open on episodes (subject, subject_id, condition)
    where resolved_at is null;
create index on episodes (incident_id);
create index on episodes (organisation_id, opened_at);
create index episodes_device on episodes (device_id, opened_at);

-- Why somebody was told, or nobody: each decision that differs from the one before.
create table incident_decisions (
    id bigint generated always as identity primary key,
    organisation_id int references organisations,
    incident_id bigint not null references incidents on delete cascade,
    at timestamptz not null,
    decision text not null,
    why text not null,
    about text not null default '',
    until timestamptz,
    detail jsonb not null default '{}'
);
comment on column incident_decisions.about is 'the contact, window or incident that it has to do with';
create index on incident_decisions (incident_id, id);
create index on incident_decisions (at);

create table incident_comments (
    id bigint generated always as identity primary key,
    organisation_id int not null references organisations,
    incident_id bigint not null references incidents on delete cascade,
    at timestamptz not null,
    author text not null,
    words text not null
);
create index on incident_comments (incident_id, id);

-- What an organisation wants otherwise than server.health.rules has it: the latest version holds.
create table health_rules (
    organisation_id int not null references organisations,
    version int not null check (version > 0),
    content jsonb not null,
    made_at timestamptz not null,
    made_by text not null,
    primary key (organisation_id, version)
);

-- Silence: maintenance somewhere, or somebody who is there. It always ends.
create table health_windows (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    kind text not null check (kind in ('maintenance', 'visit')),
    reason text not null,
    author text not null,
    region_id int references regions,
    site_id int references sites,
    device_id int references devices,
    starts_at timestamptz not null,
    ends_at timestamptz not null check (ends_at > starts_at),
    ended_at timestamptz,
    ended_by text not null default '',
    check (num_nonnulls(region_id, site_id, device_id) <= 1)
);
create index on health_windows (organisation_id, ends_at);

-- Who is told, from which severity on, and when. Without an organisation: who runs the platform.
-- from_min and until_min are minutes of the day by time_zone; both 0: always.
create table health_contacts (
    id int generated always as identity primary key,
    organisation_id int references organisations,
    ref text not null unique,
    name text not null,
    email text not null,
    severity text not null check (severity in ('critical', 'major', 'minor', 'info')),
    time_zone text not null,
    weekdays smallint[] not null,
    from_min smallint not null check (from_min between 0 and 1439),
    until_min smallint not null check (until_min between 0 and 1440),
    digest boolean not null default false,
    created_at timestamptz not null
);
create index on health_contacts (organisation_id);

-- The outbox of mail: one row a message, made in the transaction that decided it. dedupe says which
-- message it is, at every try. next_at: when it is tried next; null: sent, dead, or dropped.
create table notices (
    id bigint generated always as identity primary key,
    organisation_id int references organisations,
    incident_id bigint references incidents on delete cascade,
    contact_id int not null references health_contacts on delete cascade,
    dedupe text not null unique,
    subject text not null,
    body text not null,
    queued_at timestamptz not null,
    next_at timestamptz,
    tries int not null default 0,
    trouble text not null default '',
    sent_at timestamptz,
    dead_at timestamptz
);
create index on notices (next_at) where next_at is not null;
create index on notices (incident_id);

-- People whom a counter usually counts in each hour of a local day: what is at stake while it fails.
create table usual_visits (
    spot_id int primary key references spots,
    organisation_id int not null references organisations,
    day date not null,
    starts_s bigint[] not null,
    visits real[] not null
);

call fence(
    array['standings', 'incidents', 'episodes', 'incident_decisions', 'incident_comments',
        'health_rules', 'health_windows', 'health_contacts', 'notices', 'usual_visits'],
    'vestibule_maint'
);
do $$
declare t text;
begin
    foreach t in array array['standings', 'incidents', 'episodes', 'incident_decisions',
        'incident_comments', 'health_rules', 'health_windows', 'health_contacts', 'notices',
        'usual_visits']
    loop
        execute format('grant select on %I to vestibule_desk', t);
        execute format('grant select, insert, update, delete on %I to vestibule_maint', t);
    end loop;
end $$;
grant select on incidents, episodes, incident_decisions, incident_comments, health_rules,
    health_windows, health_contacts, notices to vestibule_api;
grant update (owner, due_at, look_at) on incidents to vestibule_desk;
grant update (acknowledged_by, acknowledged_at, acknowledged_until) on episodes to vestibule_desk;
grant insert on incident_decisions, incident_comments, health_rules to vestibule_desk;
grant insert, update (ended_at, ended_by) on health_windows to vestibule_desk;
grant insert, update, delete on health_contacts to vestibule_desk;

update schema_compatibility set version = 13, compatible_from = 13;
