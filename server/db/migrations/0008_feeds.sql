-- The feed of changes, webhooks, Monday digests.

-- What changed, written by the transaction that changed it. `xid` is that transaction's number:
-- whoever follows reads in its order, and stops before the oldest that is still open. `dataset` is
-- the history it belongs to: after a restore numbers may be given again, and nothing older is told.
create function current_dataset() returns bigint language sql stable parallel safe
security definer set search_path = public as $$ select id from dataset $$;

create table changes (
    id bigint generated always as identity primary key,
    dataset bigint not null default current_dataset(),
    xid bigint not null default ((pg_current_xact_id())::text)::bigint,
    organisation_id int not null references organisations,
    at timestamptz not null default now(),
    kind text not null,
    site_id int references sites,
    spot_id int references spots,
    detail jsonb not null
);
create index on changes (organisation_id, xid, id);
create index on changes (at);

-- Gaps and alerts are noted whoever writes them: ingest, a re-drive, a filter, a person.
create function note_gap() returns trigger language plpgsql security definer
set search_path = public as $$
begin
    if tg_op = 'UPDATE' and (old.filled_at is not null or new.filled_at is null) then
        return null;
    end if;
    insert into changes (organisation_id, kind, site_id, spot_id, detail)
    select new.organisation_id, case tg_op when 'INSERT' then 'gap.opened' else 'gap.filled' end,
           s.site_id, s.id, jsonb_build_object('gap', new.id, 'reason', new.reason,
               'from', new.from_at, 'until', new.until_at)
    from (select new.spot_id as spot) n left join spots s on s.id = n.spot;
    return null;
end $$;
create trigger gaps_noted after insert or update of filled_at on gaps
    for each row execute function note_gap();

create function note_alert() returns trigger language plpgsql security definer
set search_path = public as $$
begin
    if tg_op = 'UPDATE' and (old.done_at is not null or new.done_at is null) then
        return null;
    end if;
    insert into changes (organisation_id, kind, site_id, spot_id, detail)
    values (new.organisation_id,
            case tg_op when 'INSERT' then 'alert.raised' else 'alert.closed' end,
            new.site_id, new.spot_id, jsonb_build_object('alert', new.ref, 'cause', new.cause,
                'raised_at', date_trunc('second', new.raised_at), 'outcome', new.outcome));
    return null;
end $$;
create trigger opinion_alerts_noted after insert or update of done_at on opinion_alerts
    for each row execute function note_alert();

-- What a spot's counts by line (in, out, in ...) of a stretch are worth: {visits, exits}; null where
-- a calibration begins or ends within it.
create function calibrated(wanted_spot int, stretch tstzrange, counted int[])
returns numeric[] language sql stable set search_path = public as $$
    select case when not exists (
            select from calibrations c where c.spot_id = wanted_spot and c.valid && stretch
              and not c.valid @> stretch)
        then (select array[
                sum(case when c.reversed then l.o else l.i end * coalesce(c.factor, 1)),
                sum(case when c.reversed then l.i else l.o end * coalesce(c.factor, 1))]
            from (select n as line, counted[2 * n + 1] as i, counted[2 * n + 2] as o
                  from generate_series(0, 3) n) l
            left join calibrations c on c.spot_id = wanted_spot and c.line = l.line
              and c.valid && stretch) end
$$;

alter table changes enable row level security;
create policy own on changes to vestibule_api using (organisation_id = current_organisation());
create policy every on changes to vestibule_ingest, vestibule_maint using (true);
create policy desk on changes to vestibule_desk
    using (organisation_id = current_organisation() or oversees_all())
    with check (organisation_id = current_organisation() or oversees_all());
grant select on changes to vestibule_api, vestibule_desk;
grant select, insert on changes to vestibule_ingest;
grant insert on changes to vestibule_desk;
grant select, insert, delete on changes to vestibule_maint;

-- Who is told of changes. Sealed: the secret that signs, under a key outside the database. place:
-- up to where the feed is queued in deliveries. disabled: the sentence why.
create table webhooks (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    url text not null,
    kinds text[] not null default '{}',
    secret_sealed bytea not null,
    created_at timestamptz not null,
    place_dataset bigint not null,
    place_xid bigint not null,
    place_id bigint not null,
    place_at timestamptz not null,
    failing_since timestamptz,
    disabled_at timestamptz,
    disabled text not null default ''
);
create index on webhooks (organisation_id);

-- One per webhook and change. next_at: when it is tried next; null: delivered, or dead.
create table deliveries (
    id bigint generated always as identity primary key,
    organisation_id int not null references organisations,
    webhook_id int not null references webhooks on delete cascade,
    change_id bigint not null references changes on delete cascade,
    tries int not null default 0,
    status smallint,
    trouble text not null default '',
    queued_at timestamptz not null,
    next_at timestamptz,
    delivered_at timestamptz,
    dead_at timestamptz,
    unique (webhook_id, change_id)
);
create index on deliveries (change_id);
create index on deliveries (webhook_id, next_at) where next_at is not null;

-- Who asked for a digest on Mondays.
create table digest_subscriptions (
    user_id int not null references users on delete cascade,
    organisation_id int not null references organisations,
    created_at timestamptz not null,
    primary key (user_id, organisation_id)
);

-- One per reader and week, which begins on Monday `week`. next_at: when it is tried next; null: sent,
-- or given up. A try moves next_at past its lease first, and says how it went after.
create table digests (
    id bigint generated always as identity primary key,
    organisation_id int not null references organisations,
    user_id int not null references users on delete cascade,
    week date not null,
    due_at timestamptz not null,
    next_at timestamptz,
    tries int not null default 0,
    trouble text not null default '',
    sent_at timestamptz,
    given_up_at timestamptz,
    unique (user_id, organisation_id, week)
);
create index on digests (next_at) where next_at is not null;

do $$
declare t text;
begin
    foreach t in array array['webhooks', 'deliveries', 'digest_subscriptions', 'digests'] loop
        execute format('alter table %I enable row level security', t);
        execute format('create policy desk on %I to vestibule_desk '
            'using (organisation_id = current_organisation() or oversees_all()) '
            'with check (organisation_id = current_organisation() or oversees_all())', t);
        execute format('grant select, insert, update, delete on %I to vestibule_desk', t);
    end loop;
    foreach t in array array['webhooks', 'deliveries'] loop
        execute format('create policy own on %I to vestibule_api '
            'using (organisation_id = current_organisation())', t);
        execute format('create policy every on %I to vestibule_maint using (true)', t);
    end loop;
end $$;
grant select (id, organisation_id, ref, url, kinds, created_at, failing_since, disabled_at, disabled)
    on webhooks to vestibule_api;
grant select on deliveries to vestibule_api;
grant select, update on webhooks to vestibule_maint;
grant select, insert, update on deliveries to vestibule_maint;

update schema_compatibility set version = 8, compatible_from = 8;
