-- Experiments and their register. What was sealed or decided is never written again.

create table experiments (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    name text not null,
    hypothesis text not null default '',
    metrics text[] not null check (cardinality(metrics) between 1 and 3),
    starts_on date not null check (extract(isodow from starts_on) = 1),
    weeks smallint not null check (weeks between 2 and 26),
    pre_weeks smallint not null check (pre_weeks between 12 and 26),
    by_region boolean not null default false,
    planned jsonb not null,
    created_at timestamptz not null,
    created_by text not null,
    -- Sealing draws the coins: the seed stays with the desk until it is shown with the result.
    sealed_at timestamptz,
    design text,
    seed bytea check (octet_length(seed) = 32),
    commitment text,
    treated smallint[],
    decided_at timestamptz,
    decision text check (decision in ('kept', 'dropped')),
    note text not null default '',
    result jsonb,
    snapshot text,
    snapshot_sha256 text,
    archived_at timestamptz,
    revealed bytea,
    check ((sealed_at is null) = (seed is null) and (sealed_at is null) = (commitment is null)
        and (sealed_at is null) = (design is null) and (sealed_at is null) = (treated is null)),
    check ((decided_at is null) = (decision is null) and (decided_at is null) = (result is null)
        and (decided_at is null) = (snapshot is null)
        and (decided_at is null) = (snapshot_sha256 is null)),
    check (decided_at is null or sealed_at is not null),
    check (revealed is null or revealed = seed)
);
create index on experiments (organisation_id, starts_on);
comment on column experiments.design is 'canonical JSON: the text that seal and draw are made of';
comment on column experiments.treated is 'by pair: 0 if its first site is treated, 1 its second';
comment on column experiments.snapshot is 'canonical JSON of the weeks that the result was made of';
comment on column experiments.revealed is 'the seed, once nothing depends on its secrecy';

create table experiment_pairs (
    experiment_id int not null references experiments,
    organisation_id int not null references organisations,
    number smallint not null check (number >= 0),
    first_site_id int not null references sites,
    second_site_id int not null references sites check (second_site_id <> first_site_id),
    distance double precision not null,
    primary key (experiment_id, number)
);
create index on experiment_pairs (first_site_id);
create index on experiment_pairs (second_site_id);

create function keep_experiment() returns trigger language plpgsql as $$
begin
    if old.sealed_at is not null and
        (old.organisation_id, old.ref, old.name, old.hypothesis, old.metrics, old.starts_on,
         old.weeks, old.pre_weeks, old.by_region, old.planned, old.sealed_at, old.design, old.seed,
         old.commitment, old.treated)
        is distinct from
        (new.organisation_id, new.ref, new.name, new.hypothesis, new.metrics, new.starts_on,
         new.weeks, new.pre_weeks, new.by_region, new.planned, new.sealed_at, new.design, new.seed,
         new.commitment, new.treated)
    then
        raise exception 'experiment % is sealed', old.ref using errcode = 'check_violation';
    end if;
    if old.decided_at is not null and
        (old.decided_at, old.decision, old.note, old.result, old.snapshot, old.snapshot_sha256)
        is distinct from
        (new.decided_at, new.decision, new.note, new.result, new.snapshot, new.snapshot_sha256)
    then
        raise exception 'experiment % is decided', old.ref using errcode = 'check_violation';
    end if;
    return new;
end $$;
create trigger keep before update on experiments
    for each row execute function keep_experiment();

alter table experiments enable row level security;
alter table experiment_pairs enable row level security;
create policy own on experiments to vestibule_api
    using (organisation_id = current_organisation());
create policy own on experiment_pairs to vestibule_api
    using (organisation_id = current_organisation());
create policy desk on experiments to vestibule_desk
    using (organisation_id = current_organisation())
    with check (organisation_id = current_organisation());
create policy desk on experiment_pairs to vestibule_desk
    using (organisation_id = current_organisation())
    with check (organisation_id = current_organisation());
grant select (id, organisation_id, ref, name, hypothesis, metrics, starts_on, weeks, pre_weeks,
    by_region, planned, created_at, created_by, sealed_at, design, commitment, treated, decided_at,
    decision, note, result, snapshot, snapshot_sha256, archived_at, revealed)
    on experiments to vestibule_api; -- all but the seed
grant select on experiment_pairs to vestibule_api;
grant select, insert, update on experiments to vestibule_desk;
grant select, insert on experiment_pairs to vestibule_desk;
-- A design is matched, and a result computed, where it is written.
grant select on my_rollup_15m, my_rollup_day, my_presses_15m, my_presses_day, my_rollup_hour,
    my_rollup_dirty, my_rollup_stale, transactions, questionnaires to vestibule_desk;

update schema_compatibility set version = 6, compatible_from = 6;
