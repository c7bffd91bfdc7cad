-- KPIs: targets, rosters, campaigns, rates of exchange.

-- == Other sources: rosters, campaigns, rates of exchange. ==

-- Who is named by nothing but the roster's own reference; nobody's name is asked for.
create table staff_shifts (
    id bigint generated always as identity primary key,
    organisation_id int not null references organisations,
    site_id int not null references sites,
    shift_ref text not null,
    role text not null default '',
    starts_at timestamptz not null,
    ends_at timestamptz not null,
    check (ends_at > starts_at and ends_at <= starts_at + interval '24 hours'),
    unique (site_id, shift_ref)
);
create index on staff_shifts (site_id, starts_at);

create table campaigns (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    campaign_ref text not null,
    name text not null,
    channel text not null,
    from_day date not null,
    until_day date not null check (until_day >= from_day),
    cost numeric(14, 2) not null default 0 check (cost >= 0),
    currency text not null check (currency ~ '^[A-Z]{3}$'),
    impressions bigint check (impressions >= 0),
    unique (organisation_id, campaign_ref)
);
comment on column campaigns.until_day is 'the last day that it ran';
create table campaign_sites (
    organisation_id int not null references organisations,
    campaign_id int not null references campaigns,
    site_id int not null references sites,
    primary key (campaign_id, site_id)
);
create index on campaign_sites (site_id);

-- One of `base` was `rate` of `quote` on that day, as `source` says.
create table exchange_rates (
    organisation_id int not null references organisations,
    day date not null,
    base text not null check (base ~ '^[A-Z]{3}$'),
    quote text not null check (quote ~ '^[A-Z]{3}$' and quote <> base),
    rate numeric(20, 10) not null check (rate > 0),
    source text not null,
    primary key (organisation_id, day, base, quote)
);

call fence(array['staff_shifts', 'campaigns', 'campaign_sites', 'exchange_rates']);
grant select on staff_shifts, campaigns, campaign_sites, exchange_rates
    to vestibule_api, vestibule_desk;
grant insert, update on staff_shifts, campaigns, exchange_rates to vestibule_desk;
grant insert, delete on campaign_sites to vestibule_desk;
grant select, insert, update on transactions to vestibule_desk;

-- == Targets. ==

-- What a KPI of a site is to be over whole local days; whether it will is worked out when asked.
create table kpi_targets (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    site_id int not null references sites,
    ref text not null unique,
    metric text not null,
    from_day date not null,
    until_day date not null check (until_day > from_day),
    wanted float8 not null,
    at_most boolean not null default false,
    scope text not null default 'all' check (scope in ('all', 'open')),
    note text not null default '',
    created_at timestamptz not null default now(),
    unique (site_id, metric, scope, from_day, until_day)
);
create index on kpi_targets (organisation_id, ref);
alter table kpi_targets enable row level security;
create policy own on kpi_targets to vestibule_api using (organisation_id = current_organisation());
create policy desk on kpi_targets to vestibule_desk
    using (organisation_id = current_organisation() or oversees_all())
    with check (organisation_id = current_organisation() or oversees_all());
grant select on kpi_targets to vestibule_api, vestibule_desk;
grant insert, update, delete on kpi_targets to vestibule_desk;

update schema_compatibility set version = 3, compatible_from = 3;
