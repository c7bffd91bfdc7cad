-- The misuse filter, alerts of dissatisfaction, actions.

-- Presses by what the misuse filter (server.feedback.misuse) says of them, derived off the hot path
-- from raw presses, which stay. `kept` and the reasons together are the raw presses.
create table responses_15m (
    bucket timestamptz not null,
    questionnaire bigint not null,
    spot int not null,
    kept int not null,
    repeated int not null,
    children int not null,
    stuck int not null,
    closed int not null,
    filter_version smallint not null,
    question smallint not null,
    answer smallint not null
);
select create_hypertable('responses_15m', by_range('bucket', interval '90 days'), create_default_indexes => false);
create unique index responses_15m_key on responses_15m (spot, bucket, questionnaire, question, answer);

create table responses_day (
    day date not null,
    questionnaire bigint not null,
    spot int not null,
    kept int not null,
    repeated int not null,
    children int not null,
    stuck int not null,
    closed int not null,
    filter_version smallint not null,
    question smallint not null,
    answer smallint not null
);
select create_hypertable('responses_day', by_range('day', interval '730 days'), create_default_indexes => false);
create unique index responses_day_key on responses_day (spot, day, questionnaire, question, answer);

-- Stretches of kiosks' time to be filtered anew; the rollups' deriver hands them on.
create table responses_dirty (
    id bigint generated always as identity primary key,
    spot int not null,
    from_at timestamptz not null,
    until_at timestamptz not null check (until_at > from_at)
);
create index on responses_dirty (spot);
insert into responses_dirty (spot, from_at, until_at)
    select spot, min(bucket), max(bucket) + interval '15 minutes' from presses_15m group by spot;

-- How many false alarms a week one kiosk may raise; no row: the default of server.feedback.alarm.
create table alarm_settings (
    organisation_id int primary key references organisations,
    false_alarms_per_week double precision not null
        check (false_alarms_per_week between 0.01 and 20)
);

-- Since when what a kiosk sends is fresh, without a break: what came late raises nothing.
create table alarm_watch (
    spot_id int primary key references spots,
    fresh_from timestamptz,
    looked_at timestamptz not null
);

-- The evidence stands as it was when the alert was raised, and nothing that comes later moves it.
create table opinion_alerts (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    site_id int not null references sites,
    spot_id int not null references spots,
    cause text not null check (cause in ('dissatisfaction')),
    questionnaire bigint not null,
    question smallint not null,
    raised_at timestamptz not null,
    since timestamptz not null,
    n int not null check (n > 0),
    bad int not null check (bad between 0 and n),
    expected double precision not null,
    p double precision not null check (p between 0 and 1),
    false_alarms_per_week double precision not null,
    filter_version smallint not null,
    assignee text not null default '',
    acknowledged_at timestamptz,
    outcome text not null default '',
    done_at timestamptz check (done_at >= acknowledged_at),
    check ((done_at is null) = (outcome = ''))
);
create unique index opinion_alerts_open on opinion_alerts (spot_id, cause) where done_at is null;
create index on opinion_alerts (organisation_id, raised_at);

-- What visitors meet: check-out, fitting rooms, staff ...
create table touchpoints (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    name text not null,
    unique (organisation_id, name)
);

-- What is done about it. done_on: carried out; from there the time before and after is compared.
-- `told`: "you said, we did" by language. comparison: as it was found when the action was closed.
create table actions (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    site_id int not null references sites,
    touchpoint_id int not null references touchpoints,
    alert_id int references opinion_alerts,
    title text not null,
    owner text not null,
    due_on date not null,
    remeasure_on date not null check (remeasure_on > due_on),
    done_on date check (done_on < remeasure_on),
    told jsonb not null default '{}',
    published_at timestamptz,
    made_at timestamptz not null,
    closed_at timestamptz,
    comparison jsonb,
    check ((closed_at is null) = (comparison is null)),
    check (closed_at is null or done_on is not null)
);
create index on actions (organisation_id, site_id);

call fence(
    array['alarm_settings', 'opinion_alerts', 'touchpoints', 'actions'], 'vestibule_maint'
);
do $$
declare t text;
begin
    foreach t in array array['alarm_settings', 'opinion_alerts', 'touchpoints', 'actions'] loop
        execute format('grant select on %I to vestibule_api, vestibule_desk, vestibule_maint', t);
        execute format('grant insert, update on %I to vestibule_desk', t);
    end loop;
    foreach t in array array['responses_15m', 'responses_day', 'responses_dirty'] loop
        execute format(
            'create view my_%1$s with (security_barrier) as select r.*, s.site_id from %1$s r '
            'join spots s on s.id = r.spot where s.organisation_id = current_organisation()', t);
        execute format('grant select on my_%s to vestibule_api, vestibule_desk', t);
        execute format('grant select, insert, update, delete on %I to vestibule_maint', t);
    end loop;
end $$;
grant insert on opinion_alerts to vestibule_maint;
grant select, insert, update on alarm_watch to vestibule_maint;

update schema_compatibility set version = 4, compatible_from = 4;
