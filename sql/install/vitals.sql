-- Monitoring

-- Writes a probe: an entry that concerns no board, with a notification of its own. The daemon that wrote it measures
-- whether and when both come back. Also tells the triggers that there is a relay. Returns whether it notified: it does not
-- while the queue is filling up.
create or replace function relay.probe(label text) returns boolean
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if relay.paused() then
        return false;  -- the next read of the journal says so
    end if;
    perform relay.poll_for(0);
    insert into relay.journal (op, reason) values ('P', pg_catalog.left(label, 100));
    if pg_catalog.pg_notification_queue_usage() >= 0.5 then
        return false;
    end if;
    perform pg_catalog.pg_notify('relay', pg_catalog.json_build_object('probe', pg_catalog.left(label, 100))::text);
    return true;
end
$$;

comment on function relay.probe(text) is 'Writes a change that concerns nobody; daemons call it to check that changes come through.';

-- The state of the journal. "journal_rows" comes from the statistics, and is a second late; "dead_rows" are waiting to be
-- vacuumed; "journal_bytes" is roughly what both take up in the file, which never shrinks, at the average width of an
-- entry; "oldest_seconds" is the age of the oldest changes; "overdue_seconds" is how long some of them should have been
-- deleted already.
create or replace function relay.vitals(
    out journal_rows bigint, out journal_bytes bigint, out oldest_seconds double precision,
    out overdue_seconds double precision, out keep_bytes bigint, out stop_bytes bigint, out paused boolean,
    out queue_usage double precision, out dead_rows bigint
)
    language sql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.pg_stat_get_live_tuples('relay.journal'::regclass),
           least(f.size, coalesce((pg_catalog.pg_stat_get_live_tuples('relay.journal'::regclass)
                                   + pg_catalog.pg_stat_get_dead_tuples('relay.journal'::regclass)) * t.width, f.size)),
           coalesce(t.age, 0),
           greatest(t.age - pg_catalog.date_part('epoch', s.keep_age), 0),
           s.keep_bytes,
           s.stop_bytes,
           relay.paused(),
           pg_catalog.pg_notification_queue_usage(),
           pg_catalog.pg_stat_get_dead_tuples('relay.journal'::regclass)
    from relay.settings s
    cross join (select pg_catalog.pg_total_relation_size('relay.journal'::regclass) as size) f
    -- Ticks below which everything has been deleted say nothing about the age of the rest.
    cross join (select pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()
                       - min(k.at) filter (where pg_catalog.pg_snapshot_xmin(k.seen) > h.swept)) as age,
                       (sum(k.bytes) / sum(k.entries))::bigint as width
                from relay.ticks k join relay.horizon h on h.place = k.place
                where k.place = relay.place()) t
$$;

comment on function relay.vitals() is 'How large and how old the journal is, and whether it is pruned as it should be.';

-- Describes the transactions that prevent the vacuum of deleted entries in this database, the oldest first, at most three.
create or replace function relay.vacuum_holders() returns text
    language sql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.string_agg(h.said, ', ' order by h.age desc)
    from (
        select age, said
        from (
            select pg_catalog.age(a.backend_xmin) as age,
                   pg_catalog.concat('process ', a.pid, ' (', coalesce(nullif(a.application_name, ''), a.usename::text, a.backend_type),
                                     ', since ', a.xact_start::timestamptz(0), ')') as said
            from pg_catalog.pg_stat_activity a
            where a.backend_xmin is not null and a.pid <> pg_catalog.pg_backend_pid()
              and (a.datname = pg_catalog.current_database() or a.datname is null)
            union all
            select pg_catalog.age(p.transaction), 'prepared transaction ' || pg_catalog.quote_literal(p.gid)
            from pg_catalog.pg_prepared_xacts p where p.database = pg_catalog.current_database()
            union all
            select pg_catalog.age(s.xmin), 'replication slot ' || s.slot_name
            from pg_catalog.pg_replication_slots s where s.xmin is not null
        ) held
        order by age desc limit 3
    ) h
$$;

comment on function relay.vacuum_holders() is 'Whose transactions keep the journal from being vacuumed.';

-- Estimates the width of rows from a sample: for each watch, how many rows of its largest part were read, and roughly how
-- many bytes the widest has as JSON, without its hidden columns. Values that Postgres has compressed count with their
-- compressed size, because nothing is unpacked, so the true width may be larger. Also counts the sampled rows that have
-- an id, a board or a lane that is a number beyond 2^53, which many readers of JSON round. Reads at most 64 blocks, and
-- waits for no lock longer than a tenth of a second.
create or replace function relay.widest(out watch integer, out sampled bigint, out bytes bigint, out huge bigint) returns setof record
    language plpgsql
    stable
    security definer
    set row_security = off
    set lock_timeout = '100ms'
    set enable_seqscan = off
    set search_path = pg_catalog, pg_temp
as $$
declare
    w      relay.watches;
    part   regclass;
    width  text;
    beyond text;
    blocks bigint;
    places tid[];
begin
    -- Planning a query of a table can run code of its owner.
    if current_user <> 'relay_reader' then
        raise exception 'relay.widest belongs to %, expected relay_reader: run relay sql install', current_user
            using errcode = 'invalid_object_definition';
    end if;
    for w in select * from relay.watches s where s.problem is null order by s.id loop
        -- The right to read a table does not include its partitions.
        select c.oid into part
        from relay.parts(w.target) p
        join pg_catalog.pg_class c on c.oid = p
        where c.relkind = 'r' and pg_catalog.has_table_privilege(c.oid, 'select')
        order by c.relpages desc, c.oid limit 1;
        continue when part is null;

        select pg_catalog.string_agg(
                   -- the name, its quotes, the value's, a colon and a comma
                   (pg_catalog.octet_length(a.attname::text) + 6)
                   || pg_catalog.format(
                       case when t.typname in ('text', 'varchar', 'bpchar') then ' + coalesce(pg_catalog.octet_length(t.%I), 0)'
                            when t.typname = 'bytea' then ' + coalesce(2 * pg_catalog.octet_length(t.%I), 0)'
                            else ' + coalesce(pg_catalog.pg_column_size(t.%I), 0)' end, a.attname), ' + ') into width
        from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid)
        where a.attrelid = w.target and a.attnum > 0 and not a.attisdropped
          and a.attname <> all (w.hidden);
        select coalesce(pg_catalog.string_agg(
                   pg_catalog.format('t.%I not between -9007199254740991 and 9007199254740991', a.attname), ' or '), 'false') into beyond
        from pg_catalog.pg_attribute a
        where a.attrelid = w.target and relay.base_type(a.atttypid) = 'bigint'::regtype and not a.attisdropped and not w.as_text
          and (a.attname in (w.board_column, w.lane_column) or a.attname = w.id_column and w.id_prefix is null);

        begin
            perform pg_catalog.set_config('transaction_read_only', 'on', true);  -- see relay.entry_body
            blocks := pg_catalog.pg_relation_size(part) / pg_catalog.current_setting('block_size')::bigint;
            -- Samples the first rows of blocks from the whole table, including the last; the fewer blocks, the more rows
            -- of each.
            select pg_catalog.array_agg(distinct pg_catalog.format('(%s,%s)', (blocks - 1) * i / 63, line)::tid) into places
            from pg_catalog.generate_series(0, 63) i
            cross join pg_catalog.generate_series(1, least(300, 1024 / least(greatest(blocks, 1), 64))) line;
            execute pg_catalog.format('select $1, count(*), max(%s), count(*) filter (where %s) from only %s t where t.ctid = any ($2)',
                                      width, beyond, part)
                into watch, sampled, bytes, huge using w.id, places;
            return next;
        exception when lock_not_available or insufficient_privilege then
            null;  -- somebody rewrites it just now; or boards of it cannot be read either
        end;
    end loop;
end
$$;

comment on function relay.widest() is 'About how wide the rows of the watched tables are; relay check asks.';
