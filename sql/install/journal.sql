-- The journal

-- One row for each change of a watched row: the image that left, the image that came, or both. The order of a
-- transaction's entries has no meaning; only their sum has.
create unlogged table if not exists relay.journal (
    -- The transaction that made the change. "What is new since snapshot S" is: xid >= xmax(S) or xid = any(xip(S)).
    xid       xid8   not null default pg_catalog.pg_current_xact_id(),
    -- The position in the WAL at which it was made. A transaction that touches a row which another one wrote has waited
    -- for that one's commit, which is in the WAL. So the latest entry of each determines their order. It is not taken
    -- from a sequence, because nextval would change the writer's lastval().
    lsn       pg_lsn not null default pg_catalog.pg_current_wal_insert_lsn(),
    watch     integer,
    -- R: a change of a row. L: the lanes of two boards have changed. N, F: a row of the near or the far table of an extra
    -- has changed. S: all boards must be read again (reason says why). P: a probe (reason names it).
    op        "char" not null default 'R',
    -- Of R: the id, the board and the image of the row that left, then those of the row that came, then why an image is
    -- missing. Values that do not exist are null. It is one array, because each column costs every writer. If tasks find
    -- their board through their lane, the board is [board, lane] as JSON. Of L: the two boards, in the places of boards.
    -- Of N and F: the keys before and after, in the places of ids, and the watch is the extra's id. Of L, N and F, null
    -- if the entry only reports that a filter fails at a row.
    entry     text[],
    -- Of L, S and P; of N and F only if a filter fails at a row.
    reason    text
) with (
    -- VACUUM makes room for new entries, but never shortens the file: that takes a lock which cancels queries on a
    -- standby, such as those of pg_dump.
    vacuum_truncate = off, toast.vacuum_truncate = off,
    autovacuum_vacuum_threshold = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_threshold = 20, toast.autovacuum_vacuum_scale_factor = 0,
    toast.autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_threshold = -1, toast.autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_threshold = 2000000000
);

comment on table relay.journal is 'What transactions did to the watched tables; pruned by relay.prune.';

-- The journal as readers see it. An entry without any row stands for one that could not be made: the boards must be read
-- again. The subquery fetches and unpacks a wide entry once, instead of once for each part.
create or replace view relay.entries as
select j.ctid, j.xmin, j.xid, j.lsn, j.watch,
       case when j.op = 'R' and coalesce(e.parts[4], e.parts[1]) is null then 'S' else j.op end as op,
       -- The row's id; the new one, if it has changed.
       coalesce(e.parts[4], e.parts[1]) as key,
       case when e.parts[1] <> e.parts[4] collate "C" then e.parts[1] end as old_key,
       e.parts[2] as old_board,
       e.parts[5] as new_board,
       e.parts[3] as old_row,
       e.parts[6] as new_row,
       coalesce(j.reason, e.parts[7]) as reason
from relay.journal j
cross join lateral (select j.entry || '{}'::text[] as parts offset 0) e;

comment on view relay.entries is 'The journal with a column for each part of an entry.';
comment on column relay.entries.old_row is 'The row before the change, without its hidden columns'' values.';
comment on column relay.entries.new_row is 'The row after the change, without its hidden columns'' values.';

-- Checked first, because "if not exists" locks the table in any case.
do $$
begin
    if pg_catalog.to_regclass('relay.journal_xid') is null then
        create index journal_xid on relay.journal (xid);
    end if;
end
$$;

-- TRUNCATE is not transactional for readers, so they could miss changes without noticing.
create or replace function relay.refuse_truncate() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'relay.journal must not be truncated: readers would lose changes: use select relay.prune(''0'')'
        using errcode = 'object_not_in_prerequisite_state';
end
$$;
do $$
begin
    -- Replacing it would wait for every session that has written, and would block all others meanwhile.
    if not exists (select from pg_catalog.pg_trigger t
                   where t.tgrelid = 'relay.journal'::regclass and t.tgname = 'refuse_truncate') then
        create trigger refuse_truncate before truncate on relay.journal
            for each statement execute function relay.refuse_truncate();
    end if;
end
$$;

-- What every writer must know at once. It is outside transactions and snapshots, so that even a writer in REPEATABLE READ
-- sees the current state. It is one number, because each relation that a trigger opens costs a lock:
--   below 0          journalling is paused
--   the low 20 bits  how often it was paused and resumed
--   the bits above   one second before the moment until which the relays poll, in milliseconds since 1970. A relay promises
--                    at most two seconds. So as long as this moment is less than a second away, no trigger has to notify.
--                    Probes renew it, at the latest after ten minutes. If it is older than fifteen, there is no relay, and
--                    no trigger has to notify either: nobody could tell them to stop if commits wait for each other
create sequence if not exists relay.control minvalue -1048576;
do $$
begin
    if pg_catalog.pg_sequence_last_value('relay.control'::regclass) is null then
        perform pg_catalog.setval('relay.control'::regclass, 0);
    end if;
end
$$;

create or replace function relay.pauses() returns bigint
    language sql
    set search_path = pg_catalog, pg_temp
as $$ select coalesce(pg_catalog.abs(pg_catalog.pg_sequence_last_value('relay.control'::regclass)), 0) & 1048575 $$;

create or replace function relay.paused() returns boolean
    language sql
    set search_path = pg_catalog, pg_temp
as $$ select coalesce(pg_catalog.pg_sequence_last_value('relay.control'::regclass), 0) < 0 $$;

-- Sets the control, two milliseconds early, because of rounding. The caller has locked relay.horizon in SHARE UPDATE
-- EXCLUSIVE mode, which conflicts with itself, but not with reading or writing rows. Here and elsewhere it is not an
-- advisory lock, because any role could take that and keep it.
create or replace function relay.set_control(paused boolean, pauses bigint, polled_for integer) returns void
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.setval('relay.control'::regclass, case
        when paused then -pauses
        else (((pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000)::bigint + polled_for - 1002) << 20) | pauses end)
$$;

-- For how many more milliseconds the relays poll. The trigger functions contain a copy of this. A moment further ahead
-- than a relay may promise means that the clock was set back.
create or replace function relay.polled_for() returns integer
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select case when ms between 1 and 2000 then ms::integer else 0 end
    from (select (pg_catalog.pg_sequence_last_value('relay.control'::regclass) >> 20) + 1000
                 - (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000)::bigint as ms) rest
$$;

-- Whether a relay has renewed the control within so many seconds. The trigger functions contain a copy of this.
create or replace function relay.renewed_within(seconds integer) returns boolean
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(pg_catalog.pg_sequence_last_value('relay.control'::regclass), 0)
           > (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) - renewed_within.seconds) * 1048576000
$$;

-- How much of the journal is kept. It is a function, because a table would be in publications and dumps of data.
do $$
begin
    if pg_catalog.to_regprocedure('relay.configured()') is null then
        create function relay.configured(out keep_age interval, out keep_bytes bigint, out stop_bytes bigint)
            language sql
            immutable
            set search_path = pg_catalog, pg_temp
        as 'select ''01:00:00''::interval, 536870912::bigint, 2147483648::bigint';
    end if;
end
$$;

create or replace view relay.settings as select keep_age, keep_bytes, stop_bytes from relay.configured();
alter view relay.settings alter column keep_age set default '1 hour';
alter view relay.settings alter column keep_bytes set default 536870912;
alter view relay.settings alter column stop_bytes set default 2147483648;

comment on view relay.settings is 'How much of the journal is kept; one row, to be changed with a plain UPDATE.';
comment on column relay.settings.keep_age is 'Changes go when they were committed longer ago.';
comment on column relay.settings.keep_bytes is 'The oldest changes go, whatever their age, when there are more bytes of them.';
comment on column relay.settings.stop_bytes is 'Nothing more is journalled, until a relay finds room, when the file is larger.';

create or replace function relay.configure() returns trigger
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if new.keep_age < interval '0' or new.keep_bytes <= 0 or new.stop_bytes <= 0
        or new.keep_age is null or new.keep_bytes is null or new.stop_bytes is null
    then
        raise exception 'relay.settings: found keep_age %, keep_bytes %, stop_bytes %: expected an age of 0 or more and '
            'bytes above 0', new.keep_age, new.keep_bytes, new.stop_bytes using errcode = 'check_violation';
    end if;
    execute pg_catalog.format(
        'create or replace function relay.configured(out keep_age interval, out keep_bytes bigint, out stop_bytes bigint) '
        'language sql immutable set search_path = pg_catalog, pg_temp as %L',
        pg_catalog.format('select %L::interval, %s::bigint, %s::bigint',
                          new.keep_age, new.keep_bytes, new.stop_bytes));
    return new;
end
$$;
create or replace trigger configure instead of update on relay.settings
    for each row execute function relay.configure();
