-- Pruning

-- The decisions here need the snapshot of each statement; one from the beginning of the transaction would be too
-- old.
create or replace function relay.require_read_committed(caller text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if pg_catalog.current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        raise exception '%: found isolation level %, expected read committed: call it in a transaction of its own',
            caller, pg_catalog.current_setting('transaction_isolation') using errcode = 'invalid_transaction_state';
    end if;
end
$$;

-- Notes what is committed by now, and the bytes of entries that it added. Where nothing is new it writes nothing, so
-- an idle database stays idle.
create or replace function relay.tick(here text) returns void
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    insert into relay.ticks (place, seen, entries, bytes)
    select here, found.seen, found.entries, found.bytes
    from (
        select pg_catalog.pg_current_snapshot() as seen, count(*) as entries,
               sum(80 + coalesce(pg_catalog.pg_column_size(j.entry), 0)) as bytes
        from (select coalesce((select t.seen from relay.ticks t where t.place = here order by t.at desc limit 1),
                              (select h.seen from relay.horizon h where h.place = here)) as seen) last
        join relay.journal j
            on (j.xid >= pg_catalog.pg_snapshot_xmax(last.seen) or j.xid = any (array(select pg_catalog.pg_snapshot_xip(last.seen))))
            and pg_catalog.pg_visible_in_snapshot(j.xid, pg_catalog.pg_current_snapshot())
    ) found
    where found.entries > 0
$$;

-- Deletes a bounded number of entries below "floor", so that no call takes long; returns how many. They are
-- found from where the last call ended: what is deleted stays in the index until it is vacuumed, and that waits for the
-- longest transaction of the database.
create or replace function relay.sweep(here text, floor xid8, most integer) returns integer
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $$
declare
    deleted integer;
begin
    delete from relay.journal j
    where j.ctid = any (array(
        select x.ctid from relay.journal x
        where x.xid < floor and x.xid >= (select h.swept from relay.horizon h where h.place = here)
        limit most));
    get diagnostics deleted = row_count;
    if deleted < most then
        update relay.horizon h set swept = floor where h.place = here and h.swept < floor;
    end if;
    return deleted;
end
$$;

-- Deletes the oldest changes, by age and by size (see relay.settings); returns how many. Call it again until it
-- returns 0, each time in a transaction of its own. It only deletes: so it waits for nobody, nobody waits for it, and
-- a reader sees what its snapshot shows. Of two at once, the second does nothing.
create or replace function relay.prune(keep interval default null, most bigint default null) returns bigint
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    here  constant text := relay.place();
    floor xid8;
begin
    perform relay.require_read_committed('relay.prune');
    perform relay.forget_others(here);
    -- Where the clock was set back, it takes the ticks along: none would be old, and none be added, until it had caught up.
    if exists (select from relay.ticks t where t.place = here and t.at > pg_catalog.clock_timestamp() + interval '1 second') then
        perform from relay.horizon h where h.place = here for update skip locked;
        if not found then
            return 0;
        end if;
        update relay.ticks t set at = t.at - late.late
        from (select max(k.at) - pg_catalog.clock_timestamp() as late from relay.ticks k where k.place = here) late
        where t.place = here;
    end if;
    perform relay.tick(here)
    where not exists (select from relay.ticks t
                      where t.place = here and t.at > pg_catalog.clock_timestamp() - interval '1 second' and keep is null);
    select coalesce(keep, s.keep_age), coalesce(most, s.keep_bytes) into keep, most from relay.settings s;
    -- The youngest tick that is too old, or has too much after it: all that was over by then may go.
    select pg_catalog.pg_snapshot_xmin(t.seen) into floor
    from (
        select k.at, k.seen, sum(k.bytes) over (order by k.at desc) - k.bytes as younger
        from relay.ticks k where k.place = here
    ) t
    where t.at <= pg_catalog.clock_timestamp() - keep or t.younger > most
    order by t.at desc limit 1;
    if floor is null or not exists (select from relay.horizon h where h.place = here and h.swept < floor) then
        return 0;
    end if;
    perform from relay.horizon h where h.place = here for update skip locked;
    if not found then
        return 0;
    end if;
    update relay.horizon h
    set seen = pg_catalog.concat(floor, ':', floor, ':')::pg_snapshot
    where h.place = here and pg_catalog.pg_snapshot_xmax(h.seen) < floor;
    -- The tick of this floor stays until all below it are gone, which may take several calls; and the youngest one, for
    -- the next counts from it.
    delete from relay.ticks t
    where t.place = here and pg_catalog.pg_snapshot_xmin(t.seen) < floor
      and t.at < (select max(k.at) from relay.ticks k where k.place = here);
    return relay.sweep(here, floor, 20000);
end
$$;

comment on function relay.prune(interval, bigint) is 'Lets old changes go; the daemon calls it every few seconds.';

-- The files of the journal's entries: the table, and its TOAST table.
create or replace function relay.journal_parts() returns setof regclass
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select 'relay.journal'::regclass
    union all
    select c.reltoastrelid from pg_catalog.pg_class c where c.oid = 'relay.journal'::regclass
$$;

-- An id above that of every transaction which has one now. A snapshot does not tell: transactions that are running
-- may lie above its xmax. A block with an exception clause is a subtransaction, and gets the next id when it writes.
create or replace function relay.next_xid() returns xid8
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    top  constant bigint := pg_catalog.pg_current_xact_id()::text::bigint;
    next bigint;
begin
    begin
        update relay.horizon h set pauses = h.pauses where h.place = relay.place() returning h.xmin::text::bigint into next;
    exception when no_data_found then
        raise;
    end;
    -- The ids of row versions are 32 bits wide, those of transactions 64.
    return (top + ((next - top) & 4294967295))::text::xid8;
end
$$;

-- Ends a pause, if there is room: journalling goes on, and relays must read their boards again. Returns
-- whether journalling goes on. What the journal holds is deleted first, for nobody can go on from it; room is there
-- when that was vacuumed, which waits for the longest transaction of the database.
--
-- That all of a full file is free must be proved, or journalling would pause at once again: a VACUUM, of the table and of
-- its TOAST table, that began when everything was deleted, and left nothing. It began then if it ended later, and none
-- ran at that moment. What the statistics say of the rows does not do, for it comes late, and what VACUUM says of the
-- living rows is an estimate.
--
-- What was not journalled during the pause cannot be missed: a transaction that skipped an entry had its id by then, so in
-- the snapshot taken after journalling went on, it is either over (then the horizon, which is that snapshot, sees it)
-- or still running. For each of the latter an entry is made in its name, which no reader takes before it is over.
create or replace function relay.resume() returns boolean
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
    set enable_seqscan = off
as $$
declare
    here  constant text := relay.place();
    size  constant bigint := pg_catalog.pg_total_relation_size('relay.journal'::regclass);
    most  constant bigint := (select s.stop_bytes from relay.settings s);
    floor constant xid8 := pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot());
    busy  boolean;
    count bigint;
    below bigint;
    after pg_snapshot;
begin
    perform relay.require_read_committed('relay.resume');
    perform from relay.horizon h where h.place = here for update;
    -- The control is changed under this lock only.
    lock table relay.horizon in share update exclusive mode;
    count := relay.pauses();
    if count = (select h.pauses from relay.horizon h where h.place = here) then
        return true;
    end if;
    if relay.paused() then
        -- Others may have written entries that are not visible yet, or be vacuuming it.
        busy := exists (
            select from pg_catalog.pg_locks l
            where l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
              and l.relation in (select p from relay.journal_parts() p)
              and l.mode in ('RowExclusiveLock', 'ShareUpdateExclusiveLock') and l.pid is distinct from pg_catalog.pg_backend_pid());
        if relay.sweep(here, floor, 1000000) > 0 or exists (select from relay.journal j where j.xid >= floor) then
            update relay.horizon h set emptied = null where h.place = here;
        elsif not busy and (select h.emptied is null or h.emptied > pg_catalog.clock_timestamp() from relay.horizon h where h.place = here) then
            update relay.horizon h set emptied = pg_catalog.clock_timestamp() where h.place = here;
            -- Autovacuum comes where it knows of dead rows, and may know of none: here are some of both tables.
            insert into relay.journal (op, reason)
            select 'P', case i when 1 then (select pg_catalog.string_agg(pg_catalog.gen_random_uuid()::text, '')
                                            from pg_catalog.generate_series(1, 2000)) end
            from pg_catalog.generate_series(1, 30) i;
            delete from relay.journal j where j.xid = pg_catalog.pg_current_xact_id();
        end if;
        if size > most - most / 4 and not (
            select pg_catalog.bool_and(coalesce(vacuumed > h.emptied, false) and pg_catalog.pg_stat_get_dead_tuples(p) <= 20)
            from relay.horizon h
            cross join relay.journal_parts() p
            cross join lateral greatest(pg_catalog.pg_stat_get_last_vacuum_time(p),
                                        pg_catalog.pg_stat_get_last_autovacuum_time(p)) vacuumed
            where h.place = here) is true
        then
            -- So that autovacuum knows at once. Postgres 14 has no such function, and autovacuum knows a little later.
            if pg_catalog.current_setting('server_version_num')::integer >= 150000 then
                perform pg_catalog.pg_stat_force_next_flush();
            end if;
            return false;
        end if;
        count := count + 1;
        perform relay.set_control(false, count, 0);
    end if;
    below := relay.next_xid()::text::bigint;
    after := pg_catalog.pg_current_snapshot();
    -- The file does not shrink. Where it is as large as it may be, it is free, and may be filled again, and a little
    -- more, for free room is not always found at once: by an eighth of what was asked for, until it is twice as large;
    -- then by a sixty-fourth, for with less it would pause at once again.
    update relay.horizon h
    set seen = after, pauses = count, emptied = null,
        ceiling = case when size > most - most / 4
                  then greatest(size + most / 64, least(size + most / 8, 2 * most)) else 0 end
    where h.place = here;
    -- The youngest stays, for it says how wide entries are.
    delete from relay.ticks t where t.place = here and t.at < (select max(k.at) from relay.ticks k where k.place = here);
    insert into relay.journal (xid, op, reason)
    select running.xid, 'S', 'journalling_paused'
    from (
        select x as xid from pg_catalog.pg_snapshot_xip(after) x
        union all
        select x::text::xid8
        from pg_catalog.generate_series(pg_catalog.pg_snapshot_xmax(after)::text::bigint, below - 1) x
    ) running
    where running.xid <> pg_catalog.pg_current_xact_id();
    return true;
end
$$;

comment on function relay.resume() is 'Ends a pause of the journal; the daemon calls it.';

-- Promises that the caller polls the journal for the given milliseconds, two seconds at most: the triggers do not notify
-- meanwhile, for transactions that notify commit one at a time in the whole cluster. When this begins it notifies once
-- itself, so that all other relays poll too.
create or replace function relay.poll_for(ms integer) returns void
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    polled constant integer := relay.polled_for();
begin
    if polled < least(ms, 2000) then
        lock table relay.horizon in share update exclusive mode nowait;
        if not relay.paused() then
            perform relay.set_control(false, relay.pauses(), least(ms, 2000));
            if polled = 0 and pg_catalog.pg_notification_queue_usage() < 0.5 then
                perform pg_catalog.pg_notify('relay', '{"polling": true}');
            end if;
        end if;
    end if;
exception when lock_not_available then
    return;  -- the journal is full, or another relay has just done it
end
$$;

comment on function relay.poll_for(integer) is 'Spares writers the notification; a busy daemon calls it.';
