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

-- == Phones: batteries of statements, tokens, rounds and answers. ==

-- A version of a battery for one population, which is never edited: content is canonical JSON, hash
-- its SHA-256. Asked from published_at to closed_at.
create table surveys (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    name text not null,
    version int not null,
    population text not null check (population in ('visitors', 'employees', 'journey audit')),
    hash bytea not null check (octet_length(hash) = 32),
    content bytea not null check (octet_length(content) <= 65536),
    made_at timestamptz not null,
    made_by text not null,
    published_at timestamptz,
    closed_at timestamptz check (closed_at >= published_at),
    unique (organisation_id, population, hash),
    unique (organisation_id, name, population, version)
);

-- A survey asked again at a site, say after something was mended; `follows`: what it is held against.
create table survey_rounds (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    survey_id int not null references surveys,
    site_id int not null references sites,
    name text not null,
    delay text not null check (delay in ('0', '1-7 d', '>7 d')),
    follows_id int references survey_rounds,
    opened_at timestamptz not null,
    closed_at timestamptz
);

-- One-time tokens and posters; their hashes alone. used_at is cut to the hour, so that it cannot
-- be laid beside an answer. spot_id: the kiosk that may show it.
create table survey_tokens (
    id bigint generated always as identity primary key,
    organisation_id int not null references organisations,
    survey_id int not null references surveys,
    site_id int not null references sites,
    spot_id int references spots,
    round_id int references survey_rounds,
    channel text not null check (channel in ('terminal', 'receipt', 'poster', 'link', 'email')),
    touchpoint text not null,
    delay text not null check (delay in ('0', '1-7 d', '>7 d')),
    kept bytea not null unique,
    kept_code bytea not null unique,
    made_at timestamptz not null,
    expires_at timestamptz not null,
    used_at timestamptz check (channel <> 'poster' or used_at is null)
);
create index on survey_tokens (expires_at);
create index on survey_tokens (spot_id, made_at) where spot_id is not null;

-- At which kiosks a survey is offered after a press: at one spot, or at all of a site.
create table survey_offers (
    id int generated always as identity primary key,
    organisation_id int not null references organisations,
    ref text not null unique,
    survey_id int not null references surveys,
    site_id int not null references sites,
    spot_id int references spots,
    offered_at timestamptz not null,
    ended_at timestamptz
);
create index on survey_offers (site_id) where ended_at is null;

-- One row is what one visitor answered: no address, no browser, no token. `once` is a MAC of token
-- or form under the server's key, `digest` of what was sent; answered_at is cut to the hour.
create table survey_answers (
    id bigint generated always as identity primary key,
    organisation_id int not null references organisations,
    survey_id int not null references surveys,
    site_id int not null references sites,
    spot_id int references spots,
    round_id int references survey_rounds,
    channel text not null check (channel in ('terminal', 'receipt', 'poster', 'link', 'email')),
    touchpoint text not null,
    delay text not null check (delay in ('0', '1-7 d', '>7 d')),
    once bytea not null unique,
    digest bytea not null,
    seen text[] not null,
    answers jsonb not null,
    words text not null check (length(words) <= 1000),
    locale text not null,
    seconds real check (seconds >= 0),
    answered_at timestamptz not null check (answered_at = date_trunc('hour', answered_at, 'UTC'))
);
create index on survey_answers (survey_id, answered_at);
create index on survey_answers (site_id, answered_at) where channel = 'poster';
create index on survey_answers (answered_at);

do $$
declare t text;
begin
    foreach t in array array[
        'surveys', 'survey_rounds', 'survey_tokens', 'survey_offers', 'survey_answers'
    ] loop
        execute format('alter table %I enable row level security', t);
        execute format('create policy every on %I to vestibule_maint using (true)', t);
        execute format('create policy desk on %I to vestibule_desk '
            'using (organisation_id = current_organisation() or oversees_all()) '
            'with check (organisation_id = current_organisation() or oversees_all())', t);
        execute format('grant select, insert on %I to vestibule_desk', t);
    end loop;
    foreach t in array array['surveys', 'survey_rounds', 'survey_offers', 'survey_answers'] loop
        execute format('create policy own on %I to vestibule_api '
            'using (organisation_id = current_organisation())', t);
        execute format('grant select on %I to vestibule_api', t);
    end loop;
    foreach t in array array['survey_tokens', 'survey_answers'] loop
        execute format('grant select, delete on %I to vestibule_maint', t);
    end loop;
end $$;
grant update (published_at, closed_at) on surveys to vestibule_desk;
grant update (closed_at) on survey_rounds to vestibule_desk;
grant update (used_at) on survey_tokens to vestibule_desk;
grant update (ended_at) on survey_offers to vestibule_desk;

-- Devices are handed their stock of tokens by ingest, which reads nothing of them but how many.
create policy device on surveys for select to vestibule_ingest using (true);
create policy device on survey_offers for select to vestibule_ingest using (true);
create policy device on survey_tokens to vestibule_ingest using (true) with check (true);
grant select on surveys, survey_offers to vestibule_ingest;
grant select (spot_id, made_at), insert on survey_tokens to vestibule_ingest;

-- Whose survey a token leads to: asked before any organisation is known.
create function survey_token_holder(wanted bytea) returns int
language sql stable security definer set search_path = public as $$
    select t.organisation_id from survey_tokens t where wanted in (t.kept, t.kept_code)
$$;
revoke all on function survey_token_holder(bytea) from public;
grant execute on function survey_token_holder(bytea) to vestibule_desk;

update schema_compatibility set version = 5, compatible_from = 5;
