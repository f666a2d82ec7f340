-- Epochs: where snapshots are valid

-- The journal's lower end. Changes of transactions that "seen" sees may have been deleted: a reader whose snapshot does
-- not cover it has lost continuity and must read its boards again. The same holds while "pauses" differs from the control.
-- "place" identifies the cluster, the database and the installation that the transaction ids belong to. Rows of another
-- place were restored from a dump. That is also why no table here has a key: a dump's rows must never collide with ours.
create unlogged table if not exists relay.horizon (
    place   text        not null,
    seen    pg_snapshot not null,
    -- All entries with lower ids have been deleted, so pruning begins here.
    swept   xid8        not null,
    pauses  bigint      not null,
    -- The size of the file above which journalling pauses, if it is above stop_bytes: so much has been free before.
    ceiling bigint      not null,
    -- While journalling is paused: since when the journal has contained nothing but deleted rows.
    emptied timestamptz,
    -- The shape of the watched tables, and the id below which transactions may have made images of another one.
    shape   text,
    shaped  xid8
);

-- What was committed by when, and how many entries and bytes that added since the previous tick.
create unlogged table if not exists relay.ticks (
    place   text        not null,
    at      timestamptz not null default pg_catalog.clock_timestamp(),
    seen    pg_snapshot not null,
    entries bigint      not null,
    bytes   bigint      not null
);

-- A snapshot taken in one run of the server is valid in the next, if that continues where it ended. Postgres empties an
-- unlogged table in crash recovery, in a restore and when a standby is promoted, which is exactly when transaction ids may
-- be assigned again. There is one row per run, so that a restored copy of the server's files does not have the runs after
-- it was made.
create unlogged table if not exists relay.epochs (
    run     text        not null default pg_catalog.left(pg_catalog.md5(pg_catalog.gen_random_uuid()::text), 12),
    key     bytea       not null default pg_catalog.sha256(pg_catalog.convert_to(
                            pg_catalog.gen_random_uuid()::text || pg_catalog.gen_random_uuid()::text, 'UTF8')),
    place   text        not null,
    started timestamptz not null
);

comment on table relay.horizon is 'The lower end of the journal.';
comment on table relay.ticks is 'What was committed by when, for pruning by age and size.';
comment on table relay.epochs is 'The runs of the server whose snapshots are good; key seals the cursors of clients.';

create or replace function relay.place() returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.concat_ws('/',
        (select system_identifier from pg_catalog.pg_control_system()),
        (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()),
        'relay.epochs'::regclass::oid)
$$;

-- Whether rows were restored from a dump: of another place, or of this one a second time, as by pg_dump --data-only. With
-- them came perhaps entries with transaction ids that mean nothing here, or that are there twice. Then the journal counts as
-- empty.
create or replace function relay.forget_others(here text) returns boolean
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if (select pg_catalog.count(*) from relay.horizon) = 1
        and not exists (select from relay.horizon h where h.place <> here)
        and not exists (select from relay.epochs e where e.place <> here)
        and not exists (select from relay.ticks t where t.place <> here)
    then
        return false;
    end if;
    delete from relay.horizon h
    where h.place <> here or exists (select from relay.horizon o where o.place = here and o.ctid < h.ctid);
    delete from relay.epochs e where e.place <> here;
    delete from relay.ticks t where t.place <> here;
    update relay.horizon h set seen = pg_catalog.pg_current_snapshot(), swept = '0' where h.place = here;
    return true;
end
$$;

-- The runs of the server whose snapshots are valid, the present one first, which is recorded if it is new. If a dump was
-- restored or the server has crashed, the list starts again: the journal's contents are of another place or of the past.
create or replace function relay.epoch() returns table (run text, key bytea)
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    here constant text := relay.place();
begin
    if not exists (select from relay.horizon h where h.place = here)
        or not exists (select from relay.epochs e
                       where e.place = here and e.started = pg_catalog.pg_postmaster_start_time())
    then
        lock table relay.epochs in share update exclusive mode;
        if not exists (select from relay.horizon h where h.place = here) then
            delete from relay.horizon;
            delete from relay.ticks;
            delete from relay.epochs e where e.place <> here;
            delete from relay.journal;
            insert into relay.horizon (place, seen, swept, pauses, ceiling)
            select here, s, pg_catalog.pg_snapshot_xmin(s), relay.pauses() - relay.paused()::integer, 0
            from pg_catalog.pg_current_snapshot() s;
            -- A prepared transaction survives a crash and a failover, but its entries do not. So an entry is made that
            -- names it, which no reader takes before it has ended.
            insert into relay.journal (xid, op, reason)
            select x, 'S', 'epoch_changed'
            from relay.horizon h
            cross join lateral pg_catalog.pg_snapshot_xip(h.seen) x
            join pg_catalog.pg_prepared_xacts p on p.transaction = x::xid and p.database = pg_catalog.current_database();
        end if;
        insert into relay.epochs (place, started)
        select here, pg_catalog.pg_postmaster_start_time()
        where not exists (select from relay.epochs e
                          where e.place = here and e.started = pg_catalog.pg_postmaster_start_time());
    end if;
    perform relay.forget_others(here);
    return query select e.run, e.key from relay.epochs e where e.place = here
        order by e.started = pg_catalog.pg_postmaster_start_time() desc, e.started desc;
end
$$;

comment on function relay.epoch() is 'The runs of the server between which no transaction id was lost or used twice.';
