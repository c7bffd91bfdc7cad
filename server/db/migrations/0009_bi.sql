-- Views for BI tools.

-- Which login sees which organisation. Bound to the name that somebody signed in with, which no
-- `set role` and no setting changes; written by `vestibule bi` alone.
create table bi_logins (
    role text primary key,
    organisation_id int not null references organisations,
    note text not null default '',
    created_at timestamptz not null
);
alter table bi_logins enable row level security;

-- Functions of views run as who asks: these read no table.
create function bi_quarter_from(at timestamptz) returns timestamptz
language sql immutable parallel safe as
$$ select to_timestamp(ceil(extract(epoch from at) / 900)::float8 * 900) $$;
comment on function bi_quarter_from(timestamptz) is 'The first quarter of an hour not before.';
create function bi_midnight(day date, zone text) returns timestamptz
language sql stable parallel safe as $$
    -- of a midnight that comes twice PostgreSQL takes the second pass, a local day the first
    select case when (m.at - interval '1 hour') at time zone zone = day::timestamp
                then m.at - interval '1 hour' else m.at end
    from (select day::timestamp at time zone zone as at) m
$$;

-- Steps that the views below share; granted to nobody.
create view bi_spots with (security_barrier) as
    select p.id, p.organisation_id, p.site_id, p.door_id, p.kind, p.ref as spot, p.name,
           s.ref as site, s.time_zone, s.currency
    from spots p join sites s on s.id = p.site_id
    where p.organisation_id = (select l.organisation_id from bi_logins l where l.role = session_user);

-- Until when a device's time at a spot is accounted for: stored, or a gap says why not.
create view bi_stood as
    select a.spot_id, coalesce(lower(a.valid), '-infinity') as from_at,
           coalesce(upper(a.valid), 'infinity') as until_at,
           case when r.at >= coalesce(upper(a.valid), 'infinity') then 'infinity' else r.at end
               as accounted_to
    from assignments a
    cross join lateral (
        select coalesce(date_trunc('second', max(b.stored_to)), lower(a.valid), '-infinity') as at
        from boots b where b.device_id = a.device_id) stored
    cross join lateral (
        with recursive reach(at) as (
            select stored.at
            union
            select date_trunc('second', g.until_at + interval '999999 microseconds')
            from reach join gaps g on g.spot_id = a.spot_id and g.device_id = a.device_id
              and date_trunc('second', g.from_at) <= reach.at
              and g.until_at > reach.at and g.filled_at is null and g.reason <> 'totals')
        select max(at) as at from reach) r;

create view bi_before as
    with recursive chain(door, before) as (
        select id, behind_id from doors where behind_id is not null
        union
        select chain.door, d.behind_id from chain join doors d on d.id = chain.before
        where d.behind_id is not null)
    select door, before from chain;

-- Each spot's local days, from when a device first stood there or something was counted, to today.
create view bi_days as
    select p.*, d.day, bi_midnight(d.day, p.time_zone) as from_at,
           bi_midnight(d.day + 1, p.time_zone) as until_at,
           stood.from_at as stood_from, stood.until_at as stood_until, stood.accounted_to
    from bi_spots p
    cross join lateral (
        select least(
            (select min(lower(a.valid)) from assignments a
             where a.spot_id = p.id and lower(a.valid) > '-infinity'),
            (select min(r.bucket) from rollup_15m r where r.spot = p.id)) as at) first
    cross join lateral (
        select array_agg(b.from_at) as from_at, array_agg(b.until_at) as until_at,
               array_agg(b.accounted_to) as accounted_to
        from bi_stood b where b.spot_id = p.id) stood
    cross join lateral (
        select generate_series((first.at at time zone p.time_zone)::date::timestamp,
            (now() at time zone p.time_zone)::date::timestamp, interval '1 day')::date as day) d;

-- Quarters of an hour as calibrated: a factor holds from the first quarter that it covers.
create view bi_quarters as
    select r.spot, r.bucket, r.revision, r.resolution_s, r.origin, w.entered, w.departed,
           15 * bit_count((r.observed & ~coalesce(r.masked, 0))::bit(64)) as observed_s
    from rollup_15m r
    cross join lateral (
        select sum(case when c.reversed then l.o else l.i end * coalesce(c.factor, 1)) as entered,
               sum(case when c.reversed then l.i else l.o end * coalesce(c.factor, 1)) as departed
        from (values (0, r.in0, r.out0), (1, r.in1, r.out1), (2, r.in2, r.out2),
                     (3, r.in3, r.out3)) as counted(line, a, b)
        cross join lateral (select coalesce(a, 0) as i, coalesce(b, 0) as o) l
        left join calibrations c on c.spot_id = r.spot and c.line = counted.line
          and bi_quarter_from(coalesce(lower(c.valid), '-infinity')) <= r.bucket
          and bi_quarter_from(coalesce(upper(c.valid), 'infinity')) > r.bucket) w;

-- Days that the deriver has not worked in yet, or in which a calibration begins or ends: these
-- are added up from their quarters, so that what is read is right at once.
create view bi_patched_days as
    select p.id as spot, (d.bucket at time zone p.time_zone)::date as day
    from (select unnest(spots) as spot, unnest(buckets) as bucket from rollup_dirty) d
    join bi_spots p on p.id = d.spot
    union
    select p.id, (bi_quarter_from(e.at) at time zone p.time_zone)::date
    from calibrations c join bi_spots p on p.id = c.spot_id
    cross join lateral (values (lower(c.valid)), (upper(c.valid))) as e(at)
    where isfinite(e.at);

create view bi_counted_days as
    select d.*, w.entered, w.departed, w.observed_s, w.revision, w.resolution_s, w.origin
    from bi_days d
    left join bi_patched_days p on p.spot = d.id and p.day = d.day
    left join rollup_stale t on t.site_id = d.site_id
    left join lateral (
        select sum(case when c.reversed then l.o else l.i end * coalesce(c.factor, 1)) as entered,
               sum(case when c.reversed then l.i else l.o end * coalesce(c.factor, 1)) as departed,
               r.observed_s, r.revision, r.resolution_s, r.origin
        from rollup_day r
        cross join lateral (values (0, r.in0, r.out0), (1, r.in1, r.out1), (2, r.in2, r.out2),
                     (3, r.in3, r.out3)) as counted(line, a, b)
        cross join lateral (select coalesce(a, 0) as i, coalesce(b, 0) as o) l
        left join calibrations c on c.spot_id = r.spot and c.line = counted.line
          and bi_quarter_from(coalesce(lower(c.valid), '-infinity')) <= d.from_at
          and bi_quarter_from(coalesce(upper(c.valid), 'infinity')) > d.from_at
        where p.spot is null and t.site_id is null and r.spot = d.id and r.day = d.day
        group by r.observed_s, r.revision, r.resolution_s, r.origin
        union all
        select sum(q.entered), sum(q.departed), sum(q.observed_s), sum(q.revision),
               max(q.resolution_s), max(q.origin)
        from bi_quarters q
        where (p.spot is not null or t.site_id is not null) and q.spot = d.id
          and q.bucket >= d.from_at and q.bucket < d.until_at
        having count(*) > 0) w on true
    where d.kind = 'counter';

-- What every view of counts says of a stretch, from what was counted and who stood there.
create function bi_expected_s(stood_from timestamptz[], stood_until timestamptz[],
    from_at timestamptz, until_at timestamptz) returns bigint
language sql stable parallel safe as $$
    select coalesce(sum(greatest(0, extract(epoch from
        least(round_to.u, until_at, date_bin('15 seconds', now(), 'epoch'))
        - greatest(round_to.f, from_at)))), 0)::bigint
    from unnest(stood_from, stood_until) as s(f, u)
    cross join lateral (select
        case when isfinite(s.f) then date_trunc('second', s.f + interval '0.5 s') else s.f end as f,
        case when isfinite(s.u) then date_trunc('second', s.u + interval '0.5 s') else s.u end as u
        ) round_to
    where round_to.f < until_at and round_to.u > from_at
$$;
create function bi_state(stood_from timestamptz[], stood_until timestamptz[],
    accounted_to timestamptz[], from_at timestamptz, until_at timestamptz) returns text
language sql stable parallel safe as $$
    select case
        when now() >= until_at + interval '720 hours' then 'final'
        when until_at <= now() and not exists (
            select from unnest(stood_from, stood_until, accounted_to) as s(f, u, a)
            where s.f < until_at and s.u > from_at and s.a < until_at) then 'complete'
        else 'open' end
$$;
create function bi_coverage(observed_s numeric, expected_s numeric) returns numeric
language sql immutable parallel safe as $$
    select case when expected_s > 0
        then least(1, round(coalesce(observed_s, 0) / expected_s, 4)) end
$$;
-- Null where nothing was measured, which is not zero.
create function bi_known(counted numeric, entered numeric, departed numeric, observed_s numeric)
returns numeric language sql immutable parallel safe as $$
    select case when observed_s > 0 or entered + departed > 0 then counted end
$$;

create schema bi;
comment on schema bi is
    'What a retailer''s BI tools read: documented views of one organisation, see bi.definitions. '
    'Measured numbers alone: no estimate is among them. Names and meanings stay; columns are added.';

create view bi.sites with (security_barrier) as
    select s.ref as site, s.name, r.name as region, s.time_zone, s.currency, s.opens_on, s.closes_on
    from sites s left join regions r on r.id = s.region_id
    where s.organisation_id = (select l.organisation_id from bi_logins l where l.role = session_user);

create view bi.doors with (security_barrier) as
    select d.ref as door, d.name, s.ref as site, b.ref as behind
    from doors d join sites s on s.id = d.site_id left join doors b on b.id = d.behind_id
    where d.organisation_id = (select l.organisation_id from bi_logins l where l.role = session_user);

create view bi.spots with (security_barrier) as
    select p.spot, p.name, p.kind, p.site, d.ref as door
    from bi_spots p left join doors d on d.id = p.door_id;

create view bi.visits_15min with (security_barrier) as
    select c.site, c.spot, c.day, q.at as starts_at, q.at + interval '15 minutes' as ends_at,
           q.at at time zone c.time_zone as local_start,
           case when fine.ok then bi_known(w.entered, w.entered, w.departed, w.observed_s) end
               as visits,
           case when fine.ok then bi_known(w.departed, w.entered, w.departed, w.observed_s) end
               as exits,
           coalesce(w.observed_s, 0) as observed_s, e.expected_s,
           bi_coverage(w.observed_s, e.expected_s) as coverage,
           bi_state(c.stood_from, c.stood_until, c.accounted_to, q.at, q.at + interval '15 minutes')
               as state,
           coalesce(w.revision, 0) as revision, w.resolution_s as read_every_s
    from bi_days c
    cross join lateral generate_series(c.from_at, least(c.until_at, now()) - interval '1 second',
        interval '15 minutes') as q(at)
    left join bi_quarters w on w.spot = c.id and w.bucket = q.at
    cross join lateral (select bi_expected_s(c.stood_from, c.stood_until, q.at,
        q.at + interval '15 minutes') as expected_s) e
    cross join lateral (select w.resolution_s is null or w.resolution_s <= 900 as ok) fine
    where c.kind = 'counter';

create view bi.visits_hour with (security_barrier) as
    with hours as (
        select c.id, c.site, c.spot, c.day, c.time_zone, min(q.at) as starts_at,
               max(q.at) + interval '15 minutes' as ends_at, sum(w.entered) as entered,
               sum(w.departed) as departed, sum(w.observed_s)::bigint as observed_s,
               sum(w.revision)::int as revision, max(w.resolution_s) as resolution_s,
               c.stood_from, c.stood_until, c.accounted_to
        from bi_days c
        cross join lateral generate_series(c.from_at, least(c.until_at, now() + interval '1 hour')
            - interval '1 second', interval '15 minutes') as q(at)
        left join bi_quarters w on w.spot = c.id and w.bucket = q.at
        where c.kind = 'counter'
        group by c.id, c.site, c.spot, c.day, c.time_zone, c.stood_from, c.stood_until,
            c.accounted_to, q.at - make_interval(mins =>
                extract(minute from q.at at time zone c.time_zone)::int))
    select site, spot, day, starts_at, ends_at, starts_at at time zone time_zone as local_start,
           case when fine.ok then bi_known(entered, entered, departed, observed_s) end as visits,
           case when fine.ok then bi_known(departed, entered, departed, observed_s) end as exits,
           coalesce(observed_s, 0) as observed_s, e.expected_s,
           bi_coverage(observed_s, e.expected_s) as coverage,
           bi_state(stood_from, stood_until, accounted_to, starts_at, ends_at) as state,
           coalesce(revision, 0) as revision, resolution_s as read_every_s
    from hours
    cross join lateral (select
        bi_expected_s(stood_from, stood_until, starts_at, ends_at) as expected_s) e
    cross join lateral (select resolution_s is null or resolution_s <= 900
        or extract(epoch from starts_at)::bigint % resolution_s = 0
           and extract(epoch from ends_at)::bigint % resolution_s = 0 as ok) fine
    where starts_at < now();

create view bi.visits_day with (security_barrier) as
    select c.site, c.spot, c.day, c.from_at as starts_at, c.until_at as ends_at,
           bi_known(c.entered, c.entered, c.departed, c.observed_s) as visits,
           bi_known(c.departed, c.entered, c.departed, c.observed_s) as exits,
           coalesce(c.observed_s, 0)::bigint as observed_s, e.expected_s,
           bi_coverage(c.observed_s, e.expected_s) as coverage,
           bi_state(c.stood_from, c.stood_until, c.accounted_to, c.from_at, c.until_at) as state,
           coalesce(c.revision, 0)::int as revision,
           case c.origin when 0 then 'device' when 1 then 'import' end as origin,
           edge.at and not exists (
               select from bi_before b join spots o on o.door_id = b.before and o.kind = 'counter'
               where b.door = c.door_id and exists (
                   select from assignments a
                   where a.spot_id = o.id and a.valid && tstzrange(c.from_at, c.until_at))
                 and coalesce((select m.purpose from mountings m where m.spot_id = o.id
                         and m.valid && tstzrange(c.from_at, c.until_at)
                     order by lower(m.valid) desc nulls last limit 1), 'entrance')
                     in ('entrance', 'exit')) as in_perimeter
    from bi_counted_days c
    cross join lateral (select bi_expected_s(c.stood_from, c.stood_until, c.from_at, c.until_at)
        as expected_s) e
    cross join lateral (select exists (
            select from assignments a
            where a.spot_id = c.id and a.valid && tstzrange(c.from_at, c.until_at))
        and coalesce((select m.purpose from mountings m where m.spot_id = c.id
                and m.valid && tstzrange(c.from_at, c.until_at)
            order by lower(m.valid) desc nulls last limit 1), 'entrance')
            in ('entrance', 'exit') as at) edge;

create view bi.site_visits_day with (security_barrier) as
    select site, day, min(starts_at) as starts_at, max(ends_at) as ends_at,
           sum(visits) as visits, sum(exits) as exits,
           least(sum(observed_s), sum(expected_s))::bigint as observed_s,
           sum(expected_s)::bigint as expected_s,
           bi_coverage(sum(observed_s)::bigint, sum(expected_s)::bigint) as coverage,
           case when bool_and(state = 'final') then 'final'
                when bool_and(state <> 'open') then 'complete' else 'open' end as state,
           sum(revision)::int as revision
    from bi.visits_day where in_perimeter group by site, day;

create view bi.feedback_day with (security_barrier) as
    select p.site, p.spot, d.day, lpad(to_hex(d.questionnaire), 16, '0') as questionnaire,
           d.question, d.answer, d.presses, r.kept, r.repeated, r.children, r.stuck, r.closed,
           r.filter_version, d.revision,
           exists (select from responses_dirty w where w.spot = d.spot
               and w.from_at < bi_midnight(d.day + 1, p.time_zone)
               and w.until_at > bi_midnight(d.day, p.time_zone))
           or exists (select from bi_patched_days w where w.spot = d.spot and w.day = d.day)
               as pending
    from presses_day d join bi_spots p on p.id = d.spot
    left join responses_day r on r.spot = d.spot and r.day = d.day
      and r.questionnaire = d.questionnaire and r.question = d.question and r.answer = d.answer;

create view bi.sales_day with (security_barrier) as
    select s.ref as site, (t.at at time zone s.time_zone)::date as day, s.currency,
           count(*) filter (where sold.counts) as transactions,
           coalesce(sum(t.amount) filter (where sold.counts), 0) as net_sales,
           coalesce(sum(t.units) filter (where sold.counts), 0)::bigint as units,
           count(*) filter (where t.kind = 'return') as returns,
           count(*) filter (where t.kind = 'pickup') as pickups
    from transactions t join sites s on s.id = t.site_id
    cross join lateral (
        select counts_as_sale(t.kind, t.amount, t.units) as counts) sold
    where s.organisation_id = (select l.organisation_id from bi_logins l where l.role = session_user)
    group by s.ref, (t.at at time zone s.time_zone)::date, s.currency;

create view bi.definitions as select * from (values
    ('coverage.v1', 'share',
     'observed seconds / seconds in which a counter stood there, in all hours; null where none did'),
    ('visits.v1', 'people',
     'people in at a site''s perimeter: doors side by side are added up; of doors in series the outermost that has a counter counts, so that nobody counts twice; counters for passages, zones and checkouts do not count; staff and children are among them'),
    ('exits.v1', 'people',
     'people out at the counters that visits are counted at'),
    ('staff_estimated.v1', 'people',
     'rostered shifts x 6 times in per shift, where nobody wears a tag; an assumption, and never taken off the visits silently'),
    ('visits_net.v1', 'people',
     'visits - staff_estimated, not below 0 (flagged staff_clamped)'),
    ('groups.v1', 'buying units',
     'groups + people alone, as counters tell them; a figure of its own, never called visits; null where no counter tells groups apart'),
    ('turn_in_passers_only.v1', 'share',
     'in / (passed without coming in + in), where the passage''s counter counts those who pass by'),
    ('turn_in_of_all.v1', 'share',
     'in / all who passed, where the passage''s counter counts those who come in, too'),
    ('occupancy.v1', 'people',
     'mean number of people inside: the integral of occupancy, its drift taken out once the day is over, / observed time'),
    ('dwell.v1', 'minutes',
     'mean stay, by Little''s law: integral of occupancy over whole days / people in'),
    ('conversion.v1', 'share',
     'T / visits, T the transactions of the same site and time that count as sales; by the hour and finer, visits are shifted by how long people stay (lognormal, a median of 12 minutes unless measured), and the value is null where the median is above 20 minutes; above 1 is answered, flagged, never clipped'),
    ('conversion_of_groups.v1', 'share',
     'T / groups; null where no counter tells groups apart'),
    ('atv.v1', 'money',
     'average transaction value: net sales without VAT, after discounts / T'),
    ('upt.v1', 'units',
     'units per sale: units / T'),
    ('spv.v1', 'money',
     'sales per visit: net sales / visits = conversion x average transaction value'),
    ('transactions.v1', 'sales',
     'transactions that count: sale above 0 with one unit or more; no void, return or pick-up of what was paid before'),
    ('net_sales.v1', 'money',
     'amounts of the transactions that count, without VAT, after discounts'),
    ('units.v1', 'units',
     'units of the transactions that count'),
    ('returns.v1', 'returns',
     'transactions that are returns; never taken off the sales of the day they come back'),
    ('pickups.v1', 'pick-ups',
     'transactions that hand over what was paid before; no sale, no conversion'),
    ('shopper_to_staff.v1', 'visits per staffed hour',
     'visits / rostered hours'),
    ('peak_hour.v1', 'people',
     'visits of the busiest 60 minutes, looked for every 15 minutes within opening hours where coverage is 90% or more; of equals the earliest; `at` says when it began'),
    ('smiley4_index.v1', '0 to 100',
     '(100 n4 + 66.67 n3 + 33.33 n2) / N, n4 the best of four smileys'),
    ('smiley5_index.v1', '0 to 100',
     '(100 n5 + 75 n4 + 50 n3 + 25 n2) / N, n5 the best of five smileys'),
    ('csat.v1', '%',
     'share of the best two of five answers'),
    ('nps.v1', '-100 to 100',
     '% of answers 9 and 10 - % of answers 0 to 6'),
    ('ces.v1', '1 to 7',
     'mean of answers from 1 (disagree) to 7 (agree)'),
    ('response_rate.v1', 'share',
     'answers to a kiosk''s first question, as the filter of misuse left them, / people out at the kiosk''s own door, or at the site''s perimeter where it stands at no counted one; opening hours in which the exits were observed, on both sides'),
    ('visit_frequency.v1', 'visits per customer',
     'visits / customers, of holders of a consented token who came: n / sum(1/f) over their visits, f how often each comes, so that who is met often counts once all the same'),
    ('repeat_share.v1', 'share',
     'share of holders of a consented token who came more than once'),
    ('customer_lifetime_value.v1', 'money',
     'sum over t of m_t S_t / (1 + i)^t, m_t the margin of a period, S_t the share still a customer by a beta-geometric model, i the discount; of holders of a consented token only, each cohort by its holders')) as definition(id, unit, formula);

-- What the tools show beside each view and column.
do $$
declare
    said record;
    t text;
begin
    for said in select * from (values
        ('sites', 'Stores and malls.'),
        ('doors', 'Openings into sites. Of doors in series the outermost with a counter counts.'),
        ('spots', 'Mounted positions of counters and kiosks; devices stand there in turn.'),
        ('visits_15min', 'People counted at each counter by quarter of an hour, all hours, to now. Filter by day: it is fast. Null where nothing was measured, or where readings are longer than the quarter (read_every_s). A mall''s passages are among them: join visits_day.in_perimeter.'),
        ('visits_hour', 'People counted at each counter by local hour, all hours, to now; the hour that the clock repeats is two rows. Filter by day: it is fast.'),
        ('visits_day', 'People counted at each counter by local day, all hours. A row also where nothing was measured (visits null, coverage 0). Sum where in_perimeter for a site''s visits; divide sums of seconds for its coverage. People counted within a gap, at no known minute, are not among them (unplaced in /v1/counts).'),
        ('site_visits_day', 'Visits of sites by local day, at the perimeter of each day: nobody counts twice. As visits.v1 of /v1/metrics:query, scope all, asked for day by day.'),
        ('feedback_day', 'Presses on kiosks by local day, question and answer (0 the first). presses: raw; kept: after the misuse filter; its reasons make up the difference.'),
        ('sales_day', 'Sales from the tills by local day, ex VAT in the site''s currency. A day without a row: the tills said nothing.'),
        ('definitions', 'What each number is, as /v1/definitions says it.')) as v(name, text)
    loop
        execute format('comment on view bi.%I is %L', said.name, said.text);
    end loop;
    for said in select * from (values
        ('site', 'The site''s reference.'), ('door', 'The door''s reference.'),
        ('spot', 'The spot''s reference.'), ('name', 'As people call it.'),
        ('region', 'The region''s name.'), ('time_zone', 'IANA name; local days are of this zone.'),
        ('currency', 'ISO 4217.'), ('opens_on', 'First day of a temporary site.'),
        ('closes_on', 'Last day of a site that closes.'),
        ('behind', 'The door that one has passed before.'), ('kind', 'counter or kiosk.'),
        ('day', 'Local day of the site.'), ('starts_at', 'First instant.'),
        ('ends_at', 'The instant after the last.'),
        ('local_start', 'starts_at as the site''s clock shows it; not unique when it is set back.'),
        ('visits', 'People in, calibrated; null: nothing was measured, which is not zero.'),
        ('exits', 'People out, calibrated; null: nothing was measured.'),
        ('observed_s', 'Seconds that were observed.'),
        ('expected_s', 'Seconds that should have been: a device stood there; up to now.'),
        ('coverage', 'observed_s / expected_s, 0 to 1; null: nothing was to be observed.'),
        ('state', 'open: more may come; complete; final: 30 days past.'),
        ('revision', 'How often it changed after it was complete.'),
        ('read_every_s', 'The longest reading in it.'), ('origin', 'device or import.'),
        ('in_perimeter', 'Whether these people are among the site''s visits of that day.'),
        ('questionnaire', 'Its hash; 0000000000000000: the one built in.'),
        ('question', 'Its number, from 0.'), ('answer', 'Its number, from 0.'),
        ('presses', 'Raw presses.'), ('kept', 'Presses that the misuse filter kept.'),
        ('repeated', 'Left out: the same person again.'), ('children', 'Left out: play.'),
        ('stuck', 'Left out: a stuck button.'), ('closed', 'Left out: the shop was closed.'),
        ('filter_version', 'The version of the misuse filter.'),
        ('pending', 'More of this day waits to be worked in: not whole yet.'),
        ('transactions', 'Sales above 0 with one unit or more.'),
        ('net_sales', 'Their amount, ex VAT.'), ('units', 'Their units.'),
        ('returns', 'Returns, each counted once.'), ('pickups', 'Pick-ups of what was paid before.'),
        ('id', 'Its id with version.'), ('unit', 'Its unit.'),
        ('formula', 'What it is, in words.')) as v(name, text)
    loop
        for t in select table_name from information_schema.columns
            where table_schema = 'bi' and column_name = said.name
        loop
            execute format('comment on column bi.%I.%I is %L', t, said.name, said.text);
        end loop;
    end loop;
end $$;

update schema_compatibility set version = 9, compatible_from = 9;
