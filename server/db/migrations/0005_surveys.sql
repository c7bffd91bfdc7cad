-- Questionnaires of kiosks and phones, their tokens and answers.

-- == Kiosks: versions of questionnaires, and where they are shown when. ==

-- A row is a version and is never edited: content is the canonical JSON whose SHA-256 begins with
-- hash. Without content a questionnaire is known by what it asks, and cannot be published.
alter table questionnaires
    add column ref text not null unique default 'questionnaire-' || substr(md5(random()::text), 1, 8),
    add column version int not null default 1,
    add column content bytea check (octet_length(content) <= 32768),
    add column made_at timestamptz not null default now(),
    add column made_by text not null default '',
    add column retired_at timestamptz;

-- Which kiosks show it: one spot, or all of a site; in the site's own time.
create table publications (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    questionnaire_id int not null references questionnaires,
    site_id int not null references sites,
    spot_id int references spots,
    from_day date,
    until_day date,
    weekdays smallint[] not null default '{}',
    opens smallint,
    closes smallint,
    published_at timestamptz not null default now(),
    ended_at timestamptz,
    check ((opens is null) = (closes is null))
);
create index on publications (site_id) where ended_at is null;
alter table publications enable row level security;
create policy own on publications to vestibule_api
    using (organisation_id = current_organisation());
create policy desk on publications to vestibule_desk
    using (organisation_id = current_organisation() or oversees_all())
    with check (organisation_id = current_organisation() or oversees_all());
create policy every on publications to vestibule_ingest, vestibule_maint using (true);
grant select on publications to vestibule_api, vestibule_ingest, vestibule_maint, vestibule_desk;
grant insert, update (ended_at) on publications to vestibule_desk;
grant select, insert, update (retired_at) on questionnaires to vestibule_desk;

-- == Phones. ==

update schema_compatibility set version = 5, compatible_from = 5;
