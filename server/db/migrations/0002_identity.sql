-- Identity: people and what they may, the audit chain, the register's rest, credentials, claims,
-- revocation. vestibule_desk writes what people change on pages: one organisation at a time, or,
-- for those who oversee all, every one (`app.everyone`, set by server.db.engine alone).

create function oversees_all() returns boolean language sql stable parallel safe as
$$ select coalesce(current_setting('app.everyone', true), '') = 'yes' $$;

-- The register.

create table regions (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    name text not null,
    unique (organisation_id, name)
);

alter table organisations
    add column enrolment text not null default 'allow-list'
        check (enrolment in ('allow-list', 'technician')),
    add column clones text not null default 'report' check (clones in ('report', 'quarantine')),
    add column calendar text not null default 'iso'
        check (calendar in ('iso', '4-4-5', '4-5-4', '5-4-4')),
    add column calendar_month smallint not null default 1 check (calendar_month between 1 and 12),
    add column calendar_weekday smallint not null default 0
        check (calendar_weekday between 0 and 6);
comment on column organisations.calendar_weekday is
    'Monday 0: a retail year begins on the one closest to the 1st of calendar_month';
comment on column organisations.enrolment is
    'technician: a device on the allow-list waits until a technician has said where it stands';

alter table sites
    add column region_id int references regions,
    add column address text not null default '';
create index on sites (region_id);

alter table doors
    add column behind_id int references doors check (behind_id <> id);
comment on column doors.behind_id is
    'in series: whoever passes this door has passed that one; null: it opens to the outside';

-- What a spot is for and how it is mounted, from when to when.
create table mountings (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    spot_id int not null references spots,
    valid tstzrange not null default tstzrange(null, null) check (not isempty(valid)),
    purpose text not null default 'entrance'
        check (purpose in ('entrance', 'passage', 'zone', 'exit', 'checkout')),
    height_cm smallint check (height_cm between 50 and 2000),
    note text not null default '',
    created_at timestamptz not null default now(),
    exclude using gist (spot_id with =, valid with &&)
);

-- A device's life; server.fleet.lifecycle says which edge does what. admitted: it may speak.
alter table devices drop constraint devices_state_check;
update devices set state = 'suspended' where state = 'revoked';
alter table devices
    add constraint devices_state_check check (state in ('manufactured', 'claimed', 'provisioned',
        'installed', 'in service', 'suspended', 'quarantined', 'returned', 'retired')),
    add column admitted boolean not null generated always as
        (state not in ('suspended', 'quarantined', 'returned', 'retired')) stored,
    add column hardware_revision text not null default '',
    add column setup_sha256 bytea check (octet_length(setup_sha256) = 32),
    add column intended_site_id int references sites,
    add column allowed_until timestamptz,
    add column state_since timestamptz not null default now(),
    add column state_before text,
    add column asked_at timestamptz,
    add column asked text not null default '',
    add column greeted_at timestamptz;
comment on column devices.asked is 'what it was answered when it last asked to be enrolled';
comment on column devices.greeted_at is 'its first hello since it was enrolled';
comment on column devices.setup_sha256 is 'of the set-up secret on the label; null: no label';
comment on column devices.state_before is 'what a suspended or quarantined device returns to';
create unique index devices_serial on devices (serial) where serial <> '';

-- Devices that nobody announced: who asked, from where, by which key.
create table unknown_devices (
    serial text primary key,
    first_seen timestamptz not null default now(),
    last_seen timestamptz not null default now(),
    times int not null default 1,
    address text not null default '',
    spki_sha256 bytea,
    dismissed_at timestamptz
);

-- People.

create table users (
    id int generated always as identity primary key,
    ref text not null unique,
    email text not null,
    name text not null default '',
    language text not null default 'en' check (language in ('sv', 'da', 'en')),
    password_hash text,
    totp_sealed bytea,
    totp_confirmed_at timestamptz,
    totp_last_step bigint not null default 0,
    disabled_at timestamptz,
    created_at timestamptz not null default now()
);
create unique index users_email on users (lower(email));
comment on column users.totp_sealed is 'the TOTP secret, AES-GCM under a key outside the database';

-- A role within a scope: everything, an organisation, one of its regions, or one site.
create table grants (
    id int generated always as identity primary key,
    user_id int not null references users on delete cascade,
    role text not null
        check (role in ('administrator', 'noc', 'technician', 'analyst', 'store manager')),
    organisation_id int references organisations,
    region_id int references regions,
    site_id int references sites,
    granted_at timestamptz not null default now(),
    check (organisation_id is not null or (region_id is null and site_id is null)),
    unique nulls not distinct (user_id, role, organisation_id, region_id, site_id)
);

create table sessions (
    id bigint generated always as identity primary key,
    user_id int not null references users on delete cascade,
    token_sha256 bytea not null unique check (octet_length(token_sha256) = 32),
    csrf_sha256 bytea not null check (octet_length(csrf_sha256) = 32),
    organisation_id int references organisations,
    created_at timestamptz not null default now(),
    last_seen timestamptz not null default now(),
    expires_at timestamptz not null,
    ended_at timestamptz,
    address text not null default '',
    browser text not null default ''
);
create index on sessions (user_id);
comment on column sessions.organisation_id is 'the one it looks at just now';

-- Links that work once: an invitation, a new password, a sign-in without one.
create table one_time_links (
    token_sha256 bytea primary key check (octet_length(token_sha256) = 32),
    user_id int not null references users on delete cascade,
    purpose text not null check (purpose in ('invitation', 'password', 'sign-in')),
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    used_at timestamptz
);

alter table api_keys
    add column expires_at timestamptz,
    add column last_used_at timestamptz,
    add column replaced_by int references api_keys;

create or replace function api_key_holder(wanted text)
returns table (organisation_id int, secret_sha256 bytea, scopes text[])
language sql stable security definer set search_path = public as $$
    select k.organisation_id, k.secret_sha256, k.scopes from api_keys k
    where k.prefix = wanted and k.revoked_at is null and coalesce(k.expires_at > now(), true)
$$;

-- What was done, by whom; each row's hash covers the one before in its chain (an organisation's,
-- or 0 for the platform's own). Only ever added to.
create table audit (
    id bigint generated always as identity primary key,
    chain int not null,
    number bigint not null,
    at timestamptz not null,
    actor text not null,
    act text not null,
    subject text not null default '',
    detail jsonb not null default '{}',
    previous bytea not null check (octet_length(previous) = 32),
    hash bytea not null check (octet_length(hash) = 32),
    unique (chain, number)
);

-- Credentials. Recorded before they are signed; the certificate is filled in afterwards.

create table authorities (
    id int generated always as identity primary key,
    name text not null unique,
    kind text not null check (kind in ('root', 'device', 'service')),
    certificate text not null,
    spki_sha256 bytea not null,
    not_after timestamptz not null,
    state text not null default 'trusted' check (state in ('trusted', 'signing', 'leaving', 'gone')),
    created_at timestamptz not null default now()
);
comment on column authorities.state is
    'trusted: in every bundle; signing: it issues; leaving: it issues no more; gone: out of bundles';

alter table certificates
    add column state text not null default 'active'
        check (state in ('recorded', 'staged', 'active', 'retiring', 'retired', 'revoked', 'failed')),
    add column authority_id int references authorities,
    add column reason text not null default 'enrolment',
    add column renew_after timestamptz,
    add column staged_at timestamptz,
    add column activated_at timestamptz,
    add column retired_at timestamptz;
create unique index certificates_one_active on certificates (device_id) where state = 'active';
create unique index certificates_one_staged on certificates (device_id) where state = 'staged';
create unique index certificates_one_key on certificates (spki_sha256, serial);
create index on certificates (not_after) where state in ('staged', 'active', 'retiring');

-- Every signature that was ever made or begun, services' and authorities' too.
create table issuance_log (
    number bigint generated always as identity primary key,
    at timestamptz not null default now(),
    serial text not null,
    event text not null check (event in ('recorded', 'signed', 'refused', 'revoked', 'reinstated')),
    subject text not null,
    authority text not null,
    detail jsonb not null default '{}'
);
create index on issuance_log (serial);

-- Which roots a device has proved to trust: the gate of a rollover.
create table trust_proofs (
    device_id int not null references devices,
    root_spki_sha256 bytea not null,
    proved_at timestamptz not null default now(),
    primary key (device_id, root_spki_sha256)
);

-- A technician's word where a device is to stand: 15 minutes, once. replaces: a swap.
create table technician_claims (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    user_id int not null references users,
    device_id int not null references devices,
    spot_id int not null references spots,
    replaces_id int references devices,
    since timestamptz not null,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    used_at timestamptz,
    ended_at timestamptz,
    voucher_id int,
    walk jsonb,
    signed_off_at timestamptz,
    signed_off_by text not null default ''
);
create unique index technician_claims_open on technician_claims (device_id)
    where used_at is null and ended_at is null;

-- A signed right, carried into a place without signal, to say so later.
create table vouchers (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    user_id int not null references users,
    site_id int not null references sites,
    created_at timestamptz not null default now(),
    expires_at timestamptz not null,
    uses_left smallint not null check (uses_left >= 0),
    withdrawn_at timestamptz
);
alter table technician_claims add foreign key (voucher_id) references vouchers;

-- What a phone did while it was offline, by the phone's own number: done once, answered the same.
create table phone_acts (
    user_id int not null references users,
    act_ref text not null,
    organisation_id int not null references organisations,
    act text not null,
    done_at timestamptz not null default now(),
    answer jsonb not null,
    primary key (user_id, act_ref)
);

-- Who is to be thrown out of the broker, or let in again; a worker does it and says when.
create table admissions (
    id bigint generated always as identity primary key,
    organisation_id int not null references organisations,
    device_id int not null references devices,
    admit boolean not null,
    reason text not null,
    asked_by text not null,
    asked_at timestamptz not null default now(),
    broker_at timestamptz,
    crl_at timestamptz,
    proved_at timestamptz,
    trouble text not null default ''
);
create index on admissions (asked_at)
    where broker_at is null or crl_at is null or proved_at is null;
create index on admissions (device_id);

alter table gaps drop constraint gaps_reason_check;
alter table gaps add constraint gaps_reason_check
    check (reason in ('thinned', 'rotted', 'forgotten', 'quarantined', 'totals', 'refused'));

-- Isolation. The desk sees one organisation, or oversees all.
do $$
declare t text;
begin
    foreach t in array array['regions', 'mountings', 'technician_claims', 'vouchers', 'phone_acts',
        'admissions']
    loop
        execute format('alter table %I enable row level security', t);
        execute format('create policy own on %I to vestibule_api '
            'using (organisation_id = current_organisation())', t);
        execute format('create policy every on %I to vestibule_ingest, vestibule_maint using (true)', t);
    end loop;
    foreach t in array array['organisations', 'api_keys', 'sites', 'opening_hours',
        'opening_exceptions', 'doors', 'spots', 'calibrations', 'devices', 'assignments',
        'backfill_grants', 'claims', 'certificates', 'gaps', 'questionnaires', 'transactions',
        'regions', 'mountings', 'technician_claims', 'vouchers', 'phone_acts', 'admissions']
    loop
        execute format(
            'create policy desk on %I to vestibule_desk using (%s = current_organisation() or '
            'oversees_all()) with check (%s = current_organisation() or oversees_all())', t,
            case t when 'organisations' then 'id' else 'organisation_id' end,
            case t when 'organisations' then 'id' else 'organisation_id' end);
    end loop;
end $$;

-- Fences further tables by their organisation, as those above: the API sees its own, the desk its
-- own or all, and who is named in `serving` everything.
create procedure fence(tables text[], serving text default '') language plpgsql as $$
declare t text;
begin
    foreach t in array tables
    loop
        execute format('alter table %I enable row level security', t);
        execute format('create policy own on %I to vestibule_api '
            'using (organisation_id = current_organisation())', t);
        execute format('create policy desk on %I to vestibule_desk using '
            '(organisation_id = current_organisation() or oversees_all()) with check '
            '(organisation_id = current_organisation() or oversees_all())', t);
        if serving <> '' then
            execute format('create policy every on %I to %s using (true)', t, serving);
        end if;
    end loop;
end $$;
revoke all on procedure fence from public;

-- What of one organisation a page shows beside the register.
create view my_findings with (security_barrier) as
    select f.id, f.at, f.device_id, f.seq, f.finding, f.detail
    from findings f join devices d on d.id = f.device_id
    where d.organisation_id = current_organisation();

-- What was answered to a write that bore an Idempotency-Key, for a day: done once, answered the
-- same.
create table idempotency_keys (
    organisation_id int not null references organisations,
    caller text not null,
    key text not null,
    request_sha256 bytea not null check (octet_length(request_sha256) = 32),
    created_at timestamptz not null default now(),
    answer bytea,
    primary key (organisation_id, caller, key)
);
create index on idempotency_keys (created_at);
alter table idempotency_keys enable row level security;
create policy desk on idempotency_keys to vestibule_desk
    using (organisation_id = current_organisation())
    with check (organisation_id = current_organisation());

grant usage on schema public to vestibule_desk;
grant select on my_findings, my_boots to vestibule_desk;
grant select, insert, update, delete on idempotency_keys to vestibule_desk;
grant select on all tables in schema public to vestibule_ingest, vestibule_maint;
revoke select on users, sessions, one_time_links, grants from vestibule_ingest, vestibule_maint;
grant select on regions, mountings to vestibule_api;

grant select on organisations, api_keys, sites, opening_hours, opening_exceptions, doors, spots,
    calibrations, devices, assignments, backfill_grants, claims, certificates, gaps, regions,
    mountings, technician_claims, vouchers, phone_acts, admissions, unknown_devices, users, grants,
    sessions, one_time_links, audit, authorities, issuance_log, trust_proofs, rollup_stale,
    dataset, schema_compatibility to vestibule_desk;
grant insert, update on organisations, api_keys, sites, doors, spots, calibrations, devices,
    assignments, claims, certificates, regions, mountings, technician_claims, vouchers, admissions,
    users, sessions, one_time_links, unknown_devices to vestibule_desk;
grant insert, update, delete on opening_hours, opening_exceptions, grants to vestibule_desk;
grant insert on audit, phone_acts, backfill_grants, issuance_log to vestibule_desk;
grant select (id, device_id, assignment_version), update (assignment_version) on boots
    to vestibule_desk; -- that is, to make what was planned before fail
grant insert on audit, issuance_log, trust_proofs, assignments, admissions to vestibule_ingest;
grant insert, update on unknown_devices, authorities to vestibule_ingest;
grant insert on technician_claims to vestibule_ingest; -- for a voucher that a device hands in
grant update on technician_claims, vouchers, assignments, admissions, trust_proofs, boots
    to vestibule_ingest;
grant update (created_at) on spots to vestibule_ingest; -- that is, to lock one
grant insert on audit to vestibule_maint;
-- What is long over is deleted; see server.db.purge.
create policy purge on idempotency_keys to vestibule_maint using (true);
grant select (ended_at, expires_at), delete on sessions to vestibule_maint;
grant select (used_at, expires_at), delete on one_time_links to vestibule_maint;
grant delete on phone_acts, idempotency_keys to vestibule_maint;

update schema_compatibility set version = 2, compatible_from = 2;
