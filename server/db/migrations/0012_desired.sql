-- Desired state: layers of settings, what each device said of them, and commands with their ends.

-- What one place says of settings. entries: key to {value, number, at, by}; a layer that says
-- nothing any more stays, with its version, so that who edits an old copy is told.
create table settings_layers (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    scope text not null check (scope in ('model', 'organisation', 'site', 'device')),
    model text not null default '' check ((scope = 'model') = (model <> '')),
    site_id int references sites check ((scope = 'site') = (site_id is not null)),
    device_id int references devices check ((scope = 'device') = (device_id is not null)),
    version int not null default 1 check (version > 0),
    entries jsonb not null default '{}' check (jsonb_typeof(entries) = 'object'),
    changed_at timestamptz not null,
    unique nulls not distinct (organisation_id, scope, model, site_id, device_id)
);
comment on column settings_layers.version is 'counts its edits; an edit says which it has seen';

-- One row a device that was ever told anything: what it was told last, and what it answered.
create table device_settings (
    device_id int primary key references devices,
    organisation_id int not null references organisations,
    version bigint not null default 1 check (version > 0),
    told jsonb not null,
    told_at timestamptz not null,
    report jsonb,
    reported_version bigint,
    reported_at timestamptz
) with (fillfactor = 70);
comment on column device_settings.version is 'counts how often something else was told';
comment on column device_settings.told is 'key to [value, number of its writing]';
create index on device_settings (organisation_id);

-- Commands that were asked for together.
create table command_batches (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    kind text not null
        check (kind in ('reboot', 'identify', 'self-test', 'diagnostics', 'log-tail')),
    lines int not null default 0 check (lines between 0 and 1000),
    reason text not null default '',
    asked_by text not null,
    asked_at timestamptz not null,
    expires_at timestamptz not null check (expires_at > asked_at),
    once text,
    override_freeze boolean not null default false,
    unique (organisation_id, once)
);
comment on column command_batches.override_freeze is 'it is done also while a freeze is on';
comment on column command_batches.once is 'who asks twice under the same word gets the first again';
create index on command_batches (organisation_id, asked_at);

-- What one device is to do, once (server.commands.life says which edge there is). due_at: until
-- when it may stand as it does.
create table commands (
    id bigint generated always as identity primary key,
    organisation_id int not null references organisations,
    batch_id int not null references command_batches,
    ref text not null unique,
    device_id int not null references devices,
    site_id int references sites,
    state text not null default 'queued' check (state in ('queued', 'sent', 'running', 'done',
        'failed', 'expired', 'cancelled')),
    due_at timestamptz not null,
    sent_at timestamptz,
    started_at timestamptz,
    ended_at timestamptz,
    code text not null default '',
    result jsonb not null default '{}',
    ended_by text not null default '',
    check ((ended_at is null) = (state in ('queued', 'sent', 'running'))),
    unique (batch_id, device_id)
);
comment on column commands.site_id is 'where the device stood when it was asked for';
create index commands_open on commands (device_id) where state in ('queued', 'sent', 'running');
create index commands_due on commands (due_at) where state in ('queued', 'sent', 'running');
create index on commands (organisation_id, ref);
create index on commands (device_id, id);
create index on commands (ended_at);

-- What a device sent beside its answer, compressed as it came; kept 30 days.
create table command_files (
    command_id bigint primary key references commands on delete cascade,
    organisation_id int not null references organisations,
    content bytea not null check (octet_length(content) between 1 and 262144),
    stored_at timestamptz not null
);
create index on command_files (stored_at);

call fence(
    array['settings_layers', 'device_settings', 'command_batches', 'commands', 'command_files'],
    'vestibule_ingest, vestibule_maint'
);
grant select on settings_layers, device_settings, command_batches, commands, command_files
    to vestibule_api, vestibule_desk, vestibule_ingest, vestibule_maint;
grant insert, update on settings_layers to vestibule_desk;
grant insert, update on device_settings to vestibule_ingest;
grant insert on command_batches, commands to vestibule_desk;
grant update (state, ended_at, ended_by, code) on commands to vestibule_desk;
grant update on commands to vestibule_ingest, vestibule_maint;
grant insert, update on command_files to vestibule_ingest;
grant delete on command_batches, commands, command_files to vestibule_maint;

update schema_compatibility set version = 12, compatible_from = 12;
