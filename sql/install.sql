-- The relay's side of the database: the journal, the triggers that write it, and what the daemon reads.
--
-- Creates the schema "relay" and touches nothing outside it but three roles. Feeding a table is a second step:
--
--     select relay.watch('public.tasks');
--
-- Safe to run twice: what is there stays, functions are replaced. There is no transaction control in here, so that
-- a migration tool or "psql -1" can carry the file; run it in one transaction.
--
-- Who does what:
--   the installing role  owns the schema and the functions that housekeeping needs.
--   relay_writer         owns the trigger functions. It may insert into the journal, and nothing else.
--   relay_reader         owns the functions that read boards. It may read the watched tables, and nothing else.
--   relay_renderer       owns the functions that make JSON of a row, for that can run code of whoever owns a type in it:
--                        a cast, a domain's check. It may do nothing at all. No other role renders a user's type.
--
-- Functions run with the search path "pg_catalog, pg_temp", not the empty one: under that, a temporary schema comes
-- first where types are resolved, so that the caller of a SECURITY DEFINER function could slip a type of its own
-- into it. All names but those of types and operators are qualified all the same.
--
-- All tables are unlogged. What they hold is worthless after a crash, a failover or a restore, since continuity ends
-- there; so no change costs WAL, and backups, publications and standbys have nothing of it. What must outlive a crash
-- lives in the catalog: a watch in the arguments of its triggers, the settings in a function.
--
-- Words: a *change* is what happened to one row, a *board* is the group of rows that share the value of the board
-- column, a *watch* says which columns of a table are the id, the board and the lane.

-- Roles and schema ---------------------------------------------------------------------------------------------

-- Refuses what somebody else made under our names: it would run with our rights.
do $$
declare
    me      constant text := current_user;
    name    text;
    foreign_object text;
begin
    foreach name in array array['relay_writer', 'relay_reader', 'relay_renderer'] loop
        if not exists (select from pg_catalog.pg_roles r where r.rolname = name) then
            if not exists (select from pg_catalog.pg_roles r
                           where r.rolname = me and (r.rolsuper or r.rolcreaterole)) then
                raise exception 'role % is missing, and % may not create it: have a role that may run: %; '
                    'grant relay_writer, relay_reader, relay_renderer to %; then run this again', name, me,
                    (select pg_catalog.string_agg('create role ' || n, '; ')
                     from pg_catalog.unnest(array['relay_writer', 'relay_reader', 'relay_renderer']) n
                     where not exists (select from pg_catalog.pg_roles r where r.rolname = n)),
                    pg_catalog.quote_ident(me) using errcode = 'insufficient_privilege';
            end if;
            execute pg_catalog.format('create role %I nologin', name);
        end if;
        if exists (select from pg_catalog.pg_roles r where r.rolname = name
                   and (r.rolcanlogin or r.rolsuper or r.rolcreaterole or r.rolcreatedb or r.rolreplication)) then
            raise exception 'role % exists with more rights than the relay may have: expected no login and no '
                'attributes: alter role % nologin nosuperuser nocreaterole nocreatedb noreplication', name, name
                using errcode = 'duplicate_object';
        end if;
        select r.rolname into foreign_object
        from pg_catalog.pg_auth_members m
        join pg_catalog.pg_roles r on r.oid = m.member
        where m.roleid = (select o.oid from pg_catalog.pg_roles o where o.rolname = name)
          and r.rolname <> me and not r.rolsuper and not r.rolcreaterole limit 1;
        if foreign_object is not null then
            raise exception 'role % has the member %, which could act as it: revoke % from %', name, foreign_object,
                name, pg_catalog.quote_ident(foreign_object) using errcode = 'duplicate_object';
        end if;
        select r.rolname into foreign_object
        from pg_catalog.pg_auth_members m
        join pg_catalog.pg_roles r on r.oid = m.roleid
        where m.member = (select o.oid from pg_catalog.pg_roles o where o.rolname = name) limit 1;
        if foreign_object is not null then
            raise exception 'role % is a member of %, whose rights it must not have: revoke % from %', name,
                foreign_object, pg_catalog.quote_ident(foreign_object), name using errcode = 'duplicate_object';
        end if;
        if name <> 'relay_reader' then
            select pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) into foreign_object
            from pg_catalog.pg_shdepend d
            left join pg_catalog.pg_class c on d.classid = 'pg_catalog.pg_class'::regclass and c.oid = d.objid
            left join pg_catalog.pg_proc p on d.classid = 'pg_catalog.pg_proc'::regclass and p.oid = d.objid
            where d.refclassid = 'pg_catalog.pg_authid'::regclass
              and d.refobjid = (select o.oid from pg_catalog.pg_roles o where o.rolname = name)
              and d.dbid = (select b.oid from pg_catalog.pg_database b where b.datname = pg_catalog.current_database())
              and coalesce(c.relnamespace, p.pronamespace, d.objid)
                  is distinct from coalesce(pg_catalog.to_regnamespace('relay')::oid, 0) limit 1;
            if foreign_object is not null then
                raise exception 'role % owns or has a right on %, but users'' code could run as it: expected nothing: '
                    'drop owned by %', name, foreign_object, name using errcode = 'duplicate_object';
            end if;
        end if;
        -- To give it functions, one must be able to act as it.
        if not pg_catalog.pg_has_role(me, name, 'usage') then
            begin
                execute pg_catalog.format('grant %I to %I', name, me);
            exception when insufficient_privilege then
                raise exception '% is no member of role %: have a role that may run: grant relay_writer, relay_reader, '
                    'relay_renderer to %', me, name, pg_catalog.quote_ident(me) using errcode = 'insufficient_privilege';
            end;
        end if;
    end loop;

    select r.rolname into foreign_object
    from pg_catalog.pg_namespace n join pg_catalog.pg_roles r on r.oid = n.nspowner
    where n.nspname = 'relay' and r.rolname <> me;
    if foreign_object is not null then
        raise exception 'schema relay belongs to %, expected %: if % installed the relay, run this as that role '
            '(set role %); otherwise have the schema renamed or dropped', foreign_object, me, foreign_object,
            pg_catalog.quote_ident(foreign_object) using errcode = 'duplicate_schema';
    end if;
    select o.kind || ' ' || o.name || ' belongs to ' || r.rolname into foreign_object
    from (
        select 'relation' as kind, 'relay.' || c.relname as name, c.relowner as owner
        from pg_catalog.pg_class c where c.relnamespace = pg_catalog.to_regnamespace('relay') and c.relkind <> 'i'
        union all
        select 'function', p.oid::regprocedure::text, p.proowner
        from pg_catalog.pg_proc p where p.pronamespace = pg_catalog.to_regnamespace('relay')
        union all
        select 'type', 'relay.' || t.typname, t.typowner
        from pg_catalog.pg_type t where t.typnamespace = pg_catalog.to_regnamespace('relay')
        union all
        select 'operator', o.oid::regoperator::text, o.oprowner
        from pg_catalog.pg_operator o where o.oprnamespace = pg_catalog.to_regnamespace('relay')
        union all
        -- One that stands on a table of ours, but calls a function that is not.
        select 'the function of trigger ' || t.tgname || ' on', t.tgrelid::regclass::text, p.proowner
        from pg_catalog.pg_trigger t
        join pg_catalog.pg_class c on c.oid = t.tgrelid and c.relnamespace = pg_catalog.to_regnamespace('relay')
        join pg_catalog.pg_proc p on p.oid = t.tgfoid
    ) o join pg_catalog.pg_roles r on r.oid = o.owner
    where r.rolname not in (me, 'relay_writer', 'relay_reader', 'relay_renderer') limit 1;
    if foreign_object is not null then
        raise exception '%, expected %: an object that is not the relay''s stands in its schema: drop it or move it '
            'elsewhere', foreign_object, me using errcode = 'duplicate_object';
    end if;
    if exists (
        select from (values ('journal', 'r', 'xid lsn watch op entry reason'),
                            ('horizon', 'r', 'place seen swept pauses ceiling emptied'),
                            ('ticks', 'r', 'place at seen entries bytes'),
                            ('epochs', 'r', 'run key place started'),
                            ('entries', 'v', null), ('settings', 'v', null), ('watches', 'v', null), ('watched', 'v', null)) e (name, kind, columns)
        join pg_catalog.pg_class c on c.relname = e.name and c.relnamespace = pg_catalog.to_regnamespace('relay')
        where c.relkind <> e.kind::"char" or c.relkind = 'r' and c.relpersistence <> 'u'
           or e.columns <> (select pg_catalog.string_agg(a.attname, ' ' order by a.attnum) from pg_catalog.pg_attribute a
                            where a.attrelid = c.oid and a.attnum > 0))
    then
        raise exception 'schema relay holds tables of another edition, or somebody else''s: run uninstall.sql first '
            '(relay sql uninstall), then install and watch your tables again' using errcode = 'duplicate_table';
    end if;
end
$$;

create schema if not exists relay;

comment on schema relay is 'The change feed of the watched tables. Removed by uninstall.sql.';

create or replace function relay.version() returns text
    language sql
    immutable
    set search_path = pg_catalog, pg_temp
as $$ select '0.1.0'::text $$;

comment on function relay.version() is 'Which version of the relay is installed here.';

-- The journal --------------------------------------------------------------------------------------------------

-- One row for each change of a watched row: the image that left, the image that came, or both. In which order a
-- transaction made its entries means nothing; only what is left when they are added up does.
create unlogged table if not exists relay.journal (
    -- The transaction that made the change. "What is new since snapshot S" is: xid >= xmax(S) or xid = any(xip(S)).
    xid       xid8   not null default pg_catalog.pg_current_xact_id(),
    -- Where in the WAL it was made. A transaction that touches a row which another one wrote has waited for that one's
    -- commit, which is in the WAL; so the latest entry of each orders the two. Not a sequence, whose nextval would
    -- be the writer's lastval().
    lsn       pg_lsn not null default pg_catalog.pg_current_wal_insert_lsn(),
    watch     integer,
    -- R a change of a row, L of the lanes of the two boards, S read all boards again (reason says why), P a probe (reason
    -- names it)
    op        "char" not null default 'R',
    -- Of R: the id, the board and the image of the row that left, then those of the row that came; then why an image
    -- that should be there is not. Null where there is none. One value, for each column costs every writer. The board
    -- is [board, lane] as JSON, where tasks are found through their lanes. Of L: the two boards, in their places.
    entry     text[],
    -- Of L, S and P.
    reason    text
) with (
    -- VACUUM gives room back for new entries, but never shortens the file: that takes a lock which, on a standby,
    -- cancels whoever reads there, such as pg_dump.
    vacuum_truncate = off, toast.vacuum_truncate = off,
    autovacuum_vacuum_threshold = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_threshold = 20, toast.autovacuum_vacuum_scale_factor = 0,
    toast.autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_insert_threshold = -1, toast.autovacuum_vacuum_insert_threshold = -1,
    autovacuum_analyze_threshold = 2000000000
);

comment on table relay.journal is 'What transactions did to the watched tables; pruned by relay.prune.';

-- The same as its readers want it. An entry that has no row at all could not be made: the boards must be read again.
-- A wide entry is fetched and unpacked once, not for each part: that is what the subquery is for.
create or replace view relay.entries as
select j.ctid, j.xmin, j.xid, j.lsn, j.watch,
       case when j.op = 'R' and coalesce(e.parts[4], e.parts[1]) is null then 'S' else j.op end as op,
       -- The row's id; before the change, if that changed it.
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

-- Checked first, for "if not exists" locks the table all the same.
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
    -- Replacing it would wait for everybody who has written, and have everybody else wait.
    if not exists (select from pg_catalog.pg_trigger t
                   where t.tgrelid = 'relay.journal'::regclass and t.tgname = 'refuse_truncate') then
        create trigger refuse_truncate before truncate on relay.journal
            for each statement execute function relay.refuse_truncate();
    end if;
end
$$;

-- What every writer must know at once, outside transactions and snapshots, so that a writer in REPEATABLE READ sees
-- what is true now. One number, for each relation that a trigger opens costs a lock:
--   below 0          journalling is paused: nothing is journalled
--   the low 20 bits  how often it was paused and resumed
--   the bits above   a second before the moment until which the relays poll, in milliseconds since 1970. A relay promises
--                    two seconds at most; so while it is less than a second from now, there is no need to notify
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

-- Says what is to be true from now on; who calls it holds the lock on the control.
create or replace function relay.set_control(paused boolean, pauses bigint, polled_for integer) returns void
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.setval('relay.control'::regclass, case
        when paused then -pauses
        when polled_for > 0
        then (((pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000)::bigint + polled_for - 1000) << 20) | pauses
        else pauses end)
$$;

-- For how many more milliseconds the relays poll. The trigger functions hold a copy of this. A moment further ahead than
-- a relay may say is from before the clock was set back.
create or replace function relay.polled_for() returns integer
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select case when ms between 1 and 2000 then ms::integer else 0 end
    from (select (pg_catalog.pg_sequence_last_value('relay.control'::regclass) >> 20) + 1000
                 - (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000)::bigint as ms) rest
$$;

-- How much of the journal is kept, as a function, for a table would be in publications and dumps of data.
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

-- Where snapshots are good -------------------------------------------------------------------------------------

-- The journal's lower end. Changes of transactions that "seen" sees may be gone: a reader whose snapshot does not
-- cover it has lost continuity and must read its boards again. So it must while "pauses" is not what the control says.
-- "place" is the cluster, the database and the installation that the transaction ids are of. Rows of another place
-- came with a dump; that is also why no table here has a key: a dump's rows must never collide with ours.
create unlogged table if not exists relay.horizon (
    place   text        not null,
    seen    pg_snapshot not null,
    -- Every entry of a lower id is gone, so pruning begins here.
    swept   xid8        not null,
    pauses  bigint      not null,
    -- The size of the file above which journalling pauses, if it is above stop_bytes: all of that was free once.
    ceiling bigint      not null,
    -- While journalling is paused: since when nothing is left in the journal but what a VACUUM can remove.
    emptied timestamptz
);

-- What was committed by when, and how many entries, of how many bytes in all, that added since the tick before.
create unlogged table if not exists relay.ticks (
    place   text        not null,
    at      timestamptz not null default pg_catalog.clock_timestamp(),
    seen    pg_snapshot not null,
    entries bigint      not null,
    bytes   bigint      not null
);

-- A snapshot taken in one run of the server is good in the next, if the next goes on where it ended. Postgres empties
-- an unlogged table in crash recovery, in a restore and when a standby is promoted, just when transaction ids that
-- were seen before may be given out again. One row per run, so that a copy of the server's files that is put back
-- does not know the runs that came after it was made.
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

-- The runs of the server whose snapshots are good, the present one first; it is noted now if it is not yet. Begins
-- afresh where a dump was restored or the server has crashed: what the journal then holds is of another place or past.
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
        perform pg_catalog.pg_advisory_xact_lock('relay.horizon'::regclass::oid::bigint);
        if not exists (select from relay.horizon h where h.place = here) then
            delete from relay.horizon;
            delete from relay.ticks;
            delete from relay.epochs e where e.place <> here;
            delete from relay.journal;
            insert into relay.horizon (place, seen, swept, pauses, ceiling)
            select here, s, pg_catalog.pg_snapshot_xmin(s), relay.pauses() - relay.paused()::integer, 0
            from pg_catalog.pg_current_snapshot() s;
        end if;
        insert into relay.epochs (place, started)
        select here, pg_catalog.pg_postmaster_start_time()
        where not exists (select from relay.epochs e
                          where e.place = here and e.started = pg_catalog.pg_postmaster_start_time());
    end if;
    return query select e.run, e.key from relay.epochs e where e.place = here order by e.started desc;
end
$$;

comment on function relay.epoch() is 'The runs of the server between which no transaction id was lost or used twice.';

-- The watches --------------------------------------------------------------------------------------------------

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

-- Every type that a row of a table is made of: of its columns, of their elements, attributes, bases and bounds.
create or replace function relay.types(target regclass) returns setof regtype
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    with recursive made_of (oid) as (
        select a.atttypid
        from relay.parts(target) p
        join pg_catalog.pg_attribute a on a.attrelid = p and a.attnum > 0 and not a.attisdropped
        union
        select inner_type.oid
        from made_of m
        join pg_catalog.pg_type t on t.oid = m.oid
        cross join lateral (
            select t.typbasetype
            union all
            select t.typelem
            union all
            select a.atttypid from pg_catalog.pg_attribute a
            where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
            union all
            select r.rngsubtype from pg_catalog.pg_range r where t.oid in (r.rngtypid, r.rngmultitypid)
        ) inner_type (oid)
        where inner_type.oid <> 0
    )
    select oid::regtype from made_of
$$;

-- Whether no code of users runs where a value of a type is compared, or cast by what Postgres has: a type of Postgres's
-- own, a domain made of one, or an enum to and from which nobody has made implicit casts.
create or replace function relay.is_plain(typ oid) returns boolean
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select t.typnamespace = 'pg_catalog'::regnamespace
        or t.typtype = 'e' and not exists (select from pg_catalog.pg_cast c
                                           where t.oid in (c.castsource, c.casttarget) and c.castcontext = 'i')
    from pg_catalog.pg_type t where t.oid = relay.base_type(typ)
$$;

-- An expression of a row as a watch keeps it, see relay.expression: with its columns as they are called now, each behind
-- a prefix such as "before.".
create or replace function relay.spelled(target regclass, expression jsonb, same boolean, prefix text default '')
    returns text
    language sql
    stable
    strict
    set search_path = pg_catalog, pg_temp
as $$
    with recursive spelled (n, form) as (
        select 0, expression ->> 'form' collate "C"
        union all
        select s.n + 1, pg_catalog.replace(s.form, pg_catalog.format('"%s:%s"', expression ->> 'mark', s.n),
                   prefix || pg_catalog.quote_ident(coalesce(a.attname, u.used ->> 1))) collate "C"
        from spelled s
        cross join lateral (select expression -> 'uses' -> s.n as used) u
        left join pg_catalog.pg_attribute a on a.attrelid = target and a.attnum > 0 and not a.attisdropped
            and case when same then a.attnum = (u.used ->> 0)::integer else a.attname = u.used ->> 1 end
        where s.n < pg_catalog.jsonb_array_length(expression -> 'uses')
    )
    select s.form collate "default" from spelled s order by s.n desc limit 1
$$;

-- Why an expression can be evaluated no longer, if so: it was checked with the columns as they were.
create or replace function relay.outgrown(target regclass, expression jsonb, same boolean) returns text
    language sql
    stable
    strict
    set search_path = pg_catalog, pg_temp
as $$
    select case when a.attname is null then pg_catalog.format('has no column %s any more', u.used ->> 1)
           else pg_catalog.format('has %s as %s now, in place of %s', a.attname,
                                  pg_catalog.format_type(a.atttypid, null), u.used ->> 2) end
    from pg_catalog.jsonb_array_elements(expression -> 'uses') u (used)
    left join pg_catalog.pg_attribute a on a.attrelid = target and a.attnum > 0 and not a.attisdropped
        and case when same then a.attnum = (u.used ->> 0)::integer else a.attname = u.used ->> 1 end
    where a.attname is null or a.attgenerated = 'v' or not relay.is_plain(a.atttypid)
       or pg_catalog.format_type(a.atttypid, null) <> u.used ->> 2
    limit 1
$$;

-- What the second argument of a trigger says: what is watched, and how.
create or replace function relay.said(args bytea) returns jsonb
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.convert_from(pg_catalog.substring(args, z.n + 1, pg_catalog.length(args) - z.n - 1),
                                   pg_catalog.getdatabaseencoding())::jsonb
    from (select position(pg_catalog.decode('00', 'hex') in args) as n) z
$$;

-- A column as a trigger's argument knows it: by its number, or by its name after a restore.
create or replace function relay.column_named(target regclass, said jsonb, same boolean) returns name
    language sql
    stable
    strict
    set search_path = pg_catalog, pg_temp
as $$
    select a.attname from pg_catalog.pg_attribute a
    where a.attrelid = target and a.attnum > 0 and not a.attisdropped
      and case when same then a.attnum = (said ->> 0)::integer else a.attname = said ->> 1 end
$$;

-- What the values of a column are compared as, where rows are found by those of another table; null if they cannot be.
create or replace function relay.comparable(target regclass, col name) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select case t.typname when 'uuid' then 'uuid' when 'text' then 'text' when 'varchar' then 'text'
           when 'int2' then 'bigint' when 'int4' then 'bigint' when 'int8' then 'bigint' end
    from pg_catalog.pg_attribute a
    join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid) and t.typnamespace = 'pg_catalog'::regnamespace
    where a.attrelid = target and a.attname = col and a.attnum > 0 and not a.attisdropped
$$;

-- The tables whose rows are lanes, as it is written in their triggers.
create or replace view relay.lane_tables as
select (d.said ->> 'lane_table')::integer as id,
       t.tgrelid::regclass as target,
       relay.column_named(t.tgrelid, d.said -> 'id', d.same) as id_column,
       relay.column_named(t.tgrelid, d.said -> 'board', d.same) as board_column,
       relay.column_named(t.tgrelid, d.said -> 'title', d.same) as name_column,
       array(select o from pg_catalog.jsonb_array_elements_text(d.said -> 'order_by') with ordinality e (o, n) order by n) as order_by,
       relay.spelled(t.tgrelid, d.said -> 'filter', d.same) as filter,
       coalesce((select pg_catalog.format('has no column %s any more, its lanes'' %s', d.said -> e.key ->> 1, e.role)
                 from (values ('id', 'id'), ('board', 'board'), ('title', 'name')) e (key, role)
                 where d.said ? e.key and relay.column_named(t.tgrelid, d.said -> e.key, d.same) is null limit 1),
                relay.outgrown(t.tgrelid, d.said -> 'filter', d.same) || ', which its filter is made of') as problem,
       (select pg_catalog.count(*) from pg_catalog.pg_trigger o
        join pg_catalog.pg_proc g on g.oid = o.tgfoid and g.pronamespace = 'relay'::regnamespace
        where o.tgrelid = t.tgrelid and o.tgenabled in ('O', 'A') and o.tgattr::text = '' and o.tgqual is null
          and (o.tgname, o.tgtype, g.proname) in (('relay_lanes', 29, 'lanes_' || (d.said ->> 'lane_table')),
                                                  ('relay_lanes_truncate', 32, 'lanes_truncate'))) = 2 as triggers_complete,
       d.said,
       d.same
from pg_catalog.pg_trigger t
join pg_catalog.pg_proc f on f.oid = t.tgfoid
    and f.pronamespace = 'relay'::regnamespace and f.proname = 'lanes_truncate'
cross join lateral (select a.said, (a.said ->> 'oid')::oid = t.tgrelid as same from (select relay.said(t.tgargs)) a (said)) d
where t.tgnargs = 2;

comment on view relay.lane_tables is 'The tables whose rows are lanes, as it is written in their triggers.';

-- What is watched is written on the table itself, as arguments of its trigger on TRUNCATE: so it is renamed, dumped,
-- restored and dropped with the table. A column is known by its number, which survives a rename, and by its name, which
-- survives a restore: there the table has another oid, and numbers mean nothing.
create or replace view relay.watches as
select (d.said ->> 'watch')::integer as id,
       t.tgrelid::regclass as target,
       col.id_column,
       col.board_column,
       col.lane_column,
       -- Whatever has the number or the name of a hidden column is hidden; or, where it was said which are shown, whatever
       -- has not the number of one of those, nor, after a restore, the name; and virtual columns, which triggers do not see.
       array(select a.attname from pg_catalog.pg_attribute a
             where a.attrelid = t.tgrelid and a.attnum > 0 and not a.attisdropped
               and (a.attgenerated = 'v'
                    or exists (
                        select from pg_catalog.jsonb_array_elements(d.said -> 'hidden') h
                        where h ->> 1 = a.attname or (d.same and (h ->> 0)::integer = a.attnum))
                    or (d.said ? 'shown' and not exists (
                        select from pg_catalog.jsonb_array_elements(d.said -> 'shown') h
                        where case when d.same then (h ->> 0)::integer = a.attnum else h ->> 1 = a.attname end)))
             order by a.attnum) as hidden,
       array(select o from pg_catalog.jsonb_array_elements_text(d.said -> 'order_by') with ordinality e (o, n)
             order by n) as order_by,
       case
           when pg_catalog.array_position(key.columns, null) is not null
           then 'has no column ' || (key.said -> (pg_catalog.array_position(key.columns, null) - 1) ->> 1) || ' any more, its id'
           when d.said ? 'board' and col.board_column is null
           then 'has no column ' || (d.said -> 'board' ->> 1) || ' any more, its board'
           when d.said ? 'lane' and col.lane_column is null
           then 'has no column ' || (d.said -> 'lane' ->> 1) || ' any more, its lane'
           when outgrown.why is not null then outgrown.why
           when d.said ? 'lanes' and lanes.target is null
           then pg_catalog.format('has its lanes in %s, which relay.lanes has not declared', d.said -> 'lanes' ->> 1)
           when lanes.problem is not null then pg_catalog.format('has its lanes in %s, which %s', lanes.target, lanes.problem)
           when d.said ? 'lanes' and relay.comparable(lanes.target, lanes.id_column)
               is distinct from case when d.said ? 'lane' then relay.comparable(t.tgrelid, col.lane_column) else 'text' end
           then pg_catalog.format('has lanes of another type than those in %s', lanes.target)
           when d.said ? 'lanes' and lanes.board_column is null and not d.said ?| array['board', 'board_as']
           then pg_catalog.format('has no board, and %s has none any more', lanes.target)
           -- After a restore, a hidden column may be there under another name.
           when not d.same and exists (
               select from pg_catalog.jsonb_array_elements(d.said -> 'hidden') h
               where not exists (select from pg_catalog.pg_attribute a
                                 where a.attrelid = t.tgrelid and a.attname = h ->> 1 and not a.attisdropped))
           then 'was restored, and a column that it hides is not there'
       end as problem,
       d.said ->> 'name' as watched_as,
       -- The columns that are not hidden, where it was said which are shown; else null.
       case when d.said ? 'shown' then array(
           select a.attname from pg_catalog.pg_attribute a
           where a.attrelid = t.tgrelid and a.attnum > 0 and not a.attisdropped and a.attgenerated <> 'v' and exists (
               select from pg_catalog.jsonb_array_elements(d.said -> 'shown') h
               where case when d.same then (h ->> 0)::integer = a.attnum else h ->> 1 = a.attname end)
           order by a.attnum) end as shown,
       relay.spelled(t.tgrelid, d.said -> 'filter', d.same) as filter,
       relay.spelled(t.tgrelid, d.said -> 'board_as', d.same) as board_as,
       relay.spelled(t.tgrelid, d.said -> 'lane_as', d.same) as lane_as,
       lanes.target as lanes,
       -- The id's column, or those that it is joined of.
       key.columns as key_columns,
       d.said ->> 'prefix' as id_prefix,
       d.said ? 'as_text' as as_text,
       d.said,
       d.same
from pg_catalog.pg_trigger t
join pg_catalog.pg_proc f on f.oid = t.tgfoid
    and f.pronamespace = 'relay'::regnamespace and f.proname = 'journal_truncate'
cross join lateral (select a.said, (a.said ->> 'oid')::oid = t.tgrelid as same from (select relay.said(t.tgargs)) a (said)) d
cross join lateral (
    select max(a.attname) filter (where a.role = 'id') as id_column,
           max(a.attname) filter (where a.role = 'board') as board_column,
           max(a.attname) filter (where a.role = 'lane') as lane_column
    from (select r.role, a.attname::text
          from (values ('id'), ('board'), ('lane')) r (role)
          join pg_catalog.pg_attribute a on a.attrelid = t.tgrelid and a.attnum > 0 and not a.attisdropped
              and case when d.same then a.attnum = (d.said -> r.role ->> 0)::integer
                       else a.attname = d.said -> r.role ->> 1 end) a
) col
cross join lateral (
    select k.said, array(select relay.column_named(t.tgrelid, e.value, d.same)
                         from pg_catalog.jsonb_array_elements(k.said) with ordinality e (value, n) order by e.n)::text[] as columns
    from (select coalesce(d.said -> 'key', pg_catalog.jsonb_build_array(d.said -> 'id'))) k (said)
) key
cross join lateral (
    select max(pg_catalog.format('%s, which its %s is made of', why, e.role)) as why
    from (values ('filter', 'filter'), ('board_as', 'board'), ('lane_as', 'lane')) e (key, role)
    cross join lateral relay.outgrown(t.tgrelid, d.said -> e.key, d.same) why
    where why is not null
) outgrown
left join relay.lane_tables lanes on d.said ? 'lanes'
    and case when d.same then lanes.target = (d.said -> 'lanes' ->> 0)::oid
             else lanes.target = pg_catalog.to_regclass(d.said -> 'lanes' ->> 1) end
-- The triggers on partitions say no more than the watch's id.
where t.tgnargs = 2;

comment on view relay.watches is 'What is watched, as it is written in the triggers.';

-- Writing: runs inside the writer's transaction, so it must never fail it ------------------------------------

-- Pauses journalling when the file is full. A writer calls it about once in 32 kB of rows, since asking for the size
-- costs more than an entry; so by the time of the pause the file is larger by some 64 kB, ten times as much once in
-- 20,000 pauses, and by the row that was being written. The lock keeps apart who changes the control, and is held for
-- this moment only. Returns true, always.
create or replace function relay.pause_if_full() returns boolean
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    bytes constant bigint := pg_catalog.pg_total_relation_size('relay.journal'::regclass);
begin
    -- Not from the view: a writer that had a lock on it would keep others from replacing it.
    if bytes > (select greatest(s.stop_bytes, (select max(h.ceiling) from relay.horizon h)) from relay.configured() s)
        and pg_catalog.pg_try_advisory_lock('relay.control'::regclass::oid::bigint)
    then
        if not relay.paused() then
            perform relay.set_control(true, relay.pauses() + 1, 0);
            raise log 'relay: the journal holds % bytes: journalling pauses until a relay finds room', bytes;
        end if;
        perform pg_catalog.pg_advisory_unlock('relay.control'::regclass::oid::bigint);
    end if;
    return true;
exception when others then
    return true;
end
$$;

-- Notifies whoever listens, but not while relays poll, nor when the server's notification queue fills up (a full one fails commits), nor where two-phase commit is enabled (a
-- transaction that has notified cannot be prepared).
create or replace function relay.notify() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if relay.polled_for() = 0 and pg_catalog.current_setting('max_prepared_transactions') = '0'
        and pg_catalog.pg_notification_queue_usage() < 0.5
    then
        perform pg_catalog.pg_notify('relay', '');
    end if;
end
$$;

-- Tells the daemon to read its boards again, and why: a word of docs/clients.md, then perhaps more for people. Needs
-- no more than the right to insert into the journal.
create or replace function relay.journal_sync(watch integer, reason text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if relay.paused() then
        return;  -- they will be read again in any case
    end if;
    insert into relay.journal (watch, op, reason) values (journal_sync.watch, 'S', journal_sync.reason);
    perform relay.notify();
end
$$;

-- TRUNCATE fires no row trigger.
create or replace function relay.journal_truncate() returns trigger
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform relay.journal_sync((tg_argv[0])::integer, 'truncate');
    return null;
end
$$;

-- The image of a row, or "!" and why there is none. A row that is too large has none: its text can be six times as
-- large as JSON, and a value of a gigabyte is an error. The limits are above what any reader takes (see docs/clients.md).
-- The text as a record runs no code but output functions. A row of 32 kB that is compressed has less than 8 MiB.
create or replace function relay.image(of_row record) returns text
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    image text;
begin
    if current_user <> 'relay_renderer' then
        return pg_catalog.concat('!relay.image belongs to ', current_user, ', expected relay_renderer: run relay sql install');
    end if;
    if pg_catalog.pg_column_size(of_row) > 32768
        and pg_catalog.octet_length(pg_catalog.textin(pg_catalog.record_out(of_row))) > 8388608
    then
        return '!the row is larger than 8 MiB';
    end if;
    image := pg_catalog.row_to_json(of_row)::text;
    return case when pg_catalog.octet_length(image) > 50331648 then '!its JSON is larger than 48 MiB' else image end;
exception when others or assert_failure then
    return pg_catalog.concat('!', sqlstate, ' ', pg_catalog.left(sqlerrm, 200));
end
$$;

-- The careful way to an entry, which the trigger functions take for wide rows, now and then for others, under other
-- settings than those in which images are made, and where the quick way failed: each image by itself, so that one which
-- cannot be made leaves out no more than that. Now and then, by size, it asks whether the journal is full.
create or replace function relay.entry(
    old_key text, old_board text, old_row record, new_key text, new_board text, new_row record
) returns text[]
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
    set datestyle = 'ISO, MDY'
    set intervalstyle = 'postgres'
    set extra_float_digits = 1
    set bytea_output = 'hex'
    set lc_monetary = 'C'
    set quote_all_identifiers = off
    set xmloption = content
as $$
declare
    before text := relay.image(old_row);
    after  text := relay.image(new_row);
    reason text;
begin
    -- Where the trigger functions leave the quick way for the size, this is true, for they compare less.
    if (pg_catalog.pg_lsn_hash(pg_catalog.pg_current_wal_insert_lsn()) # pg_catalog.hashtext(coalesce(new_key, old_key))) & 32767
        <= coalesce(pg_catalog.octet_length(before), 0) + coalesce(pg_catalog.octet_length(after), 0)
    then
        perform relay.pause_if_full();
    end if;
    if pg_catalog.left(before, 1) = '!' then
        reason := pg_catalog.concat('row_unreadable: ', pg_catalog.substr(before, 2));
        before := null;
    end if;
    if pg_catalog.left(after, 1) = '!' then
        reason := pg_catalog.concat('row_unreadable: ', pg_catalog.substr(after, 2));
        after := null;
    end if;
    return array[old_key, old_board, before, new_key, new_board, after, reason];
end
$$;

-- A column's value as text, in SQL. Not by a cast where the type is an enum, for its owner can make one.
create or replace function relay.as_text(target regclass, col name, expression text) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select case when t.typtype = 'e'
           then pg_catalog.format('case when %1$s is not null then pg_catalog.format(''%%s'', %1$s) end', expression)
           else pg_catalog.format('%s::text', expression) end
    from pg_catalog.pg_attribute a
    join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid)
    where a.attrelid = target and a.attname = col and not a.attisdropped
$$;

-- Whether a row of a table is made of types of users: only then can making JSON of it run their code.
create or replace function relay.has_user_types(target regclass) returns boolean
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$ select exists (select from relay.types(target) t where t::oid >= 16384) $$;

-- What the function does that makes the entries of one watch. Generated, for a column can be named in PL/pgSQL only as it
-- is written: reading the id and the board out of the JSON image would cost more, and fails on JSON that holds \u0000.
-- The only columns it names are those and the hidden ones. If a later schema change renames or retypes one of them, the
-- block around them catches it: the writer goes on, the daemon learns of it, and has this made again (relay.refresh).
--
-- Every writer pays for what stands here. PL/pgSQL prepares each expression in each transaction, which takes a
-- microsecond or two, and as much again for five to ten functions and operators in it; an INSERT prepares its own for
-- each row. So all of the quick way is one expression here and one in journal_body, and an INSERT as plain as can be.
create or replace function relay.entry_body(w relay.watches) returns text
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $make$
declare
    hide text := '';
    gone text;
    came text;
    said text;
    col  name;
    old_row text := 'before';
    new_row text := 'after';
begin
    if relay.has_places(w) then
        return relay.placing_body(w);
    end if;
    said := pg_catalog.format('array[null, null, null, null, null, null, ''row_unreadable: relay.entry_%s must belong to '
                              'relay_renderer: run relay sql install'']', w.id);
    if w.shown is not null then
        -- Columns of which nothing was said are gone before anything reads them, also those that come later.
        select pg_catalog.format('(select %1$I from (select %2$s) %1$I where op <> ''INSERT'')', s.alias, s.gone),
               pg_catalog.format('(select %1$I from (select %2$s) %1$I where op <> ''DELETE'')', s.alias, s.came)
        into old_row, new_row
        -- A column that had the row's alias as its name would be taken for the row.
        from (select 'row_' || pg_catalog.md5(w.shown::text) as alias,
                     pg_catalog.string_agg(pg_catalog.format('before.%I', c), ', ' order by n) as gone,
                     pg_catalog.string_agg(pg_catalog.format('after.%I', c), ', ' order by n) as came
              from pg_catalog.unnest(w.shown) with ordinality u (c, n)) s;
    elsif w.hidden <> '{}' then
        -- The value of a hidden column is gone before anything reads it, and under no other name is it found.
        hide := E'\n        if op <> ''INSERT'' then';
        foreach col in array w.hidden loop
            hide := hide || pg_catalog.format(' before.%I := null;', col);
        end loop;
        hide := hide || E' end if;\n        if op <> ''DELETE'' then';
        foreach col in array w.hidden loop
            hide := hide || pg_catalog.format(' after.%I := null;', col);
        end loop;
        hide := hide || ' end if;';
    end if;
    gone := pg_catalog.format('before.%I::text, %s', w.id_column,
                             relay.as_text(w.target, w.board_column, pg_catalog.format('before.%I', w.board_column)));
    came := pg_catalog.format('after.%I::text, %s', w.id_column,
                             relay.as_text(w.target, w.board_column, pg_catalog.format('after.%I', w.board_column)));

    return pg_catalog.format($body$
begin%2$s
    -- "after" is null in a delete, "before" in an insert, and so is all that is taken from them.
    begin%3$s
        return case
            -- After a restore without owners, this would run users' code with the rights of whoever restored.
            when current_user <> 'relay_renderer' then %4$s
            -- Rows that are not too wide, and of those not one for each 32 kB: the WAL position differs between
            -- statements, the key between the rows of one. Images must not depend on the settings of the writer.
            when %8$s
                and (pg_catalog.pg_lsn_hash(pg_catalog.pg_current_wal_insert_lsn())
                     # pg_catalog.hashtext(coalesce(after.%7$I, before.%7$I)::text)) & 32767
                    > coalesce(pg_catalog.pg_column_size(%10$s), 0) + coalesce(pg_catalog.pg_column_size(%11$s), 0)%9$s
            then array[%5$s, pg_catalog.row_to_json(%10$s)::text, %6$s, pg_catalog.row_to_json(%11$s)::text]
            else relay.entry(%5$s, %10$s, %6$s, %11$s) end;
    exception when others or assert_failure then
        begin%3$s
            return relay.entry(%5$s, %10$s, %6$s, %11$s);
        exception when others or assert_failure then
            return array[null, null, null, null, null, null,
                         pg_catalog.concat('row_unreadable: ', pg_catalog.left(sqlerrm, 200))];
        end;
    end;
end
$body$, w.id,
        -- Setting a column to null can run code, too.
        case when hide <> '' then pg_catalog.format(
            E'\n    if current_user <> ''relay_renderer'' then return %s; end if;', said) else '' end,
        hide, said, gone, came, w.id_column,
        -- Where types are a user's, each image is made by itself, for their code may do anything.
        case when relay.has_user_types(w.target) then 'false' else 'true' end,
        (select pg_catalog.string_agg(pg_catalog.format(E'\n                and pg_catalog.current_setting(%L) %s',
                                                        s.name, s.condition), '' order by s.name)
         from relay.settings_of(w.target) s),
        old_row, new_row);
end
$make$;

-- Where a watch says by expressions which rows are tasks, or on which board or in which lane they are, or where its lanes
-- are rows of another table, a row has a *place*: its id, its board and its lane as texts, and no place if it is no task.
create or replace function relay.has_places(w relay.watches) returns boolean
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$ select w.said ?| array['filter', 'board_as', 'lane_as', 'lanes', 'key', 'prefix', 'as_text'] $$;

-- The id of a row as text, in SQL: of several columns, joined by colons; a colon or a backslash in one of them has a
-- backslash before it, so that no two keys are one id.
create or replace function relay.id_of(w relay.watches, prefix text) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(pg_catalog.quote_literal(w.id_prefix) || ' || ', '') || case
        when pg_catalog.cardinality(w.key_columns) = 1 then pg_catalog.format('%s%I::text', prefix, w.key_columns[1])
        else (select pg_catalog.string_agg(
                  pg_catalog.format(case when relay.comparable(w.target, k.name::name) in ('bigint', 'uuid') then '%s%I::text'
                      else 'pg_catalog.replace(pg_catalog.replace(%s%I::text, pg_catalog.chr(92), pg_catalog.repeat(pg_catalog.chr(92), 2)), '
                           ''':'', pg_catalog.chr(92) || '':'')' end, prefix, k.name), ' || '':'' || ' order by k.n)
              from pg_catalog.unnest(w.key_columns) with ordinality k (name, n)) end
$$;

-- The place of a row in SQL: of a table's row, or of a trigger's, as the prefix says.
create or replace function relay.place_of(w relay.watches, prefix text) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.format('case when %s then array[%s, %s, %s] end',
        coalesce(relay.spelled(w.target, w.said -> 'filter', w.same, prefix), 'true'),
        relay.id_of(w, prefix),
        coalesce(relay.spelled(w.target, w.said -> 'board_as', w.same, prefix),
                 case when w.board_column is not null
                 then relay.as_text(w.target, w.board_column, pg_catalog.format('%s%I', prefix, w.board_column)) end, 'null::text'),
        coalesce(relay.spelled(w.target, w.said -> 'lane_as', w.same, prefix),
                 relay.as_text(w.target, w.lane_column, pg_catalog.format('%s%I', prefix, w.lane_column))))
$$;

-- In front of the image of a row that has a place goes what no column has: JSON, under a name that no column can have,
-- the empty one. In SQL, given the place.
create or replace function relay.labelled(w relay.watches, place text, image text) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select case when made.said is null then image
           else pg_catalog.format('''{"":'' || pg_catalog.json_build_object(%s)::text || '','' || pg_catalog.substr(%s, 2)',
                                  made.said, image) end
    from (select pg_catalog.string_agg(pg_catalog.format('%L, (%s)[%s]', e.name, place, e.n), ', ' order by e.n) as said
          from (values (1, w.said ?| array['key', 'prefix', 'as_text'], 'id'),
                       (2, w.said ? 'board_as' or w.said ? 'as_text' and w.board_column is not null, 'boardId'),
                       (3, w.said ?| array['lane_as', 'as_text'], 'lane')) e (n, said, name)
          where e.said) made
$$;

-- The careful way to a row's place: under the settings in which expressions are evaluated, whatever the session's are;
-- and if one fails, the row has no place, and a fourth text says why.
create or replace function relay.place_body(w relay.watches) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $make$
    select pg_catalog.format($body$
begin
    if current_user <> 'relay_renderer' then
        return array[null, null, null, pg_catalog.concat('relay.place_%1$s belongs to ', current_user,
                                                         ', expected relay_renderer: run relay sql install')];
    end if;
    return %2$s;
-- What the values of this row cause. Anything else, such as a renamed column, is not the row's fault.
exception when data_exception or program_limit_exceeded then
    return array[null, null, null, pg_catalog.concat(sqlstate, ' ', pg_catalog.left(sqlerrm, 200))];
end
$body$, w.id, relay.place_of(w, 'of_row.'))
$make$;

-- What relay.entry_body makes where rows have places. The places are taken before hidden values are gone.
create or replace function relay.placing_body(w relay.watches) returns text
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $make$
declare
    hide    text;
    old_row text := 'before';
    new_row text := 'after';
begin
    select pg_catalog.format(E'\n    if op <> ''INSERT'' then %s end if;\n    if op <> ''DELETE'' then %s end if;',
                             pg_catalog.string_agg(pg_catalog.format('before.%I := null;', h), ' '),
                             pg_catalog.string_agg(pg_catalog.format('after.%I := null;', h), ' ')) into hide
    from pg_catalog.unnest(w.hidden) h having count(*) > 0 and w.shown is null;
    if w.shown is not null then
        -- As in relay.entry_body.
        select pg_catalog.format('(select %1$I from (select %2$s) %1$I where was is not null)', s.alias, s.gone),
               pg_catalog.format('(select %1$I from (select %2$s) %1$I where stands is not null)', s.alias, s.came)
        into old_row, new_row
        from (select 'row_' || pg_catalog.md5(w.shown::text) as alias,
                     pg_catalog.string_agg(pg_catalog.format('before.%I', c), ', ' order by n) as gone,
                     pg_catalog.string_agg(pg_catalog.format('after.%I', c), ', ' order by n) as came
              from pg_catalog.unnest(w.shown) with ordinality u (c, n)) s;
    end if;
    return pg_catalog.format($body$
declare
    was     text[];
    stands  text[];
    entry   text[];
    problem text;
    quick   boolean := %2$s;
begin
    if current_user <> 'relay_renderer' then
        return array[null, null, null, null, null, null, pg_catalog.concat('row_unreadable: relay.entry_%1$s belongs to ',
                     current_user, ', expected relay_renderer: run relay sql install')];
    end if;
    if quick then
        begin
            if op <> 'INSERT' then was := %3$s; end if;
            if op <> 'DELETE' then stands := %4$s; end if;
        exception when others or assert_failure then
            quick := false;
        end;
    end if;
    if not quick then
        was := case when op <> 'INSERT' then relay.place_%1$s(before) end;
        stands := case when op <> 'DELETE' then relay.place_%1$s(after) end;
        problem := coalesce(was[4], stands[4]);
        was := case when was[4] is null then was end;
        stands := case when stands[4] is null then stands end;
    end if;
    if problem is null and was is null and stands is null then
        return null;
    end if;%5$s
    if was = stands and before operator(pg_catalog.*=) after then
        return null;
    end if;
    -- What is no task has no image.
    before := case when was is not null then before end;
    after := case when stands is not null then after end;
    begin
        entry := case
            when quick and %6$s
                and (pg_catalog.pg_lsn_hash(pg_catalog.pg_current_wal_insert_lsn())
                     # pg_catalog.hashtext(coalesce(stands[1], was[1]))) & 32767
                    > coalesce(pg_catalog.pg_column_size(%10$s), 0) + coalesce(pg_catalog.pg_column_size(%11$s), 0)
            then array[was[1], was[2], pg_catalog.row_to_json(%10$s)::text,
                       stands[1], stands[2], pg_catalog.row_to_json(%11$s)::text, null]
            else relay.entry(was[1], was[2], %10$s, stands[1], stands[2], %11$s) end;
    exception when others or assert_failure then
        entry := relay.entry(was[1], was[2], %10$s, stands[1], stands[2], %11$s);
    end;
    entry[3] := %7$s;
    entry[6] := %8$s;%9$s
    if problem is not null then
        entry[4] := coalesce(entry[4], entry[1], '?');  -- of the row: without an id, the whole entry would be unreadable
        entry[7] := coalesce(entry[7], 'row_unreadable: ' || problem);
    end if;
    return entry;
exception when others or assert_failure then
    return array[null, null, null, null, null, null, pg_catalog.concat('row_unreadable: ', pg_catalog.left(sqlerrm, 200))];
end
$body$, w.id,
        -- What an expression is made of is not among the table's types.
        (select pg_catalog.string_agg(pg_catalog.format('pg_catalog.current_setting(%L) %s', s.name, s.condition), ' and ')
         from relay.settings_of(null) s),
        relay.place_of(w, 'before.'), relay.place_of(w, 'after.'), hide,
        case when relay.has_user_types(w.target) then 'false' else 'true' end,
        relay.labelled(w, 'was', 'entry[3]'), relay.labelled(w, 'stands', 'entry[6]'),
        -- On which board a lane is, its readers find out.
        case when w.said ? 'lanes' then $lanes$
    entry[2] := case when was is not null then pg_catalog.json_build_array(was[2], was[3])::text end;
    entry[5] := case when stands is not null then pg_catalog.json_build_array(stands[2], stands[3])::text end;$lanes$ else '' end,
        old_row, new_row);
end
$make$;

-- The settings that the JSON of a table's rows depends on, and what they must be. JSON has a form of its own for dates, but
-- not for ranges of them. Of a type that is not known here, it is all of them.
create or replace function relay.settings_of(target regclass, out name text, out condition text) returns setof record
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select s.name, s.condition
    from (values
        ('timezone', 'in (''UTC'', ''Etc/UTC'')', '{timestamptz}'::text[]),
        ('datestyle', '= ''ISO, MDY''', '{}'),
        ('intervalstyle', '= ''postgres''', '{interval}'),
        ('extra_float_digits', '= ''1''', '{float4,float8}'),
        ('bytea_output', '= ''hex''', '{bytea}'),
        ('lc_monetary', '= ''C''', '{money}'),
        ('quote_all_identifiers', '= ''off''', '{}')
    ) s (name, condition, types)
    where target is null or exists (
        select from relay.types(target) m
        join pg_catalog.pg_type t on t.oid = m
        where t.typname = any (s.types)
           or not (t.typname in ('bool', 'int2', 'int4', 'int8', 'numeric', 'text', 'varchar', 'bpchar', 'name', 'char', 'uuid', 'json',
                                 'jsonb', 'date', 'time', 'timestamp', 'timestamptz', 'interval', 'float4', 'float8', 'bytea',
                                 'money')
                   -- What an array is made of is among the types.
                   or t.typcategory = 'A'))
$$;

-- What the row trigger's function of one watch does: it has the entry made with no right at all, and inserts it, outside
-- the block that catches errors, for a block that writes would be a subtransaction with an id of its own. Where much is
-- written, an update that changes nothing makes an entry too, which cancels out: to find that out costs all others more.
--
-- "return old" returns a variable and evaluates nothing; what a trigger after the fact returns does not matter.
create or replace function relay.journal_body(w relay.watches) returns text
    language sql
    set search_path = pg_catalog, pg_temp
as $make$
    select pg_catalog.format($body$
begin
    -- While relays poll, which they do where much is written, this is all that is asked. See relay.polled_for.
    if pg_catalog.abs(pg_catalog.pg_sequence_last_value('relay.control'::regclass)
           - pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1048576000) < 1048576000
    then
        null;
    elsif pg_catalog.pg_sequence_last_value('relay.control'::regclass) < 0 or old operator(pg_catalog.*=) new then
        return old;  -- journalling is paused, or nothing has changed
    elsif pg_catalog.current_setting('max_prepared_transactions') <> '0' or pg_catalog.pg_notification_queue_usage() >= 0.5
        or pg_catalog.pg_notify('relay', '') is null
    then
        null;  -- as in relay.notify, for less: a bulk statement comes here with each row
    end if;
    insert into relay.journal (watch, entry) values (%1$s, relay.entry_%1$s(tg_op, old, new));
    return old;
end
$body$, w.id)
    where not relay.has_places(w)
    union all
    -- Not every row is a task, nor every change one of a task.
    select pg_catalog.format($body$
declare
    entry text[] := case when not relay.paused() then relay.entry_%1$s(tg_op, old, new) end;
begin
    if entry is not null then
        perform relay.notify();
        insert into relay.journal (watch, entry) values (%1$s, entry);
    end if;
    return old;
end
$body$, w.id)
    where relay.has_places(w)
$make$;

create or replace function relay.make_functions(w relay.watches) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    entry   constant text := pg_catalog.format('relay.entry_%s(text, record, record)', w.id);
    journal constant text := pg_catalog.format('relay.journal_%s()', w.id);
begin
    execute pg_catalog.format(
        'create or replace function relay.entry_%s(op text, before record, after record) returns text[] language plpgsql '
        'security definer set search_path = pg_catalog, pg_temp as %L', w.id, relay.entry_body(w));
    execute pg_catalog.format(
        'create or replace function relay.journal_%s() returns trigger language plpgsql security definer '
        'set search_path = pg_catalog, pg_temp as %L', w.id, relay.journal_body(w));
    if relay.has_places(w) then
        execute pg_catalog.format(
            'create or replace function relay.place_%s(of_row record) returns text[] language plpgsql '
            'security definer set search_path = pg_catalog, pg_temp set timezone = ''UTC'' set datestyle = ''ISO, MDY'' '
            'set intervalstyle = postgres set extra_float_digits = 1 set bytea_output = hex set lc_monetary = ''C'' '
            'set quote_all_identifiers = off set xmloption = content as %L', w.id, relay.place_body(w));
        perform relay.give(pg_catalog.format('relay.place_%s(record)', w.id)::regprocedure, 'relay_renderer');
    end if;
    perform relay.give(entry::regprocedure, 'relay_renderer');
    perform relay.give(journal::regprocedure, 'relay_writer');
    perform relay.revoke_others();
    execute pg_catalog.format('grant execute on function %s to relay_writer', entry);
    if relay.has_places(w) then
        execute pg_catalog.format('grant execute on function relay.place_%s(record) to relay_reader', w.id);
    end if;
end
$$;

create or replace function relay.drop_functions(watch integer) returns void
    language plpgsql
    set client_min_messages = warning
    set search_path = pg_catalog, pg_temp
as $$
begin
    execute pg_catalog.format(
        'drop function if exists relay.journal_%1$s(), relay.entry_%1$s(text, record, record), relay.place_%1$s(record)', watch);
end
$$;

-- Takes every right here from everybody, but from those whom the relay gives some: whoever installs may have default
-- privileges, which give others rights on what is made.
create or replace function relay.revoke_others() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    object   text;
    grantees text;
begin
    for object, grantees in
        select o.name, pg_catalog.string_agg(distinct coalesce(pg_catalog.quote_ident(r.rolname), 'public'), ', ')
        from (
            select 'schema relay' as name, n.nspacl as acl, n.nspowner as owner
            from pg_catalog.pg_namespace n where n.nspname = 'relay'
            union all
            select case c.relkind when 'S' then 'sequence ' else 'table ' end || c.oid::regclass, c.relacl, c.relowner
            from pg_catalog.pg_class c where c.relnamespace = 'relay'::regnamespace and c.relkind in ('r', 'v', 'S')
            union all
            select 'function ' || p.oid::regprocedure, coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner)), p.proowner
            from pg_catalog.pg_proc p where p.pronamespace = 'relay'::regnamespace
        ) o
        cross join lateral pg_catalog.aclexplode(o.acl) a
        left join pg_catalog.pg_roles r on r.oid = a.grantee
        where a.grantee <> o.owner
          and coalesce(r.rolname, '') not in ('relay_writer', 'relay_reader', 'relay_renderer', 'relay_daemon')
        group by o.name
    loop
        execute pg_catalog.format('revoke all on %s from %s cascade', object, grantees);
    end loop;
end
$$;

-- Gives a function to another role, which must be allowed to create in the schema for that moment.
create or replace function relay.give(func regprocedure, to_role text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from pg_catalog.pg_proc p join pg_catalog.pg_roles r on r.oid = p.proowner
                   where p.oid = func and r.rolname = to_role) then
        execute pg_catalog.format('grant create on schema relay to %I', to_role);
        execute pg_catalog.format('alter function %s owner to %I', func, to_role);
        execute pg_catalog.format('revoke create on schema relay from %I', to_role);
    end if;
end
$$;

-- Watching -----------------------------------------------------------------------------------------------------

-- One "column [asc|desc] [nulls first|last]" of order_by in its parts, or no row if it is not of that form. The column
-- is named as it is, in quotes or not.
create or replace function relay.order_parts(entry text, out col text, out direction text)
    returns setof record
    language sql
    immutable
    set search_path = pg_catalog, pg_temp
    set standard_conforming_strings = on
as $$
    select case when m[1] ~ '^".+"$' then pg_catalog.replace(pg_catalog.substr(m[1], 2, pg_catalog.length(m[1]) - 2), '""', '"')
                else m[1] end,
           coalesce(m[2], '') || coalesce(m[3], '')
    from pg_catalog.regexp_match(
        entry, E'^\\s*(.+?)(\\s+(?:asc|desc))?(\\s+nulls\\s+(?:first|last))?\\s*$', 'i') m
    where m is not null
$$;

-- An expression of a row as a watch keeps it: its *form*, in which the columns that it *uses* stand as a *mark* and
-- their place in the list of them. So it survives that columns are renamed. Refuses, in one sentence, all but an immutable
-- expression made of what Postgres has: then no code of users runs, in whatever role it is evaluated.
--
-- Postgres itself parses it and prints what it has understood: as the generated column of a temporary table, which is
-- never committed.
create or replace function relay.expression(target regclass, role text, typ text, given text) returns jsonb
    language plpgsql
    strict
    set search_path = pg_catalog, pg_temp
as $$
declare
    mark    constant text := 'relay_' || pg_catalog.md5(given);
    scratch regclass;
    used    record;
    form    text;
    uses    jsonb := '[]';
    problem text;
begin
    if given ~ E'\\\\' then
        raise exception '% has a backslash, whose meaning depends on settings: expected an expression without one',
            role using errcode = 'invalid_parameter_value';
    end if;
    begin
        execute pg_catalog.format('create temporary table pg_temp.%I (like %s)', mark, target);
        execute pg_catalog.format('alter table pg_temp.%1$I add column %1$I %2$s generated always as (%3$s' || E'\n) stored',
                                  mark, typ, case typ when 'text' then pg_catalog.format(E'(%s\n)::text', given) else given end);
        scratch := pg_catalog.format('pg_temp.%I', mark)::regclass;
        for used in
            select d.refclassid, d.refobjid, d.refobjsubid, o.type, o.identity, a.attnum, a.attname, a.attgenerated,
                   a.atttypid, pg_catalog.format_type(a.atttypid, null) as typ, t.typnamespace,
                   coalesce(o.schema, '') = 'pg_catalog'
                       or exists (select from pg_catalog.pg_type e
                                  where d.refclassid = 'pg_catalog.pg_type'::regclass and e.oid = d.refobjid
                                    and e.typtype = 'e' and relay.is_plain(e.oid)) as is_plain
            from pg_catalog.pg_depend d
            cross join lateral pg_catalog.pg_identify_object(d.refclassid, d.refobjid, d.refobjsubid) o
            left join pg_catalog.pg_attribute c
                on d.refclassid = 'pg_catalog.pg_class'::regclass and c.attrelid = scratch
                and c.attrelid = d.refobjid and c.attnum = d.refobjsubid and c.attname <> mark
            left join pg_catalog.pg_attribute a on a.attrelid = target and a.attname = c.attname and not a.attisdropped
            left join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid)
            -- Older servers say of the column what younger ones say of its default.
            where (d.classid, d.objid, d.objsubid) in (
                select 'pg_catalog.pg_class'::regclass::oid, scratch::oid, g.attnum::integer
                from pg_catalog.pg_attribute g where g.attrelid = scratch and g.attname = mark
                union all
                select 'pg_catalog.pg_attrdef'::regclass::oid, e.oid, 0
                from pg_catalog.pg_attrdef e where e.adrelid = scratch)
              and (d.refobjid <> scratch or d.refobjsubid <> (
                  select g.attnum from pg_catalog.pg_attribute g where g.attrelid = scratch and g.attname = mark))
            order by a.attnum
        loop
            if used.attnum is null and used.is_plain then
                continue;
            elsif used.attnum is null or used.attnum < 0 then
                raise exception using errcode = 'RL001', message = pg_catalog.format(
                    'it uses %s %s: expected nothing but columns of the table, and functions, operators and types of pg_catalog',
                    used.type, used.identity);
            elsif not relay.is_plain(used.atttypid) or used.attgenerated = 'v' then
                raise exception using errcode = 'RL001', message = pg_catalog.format(
                    'it names column %I of type %s: expected columns of types of Postgres''s own, or enums without implicit '
                    'casts, and none that is generated as virtual', used.attname, used.typ);
            elsif not pg_catalog.has_schema_privilege('relay_renderer', used.typnamespace, 'usage') then
                raise exception using errcode = 'RL001', message = pg_catalog.format(
                    'it names column %I, whose type is in schema %s: expected a schema that everybody may use',
                    used.attname, used.typnamespace::regnamespace);
            end if;
            execute pg_catalog.format('alter table pg_temp.%I rename column %I to %I', mark, used.attname,
                                      pg_catalog.format('%s:%s', mark, pg_catalog.jsonb_array_length(uses)));
            uses := uses || pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_array(used.attnum, used.attname, used.typ));
        end loop;
        select pg_catalog.pg_get_expr(e.adbin, e.adrelid) into form
        from pg_catalog.pg_attrdef e where e.adrelid = scratch;
        raise exception using errcode = 'RL002';
    exception
        when sqlstate 'RL002' then null;
        when insufficient_privilege then raise;
        when others then
            problem := case sqlerrm when 'generation expression is not immutable'
                       then 'it is not immutable, for its value may change while the row does not' else sqlerrm end;
    end;
    if problem is null and form ~ E'\\\\' then
        problem := 'a backslash comes of it';
    end if;
    if problem is not null then
        raise exception '% of % cannot be %: %', role, target,
            pg_catalog.quote_literal(pg_catalog.regexp_replace(given, E'\\s+', ' ', 'g')), problem
            using errcode = 'invalid_parameter_value';
    end if;
    return pg_catalog.jsonb_build_object('form', form, 'mark', mark, 'uses', uses);
end
$$;

-- What order_by says, for those who sort by it: of each column whether it descends, whether nulls come first, and of an enum
-- the labels in their order. No row for one whose values clients cannot compare as the server does.
create or replace function relay.ordering(target regclass, order_by text[], out n bigint, out key jsonb) returns setof record
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select o.n, pg_catalog.jsonb_build_object(
               'column', p.col, 'descending', p.direction ~* 'desc',
               'nulls_first', p.direction ~* 'first' or p.direction ~* 'desc' and p.direction !~* 'last',
               'values', (select pg_catalog.jsonb_agg(e.enumlabel order by e.enumsortorder)
                          from pg_catalog.pg_enum e where e.enumtypid = t.oid))
    from pg_catalog.unnest(order_by) with ordinality o (entry, n)
    cross join lateral relay.order_parts(o.entry) p
    join pg_catalog.pg_attribute a on a.attrelid = target and a.attname = p.col and a.attnum > 0 and not a.attisdropped
    join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid)
    where t.typcategory in ('S', 'E')
       or t.typname in ('bool', 'uuid', 'int2', 'int4', 'int8', 'numeric', 'float4', 'float8', 'date', 'time', 'timestamp', 'timestamptz')
$$;

-- Refuses, in one sentence, a table that cannot be fed exactly.
create or replace function relay.check_watch(
    target regclass, key_columns name[], board_column name, lane_column name, hidden name[], order_by text[]
) returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    kind     "char";
    storage  "char";
    child    boolean;
    id_column constant name := case when pg_catalog.cardinality(key_columns) = 1 then key_columns[1] end;
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

    for role, col in
        select case when id_column is null then 'key_columns' else 'id_column' end, k from pg_catalog.unnest(key_columns) k
        union all
        select 'board_column', board_column
        union all
        select 'lane_column', lane_column
    loop
        continue when col is null;  -- an expression says it
        select pg_catalog.format_type(a.atttypid, a.atttypmod) into found
        from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid)
        where a.attrelid = target and a.attname = col and a.attnum > 0 and not a.attisdropped
          and (t.typcategory = 'S' or t.typname in ('uuid', 'int2', 'int4', 'int8')
               or (role in ('board_column', 'lane_column') and t.typcategory = 'E'));
        if found is null then
            select pg_catalog.format_type(a.atttypid, a.atttypmod) into found
            from pg_catalog.pg_attribute a
            where a.attrelid = target and a.attname = col and a.attnum > 0 and not a.attisdropped;
            if found is null then
                raise exception 'relay.watch: % has no column %: name its own with % => ''...''',
                    target, pg_catalog.quote_literal(col), role using errcode = 'undefined_column';
            end if;
            raise exception 'relay.watch: column % of % is of type %: as % it must be text, uuid or integer%',
                pg_catalog.quote_ident(col), target, found, role,
                case when role in ('board_column', 'lane_column') then ', or an enum' else '' end using errcode = 'datatype_mismatch';
        end if;
    end loop;
    if id_column = board_column or id_column = lane_column or board_column = lane_column then
        raise exception 'relay.watch: id_column, board_column and lane_column of % must be three columns, found %, % and %',
            target, id_column, board_column, lane_column using errcode = 'invalid_parameter_value';
    end if;

    -- Messages name a row by its id alone, so the id alone must be a key.
    if not exists (
        select from pg_catalog.pg_index i
        where i.indrelid = target and i.indisunique and i.indisvalid and i.indpred is null
          and i.indnkeyatts = pg_catalog.cardinality(key_columns)
          and pg_catalog.cardinality(key_columns) = (
              select count(distinct a.attname) from pg_catalog.pg_attribute a
              where a.attrelid = target and a.attname = any (key_columns) and a.attnotnull
                and a.attnum = any (i.indkey::smallint[]))
          -- Rows that share a key until the end of a transaction could not be distinguished.
          and i.indimmediate
    ) then
        select pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' order by k.n) into found
        from pg_catalog.pg_index i
        cross join lateral pg_catalog.unnest(i.indkey::smallint[]) with ordinality k (attnum, n)
        join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
        where i.indrelid = target and i.indisprimary;
        raise exception 'relay.watch: column % of % is not a key by itself (primary key: %): '
            'it needs a primary key or unique index of its own, not deferrable, and not null; '
            'or name another with id_column => ''...'', or all of them with key_columns => ''{...}''',
            (select pg_catalog.string_agg(pg_catalog.quote_ident(k), ', ') from pg_catalog.unnest(key_columns) k), target, coalesce('(' || found || ')', 'none')
            using errcode = 'invalid_table_definition';
    end if;

    foreach col in array hidden loop
        if not exists (select from pg_catalog.pg_attribute a
                       where a.attrelid = target and a.attname = col and a.attnum > 0 and not a.attisdropped) then
            raise exception 'relay.watch: % has no column % to hide', target, pg_catalog.quote_literal(col)
                using errcode = 'undefined_column';
        end if;
        -- Trigger functions hide a value by setting it to null.
        if (with recursive base (oid) as (
                select a.atttypid from pg_catalog.pg_attribute a where a.attrelid = target and a.attname = col
                union all
                select t.typbasetype from base b join pg_catalog.pg_type t on t.oid = b.oid where t.typbasetype <> 0)
            select pg_catalog.bool_or(t.typnotnull) from base b join pg_catalog.pg_type t on t.oid = b.oid) then
            raise exception 'relay.watch: column % of % cannot be hidden, for its type is a domain that allows no null: '
                'give it the type that the domain is made of, and a not null constraint',
                pg_catalog.quote_ident(col), target using errcode = 'datatype_mismatch';
        end if;
        if col = any (key_columns) or col in (board_column, lane_column) then
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
        if not exists (select from relay.ordering(target, array[entry]) o where o.key ->> 'column' <> all (hidden)) then
            raise exception 'relay.watch: order_by has %, by which clients cannot sort: expected a column that is not hidden, and is '
                'a number, a text, a boolean, a uuid, an enum, a date or a time', pg_catalog.quote_literal(entry)
                using errcode = 'invalid_parameter_value';
        end if;
    end loop;
end
$$;

-- Lets relay_reader read a table, which only its owner or a superuser can do, as only they can put triggers on it. Where
-- rows are filtered by policies, a board would be silently incomplete, so the reader must be above them.
create or replace function relay.grant_reading(target regclass, board_column name) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    schemas constant oid[] := array(
        select c.relnamespace from pg_catalog.pg_class c where c.oid = target
        union
        select t.typnamespace from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid)
        where a.attrelid = target and a.attname = board_column);
    owner   constant oid := (select c.relowner from pg_catalog.pg_class c where c.oid = target);
    place   oid;
begin
    if not pg_catalog.pg_has_role(owner, 'usage') then
        raise exception 'relay.watch: % belongs to %, and only its owner may put triggers on it: have a role that may run: '
            'grant % to %', target, owner::regrole, owner::regrole, pg_catalog.quote_ident(current_user)
            using errcode = 'insufficient_privilege';
    end if;
    foreach place in array schemas loop
        continue when pg_catalog.has_schema_privilege('relay_reader', place, 'usage');
        begin
            execute pg_catalog.format('grant usage on schema %s to relay_reader', place::regnamespace);
        exception when insufficient_privilege then
            null;  -- and whoever may use it but not grant that gets a warning only
        end;
        if not pg_catalog.has_schema_privilege('relay_reader', place, 'usage') then
            raise exception 'relay.watch: boards are read by role relay_reader, and % may not let it use a schema of %: '
                'have the owner of the schema run: grant usage on schema % to relay_reader',
                current_user, target, place::regnamespace using errcode = 'insufficient_privilege';
        end if;
    end loop;
    if not pg_catalog.has_table_privilege('relay_reader', target, 'select') then
        execute pg_catalog.format('grant select on %s to relay_reader', target);
    end if;
    if exists (select from pg_catalog.pg_class c where c.oid = target and c.relrowsecurity)
        and not exists (select from pg_catalog.pg_roles r where r.rolname = 'relay_reader' and r.rolbypassrls) then
        raise exception 'relay.watch: row level security is on for %, so boards would lack rows: have a superuser run: '
            'alter role relay_reader bypassrls', target using errcode = 'insufficient_privilege';
    end if;
end
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
        perform pg_catalog.pg_sleep(0.1 + 0.3 * (pg_catalog.date_part('microseconds', pg_catalog.clock_timestamp())::integer % 1000) / 1000.0);
    end loop;
end
$$;

-- Names the processes that hold a table against a lock of that mode, or wait for it in front of everybody who reads.
create or replace function relay.holders(target regclass, mode text) returns text
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(pg_catalog.string_agg(distinct pg_catalog.concat('process ', l.pid, ' (',
               coalesce(a.usename, a.backend_type, 'a background process'), ')',
               case when not l.granted then ', which waits for process ' || (
                   select pg_catalog.string_agg(b::text, ', ') from pg_catalog.unnest(pg_catalog.pg_blocking_pids(l.pid)) b
                   where b <> pg_catalog.pg_backend_pid()) end), ', '), 'others')
    from pg_catalog.pg_locks l
    left join pg_catalog.pg_stat_activity a on a.pid = l.pid
    where l.relation in (select p from relay.parts(target) p) and l.pid <> pg_catalog.pg_backend_pid()
      and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
      and case holders.mode
              when 'access exclusive' then l.granted
              when 'access share' then l.mode = 'AccessExclusiveLock'
              else l.granted and l.mode not in ('AccessShareLock', 'RowShareLock') end
$$;

-- Whether all triggers of a watch are in place, as relay.create_triggers makes them, and enabled in one of the ways
-- given: O for ordinary sessions, A also where changes are applied that come from another server.
create or replace function relay.triggers_enabled(watch integer, target regclass, ways text) returns boolean
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.bool_and(coalesce(found.n, 0) = 2)
    from relay.parts(target) p
    left join lateral (
        select pg_catalog.count(*) as n
        from pg_catalog.pg_trigger t
        join pg_catalog.pg_proc f on f.oid = t.tgfoid
        where t.tgrelid = p and pg_catalog.strpos(ways, t.tgenabled::text) > 0
          and f.pronamespace = 'relay'::regnamespace
          and f.proname in ('journal_' || watch, 'journal_truncate')
          -- For each row after insert, update or delete; for each statement after truncate.
          and (t.tgname, t.tgtype) in (('relay_change', 29), ('relay_truncate', 32))
          -- of any column, whatever the row
          and t.tgattr::text = '' and t.tgqual is null
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
          and t.tgname in ('relay_change', 'relay_truncate')
          -- A partition's row triggers go with those of its parent.
          and t.tgparentid = 0
    loop
        execute pg_catalog.format('drop trigger %I on %s', found.tgname, found.part);
    end loop;
end
$$;

-- Row triggers, not statement triggers: they also fire in logical replication and for writes made straight to a
-- partition, and a row that cannot be shown leaves out itself alone. "enable always", so that replicas are not deaf.
-- Without "when (old.* is distinct from new.*)": that is parsed and compiled for each statement, and costs more than it
-- spares; the function compares the rows. Replaced rather than dropped, for that would keep readers out.
create or replace function relay.create_triggers(w relay.watches, said jsonb) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    part regclass;
    name text;
begin
    execute pg_catalog.format(
        'create or replace trigger relay_change after insert or update or delete on %s for each row '
        'execute function relay.journal_%s()', w.target, w.id);
    for part in select p from relay.parts(w.target) p loop
        execute pg_catalog.format(
            'create or replace trigger relay_truncate after truncate on %s for each statement '
            'execute function relay.journal_truncate(%L%s)', part, w.id,
            case when part = w.target then pg_catalog.format(', %L', said) end);
        foreach name in array array['relay_change', 'relay_truncate'] loop
            execute pg_catalog.format('alter table %s enable always trigger %I', part, name);
        end loop;
    end loop;
end
$$;

create or replace function relay.full_name(target regclass) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.format('%I.%I', n.nspname, c.relname)
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where c.oid = target
$$;

-- A column as a watch knows it: its number and its name.
create or replace function relay.column_of(target regclass, col name) returns jsonb
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.jsonb_build_array(a.attnum, a.attname)
    from pg_catalog.pg_attribute a where a.attrelid = target and a.attname = col and not a.attisdropped
$$;

-- Removes the functions of watches that are no more: a table that is dropped takes its triggers with it, and leaves
-- their functions. The daemon never does, for while a dump is restored the functions come before their triggers.
create or replace function relay.remove_orphans() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    orphan regprocedure;
begin
    for orphan in
        select f.oid::regprocedure
        from pg_catalog.pg_proc f
        where f.pronamespace = 'relay'::regnamespace and f.proname ~ '^(journal|entry|place|lanes?)_[0-9]+$'
          and not exists (select from pg_catalog.pg_trigger t join pg_catalog.pg_proc j on j.oid = t.tgfoid
                          where j.pronamespace = f.pronamespace
                            and j.proname = case when f.proname ~ '^lane' then 'lanes_' else 'journal_' end
                                            || pg_catalog.split_part(f.proname, '_', 2))
    loop
        execute pg_catalog.format('drop function %s', orphan);
    end loop;
end
$$;

-- Starts feeding a table, or changes how it is fed. What is not given stays as it is, where the table is watched
-- already. With the same settings it takes no lock and changes nothing, except that it puts the triggers right where
-- some are missing or disabled, covers partitions that have come since, and notes the table's new name.
--
-- Hidden columns never leave the database, and columns that come later are shown, unless it is said which are shown:
-- then all others are hidden, whenever they come. Columns are known by their numbers, so a rename changes nothing.
--
-- Takes SHARE ROW EXCLUSIVE on the table, which readers do not notice, until the end of the transaction: so give it
-- one of its own. Waits for it in short attempts (see relay.lock_table), for as long as "patience" in all.
create or replace function relay.watch(
    target       regclass,
    -- "id", "board_id" and "lane", if the table is not watched yet.
    id_column    name     default null,
    board_column name     default null,
    lane_column  name     default null,
    hidden       name[]   default null,
    -- "column [asc|desc] [nulls first|last]", ...; the id decides among equals. At first by created_at, if there is one.
    order_by     text[]   default null,
    patience     interval default '30 seconds',
    -- The only columns to show, beside the id, the board and the lane; in place of "hidden".
    shown        name[]   default null,
    -- Which rows are tasks, such as "deleted_at is null and not is_draft"; at first all, and so again by ''.
    filter       text     default null,
    -- Expressions in place of columns, such as "case when is_public then 'public' else 'team-' || team_id end".
    board_as     text     default null,
    lane_as      text     default null,
    -- A table that relay.lanes has declared: the lane is the id of one of its rows, and the board is theirs, if they have
    -- one.
    lanes        regclass default null,
    -- In place of the id's column, the columns of a key: the id is their values as text, joined by colons.
    key_columns  name[]   default null,
    -- What the ids of this table begin with, to keep them apart from those of others; they are text then.
    id_prefix    text     default null,
    -- Whether ids, boards and lanes are text in any case, for readers whose numbers do not hold a bigint.
    as_text      boolean  default null
) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '2s'
as $$
declare
    current_watch relay.watches;
    wanted        relay.watches;
    col           name;
begin
    -- One at a time: two sessions that watch the same table must not each make their own.
    perform pg_catalog.pg_advisory_xact_lock('relay.watches'::regclass::oid::bigint);
    select * into current_watch from relay.watches w where w.target = watch.target;
    if watch.hidden is not null and watch.shown is not null then
        raise exception 'relay.watch: found both hidden and shown: expected the columns to hide, or the only ones to show'
            using errcode = 'invalid_parameter_value';
    end if;
    if current_watch.problem like 'was restored%' and watch.hidden is null and watch.shown is null then
        raise exception 'relay.watch: % %: say which columns to hide, with hidden => ''{...}''',
            watch.target, current_watch.problem using errcode = 'undefined_column';
    end if;
    wanted.target := watch.target;
    if watch.id_column is not null and watch.key_columns is not null then
        raise exception 'relay.watch: found both id_column and key_columns: expected the column that is the id, or those of a key'
            using errcode = 'invalid_parameter_value';
    end if;
    wanted.key_columns := coalesce(watch.key_columns, case when watch.id_column is not null then array[watch.id_column] end,
                                   case when pg_catalog.array_position(current_watch.key_columns, null) is null
                                        then current_watch.key_columns end, array['id']);
    wanted.id_column := case when pg_catalog.cardinality(wanted.key_columns) = 1 then wanted.key_columns[1] end;
    wanted.id_prefix := nullif(coalesce(watch.id_prefix, current_watch.id_prefix), '');
    wanted.as_text := coalesce(watch.as_text, current_watch.as_text, false);
    if watch.board_column is not null and watch.board_as is not null or watch.lane_column is not null and watch.lane_as is not null then
        raise exception 'relay.watch: found both a column and an expression for one thing: expected board_column or board_as, '
            'lane_column or lane_as' using errcode = 'invalid_parameter_value';
    end if;
    wanted.filter := nullif(coalesce(watch.filter, current_watch.filter), '');
    wanted.board_as := coalesce(watch.board_as, case when watch.board_column is null then current_watch.board_as end);
    wanted.lane_as := coalesce(watch.lane_as, case when watch.lane_column is null then current_watch.lane_as end);
    wanted.lanes := coalesce(watch.lanes, current_watch.lanes);
    if wanted.lanes is not null and not exists (select from relay.lane_tables l where l.target = wanted.lanes) then
        raise exception 'relay.watch: % is not declared as a table of lanes: run select relay.lanes(%) first', wanted.lanes,
            pg_catalog.quote_literal(wanted.lanes) using errcode = 'undefined_table';
    end if;
    if (select l.board_column is not null from relay.lane_tables l where l.target = wanted.lanes) then
        if watch.board_column is not null or watch.board_as is not null then
            raise exception 'relay.watch: the board of % is that of its lane in %: expected no board_column and no board_as',
                watch.target, wanted.lanes using errcode = 'invalid_parameter_value';
        end if;
        wanted.board_as := null;
    elsif wanted.board_as is null then
        wanted.board_column := coalesce(watch.board_column, current_watch.board_column, 'board_id');
    end if;
    if wanted.lane_as is null then
        wanted.lane_column := coalesce(watch.lane_column, current_watch.lane_column, 'lane');
    end if;
    if watch.hidden is null then
        wanted.shown := coalesce(watch.shown, current_watch.shown);
    end if;
    wanted.hidden := case when wanted.shown is null then coalesce(watch.hidden, array(
        select h from pg_catalog.unnest(current_watch.hidden) h
        join pg_catalog.pg_attribute a on a.attrelid = watch.target and a.attname = h and a.attgenerated <> 'v'))
        else '{}' end;
    wanted.order_by := coalesce(watch.order_by, current_watch.order_by, (
        select array['created_at'] from pg_catalog.pg_attribute a
        where a.attrelid = watch.target and a.attname = 'created_at' and not a.attisdropped), '{}');
    perform relay.check_watch(wanted.target, wanted.key_columns, wanted.board_column, wanted.lane_column,
                              wanted.hidden, wanted.order_by);
    foreach col in array coalesce(wanted.shown, '{}') loop
        if not exists (select from pg_catalog.pg_attribute a where a.attrelid = wanted.target and a.attname = col
                       and a.attnum > 0 and not a.attisdropped and a.attgenerated <> 'v') then
            raise exception 'relay.watch: % has no column % to show, or it is virtual', wanted.target,
                pg_catalog.quote_literal(col) using errcode = 'undefined_column';
        end if;
    end loop;
    if wanted.lanes is not null and (select relay.comparable(l.target, l.id_column) from relay.lane_tables l where l.target = wanted.lanes)
        is distinct from (case when wanted.lane_as is null then relay.comparable(wanted.target, wanted.lane_column) else 'text' end)
    then
        raise exception 'relay.watch: the lane of % and the id of % are of different types, or of one that cannot be compared: '
            'expected both to be integers, uuids or text', wanted.target, wanted.lanes using errcode = 'datatype_mismatch';
    end if;
    perform relay.grant_reading(wanted.target, wanted.board_column);
    wanted.same := true;
    wanted.said := pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
        'filter', relay.expression(wanted.target, 'relay.watch: filter', 'boolean', wanted.filter),
        'board_as', relay.expression(wanted.target, 'relay.watch: board_as', 'text', wanted.board_as),
        'lane_as', relay.expression(wanted.target, 'relay.watch: lane_as', 'text', wanted.lane_as)));
    wanted.filter := relay.spelled(wanted.target, wanted.said -> 'filter', true);
    wanted.board_as := relay.spelled(wanted.target, wanted.said -> 'board_as', true);
    wanted.lane_as := relay.spelled(wanted.target, wanted.said -> 'lane_as', true);

    -- As the view will tell it, which is also how it is compared.
    wanted.watched_as := (select pg_catalog.format('%I.%I', n.nspname, c.relname)
                          from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
                          where c.oid = wanted.target);
    if wanted.shown is not null then
        wanted.shown := array(
            select a.attname from pg_catalog.pg_attribute a
            where a.attrelid = wanted.target and a.attnum > 0 and not a.attisdropped
              and (a.attname = any (wanted.shown)
                   or a.attname = any (wanted.key_columns)
                   or a.attname in (wanted.board_column, wanted.lane_column)) order by a.attnum);
    end if;
    wanted.hidden := array(
        select a.attname from pg_catalog.pg_attribute a
        where a.attrelid = wanted.target and a.attnum > 0 and not a.attisdropped
          and (a.attgenerated = 'v' or a.attname = any (wanted.hidden) or a.attname <> all (wanted.shown)) order by a.attnum);
    if current_watch.problem is null
       and row(current_watch.key_columns, current_watch.id_prefix, current_watch.as_text, current_watch.board_column, current_watch.lane_column,
               current_watch.hidden, current_watch.order_by, current_watch.filter, current_watch.board_as, current_watch.lane_as,
               current_watch.lanes, current_watch.watched_as, current_watch.shown)
           is not distinct from row(wanted.key_columns, wanted.id_prefix, wanted.as_text, wanted.board_column, wanted.lane_column,
                                    wanted.hidden, wanted.order_by, wanted.filter, wanted.board_as, wanted.lane_as, wanted.lanes, wanted.watched_as, wanted.shown)
       and relay.triggers_enabled(current_watch.id, wanted.target, 'A')
    then
        return;
    end if;

    perform relay.lock_table(wanted.target, 'share row exclusive', patience);
    -- A change names the watch it was made under, and an id is never used again, nor likely to be another server's, so
    -- that no change is ever read with the settings of another. Not from random(), whose sequence is the session's.
    wanted.id := ('x' || pg_catalog.left(pg_catalog.md5(pg_catalog.gen_random_uuid()::text), 8))::bit(32)::integer & 2147483647;
    wanted.said := wanted.said || pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
        'watch', wanted.id,
        'oid', wanted.target::oid::bigint,
        'name', wanted.watched_as,
        'lanes', case when wanted.lanes is not null
                 then pg_catalog.jsonb_build_array(wanted.lanes::oid::bigint, relay.full_name(wanted.lanes)) end,
        'id', relay.column_of(wanted.target, wanted.id_column),
        'key', case when wanted.id_column is null then (
            select pg_catalog.jsonb_agg(relay.column_of(wanted.target, k.name) order by k.n)
            from pg_catalog.unnest(wanted.key_columns) with ordinality k (name, n)) end,
        'prefix', wanted.id_prefix,
        'as_text', case when wanted.as_text then true end,
        'board', relay.column_of(wanted.target, wanted.board_column),
        'lane', relay.column_of(wanted.target, wanted.lane_column),
        'hidden', (select coalesce(pg_catalog.jsonb_agg(relay.column_of(wanted.target, h)), '[]')
                   from pg_catalog.unnest(wanted.hidden) h
                   join pg_catalog.pg_attribute a on a.attrelid = wanted.target and a.attname = h
                   where a.attgenerated <> 'v' and wanted.shown is null),
        'order_by', pg_catalog.to_jsonb(wanted.order_by),
        'shown', case when wanted.shown is not null then (
            select pg_catalog.jsonb_agg(relay.column_of(wanted.target, s)) from pg_catalog.unnest(wanted.shown) s) end));
    perform relay.make_functions(wanted);
    perform relay.create_triggers(wanted, wanted.said);
    if current_watch.id is not null then
        perform relay.drop_functions(current_watch.id);
    end if;
    perform relay.remove_orphans();
    perform relay.journal_sync(wanted.id, 'watch_changed');
end
$$;

comment on function relay.watch(regclass, name, name, name, name[], text[], interval, name[], text, text, text, regclass, name[], text, boolean) is
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
    perform relay.drop_functions(current_watch.id);
    begin
        execute pg_catalog.format('revoke select on %s from relay_reader', current_watch.target);
    exception when insufficient_privilege then
        null;  -- whoever granted it may take it back
    end;
    perform relay.remove_orphans();
    perform relay.journal_sync(null, 'watch_changed: unwatch');
end
$$;

comment on function relay.unwatch(regclass, interval) is 'Stops feeding a table. Said again, it does nothing.';

-- Lanes --------------------------------------------------------------------------------------------------------

-- What a change of a lane means: the boards that it left and came to, null if nothing changed that a board shows, or "!" and
-- why that is unknown.
create or replace function relay.lane_body(l relay.lane_tables) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $make$
    select pg_catalog.format($body$
declare
    was    text[];
    stands text[];
begin
    if current_user <> 'relay_renderer' then
        return array['!', 'relay.lane_%1$s belongs to ' || current_user || ', expected relay_renderer: run relay sql install'];
    end if;
    if op <> 'INSERT' then was := %2$s; end if;
    if op <> 'DELETE' then stands := %3$s; end if;
    if was is distinct from stands then
        perform relay.pause_if_full();
        return array[was[1], stands[1]];
    end if;
    return null;
exception when others or assert_failure then
    return array['!', pg_catalog.left(sqlerrm, 200)];
end
$body$, l.id, made.was, made.stands)
    from (
        select pg_catalog.format('case when %s then array[%s] end', coalesce(relay.spelled(l.target, l.said -> 'filter', l.same, 'before.'), 'true'),
                                 pg_catalog.string_agg(coalesce(relay.as_text(l.target, c.name, 'before.' || pg_catalog.quote_ident(c.name)), 'null'), ', ' order by c.n)) as was,
               pg_catalog.format('case when %s then array[%s] end', coalesce(relay.spelled(l.target, l.said -> 'filter', l.same, 'after.'), 'true'),
                                 pg_catalog.string_agg(coalesce(relay.as_text(l.target, c.name, 'after.' || pg_catalog.quote_ident(c.name)), 'null'), ', ' order by c.n)) as stands
        from (
            select 1 as n, l.board_column as name
            union all
            select 2, l.id_column
            union all
            select 3, l.name_column
            union all
            select 3 + o.n, p.col from pg_catalog.unnest(l.order_by) with ordinality o (entry, n)
            cross join lateral relay.order_parts(o.entry) p
        ) c (n, name)
    ) made
$make$;

-- A change of a lane is not journalled itself, for a board's lanes are sent with the board: only which boards are to be read
-- again. All, where lanes are of no board.
create or replace function relay.lanes_body(l relay.lane_tables) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $make$
    select pg_catalog.format($body$
declare
    moved text[] := case when not relay.paused() then relay.lane_%1$s(tg_op, old, new) end;
begin
    if moved is not null then
        insert into relay.journal (watch, op, entry, reason)
        values (%1$s, case when moved[1] = '!' or %2$s then 'S' else 'L' end::"char",
                array[null, moved[1], null, null, moved[2], null, null],
                case when moved[1] = '!' then 'row_unreadable: ' || moved[2] else 'lanes_changed' end);
        perform relay.notify();
    end if;
    return null;
end
$body$, l.id, case when l.board_column is null then 'true' else 'false' end)
$make$;

create or replace function relay.lanes_truncate() returns trigger
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform relay.journal_sync((tg_argv[0])::integer, 'truncate');
    return null;
end
$$;

create or replace function relay.make_lane_functions(l relay.lane_tables) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    execute pg_catalog.format(
        'create or replace function relay.lane_%s(op text, before record, after record) returns text[] language plpgsql '
        'security definer set search_path = pg_catalog, pg_temp set timezone = ''UTC'' set datestyle = ''ISO, MDY'' '
        'set extra_float_digits = 1 as %L', l.id, relay.lane_body(l));
    execute pg_catalog.format(
        'create or replace function relay.lanes_%s() returns trigger language plpgsql security definer '
        'set search_path = pg_catalog, pg_temp as %L', l.id, relay.lanes_body(l));
    perform relay.give(pg_catalog.format('relay.lane_%s(text, record, record)', l.id)::regprocedure, 'relay_renderer');
    perform relay.give(pg_catalog.format('relay.lanes_%s()', l.id)::regprocedure, 'relay_writer');
    perform relay.revoke_others();
    execute pg_catalog.format('grant execute on function relay.lane_%s(text, record, record) to relay_writer', l.id);
end
$$;

-- Declares that the rows of a table are lanes, or changes how. What is not given stays as it is, where that is declared
-- already. Boards then list exactly these lanes in this order, for the watches that name the table, see relay.watch.
--
-- Takes the same lock as relay.watch, in the same way.
create or replace function relay.lanes(
    target       regclass,
    -- "id", and "name", if nothing is declared yet.
    id_column    name     default null,
    -- At first "board_id", if there is one; '' if lanes are the same on all boards.
    board_column name     default null,
    name_column  name     default null,
    -- "column [asc|desc] [nulls first|last]", ...; the id decides among equals.
    order_by     text[]   default null,
    -- Which rows are lanes, such as "closed_at is null"; at first all, and so again by ''.
    filter       text     default null,
    patience     interval default '30 seconds'
) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '2s'
as $$
declare
    present relay.lane_tables;
    wanted  relay.lane_tables;
    entry   text;
begin
    perform pg_catalog.pg_advisory_xact_lock('relay.watches'::regclass::oid::bigint);
    select * into present from relay.lane_tables l where l.target = lanes.target;
    wanted.target := lanes.target;
    wanted.same := true;
    wanted.id_column := coalesce(lanes.id_column, present.id_column, 'id');
    wanted.board_column := nullif(coalesce(lanes.board_column, case when present.id is null then (
        select a.attname from pg_catalog.pg_attribute a
        where a.attrelid = lanes.target and a.attname = 'board_id' and not a.attisdropped) else present.board_column end), '');
    wanted.name_column := coalesce(lanes.name_column, present.name_column, 'name');
    wanted.order_by := coalesce(lanes.order_by, present.order_by, '{}');
    if not exists (select from pg_catalog.pg_class c where c.oid = wanted.target and c.relkind = 'r'
                   and c.relpersistence <> 't' and not c.relispartition) then
        raise exception 'relay.lanes: % is not an ordinary table: expected one whose rows are lanes', wanted.target
            using errcode = 'wrong_object_type';
    end if;
    foreach entry in array array_remove(array[wanted.id_column, wanted.board_column, wanted.name_column], null) loop
        if not exists (select from pg_catalog.pg_attribute a
                       where a.attrelid = wanted.target and a.attname = entry and a.attnum > 0 and not a.attisdropped) then
            raise exception 'relay.lanes: % has no column %: name its own with id_column, board_column or name_column',
                wanted.target, pg_catalog.quote_literal(entry) using errcode = 'undefined_column';
        end if;
    end loop;
    if relay.comparable(wanted.target, wanted.id_column) is null then
        raise exception 'relay.lanes: column % of % cannot be the id of lanes: expected an integer, a uuid or text',
            pg_catalog.quote_ident(wanted.id_column), wanted.target using errcode = 'datatype_mismatch';
    end if;
    if not exists (
        select from pg_catalog.pg_index i
        join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0] and a.attname = wanted.id_column
        where i.indrelid = wanted.target and i.indisunique and i.indisvalid and i.indpred is null and i.indnkeyatts = 1) then
        raise exception 'relay.lanes: column % of % is not a key by itself: expected a primary key or unique index of its own',
            pg_catalog.quote_ident(wanted.id_column), wanted.target using errcode = 'invalid_table_definition';
    end if;
    if wanted.board_column is not null and not exists (
        select from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid)
        where a.attrelid = wanted.target and a.attname = wanted.board_column
          and (t.typcategory in ('S', 'E') or t.typname in ('uuid', 'int2', 'int4', 'int8'))) then
        raise exception 'relay.lanes: column % of % cannot name boards: expected text, uuid, an integer or an enum',
            pg_catalog.quote_ident(wanted.board_column), wanted.target using errcode = 'datatype_mismatch';
    end if;
    foreach entry in array wanted.order_by loop
        if not exists (select from relay.order_parts(entry) p
                       join pg_catalog.pg_attribute a on a.attname = p.col
                       where a.attrelid = wanted.target and a.attnum > 0 and not a.attisdropped) then
            raise exception 'relay.lanes: order_by has %: expected a column of %, then optionally asc or desc, nulls first or last',
                pg_catalog.quote_literal(entry), wanted.target using errcode = 'invalid_parameter_value';
        end if;
    end loop;
    wanted.said := pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('filter',
        relay.expression(wanted.target, 'relay.lanes: filter', 'boolean', nullif(coalesce(lanes.filter, present.filter), ''))));
    wanted.filter := relay.spelled(wanted.target, wanted.said -> 'filter', true);
    perform relay.grant_reading(wanted.target, wanted.board_column);
    if present.problem is null and present.triggers_complete
        and row(present.id_column, present.board_column, present.name_column, present.order_by, present.filter)
            is not distinct from row(wanted.id_column, wanted.board_column, wanted.name_column, wanted.order_by, wanted.filter)
    then
        return;
    end if;

    perform relay.lock_table(wanted.target, 'share row exclusive', patience);
    wanted.id := ('x' || pg_catalog.left(pg_catalog.md5(pg_catalog.gen_random_uuid()::text), 8))::bit(32)::integer & 2147483647;
    wanted.said := wanted.said || pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
        'lane_table', wanted.id, 'oid', wanted.target::oid::bigint,
        'id', relay.column_of(wanted.target, wanted.id_column),
        'board', relay.column_of(wanted.target, wanted.board_column),
        'title', relay.column_of(wanted.target, wanted.name_column),
        'order_by', pg_catalog.to_jsonb(wanted.order_by)));
    perform relay.make_lane_functions(wanted);
    execute pg_catalog.format(
        'create or replace trigger relay_lanes after insert or update or delete on %s for each row '
        'execute function relay.lanes_%s()', wanted.target, wanted.id);
    execute pg_catalog.format(
        'create or replace trigger relay_lanes_truncate after truncate on %s for each statement '
        'execute function relay.lanes_truncate(%L, %L)', wanted.target, wanted.id, wanted.said);
    execute pg_catalog.format('alter table %1$s enable always trigger relay_lanes, enable always trigger relay_lanes_truncate',
                              wanted.target);
    if present.id is not null then
        execute pg_catalog.format('drop function relay.lanes_%1$s(), relay.lane_%1$s(text, record, record)', present.id);
    end if;
    perform relay.journal_sync(wanted.id, 'watch_changed');
end
$$;

comment on function relay.lanes(regclass, name, name, name, text[], text, interval) is
    'Declares that the rows of a table are lanes. Example: select relay.lanes(''public.lists'', order_by => ''{position}'')';

-- The rows of a table are lanes no more. Takes ACCESS EXCLUSIVE on the table, as relay.unwatch does.
create or replace function relay.drop_lanes(target regclass, patience interval default '30 seconds') returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '2s'
as $$
declare
    present relay.lane_tables;
begin
    perform pg_catalog.pg_advisory_xact_lock('relay.watches'::regclass::oid::bigint);
    select * into present from relay.lane_tables l where l.target = drop_lanes.target;
    if not found then
        return;
    end if;
    if exists (select from relay.watches w where w.lanes = present.target) then
        raise exception 'relay.drop_lanes: the lanes in % are those of %: run select relay.unwatch(%) first', present.target,
            (select max(w.target::text) from relay.watches w where w.lanes = present.target),
            (select pg_catalog.quote_literal(max(w.target::text)) from relay.watches w where w.lanes = present.target)
            using errcode = 'dependent_objects_still_exist';
    end if;
    perform relay.lock_table(present.target, 'access exclusive', patience);
    execute pg_catalog.format('drop trigger if exists relay_lanes on %1$s; drop trigger if exists relay_lanes_truncate on %1$s; '
                              'drop function relay.lanes_%2$s(), relay.lane_%2$s(text, record, record)', present.target, present.id);
end
$$;

comment on function relay.drop_lanes(regclass, interval) is 'The rows of a table are lanes no more.';

-- For what fires no trigger at all: a load with triggers disabled, a partition attached or detached.
create or replace function relay.resync() returns void
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select relay.journal_sync(null, 'resync')
$$;

comment on function relay.resync() is 'Sends every subscriber its whole board again.';

-- Twelve characters that change when anything does that a client's copy depends on: what is watched and how, columns
-- and partitions, and of every type that a row is made of, its labels, attributes, base and casts to json. And when a
-- dump is restored over it all, or a trigger was switched off, even if it is on again: what was written meanwhile, nobody
-- knows.
create or replace function relay.shape() returns text
    language sql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.left(pg_catalog.md5(pg_catalog.concat_ws(';', 'relay.epochs'::regclass::oid,
        pg_catalog.string_agg(pg_catalog.concat_ws(' ', w.target::oid, w.key_columns, w.id_prefix, w.as_text, w.board_column, w.lane_column,
            w.hidden, w.order_by, w.filter, w.board_as, w.lane_as, w.lanes::oid, l.said, w.problem, cols.said, types.said, triggers.said), ';' order by w.target::oid))), 12)
    from relay.watches w
    left join relay.lane_tables l on l.target = w.lanes
    cross join lateral (
        select pg_catalog.string_agg(pg_catalog.concat_ws(' ', t.oid, t.tgenabled, t.xmin), ',' order by t.oid) as said
        from relay.parts(w.target) p
        join pg_catalog.pg_trigger t on t.tgrelid = p
        join pg_catalog.pg_proc f on f.oid = t.tgfoid and f.pronamespace = 'relay'::regnamespace
    ) triggers
    cross join lateral (
        select pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod,
                   a.attisdropped, a.xmin, case when a.attgenerated <> '' then d.xmin end), ','
               order by a.attrelid, a.attnum) as said
        from relay.parts(w.target) p
        join pg_catalog.pg_attribute a on a.attrelid = p and a.attnum > 0
        left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    ) cols
    cross join lateral (
        select pg_catalog.string_agg(pg_catalog.concat_ws(' ', t.oid,
                   (select pg_catalog.string_agg(e.oid || ' ' || e.enumlabel, ',' order by e.enumsortorder)
                    from pg_catalog.pg_enum e where e.enumtypid = t.oid),
                   (select pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attnum, a.attname, a.atttypid), ',' order by a.attnum)
                    from pg_catalog.pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0 and t.typrelid <> 0),
                   t.typbasetype, t.typtypmod,
                   (select pg_catalog.string_agg(pg_catalog.concat_ws(' ', c.oid, c.castfunc, f.xmin), ',' order by c.oid)
                    from pg_catalog.pg_cast c left join pg_catalog.pg_proc f on f.oid = c.castfunc
                    where c.castsource = t.oid and c.casttarget in ('json'::regtype, 'text'::regtype))), ','
               order by t.oid) as said
        from relay.types(w.target) m
        join pg_catalog.pg_type t on t.oid = m
        where t.oid >= 16384
    ) types
$$;

create or replace view relay.watched as
    select w.id,
           n.nspname as schema_name,
           c.relname as table_name,
           w.id_column,
           w.board_column,
           w.lane_column,
           w.hidden,
           w.order_by,
           relay.triggers_enabled(w.id, w.target, 'AO') as triggers_complete,
           relay.triggers_enabled(w.id, w.target, 'A') as triggers_always,
           w.problem,
           w.watched_as,
           w.shown,
           w.target::oid as target,
           -- Whether another table has the name now that it had when it was watched.
           exists (select from pg_catalog.pg_class o join pg_catalog.pg_namespace p on p.oid = o.relnamespace
                   where o.oid <> w.target and o.relkind in ('r', 'p')
                     and array[p.nspname, o.relname]::text[] = pg_catalog.parse_ident(w.watched_as)) as replaced,
           w.filter,
           w.board_as,
           w.lane_as,
           w.lanes,
           w.key_columns,
           w.id_prefix,
           w.as_text,
           array(select a.attname from pg_catalog.pg_attribute a
                 where a.attrelid = w.target and a.attnum > 0 and not a.attisdropped and a.attname <> all (w.hidden)
                 order by a.attnum) as columns,
           -- What clients should sort by: nothing where the order is none that a DBA has declared, so that a board.sync
           -- is as the guide has it.
           case when w.order_by <> array['created_at']
                then array(select o.key from relay.ordering(w.target, w.order_by) o order by o.n) end as ordering
    from relay.watches w
    join pg_catalog.pg_class c on c.oid = w.target
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace;

comment on view relay.watched is 'What is watched. triggers_complete false: run relay.watch again.';

-- The watches whose trigger function is not the one that relay.make_journal_function would make now.
create or replace function relay.altered() returns setof integer
    language sql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
    select w.id from relay.watches w
    where w.problem is null and (
        select count(*) from pg_catalog.pg_proc f join pg_catalog.pg_roles r on r.oid = f.proowner
        where f.pronamespace = 'relay'::regnamespace and f.prosecdef
          and f.proconfig[1] = 'search_path=pg_catalog, pg_temp'
          and (f.proname, r.rolname, f.prosrc) in (
              ('journal_' || w.id, 'relay_writer', relay.journal_body(w)),
              ('entry_' || w.id, 'relay_renderer', relay.entry_body(w)),
              ('place_' || w.id, 'relay_renderer', relay.place_body(w)))) <> case when relay.has_places(w) then 3 else 2 end
    union all
    select l.id from relay.lane_tables l
    where l.problem is null and (
        select count(*) from pg_catalog.pg_proc f join pg_catalog.pg_roles r on r.oid = f.proowner
        where f.pronamespace = 'relay'::regnamespace and f.prosecdef
          and f.proconfig[1] = 'search_path=pg_catalog, pg_temp'
          and (f.proname, r.rolname, f.prosrc) in (
              ('lanes_' || l.id, 'relay_writer', relay.lanes_body(l)),
              ('lane_' || l.id, 'relay_renderer', relay.lane_body(l)))) <> 2
$$;

comment on function relay.altered() is 'Which trigger functions are not as they should be.';

-- Makes those functions as they should be, after columns were renamed or retyped, and gives to the powerless roles what
-- is theirs, after a restore without owners; the daemon calls it. Replacing a function locks no table, and has every
-- session compile it again, with the columns as they are now. Its owner loses no right and gains none: what it creates
-- is decided by the triggers alone.
create or replace function relay.refresh() returns integer
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    w    relay.watches;
    l    relay.lane_tables;
    made integer := 0;
begin
    perform relay.give('relay.image(record)'::regprocedure, 'relay_renderer');
    perform relay.give('relay.journal_truncate()'::regprocedure, 'relay_writer');
    perform relay.give('relay.board(text, boolean)'::regprocedure, 'relay_reader');
    perform relay.give('relay.lanes_truncate()'::regprocedure, 'relay_writer');
    perform relay.give('relay.resolve(integer[], text[])'::regprocedure, 'relay_reader');
    perform relay.give('relay.hold_tables(text)'::regprocedure, 'relay_reader');
    perform relay.give('relay.widest()'::regprocedure, 'relay_reader');
    for w in select s.* from relay.watches s where s.id in (select a from relay.altered() a) loop
        perform relay.make_functions(w);
        made := made + 1;
    end loop;
    for l in select t.* from relay.lane_tables t where t.id in (select a from relay.altered() a) loop
        perform relay.make_lane_functions(l);
        made := made + 1;
    end loop;
    return made;
end
$$;

comment on function relay.refresh() is 'Makes the trigger functions fit the tables as they are now.';

-- Reading ------------------------------------------------------------------------------------------------------

-- Whether a board's name, as text, is the text of a value of the column: 'abc' is no integer, and '007' is
-- not how the integer 7 is written. Of a domain, what it is made of is asked, so that its checks are not run; and an
-- enum is asked for its labels, for its owner can make casts from text and to text.
create or replace function relay.is_written(board text, typ regtype) returns boolean
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    written text;
begin
    if exists (select from pg_catalog.pg_type t where t.oid = typ and t.typtype = 'e') then
        return exists (select from pg_catalog.pg_enum e where e.enumtypid = typ and e.enumlabel = board);
    end if;
    execute pg_catalog.format('select $1::%s::text', pg_catalog.format_type(typ, -1)) into written using board;
    return written = board;
exception when data_exception then
    return false;
end
$$;

-- Keeps the tables that a board may have rows in from being truncated or rewritten until the end of the transaction: of
-- such a table, an older snapshot shows no row. So the statement that reads comes after this one, and takes its
-- snapshot then. The caller sets how long to wait for each.
create or replace function relay.hold_tables(board text) returns void
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    held regclass;
begin
    for held in
        select t.target
        from (
            select w.id, w.target
            from relay.watches w
            left join pg_catalog.pg_attribute a on a.attrelid = w.target and a.attname = w.board_column
            where w.problem is null and (a.attname is null or relay.is_written(board, relay.base_type(a.atttypid)))
            union all
            select l.id, l.target from relay.lane_tables l where l.problem is null
        ) t
        order by t.id
    loop
        begin
            execute pg_catalog.format('lock table %s in access share mode', held);
        exception when lock_not_available then
            raise exception '% is locked by %, for more than %', held, relay.holders(held, 'access share'),
                pg_catalog.current_setting('lock_timeout') using errcode = 'lock_not_available';
        when insufficient_privilege then
            raise exception '%: %', held, coalesce('boards are read by role relay_reader: ' || relay.missing_right(held), sqlerrm)
                using errcode = 'insufficient_privilege';
        end;
    end loop;
end
$$;

-- What relay_reader lacks to read a table, as what to do about it; null if nothing.
create or replace function relay.missing_right(target regclass) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select case
        when not pg_catalog.has_schema_privilege('relay_reader', c.relnamespace, 'usage') then pg_catalog.format(
            'have the owner of the schema run: grant usage on schema %s to relay_reader', c.relnamespace::regnamespace)
        when not pg_catalog.has_table_privilege('relay_reader', c.oid, 'select') then pg_catalog.format(
            'have %s run: grant select on %s to relay_reader', c.relowner::regrole, c.oid::regclass)
        when c.relrowsecurity and not pg_catalog.pg_has_role('relay_reader', c.relowner, 'usage')
             and not (select r.rolbypassrls from pg_catalog.pg_roles r where r.rolname = 'relay_reader') then
            'row level security is on: have a superuser run: alter role relay_reader bypassrls'
    end
    from pg_catalog.pg_class c where c.oid = target
$$;

-- How the rows of a watch find their lanes, in SQL: a join with their table, whose alias is "lane", given the lane of a row.
create or replace function relay.lane_join(w relay.watches, lane text) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.format('join only %1$s lane on lane.%2$I::%3$s = %4$s::%3$s and %5$s', l.target, l.id_column, relay.comparable(l.target, l.id_column),
                             lane, coalesce(relay.spelled(l.target, l.said -> 'filter', l.same, 'lane.'), 'true'))
    from relay.lane_tables l where l.target = w.lanes
$$;

-- The board of the places that rows of watches with lanes have, see relay.placing_body: those that have one, in the snapshot
-- of the calling statement.
create or replace function relay.resolve(watches integer[], places text[])
    returns table (watch integer, place text, board text)
    language plpgsql
    stable
    security definer
    set row_security = off
    set search_path = pg_catalog, pg_temp
as $$
declare
    w relay.watches;
begin
    if current_user <> 'relay_reader' then
        raise exception 'relay.resolve belongs to %, expected relay_reader: run relay sql install', current_user
            using errcode = 'insufficient_privilege';
    end if;
    for w in select * from relay.watches s where s.problem is null and s.lanes is not null and s.id = any (watches) loop
        return query execute pg_catalog.format(
            'select $1, p.place, %s from (select p.place, p.place::json ->> 0 as board, p.place::json ->> 1 as lane '
            'from unnest($2, $3) p (watch, place) where p.watch = $1 offset 0) p %s',
            (select coalesce(relay.as_text(l.target, l.board_column, 'lane.' || pg_catalog.quote_ident(l.board_column)), 'p.board')
             from relay.lane_tables l where l.target = w.lanes),
            relay.lane_join(w, 'p.lane'))
            using w.id, watches, places;
    end loop;
end
$$;

comment on function relay.resolve(integer[], text[]) is 'The boards of tasks that are found through their lanes.';

-- The lanes of a board in their order, as JSON: the id and the name of each. Null where none are declared for it.
create or replace function relay.lanes_of(board text) returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    l     relay.lane_tables;
    its   json;
    found text;
begin
    for l in select * from relay.lane_tables t where t.problem is null and t.target in (select w.lanes from relay.watches w) order by t.id loop
        continue when l.board_column is not null
            and not relay.is_written(board, (select relay.base_type(a.atttypid) from pg_catalog.pg_attribute a
                                                   where a.attrelid = l.target and a.attname = l.board_column));
        execute pg_catalog.format(
            'select pg_catalog.json_agg(pg_catalog.json_build_array(%s, %s) order by %slane.%I) from only %s lane where %s and %s',
            relay.as_text(l.target, l.id_column, 'lane.' || pg_catalog.quote_ident(l.id_column)),
            relay.as_text(l.target, l.name_column, 'lane.' || pg_catalog.quote_ident(l.name_column)),
            (select pg_catalog.string_agg(pg_catalog.format('lane.%I%s, ', p.col, p.direction), '' order by o.n)
             from pg_catalog.unnest(l.order_by) with ordinality o (entry, n)
             cross join lateral relay.order_parts(o.entry) p),
            l.id_column, l.target,
            coalesce(relay.spelled(l.target, l.said -> 'filter', l.same, 'lane.'), 'true'),
            coalesce(relay.as_text(l.target, l.board_column, 'lane.' || pg_catalog.quote_ident(l.board_column))
                     || pg_catalog.format(' = %L collate "C"', board), 'true')) into its;
        -- Two JSON arrays become one.
        found := coalesce(pg_catalog.left(found, -1) || ',' || pg_catalog.substr(its::text, 2), found, its::text);
    end loop;
    return coalesce(found, case when not exists (select from relay.watches w where w.problem is null and w.lanes is null)
                                then '[]' end);
end
$$;

-- Every visible task of a board, in the order of its lanes, from the snapshot of the calling statement; and before them,
-- without a watch, its lanes, where they are declared. Runs as
-- relay_reader: so a role that may read boards need not be able to read the tables, and their hidden columns. With
-- "careful", a row that cannot be shown is "!" and why, and fails nothing else. A table with a problem is not shown.
create or replace function relay.board(board text, careful boolean default false) returns table (watch integer, task text)
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
    set lc_monetary = 'C'
    set quote_all_identifiers = off
    set xmloption = content
as $$
declare
    w        record;
    columns  text;
    ordered  text;
    found    text;
    row_name text;
begin
    if current_user <> 'relay_reader' then
        raise exception 'relay.board belongs to %, expected relay_reader: run relay sql install', current_user
            using errcode = 'invalid_object_definition';
    end if;
    return query select null::integer, l from relay.lanes_of(board) l where l is not null;
    for w in
        select s.*, c.relkind, relay.base_type(a.atttypid)::regtype as board_type, relay.has_places(s) as has_places,
               coalesce(relay.spelled(s.target, s.said -> 'board_as', s.same, 'row_of_table.'),
                        relay.as_text(s.target, s.board_column, 'row_of_table.' || pg_catalog.quote_ident(s.board_column))) as board_text,
               coalesce(relay.spelled(s.target, s.said -> 'lane_as', s.same, 'row_of_table.'),
                        'row_of_table.' || pg_catalog.quote_ident(s.lane_column)) as lane_text,
               relay.spelled(s.target, s.said -> 'filter', s.same, 'row_of_table.') as filter_text,
               case when relay.has_places(s) then relay.place_of(s, 'row_of_table.') end as place,
               l.target as lanes_target, l.board_column as lanes_board,
               relay.labelled(s, 'p.at', 'i.image') as labelled
        from relay.watches s
        join pg_catalog.pg_class c on c.oid = s.target
        left join relay.lane_tables l on l.target = s.lanes
        left join pg_catalog.pg_attribute a on a.attrelid = coalesce(case when l.board_column is not null then l.target end, s.target)
            and a.attname = coalesce(l.board_column, s.board_column)
        where s.problem is null
        order by s.id
    loop
        continue when w.board_type is not null and not relay.is_written(board, w.board_type);

        select pg_catalog.string_agg(pg_catalog.format('row_of_table.%I', a.attname), ', ' order by a.attnum) into columns
        from pg_catalog.pg_attribute a
        where a.attrelid = w.target and a.attnum > 0 and not a.attisdropped and a.attname <> all (w.hidden);

        select pg_catalog.string_agg(pg_catalog.format('row_of_table.%I%s, ', p.col, p.direction), '' order by o.n) into ordered
        from pg_catalog.unnest(w.order_by) with ordinality o (entry, n)
        cross join lateral relay.order_parts(o.entry) p
        join pg_catalog.pg_attribute a on a.attrelid = w.target and a.attname = p.col and not a.attisdropped;

        -- The first condition finds the rows by an index; the second is exact where the first is not, as with
        -- case-insensitive text. The board is a literal, for that is cast by no function of users; the column is cast
        -- for domains, some of which have no operators. Where an enum's owner has made implicit casts, Postgres finds
        -- no operator, or theirs.
        if w.lanes_board is not null then
            w.board_column := w.lanes_board;
            w.board_text := relay.as_text(w.lanes_target, w.lanes_board, 'lane.' || pg_catalog.quote_ident(w.lanes_board));
        end if;
        found := case when w.board_column is null then pg_catalog.format('%s = %L and ', w.board_text, board)
            else pg_catalog.format('%1$s.%2$I::%4$s = %3$L::%4$s and ', case when w.lanes_board is null then 'row_of_table' else 'lane' end,
                                   w.board_column, board, pg_catalog.format_type(w.board_type, -1)) end;
        if exists (select from pg_catalog.pg_cast c join pg_catalog.pg_type t on t.oid = c.castsource
                   where t.oid = w.board_type and t.typtype = 'e' and c.castcontext = 'i') then
            found := '';
        end if;
        found := pg_catalog.concat(found, w.filter_text || ' and ', w.board_text, ' = $2 collate "C"');
        -- An expression may fail at any row.
        if careful and w.has_places then
            w.place := pg_catalog.format('relay.place_%s(row_of_table.*)', w.id);
            w.lane_text := 'p.at[3]';
            found := pg_catalog.format('p.at[4] is null and %s = $2 collate "C"', case when w.lanes_board is null then 'p.at[2]' else w.board_text end);
        end if;
        -- A column that had the row's alias as its name would be taken for the row.
        row_name := 'row_' || pg_catalog.md5(columns);
        begin
            return query execute pg_catalog.format(
                'select $1, %s from %s %s row_of_table %s %s '
                'cross join lateral (select (select %s from (select %s) %s) as image) i '
                'where %s order by %s%s',
                w.labelled, case when w.relkind = 'r' then 'only' else '' end, w.target,
                case when w.has_places then pg_catalog.format('cross join lateral (select %s as at offset 0) p', w.place) end,
                (select relay.lane_join(x, w.lane_text) from relay.watches x where x.id = w.id),
                pg_catalog.format(case when careful or relay.has_user_types(w.target) then 'relay.image(%s)' else 'pg_catalog.row_to_json(%s)::text' end, row_name),
                columns, row_name, found, ordered,
                (select pg_catalog.string_agg(pg_catalog.format('row_of_table.%I', k.name), ', ' order by k.n)
                 from pg_catalog.unnest(w.key_columns) with ordinality k (name, n)))
                using w.id, board;
        exception when others then
            raise exception '%: %', w.target,
                coalesce('boards are read by role relay_reader: ' || relay.missing_right(w.target), sqlerrm)
                using errcode = sqlstate;
        end;
    end loop;
end
$$;

comment on function relay.board(text, boolean) is 'The tasks of one board as subscribers see them.';

-- A text that the daemon can be sent, which speaks UTF-8: where the database has another encoding, not all of them can.
create or replace function relay.readable(said text) returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform pg_catalog.convert_to(said, 'UTF8');
    return said;
exception when untranslatable_character or character_not_in_repertoire then
    return '!it holds a character that UTF-8 does not have';
end
$$;

-- Who may read a board, where the daemon is set to ask (WS_MAY_READ): replace this function as you like. "claims" are
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

-- Deletes entries below "floor", a number of them at the most, so that no call takes long; returns how many. They are
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

-- Lets the oldest changes go, by age and by size (see relay.settings); returns how many went. Call it again until it
-- returns 0, each time in a transaction of its own. It only deletes: so it waits for nobody, nobody waits for it, and
-- a reader sees what its snapshot shows. Two at once: the second does nothing.
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

-- What holds the journal's entries: the table, and the one with its wide values.
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

-- Ends a pause, if there is room: journalling goes on, and whoever read before it must read its boards again. Returns
-- whether journalling goes on. What the journal holds is deleted first, for nobody can go on from it; room is there
-- when that was vacuumed, which waits for the longest transaction of the database.
--
-- That all of a full file is free takes proof, or journalling would pause at once again: a VACUUM, of the table and of
-- its TOAST table, that began when everything was deleted, and left nothing. It began then if it ended later, and none
-- ran at that moment. What the statistics say of the rows does not do, for it comes late, and what VACUUM says of the
-- living rows is an estimate.
--
-- What the pause left out cannot fall into a crack: a transaction that skipped an entry had its id by then, so in
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
    -- Only who holds this changes the control.
    perform pg_catalog.pg_advisory_xact_lock('relay.control'::regclass::oid::bigint);
    count := relay.pauses();
    if count = (select h.pauses from relay.horizon h where h.place = here) then
        return true;
    end if;
    if relay.paused() then
        -- Others may have written to it what cannot be seen yet, or be vacuuming it.
        busy := exists (
            select from pg_catalog.pg_locks l
            where l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
              and l.relation in (select p from relay.journal_parts() p)
              and l.mode in ('RowExclusiveLock', 'ShareUpdateExclusiveLock') and l.pid is distinct from pg_catalog.pg_backend_pid());
        if relay.sweep(here, floor, 1000000) > 0 or exists (select from relay.journal j where j.xid >= floor) then
            update relay.horizon h set emptied = null where h.place = here;
        elsif not busy and (select h.emptied is null from relay.horizon h where h.place = here) then
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
            perform pg_catalog.pg_stat_force_next_flush();  -- so that autovacuum knows at once
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

-- Promises that the caller polls the journal for so many milliseconds, two seconds at most: the triggers do not notify
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
    if polled < least(ms, 2000) and pg_catalog.pg_try_advisory_xact_lock('relay.control'::regclass::oid::bigint)
        and not relay.paused()
    then
        perform relay.set_control(false, relay.pauses(), least(ms, 2000));
        if polled = 0 and pg_catalog.pg_notification_queue_usage() < 0.5 then
            perform pg_catalog.pg_notify('relay', '{"polling": true}');
        end if;
    end if;
end
$$;

comment on function relay.poll_for(integer) is 'Spares writers the notification; a busy daemon calls it.';

-- Watching over it ---------------------------------------------------------------------------------------------

-- Writes a probe: an entry that concerns no board, with a notification of its own. The daemon that wrote it finds out
-- whether both come back to it, and how soon. True if it notified, which it does not when the queue fills up.
create or replace function relay.probe(label text) returns boolean
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    if relay.paused() then
        return false;  -- the next read of the journal says so
    end if;
    insert into relay.journal (op, reason) values ('P', pg_catalog.left(label, 100));
    if pg_catalog.pg_notification_queue_usage() >= 0.5 then
        return false;
    end if;
    perform pg_catalog.pg_notify('relay', pg_catalog.json_build_object('probe', pg_catalog.left(label, 100))::text);
    return true;
end
$$;

comment on function relay.probe(text) is 'Writes a change that concerns nobody; daemons call it to see that changes come through.';

-- How the journal is. "journal_rows" is what the statistics say, a second late; "dead_rows" how many wait to be
-- vacuumed; "journal_bytes" about what both take of the file, which never shrinks, at the width of the entries kept;
-- "oldest_seconds" how old the oldest changes are; "overdue_seconds" for how long some have been due to go.
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
    -- A tick below which all is gone says nothing of the age of what is left.
    cross join (select pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()
                       - min(k.at) filter (where pg_catalog.pg_snapshot_xmin(k.seen) > h.swept)) as age,
                       (sum(k.bytes) / sum(k.entries))::bigint as width
                from relay.ticks k join relay.horizon h on h.place = k.place
                where k.place = relay.place()) t
$$;

comment on function relay.vitals() is 'How large and how old the journal is, and whether it is pruned as it should be.';

-- Who keeps what was deleted from being vacuumed, in this database, the oldest first: at most three, for people.
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

-- How wide rows are, from a sample: of each watch, how many rows of its largest part were read, and about how many
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
    -- To plan a query of a table can run code of its owner's.
    if current_user <> 'relay_reader' then
        raise exception 'relay.widest belongs to %, expected relay_reader: run relay sql install', current_user
            using errcode = 'invalid_object_definition';
    end if;
    for w in select * from relay.watches s where s.problem is null order by s.id loop
        -- A partition may be read only by whoever may read it, not by whoever may read the table it belongs to.
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

-- Rights -------------------------------------------------------------------------------------------------------

do $$
declare
    own regclass;
begin
    perform relay.revoke_others();
    -- An event trigger may switch it on for every new table, and then nobody but the owner can read them.
    for own in
        select c.oid from pg_catalog.pg_class c
        where c.relnamespace = 'relay'::regnamespace and c.relkind = 'r' and c.relrowsecurity
    loop
        execute pg_catalog.format('alter table %s disable row level security', own);
    end loop;
end
$$;

grant usage on schema relay to relay_writer, relay_reader, relay_renderer;

-- What the trigger functions need: to insert, to read the control, and their helpers.
grant insert on relay.journal to relay_writer;
grant select on sequence relay.control to relay_writer;
grant execute on function relay.journal_sync(integer, text), relay.notify(), relay.polled_for(), relay.pauses(),
    relay.paused() to relay_writer;

-- What makes JSON of a row calls others that do.
-- It also asks whether the journal is full, which whoever may call it can only have paused when it is.
grant execute on function relay.entry(text, text, record, text, text, record), relay.image(record), relay.pause_if_full()
    to relay_renderer;

-- What the functions that read boards need.
grant select on relay.watches, relay.lane_tables to relay_reader;
grant execute on function
    relay.parts(regclass), relay.types(regclass), relay.has_user_types(regclass), relay.base_type(oid),
    relay.is_plain(oid), relay.spelled(regclass, jsonb, boolean, text), relay.outgrown(regclass, jsonb, boolean),
    relay.said(bytea), relay.column_named(regclass, jsonb, boolean), relay.comparable(regclass, name), relay.lane_join(relay.watches, text),
    relay.lanes_of(text), relay.id_of(relay.watches, text), relay.has_places(relay.watches), relay.place_of(relay.watches, text), relay.labelled(relay.watches, text, text),
    relay.as_text(regclass, name, text), relay.order_parts(text), relay.is_written(text, regtype), relay.image(record),
    relay.holders(regclass, text), relay.missing_right(regclass)
    to relay_reader;

-- Watches that are there, as after a restore, get trigger functions that fit them.
do $$
begin
    perform relay.refresh();
    perform relay.remove_orphans();
end
$$;
