-- The relay's side of the database: the journal, the triggers that write it, and what the daemon reads.
--
-- Creates the schema "relay" and touches nothing outside it. Feeding a table is a second step:
--
--     select relay.watch('public.tasks');
--
-- Safe to run twice, also over an older install: tables are kept, functions are replaced.
-- Functions run with the search path "pg_catalog, pg_temp", not the empty one: under that, a temporary schema comes
-- first where types are looked up, so that whoever calls a SECURITY DEFINER function could slip their own type into
-- it. All names but those of types and operators are qualified all the same.
--
-- Words: a *change* is one entry of the journal, the *doorbell* is the NOTIFY that says "come and look",
-- a *board* is the group of rows that share the value of the board column.

begin;

set local lock_timeout = '3s';
set local client_min_messages = warning;

create schema if not exists relay;

comment on schema relay is 'The change feed of the watched tables. Removed by uninstall.sql.';

-- Which tables are fed -----------------------------------------------------------------------------------

-- A change names the watch it was made under. An id is never used again: a changed setting is a new watch, so
-- that no change is ever read with the settings of another.
create table if not exists relay.watches (
    id           integer     generated always as identity primary key,
    target       regclass    not null unique,
    id_column    name        not null,
    board_column name        not null,
    lane_column  name        not null,
    hidden       name[]      not null,
    order_by     text[]      not null,
    since        timestamptz not null default pg_catalog.now()
);

comment on table relay.watches is 'One row per watched table; written by relay.watch and relay.unwatch only.';

-- The journal --------------------------------------------------------------------------------------------------

-- The journal stands in four *slots*. Writers fill the current one; relay.prune moves on to an empty one and, when
-- what a closed one holds is old enough, truncates it. So space comes back at once, without a row being deleted or
-- a page being vacuumed, and no writer ever waits for it.

-- An install from before there were slots: its journal goes, and so do its epochs, which tells every reader.
do $$
begin
    if exists (select from pg_catalog.pg_class c
               where c.oid = pg_catalog.to_regclass('relay.journal') and c.relkind = 'r') then
        drop table relay.journal, relay.horizon, relay.ticks, relay.epochs;
        drop function if exists relay.epoch();
        drop function if exists relay.prune(interval, integer);
    end if;
end
$$;

create table if not exists relay.journal (
    slot      smallint not null,
    -- The order in which changes were made. Not the order of commits: that is what snapshots are for.
    seq       bigint   not null,
    -- The transaction that made the change. "What is new since snapshot S" is: xid >= xmax(S) or xid = any(xip(S)).
    xid       xid8     not null default pg_catalog.pg_current_xact_id(),
    watch     integer,
    -- I insert, U update, D delete, S read the boards again (reason says why), C a canary (reason names it)
    op        "char"   not null,
    old_board text,
    new_board text,
    -- Where the row versions stand, table or partition and tid. They chain the versions of a row, whatever
    -- order nested triggers made the entries in. A version that changed nothing visible has no entry, so a chain
    -- may have gaps: then it helps to know whether the old version was made by this transaction too, and how
    -- deep in triggers the statement was.
    part      oid,
    old_tid   tid,
    new_tid   tid,
    old_here  boolean,
    depth     integer,
    old_row   json,
    new_row   json,
    reason    text
    -- No check constraint: it would be compiled anew for each statement, and costs a writer more than the row.
) partition by list (slot);

comment on table relay.journal is 'What committed transactions did to the watched tables; pruned by relay.prune.';
comment on column relay.journal.old_row is
    'The row before the change, without its hidden columns'' values; of a wide row, only the columns that changed.';
comment on column relay.journal.new_row is 'The row after the change, without its hidden columns'' values.';

-- Checked first, for "if not exists" locks the table all the same.
do $$
begin
    if pg_catalog.to_regclass('relay.journal_xid') is null then
        create index journal_xid on relay.journal (xid);
    end if;
end
$$;

-- Nothing in a slot is ever updated or deleted, and it ends by TRUNCATE: autovacuum would have nothing to do.
do $$
begin
    for slot in 0..3 loop
        execute pg_catalog.format(
            'create table if not exists relay.journal_%1$s partition of relay.journal for values in (%1$s) '
            'with (autovacuum_enabled = false, toast.autovacuum_enabled = false)', slot);
    end loop;
end
$$;

create table if not exists relay.slots (
    slot         smallint    primary key,
    opened_at    timestamptz not null default pg_catalog.clock_timestamp(),
    closed_at    timestamptz,
    -- Every transaction that has entries in the slot has a lower id.
    closed_below xid8,
    -- Since when no running transaction has entries in the slot.
    free_since   timestamptz
);
insert into relay.slots (slot) select n from pg_catalog.generate_series(0, 3) n on conflict do nothing;

comment on table relay.slots is 'The parts that the journal goes round in.';

create sequence if not exists relay.journal_seq;

-- What every writer must know at once is kept in sequences: they are outside transactions and snapshots, so that
-- a writer in REPEATABLE READ sees what is true now and not what was true when it began.
--   slot     the current slot
--   pauses   goes up when the journal is full
--   resumed  the last pause that is over: while it is lower than pauses, nothing is journalled
--   awake    until when the relays look by themselves, in milliseconds of the epoch: no need to ring meanwhile
create sequence if not exists relay.slot minvalue 0 maxvalue 3;
create sequence if not exists relay.pauses minvalue 0;
create sequence if not exists relay.resumed minvalue 0;
create sequence if not exists relay.awake minvalue 0;
do $$
declare
    name text;
begin
    foreach name in array array['relay.slot', 'relay.pauses', 'relay.resumed', 'relay.awake'] loop
        if pg_catalog.pg_sequence_last_value(name::regclass) is null then
            perform pg_catalog.setval(name::regclass, 0);
        end if;
    end loop;
end
$$;

-- How much of the journal is kept. Change it with a plain UPDATE.
create table if not exists relay.settings (
    singleton  boolean  primary key default true check (singleton),
    keep_age   interval not null default '1 hour' check (keep_age >= '0'),
    keep_bytes bigint   not null default 536870912 check (keep_bytes > 0),
    stop_bytes bigint   not null default 2147483648 check (stop_bytes > 0)
);
insert into relay.settings default values on conflict do nothing;

comment on table relay.settings is 'How much of the journal is kept; one row.';
comment on column relay.settings.keep_age is 'Changes go when they were committed longer ago.';
comment on column relay.settings.keep_bytes is 'The oldest changes go, whatever their age, when the journal is larger.';
comment on column relay.settings.stop_bytes is 'Nothing more is journalled, until a relay comes, when the journal is larger.';

-- The journal's lower end. Changes of transactions that "seen" sees may be gone: a reader whose snapshot does not
-- cover it has lost continuity and must read its boards again. So it must while a pause is not yet known here.
create table if not exists relay.horizon (
    singleton    boolean     primary key default true check (singleton),
    seen         pg_snapshot not null default '3:3:',
    pauses_known bigint      not null default 0,
    -- Cluster, database and installation that the journal's transaction ids are of; see relay.epoch.
    place        text
);
insert into relay.horizon default values on conflict do nothing;

-- A snapshot taken in one run of the server is good in the next, if the next goes on where it ended. Unlogged on
-- purpose: Postgres empties the table in crash recovery, in a restore and when a standby is promoted, just when
-- transaction ids that were seen before may be given out again. One row per run, so that a copy of the server's
-- files that is put back does not know the runs that came after it was made.
create unlogged table if not exists relay.epochs (
    run     text        primary key default pg_catalog.left(pg_catalog.md5(pg_catalog.gen_random_uuid()::text), 12),
    key     bytea       not null default pg_catalog.sha256(pg_catalog.convert_to(
                            pg_catalog.gen_random_uuid()::text || pg_catalog.gen_random_uuid()::text, 'UTF8')),
    place   text        not null,
    started timestamptz not null,
    unique (place, started)
);

comment on table relay.epochs is 'The runs of the server whose snapshots are good; key seals the cursors of clients.';

-- Begins anew where a dump was restored: the ids of its transactions are those of another place, or of a past that
-- is over, so its changes are no longer to be told.
create or replace function relay.settle_in(here text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform from relay.horizon h where h.place = here;
    if found then
        return;
    end if;
    perform from relay.horizon for update;
    -- What asks for a sync stays: one too many does no harm, and relay.resume may have asked just now.
    delete from relay.journal where op <> 'S';
    update relay.horizon set seen = pg_catalog.pg_current_snapshot(), place = here;
end
$$;

-- The runs of the server whose snapshots are good, the present one first; it is noted now if it is not yet.
create or replace function relay.epoch() returns table (run text, key bytea)
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    here constant text := pg_catalog.concat_ws('/',
        (select system_identifier from pg_catalog.pg_control_system()),
        (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()),
        'relay.epochs'::regclass::oid);
begin
    perform relay.settle_in(here);
    if not exists (select from relay.epochs e
                   where e.place = here and e.started = pg_catalog.pg_postmaster_start_time()) then
        insert into relay.epochs (place, started) values (here, pg_catalog.pg_postmaster_start_time())
            on conflict do nothing;
    end if;
    return query select e.run, e.key from relay.epochs e where e.place = here order by e.started desc;
end
$$;

comment on function relay.epoch() is 'The runs of the server between which no transaction id was lost or used twice.';

-- Writing: runs inside the writer's transaction, so it must never fail it ------------------------------------

-- Rings the doorbell: a NOTIFY on channel "relay" naming the board, once per transaction and run of changes to a
-- board. It is only a hint, the daemon looks by itself too; so it stays silent where ringing could hurt the
-- writer: when the server's notification queue fills up (a full one fails commits), and where two-phase commit
-- is enabled (a transaction that has notified cannot be prepared).
create or replace function relay.ring(board text, target text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- Cut, for a payload must stay below 8,000 bytes and a board's name may have any length.
    label constant text := case when pg_catalog.length(board) > 100 then pg_catalog.left(board, 99) || '…'
                                else board end;
begin
    perform pg_catalog.set_config('relay.rung', 'board ' || pg_catalog.left(board, 100), true);
    if pg_catalog.current_setting('max_prepared_transactions') = '0'
        and pg_catalog.pg_notification_queue_usage() < 0.5
    then
        perform pg_catalog.pg_notify('relay',
            pg_catalog.json_build_object('board', label, 'table', target)::text);
    end if;
end
$$;

-- For how many more milliseconds the relays look by themselves. The trigger functions hold a copy of this. A moment
-- further ahead than anybody may promise is from before the clock was set back.
create or replace function relay.awake_for() returns integer
    language sql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
    select case when ms between 1 and 2000 then ms::integer else 0 end
    from (select pg_catalog.pg_sequence_last_value('relay.awake')
                 - (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000)::bigint as ms) rest
$$;

-- Promises that whoever calls will look at the journal by itself for so many milliseconds, two seconds at most: the
-- triggers do not ring meanwhile, for transactions that notify commit one at a time in the whole cluster. When this
-- begins it rings once itself, so that all other relays look by themselves too.
create or replace function relay.stay_awake(ms integer) returns void
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    asleep constant boolean := relay.awake_for() = 0;
begin
    if relay.awake_for() < least(ms, 2000) then
        perform pg_catalog.setval('relay.awake',
            (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000)::bigint + least(ms, 2000));
    end if;
    if asleep and pg_catalog.pg_notification_queue_usage() < 0.5 then
        perform pg_catalog.pg_notify('relay', '{"awake": true}');
    end if;
end
$$;

comment on function relay.stay_awake(integer) is 'Spares writers the doorbell; a busy daemon calls it.';

-- Whether the journal was full and no relay has come since.
create or replace function relay.paused() returns boolean
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.pg_sequence_last_value('relay.pauses') > pg_catalog.pg_sequence_last_value('relay.resumed')
$$;

-- Stops journalling when the current slot is full. A relay that comes calls relay.resume. Never the other way
-- round: a counter that only goes up cannot undo the pause of another writer, however late it is.
create or replace function relay.pause_if_full(slot smallint) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    bytes constant bigint :=
        pg_catalog.pg_total_relation_size(pg_catalog.to_regclass('relay.journal_' || slot));
begin
    if bytes > (select s.stop_bytes / 4 from relay.settings s) and not relay.paused() then
        perform pg_catalog.nextval('relay.pauses');
        raise log 'relay: a slot of the journal holds % bytes: journalling pauses until a relay comes', bytes;
    end if;
end
$$;

-- Tells the daemon to read its boards again, and why: a word of docs/clients.md, then perhaps more for people.
create or replace function relay.journal_sync(watch integer, target text, reason text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if relay.paused() then
        return;  -- they will be read again in any case
    end if;
    insert into relay.journal (slot, seq, watch, op, reason)
    values (pg_catalog.pg_sequence_last_value('relay.slot'), pg_catalog.nextval('relay.journal_seq'),
            journal_sync.watch, 'S', journal_sync.reason);
    perform relay.ring('*', target);
end
$$;

-- TRUNCATE fires no row trigger.
create or replace function relay.journal_truncate() returns trigger
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform relay.journal_sync(tg_argv[0]::integer, tg_relid::regclass::text, 'truncate');
    return null;
end
$$;

-- Whether a row version was made by the current transaction or a subtransaction of it. The ids of row versions are
-- 32 bits wide, those of transactions 64.
create or replace function relay.made_here(xmin xid) returns boolean
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    top   constant bigint := pg_catalog.pg_current_xact_id()::text::bigint;
    ahead constant bigint := (xmin::text::bigint - top + 2147483648) & 4294967295;
begin
    if ahead <= 2147483648 then
        return ahead = 2147483648;
    end if;
    -- Younger than this transaction: a subtransaction of it, or another one that committed meanwhile.
    return pg_catalog.pg_xact_status((top + ahead - 2147483648)::text::xid8) = 'in progress';
exception when others then
    return false;  -- the future: an id from before the last wrap-around, of a version frozen long ago
end
$$;

-- The images of a row before and after a change, whatever the writer's settings are. The trigger functions make them
-- without this, and for a third of the price, where the settings are these already.
create or replace function relay.images(old_row record, new_row record) returns json[]
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
    set datestyle = 'ISO, MDY'
    set intervalstyle = 'postgres'
    set extra_float_digits = 1
    set bytea_output = 'hex'
as $$
begin
    return array[pg_catalog.row_to_json(old_row), pg_catalog.row_to_json(new_row)];
end
$$;

-- The columns of a wide row's old image that are not the same in the new one, and those that it is known by: the
-- reader takes the rest from the new one. All of them where an image cannot be taken apart, as with \u0000.
create or replace function relay.changed(old_row json, new_row json, known_by text[]) returns json
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select coalesce(pg_catalog.json_object_agg(o.key, o.value), '{}')
        from pg_catalog.json_each(old_row) o
        left join pg_catalog.json_each(new_row) n on n.key = o.key
        where n.value is null or n.value::text collate "C" <> o.value::text or o.key = any (known_by));
exception when others then
    return old_row;
end
$$;

-- What the row trigger's function of one watch does. Generated, for a column can be named in PL/pgSQL only as it is
-- written: reading the board's value out of the JSON image would cost more, and fails on JSON that holds \u0000.
-- The only columns it names are the board and the hidden ones. If a later schema change removes or retypes one of
-- them, the block around them catches it: the writer goes on, and the daemon is told to read again.
--
-- Every writer pays for what stands here, so it calls nothing of ours but for rare cases, and inserts into the
-- slot's own table: finding that through relay.journal would cost as much again as the insert itself.
create or replace function relay.journal_body(w relay.watches) returns text
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $make$
declare
    hide_old text := '';
    hide_new text := '';
    hidden   text := '';
    inserts  text := '';
    col name;
begin
    foreach col in array w.hidden loop
        hide_old := hide_old || pg_catalog.format(' old.%I := null;', col);
        hide_new := hide_new || pg_catalog.format(' new.%I := null;', col);
    end loop;
    if hide_old <> '' then
        hidden := pg_catalog.format($hide$
        if tg_op <> 'INSERT' then%s
        end if;
        if tg_op <> 'DELETE' then%s
        end if;$hide$, hide_old, hide_new);
    end if;
    for slot in 0..3 loop
        inserts := inserts || pg_catalog.format($branch$%s slot = %s then
        insert into relay.journal_%s
            (slot, seq, watch, op, old_board, new_board, part, old_tid, new_tid, old_here, depth, old_row, new_row)
        values (slot, seq, %s, pg_catalog.left(tg_op, 1)::"char", old_board, new_board, tg_relid,
                old.ctid, new.ctid,
                -- The age spares nearly all rows the call: what is older than this transaction was not made by it.
                tg_op <> 'INSERT' and pg_catalog.age(old.xmin) <= 0 and relay.made_here(old.xmin),
                pg_catalog.pg_trigger_depth(), old_row, new_row);
    $branch$, case slot when 0 then 'if' else 'elsif' end, slot, slot, w.id);
    end loop;

    return pg_catalog.format($body$
declare
    old_board text;
    new_board text;
    old_row   json;
    new_row   json;
    images    json[];
    board     text;
    slot      smallint;
    seq       bigint;
begin
    -- What relay.paused says, for less.
    if pg_catalog.pg_sequence_last_value('relay.pauses') > pg_catalog.pg_sequence_last_value('relay.resumed') then
        return null;
    end if;
    -- "new" is null in a delete, "old" in an insert, and so is all that is taken from them.
    begin%3$s
        old_board := old.%2$I::text;
        new_board := new.%2$I::text;
        if tg_op = 'UPDATE' and old operator(pg_catalog.*=) new then
            return null;
        end if;
        -- Row images must not depend on the settings of whoever writes.
        if pg_catalog.current_setting('timezone') in ('UTC', 'Etc/UTC')
            and pg_catalog.current_setting('datestyle') = 'ISO, MDY'
            and pg_catalog.current_setting('intervalstyle') = 'postgres'
            and pg_catalog.current_setting('extra_float_digits') = '1'
            and pg_catalog.current_setting('bytea_output') = 'hex'
        then
            old_row := pg_catalog.row_to_json(old);
            new_row := pg_catalog.row_to_json(new);
        else
            images := relay.images(old, new);
            old_row := images[1];
            new_row := images[2];
        end if;
        if tg_op = 'UPDATE' and pg_catalog.octet_length(old_row::text) > 2000 then
            old_row := relay.changed(old_row, new_row, %6$L);
        end if;
    exception when others then
        perform relay.journal_sync(%1$s, %4$L, 'row_unreadable: ' || sqlerrm);
        return null;
    end;

    slot := pg_catalog.pg_sequence_last_value('relay.slot');
    seq := pg_catalog.nextval('relay.journal_seq');
    %5$send if;
    -- Asking for the size costs more than an entry does.
    if seq %% 64 = 0 then
        perform relay.pause_if_full(slot);
    end if;

    -- What relay.awake_for says, for less.
    if pg_catalog.pg_sequence_last_value('relay.awake')
       - (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000)::bigint between 1 and 2000
    then
        return null;
    end if;
    board := coalesce(new_board, old_board);
    if pg_catalog.current_setting('relay.rung', true) is distinct from 'board ' || pg_catalog.left(board, 100) then
        perform relay.ring(board, %4$L);
    end if;
    if old_board <> new_board then
        perform relay.ring(old_board, %4$L);
    end if;
    return null;
end
$body$, w.id, w.board_column, hidden, w.target::text, inserts,
        array[w.id_column, w.board_column, w.lane_column]::text[]);
end
$make$;

create or replace function relay.make_journal_function(w relay.watches) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    execute pg_catalog.format(
        'create or replace function relay.journal_%s() returns trigger language plpgsql security definer '
        'set search_path = pg_catalog, pg_temp as %L', w.id, relay.journal_body(w));
    execute pg_catalog.format('revoke all on function relay.journal_%s() from public', w.id);
end
$$;


-- Watching -----------------------------------------------------------------------------------------------------

-- The type's own name, or of what a domain is made of.
create or replace function relay.base_type(typ oid) returns oid
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    with recursive base (oid, typbasetype) as (
        select t.oid, t.typbasetype from pg_catalog.pg_type t where t.oid = typ
        union all
        select t.oid, t.typbasetype from base b join pg_catalog.pg_type t on t.oid = b.typbasetype
    )
    select b.oid from base b where b.typbasetype = 0
$$;

-- One "column [asc|desc] [nulls first|last]" of order_by in its parts, or no row if it is not of that form.
create or replace function relay.order_parts(entry text, out col text, out direction text)
    returns setof record
    language sql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
    select m[1], coalesce(m[2], '') || coalesce(m[3], '')
    from pg_catalog.regexp_match(entry, '^\s*(.+?)(\s+(?:asc|desc))?(\s+nulls\s+(?:first|last))?\s*$', 'i') m
    where m is not null
$$;

-- Refuses, in one sentence, a table that cannot be fed exactly.
create or replace function relay.check_watch(
    target regclass, id_column name, board_column name, lane_column name, hidden name[], order_by text[]
) returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    kind     "char";
    storage  "char";
    child    boolean;
    key_attr smallint;
    found    text;
    col      name;
    role     text;
    entry    text;
begin
    select c.relkind, c.relpersistence, c.relispartition into kind, storage, child
    from pg_catalog.pg_class c where c.oid = target;
    if kind is null or kind not in ('r', 'p') or storage = 't' then
        raise exception 'relay.watch: % is not a permanent table: only ordinary and partitioned tables can be watched', target
            using errcode = 'wrong_object_type';
    end if;
    if child then
        raise exception 'relay.watch: % is a partition: watch the partitioned table that it belongs to', target
            using errcode = 'wrong_object_type';
    end if;

    foreach role in array array['id_column', 'board_column', 'lane_column'] loop
        col := case role when 'id_column' then id_column when 'board_column' then board_column else lane_column end;
        select pg_catalog.format_type(a.atttypid, a.atttypmod) into found
        from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid)
        where a.attrelid = target and a.attname = col and a.attnum > 0 and not a.attisdropped
          and (t.typcategory = 'S' or t.typname in ('uuid', 'int2', 'int4', 'int8')
               or (role <> 'id_column' and t.typcategory = 'E'));
        if found is null then
            select pg_catalog.format_type(a.atttypid, a.atttypmod) into found
            from pg_catalog.pg_attribute a
            where a.attrelid = target and a.attname = col and a.attnum > 0 and not a.attisdropped;
            if found is null then
                raise exception 'relay.watch: % has no column %: name its own with % => ''…''',
                    target, pg_catalog.quote_literal(col), role using errcode = 'undefined_column';
            end if;
            raise exception 'relay.watch: column % of % is of type %: as % it must be text, uuid or integer%',
                pg_catalog.quote_ident(col), target, found, role,
                case role when 'id_column' then '' else ', or an enum' end using errcode = 'datatype_mismatch';
        end if;
    end loop;
    if id_column = board_column or id_column = lane_column or board_column = lane_column then
        raise exception 'relay.watch: id_column, board_column and lane_column of % must be three columns, found %, % and %',
            target, id_column, board_column, lane_column using errcode = 'invalid_parameter_value';
    end if;

    -- Messages name a row by its id alone, so the id alone must be a key.
    select a.attnum into key_attr
    from pg_catalog.pg_attribute a
    where a.attrelid = target and a.attname = id_column and a.attnotnull;
    if not exists (
        select from pg_catalog.pg_index i
        where i.indrelid = target and i.indisunique and i.indisvalid and i.indpred is null
          and i.indnkeyatts = 1 and i.indkey[0] = key_attr
          -- Rows that share a key until the end of a transaction could not be told apart.
          and i.indimmediate
    ) then
        select pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' order by k.n) into found
        from pg_catalog.pg_index i
        cross join lateral pg_catalog.unnest(i.indkey::smallint[]) with ordinality k (attnum, n)
        join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
        where i.indrelid = target and i.indisprimary;
        raise exception 'relay.watch: column % of % is not a key by itself (primary key: %): '
            'it needs a primary key or unique index of its own, not deferrable, and not null; '
            'or name another with id_column => ''…''',
            pg_catalog.quote_ident(id_column), target, coalesce('(' || found || ')', 'none')
            using errcode = 'invalid_table_definition';
    end if;

    foreach col in array hidden loop
        if not exists (select from pg_catalog.pg_attribute a
                       where a.attrelid = target and a.attname = col and a.attnum > 0 and not a.attisdropped) then
            raise exception 'relay.watch: % has no column % to hide', target, pg_catalog.quote_literal(col)
                using errcode = 'undefined_column';
        end if;
        if col in (id_column, board_column, lane_column) then
            raise exception 'relay.watch: column % of % cannot be hidden: messages need the id, the board and the lane',
                pg_catalog.quote_ident(col), target using errcode = 'invalid_parameter_value';
        end if;
    end loop;
    foreach entry in array order_by loop
        if not exists (select from relay.order_parts(entry) p
                       join pg_catalog.pg_attribute a on a.attname = p.col
                       where a.attrelid = target and a.attnum > 0 and not a.attisdropped) then
            raise exception 'relay.watch: order_by has %: expected a column of %, then optionally asc or desc, nulls first or last',
                pg_catalog.quote_literal(entry), target using errcode = 'invalid_parameter_value';
        end if;
    end loop;
end
$$;

-- Every table that carries triggers of a watch: the table itself and its partitions, at any depth.
create or replace function relay.parts(target regclass) returns setof regclass
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    -- pg_partition_tree knows nothing of a table that is neither partitioned nor a partition.
    select target
    union
    select t.relid from pg_catalog.pg_partition_tree(target) t
$$;

-- Locks a table and its partitions without standing in anybody's way for long. Whoever asks for a lock and waits has
-- everybody behind it wait too; so each attempt gives up after a tenth of a second, lets the others by, and there is
-- another, until "patience" is over. Then it says who holds the table.
create or replace function relay.lock_table(target regclass, mode text, patience interval) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '100ms'
as $$
declare
    until constant timestamptz := pg_catalog.clock_timestamp() + patience;
begin
    loop
        begin
            execute pg_catalog.format('lock table %s in %s mode', target, mode);
            return;
        exception when lock_not_available then
            if pg_catalog.clock_timestamp() >= until then
                raise exception '% is in use by %, for more than %: nothing was changed; try again when it is over, '
                    'or give it more patience', target, relay.holders(target, mode), patience
                    using errcode = 'lock_not_available';
            end if;
        end;
        perform pg_catalog.pg_sleep(0.1 + 0.3 * pg_catalog.random());
    end loop;
end
$$;

-- Names the processes that hold a table against a lock of that mode.
create or replace function relay.holders(target regclass, mode text) returns text
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(pg_catalog.string_agg(distinct pg_catalog.concat('process ', l.pid, ' (',
               coalesce(a.usename, a.backend_type, 'a background process'), ')'), ', '), 'others')
    from pg_catalog.pg_locks l
    left join pg_catalog.pg_stat_activity a on a.pid = l.pid
    where l.relation in (select p from relay.parts(target) p) and l.granted and l.pid <> pg_catalog.pg_backend_pid()
      and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
      and (holders.mode = 'access exclusive' or l.mode not in ('AccessShareLock', 'RowShareLock'))
$$;

-- Whether all triggers of a watch are in place, as relay.create_triggers makes them, and enabled always.
create or replace function relay.triggers_complete(w relay.watches) returns boolean
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.bool_and(coalesce(found.n, 0) = 3)
    from relay.parts(w.target) p
    left join lateral (
        select pg_catalog.count(*) as n
        from pg_catalog.pg_trigger t
        join pg_catalog.pg_proc f on f.oid = t.tgfoid
        where t.tgrelid = p and t.tgenabled = 'A'
          and f.pronamespace = 'relay'::regnamespace
          and f.proname in ('journal_' || w.id, 'journal_truncate')
          -- For each row after insert or delete, and after update; for each statement after truncate.
          and (t.tgname, t.tgtype) in (('relay_insert_delete', 13), ('relay_update', 17), ('relay_truncate', 32))
          -- of any column
          and t.tgattr::text = ''
    ) found on true
$$;

create or replace function relay.drop_triggers(target regclass) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    found record;
begin
    for found in
        select t.tgname, t.tgrelid::regclass as part
        from pg_catalog.pg_trigger t
        join pg_catalog.pg_proc f on f.oid = t.tgfoid
        where t.tgrelid in (select p from relay.parts(target) p)
          and f.pronamespace = 'relay'::regnamespace
          -- A partition's row triggers go with those of its parent.
          and t.tgparentid = 0
    loop
        execute pg_catalog.format('drop trigger %I on %s', found.tgname, found.part);
    end loop;
end
$$;

-- Row triggers, not statement triggers: they also fire in logical replication and for writes made straight to a
-- partition. "enable always", so that replicas and restores are not deaf. Without "when (old.* is distinct from new.*)":
-- that is parsed and compiled anew for each statement, and costs more than it spares; the function compares the rows.
-- Replaced rather than dropped, for that would take a lock that keeps readers out.
create or replace function relay.create_triggers(w relay.watches) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    part regclass;
    name text;
begin
    execute pg_catalog.format(
        'create or replace trigger relay_insert_delete after insert or delete on %s for each row '
        'execute function relay.journal_%s()', w.target, w.id);
    execute pg_catalog.format(
        'create or replace trigger relay_update after update on %s for each row '
        'execute function relay.journal_%s()', w.target, w.id);
    for part in select p from relay.parts(w.target) p loop
        execute pg_catalog.format(
            'create or replace trigger relay_truncate after truncate on %s for each statement '
            'execute function relay.journal_truncate(%L)', part, w.id);
        foreach name in array array['relay_insert_delete', 'relay_update', 'relay_truncate'] loop
            execute pg_catalog.format('alter table %s enable always trigger %I', part, name);
        end loop;
    end loop;
end
$$;

-- Two functions of an older install had fewer parameters.
drop function if exists relay.watch(regclass, name, name, name, name[], text[]);
drop function if exists relay.unwatch(regclass);

-- Starts feeding a table, or changes how it is fed. Said again with the same settings it takes no lock and
-- changes nothing, except that it covers partitions that have come since.
--
-- Takes SHARE ROW EXCLUSIVE on the table, which readers do not notice, until the end of the transaction: so give it
-- one of its own. Waits for it in short attempts (see relay.lock_table), for as long as "patience" in all.
create or replace function relay.watch(
    target       regclass,
    id_column    name     default 'id',
    board_column name     default 'board_id',
    lane_column  name     default 'lane',
    hidden       name[]   default '{}',
    -- "column [asc|desc] [nulls first|last]", …; the id decides among equals. Null: by created_at if there is one.
    order_by     text[]   default null,
    patience     interval default '30 seconds'
) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '2s'
as $$
declare
    current_watch relay.watches;
    wanted        relay.watches;
begin
    wanted.target := watch.target;
    wanted.id_column := watch.id_column;
    wanted.board_column := watch.board_column;
    wanted.lane_column := watch.lane_column;
    wanted.hidden := coalesce(watch.hidden, '{}');
    wanted.order_by := coalesce(watch.order_by, (
        select array['created_at'] from pg_catalog.pg_attribute a
        where a.attrelid = watch.target and a.attname = 'created_at' and not a.attisdropped), '{}');
    perform relay.check_watch(wanted.target, wanted.id_column, wanted.board_column, wanted.lane_column,
                              wanted.hidden, wanted.order_by);

    -- One at a time: two sessions that watch the same table must not each make their own.
    perform pg_catalog.pg_advisory_xact_lock('relay.watches'::regclass::oid::bigint);
    select * into current_watch from relay.watches w where w.target = watch.target;
    if row(current_watch.id_column, current_watch.board_column, current_watch.lane_column,
           current_watch.hidden, current_watch.order_by)
       = row(wanted.id_column, wanted.board_column, wanted.lane_column, wanted.hidden, wanted.order_by)
       and relay.triggers_complete(current_watch)
       -- Those of an older version had a condition, which costs writers.
       and not exists (select from pg_catalog.pg_trigger t
                       where t.tgrelid = wanted.target and t.tgname = 'relay_update' and t.tgqual is not null)
    then
        return;
    end if;

    perform relay.lock_table(wanted.target, 'share row exclusive', patience);
    delete from relay.watches w where w.id = current_watch.id;
    insert into relay.watches as w (target, id_column, board_column, lane_column, hidden, order_by)
    values (wanted.target, wanted.id_column, wanted.board_column, wanted.lane_column, wanted.hidden, wanted.order_by)
    returning w.* into wanted;
    perform relay.make_journal_function(wanted);
    perform relay.create_triggers(wanted);
    if current_watch.id is not null then
        execute pg_catalog.format('drop function if exists relay.journal_%s()', current_watch.id);
    end if;
    perform relay.journal_sync(wanted.id, wanted.target::text, 'watch_changed');
end
$$;

comment on function relay.watch(regclass, name, name, name, name[], text[], interval) is
    'Starts feeding a table. Example: select relay.watch(''public.tasks'', hidden => ''{secret}'')';

-- Stops feeding a table; its rows leave every board. Takes ACCESS EXCLUSIVE on the table, as dropping a trigger
-- does, until the end of the transaction, and waits for it as relay.watch does.
create or replace function relay.unwatch(target regclass, patience interval default '30 seconds') returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '2s'
as $$
declare
    current_watch relay.watches;
begin
    -- One at a time, as in relay.watch: one that waits for the table must not take away what another has just made.
    perform pg_catalog.pg_advisory_xact_lock('relay.watches'::regclass::oid::bigint);
    select * into current_watch from relay.watches w where w.target = unwatch.target;
    if not found then
        return;
    end if;
    perform relay.lock_table(current_watch.target, 'access exclusive', patience);
    perform relay.drop_triggers(current_watch.target);
    execute pg_catalog.format('drop function if exists relay.journal_%s()', current_watch.id);
    delete from relay.watches w where w.id = current_watch.id;
    perform relay.journal_sync(null, current_watch.target::text, 'watch_changed: unwatch');
end
$$;

comment on function relay.unwatch(regclass, interval) is 'Stops feeding a table. Said again, it does nothing.';

-- For what fires no trigger at all: a load with triggers disabled, a partition attached or detached.
create or replace function relay.resync() returns void
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select relay.journal_sync(null, '*', 'resync')
$$;

comment on function relay.resync() is 'Sends every subscriber its whole board again.';

-- Columns that no message shows: the hidden ones, and virtual generated ones, which triggers do not see.
create or replace function relay.unseen_columns(w relay.watches) returns name[]
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select w.hidden || coalesce(pg_catalog.array_agg(a.attname), '{}')
    from pg_catalog.pg_attribute a
    where a.attrelid = w.target and a.attgenerated = 'v' and not a.attisdropped and a.attname <> all (w.hidden)
$$;

-- Twelve characters that change when any watched table does: its columns, its partitions, itself. And when a dump is
-- restored over it all.
create or replace function relay.shape() returns text
    language sql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.left(pg_catalog.md5('relay.epochs'::regclass::oid || coalesce(pg_catalog.string_agg(pg_catalog.concat_ws(' ',
        w.id, a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attisdropped, a.xmin), ','
        order by w.id, a.attrelid, a.attnum), '')), 12)
    from relay.watches w
    cross join lateral relay.parts(w.target) p
    join pg_catalog.pg_attribute a on a.attrelid = p and a.attnum > 0
$$;

create or replace view relay.watched as
    select w.id,
           n.nspname as schema_name,
           c.relname as table_name,
           w.id_column,
           w.board_column,
           w.lane_column,
           relay.unseen_columns(w) as hidden,
           w.order_by,
           relay.triggers_complete(w) as triggers_complete,
           w.since
    from relay.watches w
    join pg_catalog.pg_class c on c.oid = w.target
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace;

comment on view relay.watched is 'What is watched. triggers_complete false: run relay.watch again.';

-- Reading ------------------------------------------------------------------------------------------------------

-- Whether a board's name, as text, is the text of a value of the column: 'abc' is no integer, and '007' is
-- not how the integer 7 is written.
create or replace function relay.is_written(board text, typ text) returns boolean
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    written text;
begin
    execute pg_catalog.format('select $1::%s::text', typ) into written using board;
    return written = board;
exception when data_exception then
    return false;
end
$$;

-- Keeps the watched tables from being truncated or rewritten until the end of the transaction: of such a table, an
-- older snapshot shows no row. So the statement that reads comes after this one, and takes its snapshot then.
create or replace function relay.hold_tables() returns void
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    held text;
begin
    select pg_catalog.string_agg(c.oid::regclass::text, ', ' order by w.id) into held
    from relay.watches w
    join pg_catalog.pg_class c on c.oid = w.target;
    if held is not null then
        execute 'lock table ' || held || ' in access share mode';
    end if;
end
$$;

-- Every visible task of a board, in the order of its lanes, from the snapshot of the calling statement. Runs as its
-- owner: so a role that may read boards need not be able to read the tables, and their hidden columns.
create or replace function relay.board(board text) returns table (watch integer, task json)
    language plpgsql
    stable
    security definer
    -- A policy that filters rows would leave boards silently empty; this makes it an error.
    set row_security = off
    set search_path = pg_catalog, pg_temp
    -- The same as where the journal's images are made.
    set timezone = 'UTC'
    set datestyle = 'ISO, MDY'
    set intervalstyle = 'postgres'
    set extra_float_digits = 1
    set bytea_output = 'hex'
as $$
declare
    w       record;
    columns text;
    ordered text;
begin
    for w in
        select s.*, c.relkind, pg_catalog.format_type(a.atttypid, a.atttypmod) as board_type,
               relay.unseen_columns(s) as unseen,
               (select role.col from pg_catalog.unnest(array[s.id_column, s.board_column, s.lane_column]) role (col)
                where not exists (select from pg_catalog.pg_attribute x where x.attrelid = s.target
                                  and x.attname = role.col and not x.attisdropped) limit 1) as gone
        from relay.watches s
        join pg_catalog.pg_class c on c.oid = s.target
        left join pg_catalog.pg_attribute a on a.attrelid = s.target and a.attname = s.board_column
        order by s.id
    loop
        if w.gone is not null then
            raise exception '% no longer has column %: run relay.watch again and name the columns as they are now',
                w.target, pg_catalog.quote_ident(w.gone) using errcode = 'undefined_column';
        end if;
        continue when not relay.is_written(board, w.board_type);

        select pg_catalog.string_agg(pg_catalog.format('t.%I', a.attname), ', ' order by a.attnum) into columns
        from pg_catalog.pg_attribute a
        where a.attrelid = w.target and a.attnum > 0 and not a.attisdropped and a.attname <> all (w.unseen);

        select pg_catalog.string_agg(pg_catalog.format('t.%I%s, ', p.col, p.direction), '' order by o.n) into ordered
        from pg_catalog.unnest(w.order_by) with ordinality o (entry, n)
        cross join lateral relay.order_parts(o.entry) p
        join pg_catalog.pg_attribute a on a.attrelid = w.target and a.attname = p.col and not a.attisdropped;

        -- The first condition finds the rows by an index; the second is exact where the first is not, as with
        -- case-insensitive text.
        return query execute pg_catalog.format(
            'select $1, (select pg_catalog.row_to_json(v) from (select %s) v) from %s %s t '
            'where t.%I = $2::%s and t.%I::text = $2 collate "C" order by %st.%I',
            columns, case when w.relkind = 'r' then 'only' else '' end, w.target, w.board_column, w.board_type,
            w.board_column, ordered, w.id_column)
            using w.id, board;
    end loop;
end
$$;

comment on function relay.board(text) is 'The tasks of one board as subscribers see them.';

-- Who may read a board, where the daemon is told to ask (WS_MAY_READ): replace this function as you like. "claims" are
-- those of the client's token. Where they name boards, the daemon has compared them already. Left alone when it is there.
do $$
begin
    if pg_catalog.to_regprocedure('relay.may_read(jsonb, text)') is null then
        create function relay.may_read(claims jsonb, board text) returns boolean
            language sql
            stable
            set search_path = pg_catalog, pg_temp
        as 'select claims ? ''boards''';

        comment on function relay.may_read(jsonb, text) is
            'Whether who has a token with these claims may read a board. Replace it with a rule of your own.';
    end if;
end
$$;

-- Pruning ------------------------------------------------------------------------------------------------------

-- The snapshot that sees what "v" sees, as far as it is below "bound".
create or replace function relay.narrow(v pg_snapshot, bound xid8) returns pg_snapshot
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.concat(coalesce(min(x), b), ':', b, ':', pg_catalog.string_agg(x::text, ',' order by x))::pg_snapshot
    from (select least(bound, pg_catalog.pg_snapshot_xmax(v)) as b) capped
    left join lateral pg_catalog.pg_snapshot_xip(v) x on x < b
    group by b
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
        update relay.horizon h set pauses_known = h.pauses_known returning h.xmin::text::bigint into next;
    exception when no_data_found then
        raise;
    end;
    -- The ids of row versions are 32 bits wide, those of transactions 64.
    return (top + ((next - top) & 4294967295))::text::xid8;
end
$$;

-- Notes which slots no writer can choose any more. Who chose one had an id by then, for a row trigger fires when its
-- transaction has one.
create or replace function relay.close_slots() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    chosen constant smallint := pg_catalog.pg_sequence_last_value('relay.slot');
begin
    -- A move to another slot counts at once, even if its transaction is then rolled back.
    update relay.slots s
    set opened_at = pg_catalog.clock_timestamp(), closed_at = null, closed_below = null, free_since = null
    where s.closed_at is not null and s.slot = chosen;

    if exists (select from relay.slots s where s.closed_at is null and s.slot <> chosen) then
        update relay.slots s
        set closed_at = pg_catalog.clock_timestamp(), closed_below = below.xid, free_since = null
        from (select relay.next_xid() as xid) below
        where s.closed_at is null and s.slot <> chosen;
    end if;
end
$$;

-- Locks a slot, if no running transaction has entries in it and nobody reads it just now. Never waits.
create or replace function relay.lock_slot(slot smallint) returns boolean
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    execute pg_catalog.format('lock table relay.journal_%s in access exclusive mode nowait', slot);
    return true;
exception when lock_not_available then
    return false;
end
$$;

create or replace function relay.slot_bytes(slot smallint) returns bigint
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select case when pg_catalog.pg_relation_size(pg_catalog.to_regclass('relay.journal_' || slot)) = 0 then 0
           else pg_catalog.pg_total_relation_size(pg_catalog.to_regclass('relay.journal_' || slot)) end
$$;

-- Truncates closed slots whose changes are older than "keep", and others, oldest first, while the journal is
-- larger than "most"; returns the bytes that came free. The horizon rises to what was over by then.
create or replace function relay.empty_slots(keep interval, most bigint) returns bigint
    language plpgsql
    volatile
    set search_path = pg_catalog, pg_temp
as $$
declare
    closed relay.slots;
    bytes  bigint;
    freed  bigint := 0;
    total  bigint := (select pg_catalog.sum(relay.slot_bytes(s.slot)) from relay.slots s);
begin
    for closed in select * from relay.slots s where s.closed_at is not null
                  and s.slot <> pg_catalog.pg_sequence_last_value('relay.slot') order by s.closed_at, s.slot loop
        bytes := relay.slot_bytes(closed.slot);
        continue when bytes = 0;
        if closed.free_since is null then
            continue when not relay.lock_slot(closed.slot);
            closed.free_since := pg_catalog.clock_timestamp();
            update relay.slots s set free_since = closed.free_since where s.slot = closed.slot;
        end if;
        continue when closed.free_since + keep > pg_catalog.clock_timestamp() and total <= most;
        continue when not relay.lock_slot(closed.slot);
        update relay.horizon h
        set seen = relay.narrow(pg_catalog.pg_current_snapshot(),
                                greatest(closed.closed_below, pg_catalog.pg_snapshot_xmax(h.seen)));
        execute pg_catalog.format('truncate relay.journal_%s', closed.slot);
        total := total - bytes;
        freed := freed + bytes;
    end loop;
    return freed;
end
$$;

-- Makes an empty slot the current one, if there is one.
create or replace function relay.next_slot() returns boolean
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    chosen smallint := (
        select s.slot from relay.slots s
        where s.slot <> pg_catalog.pg_sequence_last_value('relay.slot') and relay.slot_bytes(s.slot) = 0
        order by s.closed_at nulls first, s.slot limit 1);
begin
    if chosen is null then
        return false;
    end if;
    perform pg_catalog.setval('relay.slot', chosen);
    return true;
end
$$;

-- What is decided here rests on the snapshot of each statement; one from the beginning of the transaction would
-- be too old.
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

-- Lets the oldest changes go, by age and by size (see relay.settings); returns the bytes that came free. Call it in
-- a transaction of its own: it waits for nobody, and writers never wait for it, but readers of the journal wait for
-- its commit. Two at once: the second does nothing.
create or replace function relay.prune(keep interval default null, most bigint default null) returns bigint
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    freed bigint;
begin
    perform relay.require_read_committed('relay.prune');
    perform from relay.horizon for update skip locked;
    if not found then
        return 0;
    end if;
    select coalesce(keep, s.keep_age), coalesce(most, s.keep_bytes) into keep, most from relay.settings s;
    perform relay.close_slots();
    freed := relay.empty_slots(keep, most);
    -- One that nobody has written in is as good as new.
    update relay.slots s
    set opened_at = pg_catalog.clock_timestamp()
    where s.slot = pg_catalog.pg_sequence_last_value('relay.slot') and relay.slot_bytes(s.slot) = 0
      and s.opened_at + keep / 2 <= pg_catalog.clock_timestamp();
    if exists (select from relay.slots s
               where s.slot = pg_catalog.pg_sequence_last_value('relay.slot') and relay.slot_bytes(s.slot) > 0
               and (s.opened_at + keep / 2 <= pg_catalog.clock_timestamp() or relay.slot_bytes(s.slot) > most / 4))
        and relay.next_slot()
    then
        perform relay.close_slots();
        freed := freed + relay.empty_slots(keep, most);
    end if;
    return freed;
end
$$;

comment on function relay.prune(interval, bigint) is 'Lets old changes go; the daemon calls it every few seconds.';

-- Ends a pause: journalling goes on, and whoever read before it must read its boards again. False: there is no room
-- yet, for running transactions hold every slot.
--
-- What the pause left out cannot fall into a crack: a transaction that skipped an entry had its id by then, so in
-- the snapshot taken after journalling went on, it is either over (then the horizon, which is that snapshot, sees it)
-- or still running. For each of the latter an entry is made in its name, which no reader takes before it is over.
-- Should this be cut short, the pause is still unknown to the horizon, and the next call does it again.
create or replace function relay.resume() returns boolean
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    pauses bigint;
    below  bigint;
    after  pg_snapshot;
begin
    perform relay.require_read_committed('relay.resume');
    perform from relay.horizon for update;
    pauses := pg_catalog.pg_sequence_last_value('relay.pauses');
    if pauses <= (select h.pauses_known from relay.horizon h) then
        return true;
    end if;
    perform relay.close_slots();
    perform relay.empty_slots('0', 0);
    if relay.slot_bytes(pg_catalog.pg_sequence_last_value('relay.slot')::smallint)
           > (select st.stop_bytes / 4 from relay.settings st)
       and not relay.next_slot()
    then
        return false;
    end if;
    perform pg_catalog.setval('relay.resumed', pauses);
    below := relay.next_xid()::text::bigint;
    after := pg_catalog.pg_current_snapshot();
    update relay.horizon set seen = after, pauses_known = pauses;
    insert into relay.journal (slot, seq, xid, op, reason)
    select pg_catalog.pg_sequence_last_value('relay.slot'), pg_catalog.nextval('relay.journal_seq'), running.xid, 'S',
           'journalling_paused'
    from (
        select x as xid from pg_catalog.pg_snapshot_xip(after) x
        union all
        select x::text::xid8
        from pg_catalog.generate_series(pg_catalog.pg_snapshot_xmax(after)::text::bigint, below - 1) x
    ) running
    where running.xid <> pg_catalog.pg_current_xact_id();
    perform relay.close_slots();
    perform relay.empty_slots('0', 0);
    return true;
end
$$;

comment on function relay.resume() is 'Ends a pause of the journal; the daemon calls it when it comes.';

-- Watching over it ---------------------------------------------------------------------------------------------

-- A canary: an entry that concerns no board, with a doorbell of its own. The daemon that wrote it finds out whether
-- both come back to it, and how soon. True if the doorbell was rung, which it is not when its queue fills up.
create or replace function relay.canary(label text) returns boolean
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if relay.paused() then
        return false;  -- the next look at the journal says so
    end if;
    insert into relay.journal (slot, seq, op, reason)
    values (pg_catalog.pg_sequence_last_value('relay.slot'), pg_catalog.nextval('relay.journal_seq'), 'C',
            pg_catalog.left(label, 100));
    if pg_catalog.pg_notification_queue_usage() >= 0.5 then
        return false;
    end if;
    perform pg_catalog.pg_notify('relay', pg_catalog.json_build_object('canary', pg_catalog.left(label, 100))::text);
    return true;
end
$$;

comment on function relay.canary(text) is 'Writes a change that concerns nobody; daemons call it to see that changes come through.';

-- How the journal is. "journal_rows" is what the statistics say, a second late and too few after a crash of the
-- server; "oldest_seconds" how old the oldest changes are at most; "overdue_seconds" for how long a slot has been due
-- to be emptied, or left, and was not.
create or replace function relay.vitals(
    out journal_rows bigint, out journal_bytes bigint, out oldest_seconds double precision,
    out overdue_seconds double precision, out keep_bytes bigint, out stop_bytes bigint, out paused boolean,
    out queue_usage double precision
)
    language sql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
    select sum(pg_catalog.pg_stat_get_live_tuples(pg_catalog.to_regclass('relay.journal_' || s.slot)))::bigint,
           sum(s.bytes)::bigint,
           coalesce(max(s.age) filter (where s.bytes > 0), 0),
           greatest(max(s.overdue) filter (where s.bytes > 0), 0),
           st.keep_bytes,
           st.stop_bytes,
           relay.paused(),
           pg_catalog.pg_notification_queue_usage()
    from relay.settings st
    cross join lateral (
        select s.slot, relay.slot_bytes(s.slot) as bytes,
               pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - s.opened_at) as age,
               pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - st.keep_age
                   - coalesce(s.free_since, s.closed_at, s.opened_at)) as overdue
        from relay.slots s
    ) s
    group by st.keep_bytes, st.stop_bytes
$$;

comment on function relay.vitals() is 'How large and how old the journal is, and whether it is pruned as it should be.';

-- The watches whose trigger function is not the one that relay.make_journal_function would make now.
create or replace function relay.altered() returns setof integer
    language sql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
    select w.id from relay.watches w
    where not exists (
        select from pg_catalog.pg_proc f
        where f.oid = pg_catalog.to_regprocedure('relay.journal_' || w.id || '()')
          and f.prosrc = relay.journal_body(w) and f.prosecdef
          and f.proconfig = array['search_path=pg_catalog, pg_temp'])
$$;

comment on function relay.altered() is 'Which trigger functions somebody has altered; relay check asks.';

-- How wide rows are, from a sample: of each watch, how many rows of its largest part were looked at, and about how many
-- bytes the widest has as JSON, without its hidden columns. Values that Postgres has compressed count as such, for
-- nothing is unpacked: so it may be more. Reads at most 64 blocks, and waits for nobody longer than a tenth of a second.
create or replace function relay.widest(out watch integer, out sampled bigint, out bytes bigint) returns setof record
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
    blocks bigint;
    places tid[];
begin
    for w in select * from relay.watches s order by s.id loop
        select c.oid into part
        from relay.parts(w.target) p
        join pg_catalog.pg_class c on c.oid = p
        where c.relkind = 'r'
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
          and a.attname <> all (relay.unseen_columns(w));

        begin
            blocks := pg_catalog.pg_relation_size(part) / pg_catalog.current_setting('block_size')::bigint;
            -- The first rows of blocks all over it, the last among them; the fewer blocks, the more rows of each.
            select pg_catalog.array_agg(distinct pg_catalog.format('(%s,%s)', (blocks - 1) * i / 63, line)::tid) into places
            from pg_catalog.generate_series(0, 63) i
            cross join pg_catalog.generate_series(1, least(300, 1024 / least(greatest(blocks, 1), 64))) line;
            execute pg_catalog.format('select $1, count(*), max(%s) from only %s t where t.ctid = any ($2)', width, part)
                into watch, sampled, bytes using w.id, places;
            return next;
        exception when lock_not_available then
            null;  -- somebody rewrites it just now
        end;
    end loop;
end
$$;

comment on function relay.widest() is 'About how wide the rows of the watched tables are; relay check asks.';

-- Upgrading ----------------------------------------------------------------------------------------------------

-- An older journal had a check constraint. To drop it, the journal must be free of writers for a moment.
do $$
begin
    if exists (select from pg_catalog.pg_constraint c
               where c.conrelid = 'relay.journal'::regclass and c.conname = 'journal_op') then
        perform relay.lock_table('relay.journal', 'access exclusive', '30 seconds');
        alter table relay.journal drop constraint journal_op;
    end if;
end
$$;

-- Existing watches get this version's trigger functions. Replacing a function locks no table.
drop function if exists relay.stop_watch(relay.watches);
do $$
declare
    w relay.watches;
begin
    for w in select * from relay.watches loop
        perform relay.make_journal_function(w);
    end loop;
end
$$;

-- Writers need no right on anything here: the trigger functions run as their owner.
revoke all on all functions in schema relay from public;

-- Where a publication is for all tables, it is for the journal too, and rows of a table without a key could then not be
-- deleted, which relay.settle_in does. A slot that is in use just now keeps what it has until the next install.
do $$
begin
    for slot in 0..3 loop
        if exists (select from pg_catalog.pg_class c
                   where c.oid = pg_catalog.to_regclass('relay.journal_' || slot) and c.relreplident = 'd')
           and relay.lock_slot(slot::smallint)
        then
            execute pg_catalog.format('alter table relay.journal_%s replica identity full', slot);
        end if;
    end loop;
end
$$;

commit;
