-- Lanes

-- What boards show of a lane or sort it by, as texts after a null: the board, the id, the name and the values that order it.
-- Null if the row is not a lane. If the row's own values make the filter fail, it is not, and the only text says why.
create or replace function relay.lane_body(l relay.lane_tables) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $make$
    select pg_catalog.format($body$-- %4$s
begin
    if current_user <> 'relay_renderer' then
        raise exception 'relay.lane_%1$s belongs to %%, expected relay_renderer: run relay sql install', current_user
            using errcode = 'invalid_object_definition';
    end if;
    return case when %2$s then array[null, %3$s] end;
-- Errors that the values of this row cause. Others, such as a renamed column, are not the row's fault.
exception when data_exception or program_limit_exceeded then
    return array[pg_catalog.concat(sqlstate, ' ', pg_catalog.left(sqlerrm, 200))];
end
$body$, l.id, coalesce(relay.spelled(l.target, l.said -> 'filter', l.same, 'of_row.'), 'true'),
        pg_catalog.string_agg(coalesce(relay.as_text(l.target, c.name, 'of_row.' || pg_catalog.quote_ident(c.name)), 'null'),
                              ', ' order by c.n),
        relay.types_stamp(l.target))
    from (
        select 1 as n, l.board_column as name
        union all
        select 2, l.id_column
        union all
        select 3, l.name_column
        union all
        select 3 + o.n, o.key ->> 'column' from relay.ordering(l.target, l.order_by) o
    ) c (n, name)
$make$;

-- The entry of a changed lane only says which boards must be read again, because lanes are sent with boards: all boards,
-- if lanes do not belong to boards.
create or replace function relay.lanes_body(l relay.lane_tables) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select relay.noting_body(l.id, 'relay.lane_' || l.id, case when l.board_column is null then 'S' else 'L' end,
                             'null, old_texts[2], null, null, new_texts[2], null, null', 'lanes_changed')
$$;

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
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select relay.make_noting_functions('relay.lane_' || l.id, relay.lane_body(l), 'relay.lanes_' || l.id, relay.lanes_body(l))
$$;

-- Refuses, in one sentence, a table whose rows cannot be lanes.
create or replace function relay.check_lanes(l relay.lane_tables) returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    col name;
begin
    if not exists (select from pg_catalog.pg_class c where c.oid = l.target and c.relkind = 'r'
                   and c.relpersistence <> 't' and not c.relispartition) then
        raise exception 'relay.lanes: % is not an ordinary table: expected one whose rows are lanes', l.target
            using errcode = 'wrong_object_type';
    end if;
    foreach col in array array_remove(array[l.id_column, l.board_column, l.name_column], null) loop
        if not exists (select from pg_catalog.pg_attribute a
                       where a.attrelid = l.target and a.attname = col and a.attnum > 0 and not a.attisdropped) then
            raise exception 'relay.lanes: % has no column %: name the column with id_column, board_column or name_column',
                l.target, pg_catalog.quote_literal(col) using errcode = 'undefined_column';
        end if;
    end loop;
    if relay.comparable(l.target, l.id_column) is null then
        raise exception 'relay.lanes: column % of % cannot be the id of lanes: expected an integer, a uuid, or text '
            'of a collation that is deterministic',
            pg_catalog.quote_ident(l.id_column), l.target using errcode = 'datatype_mismatch';
    end if;
    if not relay.is_key(l.target, array[l.id_column]) then
        raise exception 'relay.lanes: column % of % is not a key by itself: expected a primary key or unique index of its own, '
            'not deferrable, and not null', pg_catalog.quote_ident(l.id_column), l.target using errcode = 'invalid_table_definition';
    end if;
    if l.board_column is not null and not exists (
        select from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid)
        where a.attrelid = l.target and a.attname = l.board_column
          and (t.typcategory in ('S', 'E') or t.typname in ('uuid', 'int2', 'int4', 'int8'))) then
        raise exception 'relay.lanes: column % of % cannot name boards: expected text, uuid, an integer or an enum',
            pg_catalog.quote_ident(l.board_column), l.target using errcode = 'datatype_mismatch';
    end if;
    if not relay.is_shown_as_text(l.target, l.name_column) then
        raise exception 'relay.lanes: column % of % cannot be the name of lanes: expected text, an enum, or a type of Postgres''s own',
            pg_catalog.quote_ident(l.name_column), l.target using errcode = 'datatype_mismatch';
    end if;
    perform relay.check_order('relay.lanes', l.target, l.order_by, '{}');
end
$$;

-- Declares that the rows of a table are lanes, or changes how. If the table is declared already, omitted arguments keep
-- their values. Boards of the watches that name the table (see relay.watch) then list exactly these lanes, in this order.
--
-- Takes the same lock as relay.watch, in the same way.
create or replace function relay.lanes(
    target       regclass,
    -- By default "id" and "name".
    id_column    name     default null,
    -- "board_id" by default, if there is one; '' if lanes are the same on all boards.
    board_column name     default null,
    name_column  name     default null,
    -- "column [asc|desc] [nulls first|last]", ...; equal lanes are ordered by id.
    order_by     text[]   default null,
    -- Which rows are lanes, such as "closed_at is null"; '', the default, means all.
    filter       text     default null,
    patience     interval default '30 seconds'
) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set quote_all_identifiers = off
    set lock_timeout = '2s'
as $$
declare
    present relay.lane_tables;
    wanted  relay.lane_tables;
begin
    perform relay.one_at_a_time();
    select * into present from relay.lane_tables l where l.target = lanes.target and l.is_own;
    wanted.target := lanes.target;
    wanted.same := true;
    wanted.id_column := coalesce(lanes.id_column, present.id_column, 'id');
    wanted.board_column := nullif(coalesce(lanes.board_column, case when present.id is null then (
        select a.attname from pg_catalog.pg_attribute a
        where a.attrelid = lanes.target and a.attname = 'board_id' and not a.attisdropped) else present.board_column end), '');
    wanted.name_column := coalesce(lanes.name_column, present.name_column, 'name');
    wanted.order_by := pg_catalog.array_remove(coalesce(lanes.order_by, present.order_by, '{}'), '');
    perform relay.check_lanes(wanted);
    wanted.order_by := relay.order_named(wanted.target, relay.order_of(wanted.target, wanted.order_by), true);
    perform relay.require_owner(wanted.target);
    wanted.said := pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('filter',
        relay.expression(wanted.target, 'relay.lanes: filter', 'boolean', nullif(coalesce(lanes.filter, present.filter), ''))));
    wanted.filter := relay.spelled(wanted.target, wanted.said -> 'filter', true);
    perform relay.grant_reading(wanted.target, array[wanted.id_column, wanted.board_column]);
    wanted.declared_as := relay.full_name(wanted.target);
    if present.problem is null and present.triggers_complete
        and row(present.id_column, present.board_column, present.name_column, present.order_by, present.filter, present.declared_as)
            is not distinct from row(wanted.id_column, wanted.board_column, wanted.name_column, wanted.order_by, wanted.filter, wanted.declared_as)
        and not exists (select from pg_catalog.pg_trigger t where t.tgrelid = wanted.target and t.tgname in ('relay_lanes', 'relay_lanes_truncate')
                        and t.tgenabled <> 'A')
    then
        return;
    end if;

    perform relay.lock_tables(array[wanted.target], 'share row exclusive', patience);
    wanted.id := relay.new_id();
    wanted.said := wanted.said || pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
        'lane_table', wanted.id, 'oid', wanted.target::oid::bigint, 'name', wanted.declared_as,
        'id', relay.column_of(wanted.target, wanted.id_column),
        'board', relay.column_of(wanted.target, wanted.board_column),
        'title', relay.column_of(wanted.target, wanted.name_column),
        'order_by', relay.order_of(wanted.target, wanted.order_by)));
    perform relay.make_lane_functions(wanted);
    perform relay.put_triggers(wanted.target, 'relay_lanes', 'relay.lanes_' || wanted.id, 'relay.lanes_truncate', wanted.id, wanted.said);
    if present.id is not null then
        execute pg_catalog.format('drop function relay.lanes_%1$s(), relay.lane_%1$s(record)', present.id);
    end if;
    -- The type of their boards may have changed, so they may now share boards with other tables.
    perform relay.refuse_clash(w) from relay.watches w where w.lanes = wanted.target;
    perform relay.journal_sync(wanted.id, 'watch_changed');
end
$$;

comment on function relay.lanes(regclass, name, name, name, text[], text, interval) is
    'Declares that the rows of a table are lanes. Example: select relay.lanes(''public.lists'', order_by => ''{position}'')';

-- Makes the rows of a table no longer lanes. Takes ACCESS EXCLUSIVE on the table, as relay.unwatch does.
create or replace function relay.drop_lanes(target regclass, patience interval default '30 seconds') returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '2s'
as $$
declare
    present relay.lane_tables;
begin
    perform relay.one_at_a_time();
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
    perform relay.require_owner(present.target);
    perform relay.lock_tables(array[present.target], 'access exclusive', patience);
    execute pg_catalog.format('drop trigger if exists relay_lanes on %1$s; drop trigger if exists relay_lanes_truncate on %1$s; '
                              'drop function relay.lanes_%2$s(), relay.lane_%2$s(record)', present.target, present.id);
    perform relay.revoke_reading(array[present.target]);
end
$$;

comment on function relay.drop_lanes(regclass, interval) is 'Stops using the rows of a table as lanes.';

-- For changes that fire no trigger, such as a load with triggers disabled.
create or replace function relay.resync() returns void
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select relay.journal_sync(null, 'resync')
$$;

comment on function relay.resync() is 'Sends every subscriber its whole board again.';

-- A fingerprint of twelve characters that changes with anything that a client's copy depends on: what is watched and how,
-- columns and partitions, and the labels, attributes, base and casts to json of every type in a row; the same of tables
-- of lanes and extras. It also changes if a dump is restored over the installation, or if a trigger was disabled, even if
-- it is enabled again, because nobody knows what was written meanwhile.
create or replace function relay.shape() returns text
    language sql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.left(pg_catalog.md5(pg_catalog.concat_ws(';', 'relay.epochs'::regclass::oid,
        pg_catalog.string_agg(pg_catalog.concat_ws(' ', w.target::oid, w.key_columns, w.id_prefix, w.as_text, w.board_column, w.lane_column,
            w.hidden, w.order_by, w.filter, w.board_as, w.lane_as, w.lanes::oid, l.said, w.problem, cols.said, types.said, triggers.said,
            files.said, detaching.said, names.said), ';' order by w.target::oid))), 12)
    from relay.watches w
    left join relay.lane_tables l on l.target = w.lanes
    cross join lateral (
        select array(select p::oid from relay.parts(w.target) p union select w.lanes::oid where w.lanes is not null
                     union select e::oid from relay.extra_tables(w.target) e) as oids
    ) tables
    cross join lateral (
        select pg_catalog.string_agg(pg_catalog.concat_ws(' ', t.oid, t.tgenabled, t.xmin, made.said), ',' order by t.oid) as said
        from pg_catalog.unnest(tables.oids) p
        join pg_catalog.pg_trigger t on t.tgrelid = p
        join pg_catalog.pg_proc f on f.oid = t.tgfoid and f.pronamespace = 'relay'::regnamespace
        -- The functions that were generated for the table, see relay.altered; not those that every install replaces.
        left join lateral (
            select pg_catalog.string_agg(m.oid || ' ' || m.xmin, ' ' order by m.oid) as said
            from pg_catalog.pg_proc m
            where m.pronamespace = f.pronamespace and t.tgparentid = 0 and f.proname ~ '_[0-9]+' and m.proname in (
                f.proname, pg_catalog.replace(f.proname, 'journal_', 'entry_'), pg_catalog.replace(f.proname, 'journal_', 'place_'),
                pg_catalog.replace(f.proname, 'lanes_', 'lane_'))
        ) made on true
    ) triggers
    -- The files of partitions without a trigger on TRUNCATE: after a TRUNCATE, a partition has another file.
    cross join lateral (
        select pg_catalog.string_agg(pg_catalog.concat_ws(' ', p::oid, pg_catalog.pg_relation_filenode(p)), ',' order by p::oid) as said
        from relay.parts(w.target) p
        where p <> w.target
          and not exists (select from pg_catalog.pg_trigger t where t.tgrelid = p and t.tgname = 'relay_truncate' and t.tgenabled in ('O', 'A'))
    ) files
    cross join lateral (select relay.detaching(w.target)::oid as said) detaching
    cross join lateral (
        select pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod,
                   a.attisdropped, a.xmin, case when a.attgenerated <> '' then d.xmin end), ','
               order by a.attrelid, a.attnum) as said
        from pg_catalog.unnest(tables.oids) p
        join pg_catalog.pg_attribute a on a.attrelid = p and a.attnum > 0
        left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    ) cols
    cross join lateral (
        select pg_catalog.string_agg(pg_catalog.concat_ws(' ', t.oid,
                   (select pg_catalog.string_agg(e.oid || ' ' || e.xmin || ' ' || e.enumlabel, ',' order by e.enumsortorder)
                    from pg_catalog.pg_enum e where e.enumtypid = t.oid),
                   (select pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attnum, a.attname, a.atttypid, a.xmin), ',' order by a.attnum)
                    from pg_catalog.pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0 and t.typrelid <> 0),
                   t.typbasetype, t.typtypmod,
                   (select pg_catalog.string_agg(pg_catalog.concat_ws(' ', c.oid, c.castfunc, f.xmin), ',' order by c.oid)
                    from pg_catalog.pg_cast c left join pg_catalog.pg_proc f on f.oid = c.castfunc
                    where c.castsource = t.oid and c.casttarget in ('json'::regtype, 'text'::regtype))), ','
               order by t.oid) filter (where t.oid >= 16384) as said,
               pg_catalog.array_agg(t.typname::text) as names
        from (select m from relay.types(w.target) m union select m from relay.types(w.lanes) m
              union select m from relay.extra_tables(w.target) e cross join lateral relay.types(e) m) made_of (m)
        join pg_catalog.pg_type t on t.oid = m
    ) types
    -- The names of all objects that are not temporary, if values of these types show such names.
    cross join lateral (
        select pg_catalog.md5(pg_catalog.string_agg(n.said, ',' order by n.said)) as said
        from (
            select pg_catalog.concat_ws(' ', 'r', r.oid, r.rolname) as said from pg_catalog.pg_roles r
            where types.names && '{regrole,aclitem}'
            union all
            select pg_catalog.concat_ws(' ', o.kind, o.oid, s.nspname, o.name)
            from (
                select 'n' as kind, p.oid, p.oid as place, p.nspname as name from pg_catalog.pg_namespace p where types.names && '{regnamespace}'
                union all
                select 'c', c.oid, c.relnamespace, c.relname from pg_catalog.pg_class c
                where types.names && '{regclass}' and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
                union all
                select 't', t.oid, t.typnamespace, t.typname from pg_catalog.pg_type t where types.names && '{regtype,regprocedure,regoperator}'
                union all
                select 'p', p.oid, p.pronamespace, p.proname from pg_catalog.pg_proc p where types.names && '{regproc,regprocedure}'
                union all
                select 'o', p.oid, p.oprnamespace, p.oprname from pg_catalog.pg_operator p where types.names && '{regoper,regoperator}'
                union all
                select 'l', l.oid, l.collnamespace, l.collname from pg_catalog.pg_collation l where types.names && '{regcollation}'
                union all
                select 'g', g.oid, g.cfgnamespace, g.cfgname from pg_catalog.pg_ts_config g where types.names && '{regconfig}'
                union all
                select 'd', d.oid, d.dictnamespace, d.dictname from pg_catalog.pg_ts_dict d where types.names && '{regdictionary}'
            ) o
            join pg_catalog.pg_namespace s on s.oid = o.place and s.nspname !~ '^pg_(toast|temp)'
        ) n
    ) names
$$;

-- Makes an entry for each open transaction that has written to a watched table, so that all boards are read again when it
-- has ended: no reader takes the entry before. Its trigger functions may have been those of an earlier shape, in which
-- another column had the name of the board's column, or of one in the filter. If so, its own entries name the wrong boards,
-- or there are none.
create or replace function relay.name_writers() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    own    constant bigint := pg_catalog.pg_current_xact_id()::text::bigint;
    tables constant oid[] := array(
        select p::oid from relay.watches w cross join lateral relay.parts(w.target) p
        union
        select t::oid from relay.watches w cross join lateral relay.tables_of(w) t);
begin
    with locks as materialized (
        select l.virtualtransaction, l.relation, l.mode,
               -- These ids are 32 bits wide.
               (own - l.transactionid::text::bigint) & 4294967295 as age
        from pg_catalog.pg_locks l
        where l.granted and (l.locktype = 'transactionid' or l.locktype = 'relation' and l.relation = any (tables)
              and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database()))
    )
    insert into relay.journal (xid, op, reason)
    -- The oldest id of a transaction is its own, and the others are those of its savepoints. One with an id above ours began
    -- to write with the functions of this shape.
    select (own - max(x.age))::text::xid8, 'S', 'schema_changed'
    from locks x
    where x.mode = 'ExclusiveLock' and x.age < 2147483648 and exists (
        select from locks l
        where l.virtualtransaction = x.virtualtransaction and l.relation is not null
          and l.mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
    group by x.virtualtransaction;
end
$$;

-- Records the current shape, and the id below which transactions may have made images under an earlier one: for example,
-- an enum's label can be renamed while a transaction that has written rows with it is still open. Both are stored, so
-- that a relay that starts in between knows them. Does not wait for a session that prunes: then the id is only higher
-- than necessary.
--
-- Also returns what the shape was computed from, so that a reader of the journal can see in its own snapshot whether it
-- may have changed: the tables, except partitions that have no partitions themselves; users' types; and the functions of
-- their casts. These are read after the shape. If any are added in between, the shape lacks them, and readers compare
-- again.
create or replace function relay.note_shape()
    returns table (shape text, shaped xid8, tables oid[], types oid[], functions oid[])
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    here constant text := relay.place();
    present constant text := relay.shape();
    before text;
begin
    select h.shape into before from relay.horizon h
    where h.place = here and h.shape is distinct from present for update skip locked;
    if found then
        -- Not the xmax of a snapshot: transactions above it may have begun before the transaction that changed the shape
        -- ended.
        update relay.horizon h set shape = present, shaped = pg_catalog.pg_current_xact_id() where h.place = here;
        if before is not null then
            perform relay.name_writers();
        end if;
    end if;
    return query
        with own (oid) as (
            select p::oid from relay.watches w cross join lateral relay.parts(w.target) p
            join pg_catalog.pg_class c on c.oid = p where p = w.target or c.relkind = 'p'
            union
            select w.lanes::oid from relay.watches w where w.lanes is not null
            union
            select e::oid from relay.watches w cross join lateral relay.extra_tables(w.target) e
        ), made_of as (
            select distinct t.oid, t.typrelid from own o cross join lateral relay.types(o.oid) m
            join pg_catalog.pg_type t on t.oid = m where t.oid >= 16384
        )
        select present, case when h.shape = present then h.shaped else pg_catalog.pg_current_xact_id() end,
               array(select o.oid from own o union select m.typrelid from made_of m where m.typrelid <> 0),
               array(select m.oid from made_of m),
               array(select c.castfunc from pg_catalog.pg_cast c join made_of m on m.oid = c.castsource
                     where c.castfunc <> 0 and c.casttarget in ('json'::regtype, 'text'::regtype))
        from relay.horizon h where h.place = here;
end
$$;

comment on function relay.note_shape() is
    'The shape of the watched tables, the id below which transactions may be older, and what the shape is made of.';

-- The tables that a watch's tasks are read from.
create or replace function relay.tables_of(w relay.watches) returns setof regclass
    language plpgsql
    stable
    rows 2
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select w.target
        union all
        select w.lanes where w.lanes is not null
        union
        select e from relay.extra_tables(w.target) e;
end
$$;

-- What to do so that relay_reader can read a table, or null if it can.
create or replace function relay.missing_right(target regclass) returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select case
            when not pg_catalog.has_schema_privilege('relay_reader', c.relnamespace, 'usage') then pg_catalog.format(
                'have the owner of the schema run: grant usage on schema %s to relay_reader', c.relnamespace::regnamespace)
            when not pg_catalog.has_table_privilege('relay_reader', c.oid, 'select') then pg_catalog.format(
                'have %s run: grant select on %s to relay_reader', c.relowner::regrole, c.oid::regclass)
            when c.relrowsecurity and not pg_catalog.pg_has_role('relay_reader', c.relowner, 'usage')
                 and not (select r.rolbypassrls from pg_catalog.pg_roles r where r.rolname = 'relay_reader') then
                'row level security is on: have a superuser run: alter role relay_reader bypassrls'
        end
        from pg_catalog.pg_class c where c.oid = target);
end
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
           relay.triggers_enabled(w.id, w.target, 'AO', true) as triggers_complete,
           relay.triggers_enabled(w.id, w.target, 'A', true) as triggers_always,
           w.problem,
           w.watched_as,
           w.shown,
           w.target::oid as target,
           -- Whether the name under which it was watched now belongs to another table.
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
           -- How clients should sort; null if no order was declared.
           case when not relay.is_usual_order(w.said -> 'order_by')
                then array(select o.key from relay.ordering(w.target, w.order_by) o order by o.n) end as ordering,
           w.distinct_ids,
           relay.id_kind(w) as id_kind,
           relay.board_kind(w) as board_kind,
           relay.lost_order(w.target, w.order_by) as lost_order,
           relay.is_key(w.target, w.key_columns) as is_key,
           (select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(e.id, e.name, e.task_column) order by e.name)
            from relay.extras e where e.target = w.target and e.problem is null) as extras,
           relay.detaching(w.target) as detaching,
           -- What relay_reader needs to read it, or a table of its lanes or extras.
           (select m.missing from relay.tables_of(w) t cross join lateral relay.missing_right(t) m (missing)
            where m.missing is not null limit 1) as missing_right
    from relay.watches w
    join pg_catalog.pg_class c on c.oid = w.target
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace;

comment on view relay.watched is 'What is watched. triggers_complete false: run relay.watch again.';

-- Whether a trigger function exists with this owner, this body, and the right of this role to call it.
create or replace function relay.is_made(name text, owner text, body text, caller text) returns boolean
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select exists (
        select from pg_catalog.pg_proc f join pg_catalog.pg_roles r on r.oid = f.proowner
        where f.pronamespace = 'relay'::regnamespace and f.prosecdef and f.proconfig[1] = 'search_path=pg_catalog, pg_temp'
          and (f.proname, r.rolname, f.prosrc) = (name, owner, body)
          and (caller is null or pg_catalog.has_function_privilege(caller, f.oid, 'execute')))
$$;

-- The watches, tables of lanes and extras whose trigger functions differ from those that would be generated now.
create or replace function relay.altered() returns setof integer
    language sql
    stable
    security definer
    set search_path = pg_catalog, pg_temp
as $$
    select w.id from relay.watches w
    where w.problem is null and ((
        select count(*)
        from (values
            ('journal_' || w.id, 'relay_writer', relay.journal_body(w), null),
            ('entry_' || w.id, 'relay_renderer', relay.entry_body(w), 'relay_writer'),
            ('place_' || w.id, 'relay_renderer', relay.place_body(w), 'relay_reader')) made (name, owner, body, caller)
        where relay.is_made(made.name, made.owner, made.body, made.caller)) <> case when relay.has_places(w) then 3 else 2 end
        or exists (select from relay.makers_of_parts(w.target) m
                   where not pg_catalog.has_function_privilege(m, pg_catalog.to_regprocedure(pg_catalog.format('relay.journal_%s()', w.id)), 'execute')))
    union all
    select distinct made.id
    from (
        select l.id, 'lane_' || l.id, relay.lane_body(l), 'lanes_' || l.id, relay.lanes_body(l)
        from relay.lane_tables l where l.problem is null
        union all
        select e.id, made.name, relay.extra_body(e, t.far), made.name, relay.touch_body(e, t.far)
        from relay.extras e
        cross join lateral (select false where e.near is not null union all select true where e.far is not null) t (far)
        cross join lateral pg_catalog.split_part(relay.extra_function(e.id, t.far), '.', 2) made (name)
        where e.problem is null
    ) made (id, reads, row_body, notes, body)
    where not (relay.is_made(made.reads, 'relay_renderer', made.row_body, 'relay_writer')
               and relay.is_made(made.reads, 'relay_renderer', made.row_body, 'relay_reader')
               and relay.is_made(made.notes, 'relay_writer', made.body, null))
$$;

comment on function relay.altered() is 'Which trigger functions are not as they should be.';

-- The rights that the roles of the relay need: relay_writer to insert, to read the control, and to call its helpers and
-- the functions that make images; relay_renderer to call other such functions; relay_reader to read boards and what is
-- watched. For functions that are generated for a table, see relay.altered.
create or replace function relay.needed_rights(out role name, out privilege text, out object text, out missing boolean)
    returns setof record
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select r.name, 'usage', 'schema relay', not pg_catalog.has_schema_privilege(r.name, 'relay', 'usage')
    from pg_catalog.unnest('{relay_writer,relay_reader,relay_renderer}'::name[]) r (name)
    union all
    select t.role, t.privilege, t.object, not case t.object
               when 'sequence relay.control' then pg_catalog.has_sequence_privilege(t.role, 'relay.control', t.privilege)
               else pg_catalog.has_table_privilege(t.role, t.object, t.privilege) end
    from (values ('relay_writer'::name, 'insert', 'relay.journal'), ('relay_writer', 'select', 'sequence relay.control'),
                 ('relay_reader', 'select', 'relay.watches'), ('relay_reader', 'select', 'relay.lane_tables'),
                 ('relay_reader', 'select', 'relay.extras')) t (role, privilege, object)
    union all
    select f.role, 'execute', 'function ' || p.oid::regprocedure, not pg_catalog.has_function_privilege(f.role, p.oid, 'execute')
    from (values
        ('relay_writer'::name, '{journal_sync,notify,polled_for,renewed_within,pauses,paused,pause_if_full}'::name[]),
        ('relay_renderer', '{entry,image}'),
        ('relay_reader',
         '{parts,types,has_user_types,base_type,is_plain,spelled,label_named,outgrown,said,statements,column_named,comparable,
           is_shown_as_text,lane_join,lane_condition,lanes_of,board_type,written_as,id_of,has_places,place_of,labelled,as_text,
           equals,in_index,order_parts,order_named,is_usual_order,ordering,lost_order,order_clause,written,image,holders,
           missing_right,tables_of,reading,joinable,collation_of,columns_named,table_named,extra_tables,camel_case,shown_value,
           readable,extra_function,extra_condition,extra_value,extra_of,extras_of,hold_in_snapshot,touched_query,read_touched}')) f (role, names)
    join pg_catalog.pg_proc p on p.proname = any (f.names)
    where p.pronamespace = 'relay'::regnamespace
$$;

-- Gives the roles of the relay their functions and rights again, after a restore without owners, or if somebody has
-- revoked one: without them, writes to watched tables fail. Returns the roles that lacked something. The daemon calls it.
create or replace function relay.restore_rights() returns name[]
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    needed   record;
    restored name[] := '{}';
begin
    for needed in
        select f.name::regprocedure as func, f.role
        from (values
            ('relay.image(record)', 'relay_renderer'::name), ('relay.journal_truncate()', 'relay_writer'),
            ('relay.lanes_truncate()', 'relay_writer'), ('relay.extra_truncate()', 'relay_writer'),
            ('relay.board(text, boolean, integer[])', 'relay_reader'), ('relay.resolve(integer[], text[])', 'relay_reader'),
            ('relay.extra_values(integer, text[])', 'relay_reader'), ('relay.touched(integer, boolean, text[], text[])', 'relay_reader'),
            ('relay.hold_tables(text, integer[])', 'relay_reader'), ('relay.widest()', 'relay_reader')) f (name, role)
        join pg_catalog.pg_proc p on p.oid = f.name::regprocedure
        left join pg_catalog.pg_roles r on r.rolname = f.role
        where r.oid is distinct from p.proowner
    loop
        -- Serialize repairs: two at once would fail on the same rows of the catalog.
        lock table relay.epochs in share update exclusive mode;
        perform relay.give(needed.func, needed.role);
        restored := pg_catalog.array_append(pg_catalog.array_remove(restored, needed.role), needed.role);
    end loop;
    for needed in select n.role, n.privilege, n.object from relay.needed_rights() n where n.missing loop
        lock table relay.epochs in share update exclusive mode;
        execute pg_catalog.format('grant %s on %s to %I', needed.privilege, needed.object, needed.role);
        restored := pg_catalog.array_append(pg_catalog.array_remove(restored, needed.role), needed.role);
    end loop;
    return restored;
end
$$;

comment on function relay.restore_rights() is 'Restores the rights that the roles of the relay need.';

-- Regenerates these functions, after columns were renamed or retyped, or if somebody has replaced a function; the daemon
-- calls it. Replacing a function locks no table, and makes every session compile it again, with the current columns. Its
-- owner loses no right and gains none: only the triggers decide what it creates.
create or replace function relay.refresh() returns integer
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    w       relay.watches;
    l       relay.lane_tables;
    e       relay.extras;
    altered integer[];
    made    integer := 0;
begin
    perform relay.restore_rights();
    altered := array(select a from relay.altered() a);
    -- Return early: planning the loops takes longer than everything else here.
    if altered = '{}' then
        return made;
    end if;
    lock table relay.epochs in share update exclusive mode;
    altered := array(select a from relay.altered() a);  -- those that another relay has not made meanwhile
    for w in select s.* from relay.watches s where s.id = any (altered) loop
        perform relay.make_functions(w);
        made := made + 1;
    end loop;
    for l in select t.* from relay.lane_tables t where t.id = any (altered) loop
        perform relay.make_lane_functions(l);
        made := made + 1;
    end loop;
    for e in select x.* from relay.extras x where x.id = any (altered) loop
        perform relay.make_extra_functions(e);
        made := made + 1;
    end loop;
    return made;
end
$$;

comment on function relay.refresh() is 'Regenerates the trigger functions if their tables have changed.';
