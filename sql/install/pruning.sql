-- Pruning

-- The decisions here need a snapshot per statement. One from the beginning of the transaction would be too old.
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

-- Records what is committed by now, and the bytes of entries that it added. If there is nothing new, it writes nothing, so
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

-- Deletes a bounded number of entries below "floor", so that no call takes long, and returns how many. The search begins
-- where the last call ended, because deleted rows stay in the index until they are vacuumed, and that waits for the
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

-- Deletes the oldest changes, by age and by size (see relay.settings), and returns how many. Call it until it returns 0,
-- each time in a transaction of its own. It only deletes, so it waits for nobody, nobody waits for it, and readers see
-- what their snapshots show. If two run at once, the second does nothing.
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
    -- If the clock was set back, move the ticks, too. Otherwise none would be old or added until the clock had caught up.
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
    -- The latest tick that is too old, or has too much after it: transactions that had ended by then may be deleted.
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
    -- The tick of this floor is kept until everything below it is deleted, which may take several calls. The latest tick is
    -- kept, because the next one counts from it.
    delete from relay.ticks t
    where t.place = here and pg_catalog.pg_snapshot_xmin(t.seen) < floor
      and t.at < (select max(k.at) from relay.ticks k where k.place = here);
    return relay.sweep(here, floor, 20000);
end
$$;

comment on function relay.prune(interval, bigint) is 'Deletes old changes; the daemon calls it every few seconds.';

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

-- An id above those of all transactions that have one now. It cannot be taken from a snapshot, because running
-- transactions may be above its xmax. A block with an exception clause is a subtransaction, which gets the next id when it
-- writes.
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

-- Ends a pause if there is room. Then journalling resumes, and relays must read their boards again. Returns whether
-- journalling has resumed. First, the journal's entries are deleted, because nobody can continue from them. There is room
-- once they are vacuumed, which waits for the longest transaction of the database.
--
-- It must be certain that a full file is free, or journalling would pause again at once. The proof is a VACUUM of the table
-- and of its TOAST table that began after everything was deleted. It did if it ended later, and none was running at that
-- moment. Statistics would not do: those of rows are delayed, and VACUUM only estimates the number of live rows.
--
-- Changes that were not journalled during the pause are not missed. A transaction that skipped an entry had its id by then.
-- So in the snapshot taken after journalling resumed, either it has ended, and the horizon, which is that snapshot, sees
-- it; or it is running, and an entry is made that names it, which no reader takes before it has ended.
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
    -- The control is only changed under this lock.
    lock table relay.horizon in share update exclusive mode;
    count := relay.pauses();
    if count = (select h.pauses from relay.horizon h where h.place = here) then
        return true;
    end if;
    if relay.paused() then
        -- There may be entries that are not visible yet, or a vacuum may be running.
        busy := exists (
            select from pg_catalog.pg_locks l
            where l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
              and l.relation in (select p from relay.journal_parts() p)
              and l.mode in ('RowExclusiveLock', 'ShareUpdateExclusiveLock') and l.pid is distinct from pg_catalog.pg_backend_pid());
        if relay.sweep(here, floor, 1000000) > 0 or exists (select from relay.journal j where j.xid >= floor) then
            update relay.horizon h set emptied = null where h.place = here;
        elsif not busy and (select h.emptied is null or h.emptied > pg_catalog.clock_timestamp() from relay.horizon h where h.place = here) then
            update relay.horizon h set emptied = pg_catalog.clock_timestamp() where h.place = here;
            -- Autovacuum only runs if it knows of dead rows, and it may know of none: make some in both tables.
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
            -- This informs autovacuum at once. Postgres 14 lacks the function, so there it happens a little later.
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
    -- The file does not shrink. If it has its maximum size, all of it is free and may be filled again, and a little more,
    -- because free space is not always found at once: by an eighth of the setting until it is twice as large, and then by a
    -- sixty-fourth. With less, journalling would pause again at once.
    update relay.horizon h
    set seen = after, pauses = count, emptied = null,
        ceiling = case when size > most - most / 4
                  then greatest(size + most / 64, least(size + most / 8, 2 * most)) else 0 end
    where h.place = here;
    -- The latest tick is kept, because it shows how wide entries are.
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

-- Promises that the caller polls the journal for the given milliseconds, at most two seconds. Meanwhile the triggers do not
-- notify, because transactions that notify commit one at a time in the whole cluster. When polling begins, this notifies
-- once, so that all other relays poll, too. With 0 milliseconds, it only says that there is a relay, now and then.
create or replace function relay.poll_for(ms integer) returns void
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    polled constant integer := relay.polled_for();
begin
    if polled < least(ms, 2000) or not relay.renewed_within(240) then
        lock table relay.horizon in share update exclusive mode nowait;
        if not relay.paused() then
            perform relay.set_control(false, relay.pauses(), least(ms, 2000));
            if ms > 0 and polled = 0 and pg_catalog.pg_notification_queue_usage() < 0.5 then
                perform pg_catalog.pg_notify('relay', '{"polling": true}');
            end if;
        end if;
    end if;
exception when lock_not_available then
    return;  -- the journal is full, or another relay has just done it
end
$$;

comment on function relay.poll_for(integer) is 'Makes triggers stop notifying while daemons poll; a busy daemon calls it.';
