-- The watches

-- Every table that has triggers of a watch: the table itself and its partitions, at any depth. Partitions that are being
-- detached concurrently are left out, because readers see none of their rows. It does not use pg_partition_tree, which
-- waits for a lock on each partition.
create or replace function relay.parts(target regclass) returns setof regclass
    language sql
    stable
    rows 3
    set search_path = pg_catalog, pg_temp
as $$
    with recursive parts (oid) as (
        select target::oid
        union all
        select i.inhrelid
        from parts p
        join pg_catalog.pg_inherits i on i.inhparent = p.oid and not i.inhdetachpending
        join pg_catalog.pg_class c on c.oid = i.inhrelid and c.relispartition
    )
    select p.oid::regclass from parts p
$$;

-- The partition that is being detached concurrently, if any. Its rows are on no board, but it keeps its triggers until
-- the end, so that direct writes to it are still journalled.
create or replace function relay.detaching(target regclass) returns regclass
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select i.inhrelid::regclass
        from relay.parts(target) p join pg_catalog.pg_inherits i on i.inhparent = p and i.inhdetachpending
        order by i.inhrelid limit 1);
end
$$;

-- The type itself, or the type that a domain is based on.
create or replace function relay.base_type(typ oid) returns oid
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    base  oid := typ;
    inner_type oid;
begin
    loop
        select t.typbasetype into inner_type from pg_catalog.pg_type t where t.oid = base;
        if inner_type is null or inner_type = 0 then
            return case when inner_type = 0 then base end;
        end if;
        base := inner_type;
    end loop;
end
$$;

-- Every type that a row of a table consists of: of its columns, and of their elements, attributes, base types and ranges.
create or replace function relay.types(target regclass) returns setof regtype
    language sql
    stable
    rows 10
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

-- Whether comparing values of a type, or casting them to types of Postgres, runs no users' code: the type is one of
-- Postgres's own, a domain based on one, or an enum without implicit casts.
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

-- The current name of an enum label that is stored in an expression: it is found by its oid, or by its name after a
-- restore, or if an enum of the same name has replaced the enum. Null if there is none.
create or replace function relay.label_named(label jsonb, same boolean) returns name
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select e.enumlabel from pg_catalog.pg_enum e
    where e.enumtypid = pg_catalog.to_regtype(label ->> 2) and (same and e.oid = (label ->> 0)::oid or e.enumlabel = label ->> 1)
    order by same and e.oid = (label ->> 0)::oid desc limit 1
$$;

-- A stored expression (see relay.expression) in SQL, with the current names of columns and labels. Each column gets a
-- prefix such as "before.".
create or replace function relay.spelled(target regclass, expression jsonb, same boolean, prefix text default '')
    returns text
    language sql
    stable
    strict
    set search_path = pg_catalog, pg_temp
as $$
    with meanings (mark, meaning) as (
        select pg_catalog.format('"%s:%s"', expression ->> 'mark', u.n - 1),
               prefix || pg_catalog.quote_ident(coalesce(a.attname, u.used ->> 1))
        from pg_catalog.jsonb_array_elements(expression -> 'uses') with ordinality u (used, n)
        left join pg_catalog.pg_attribute a on a.attrelid = target and a.attnum > 0 and not a.attisdropped
            and case when same then a.attnum = (u.used ->> 0)::integer else a.attname = u.used ->> 1 end
        union all
        select pg_catalog.format('''%s:label %s''', expression ->> 'mark', l.n - 1),
               pg_catalog.quote_literal(coalesce(relay.label_named(l.label, same), l.label ->> 1))
        from pg_catalog.jsonb_array_elements(expression -> 'labels') with ordinality l (label, n)
    )
    -- In one pass: what has the form of a mark in the name of a column or label is none. An owner chooses these.
    select pg_catalog.string_agg(p.piece || coalesce(m.meaning, ''), '' order by p.n)
    from (select pg_catalog.format('"%1$s:[0-9]+"|''%1$s:label [0-9]+''', expression ->> 'mark') as mark) any_mark
    cross join lateral pg_catalog.regexp_split_to_table(expression ->> 'form', any_mark.mark) with ordinality p (piece, n)
    left join lateral pg_catalog.regexp_matches(expression ->> 'form', '(' || any_mark.mark || ')', 'g')
        with ordinality f (found, n) on f.n = p.n
    left join meanings m on m.mark = f.found[1]
$$;

-- Why an expression can no longer be evaluated, or null: the columns and labels that it was checked with have changed.
create or replace function relay.outgrown(target regclass, expression jsonb, same boolean) returns text
    language sql
    stable
    strict
    set search_path = pg_catalog, pg_temp
as $$
    (select case when a.attname is null then pg_catalog.format('has no column %s any more', u.used ->> 1)
           when pg_catalog.format_type(relay.base_type(a.atttypid), null) = u.used ->> 2 and a.attgenerated <> 'v'
           then pg_catalog.format('has %s of type %s, for which there are implicit casts now', a.attname, u.used ->> 2)
           else pg_catalog.format('has %s as %s now, in place of %s', a.attname,
                                  pg_catalog.format_type(a.atttypid, null), u.used ->> 2) end
    from pg_catalog.jsonb_array_elements(expression -> 'uses') u (used)
    left join pg_catalog.pg_attribute a on a.attrelid = target and a.attnum > 0 and not a.attisdropped
        and case when same then a.attnum = (u.used ->> 0)::integer else a.attname = u.used ->> 1 end
    where a.attname is null or a.attgenerated = 'v' or not relay.is_plain(a.atttypid)
       or pg_catalog.format_type(relay.base_type(a.atttypid), null) <> u.used ->> 2
    limit 1)
    union all
    (select pg_catalog.format('has no label %L of %s any more', l.label ->> 1, l.label ->> 2)
    from pg_catalog.jsonb_array_elements(expression -> 'labels') l (label)
    where relay.label_named(l.label, same) is null
    limit 1)
    limit 1
$$;

-- The second argument of a trigger as JSON: what is watched, and how.
create or replace function relay.said(args bytea) returns jsonb
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.convert_from(pg_catalog.substring(args, z.n + 1, pg_catalog.length(args) - z.n - 1),
                                   pg_catalog.getdatabaseencoding())::jsonb
    from (select position(pg_catalog.decode('00', 'hex') in args) as n) z
$$;

-- The current name of a column that is stored in a trigger's argument: it is found by number, or by name after a restore.
create or replace function relay.column_named(target regclass, said jsonb, same boolean) returns name
    language plpgsql
    stable
    strict
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select a.attname from pg_catalog.pg_attribute a
        where a.attrelid = target and a.attnum > 0 and not a.attisdropped
          and case when same then a.attnum = (said ->> 0)::integer else a.attname = said ->> 1 end);
end
$$;

-- Splits a "column [asc|desc] [nulls first|last]" of order_by. Returns no row if it is not of that form. The column's
-- name may be quoted or not; no case is folded.
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

-- An order as stored in a trigger's argument: the number, the name and the direction of each column.
create or replace function relay.order_of(target regclass, order_by text[]) returns jsonb
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(a.attnum, a.attname,
                        pg_catalog.lower(pg_catalog.regexp_replace(p.direction, E'\\s+', ' ', 'g'))) order by o.n), '[]')
    from pg_catalog.unnest(order_by) with ordinality o (entry, n)
    cross join lateral relay.order_parts(o.entry) p
    join pg_catalog.pg_attribute a on a.attrelid = target and a.attname = p.col and a.attnum > 0 and not a.attisdropped
$$;

-- Whether an order is the default one.
create or replace function relay.is_usual_order(said jsonb) returns boolean
    language sql
    immutable
    set search_path = pg_catalog, pg_temp
as $$ select pg_catalog.jsonb_path_query_array(said, '$[*][1 to 2]') = '["created_at", ""]' $$;

-- A stored order in the form of order_by, with the current names of columns. A column that is gone keeps its last name,
-- unless the order is the default one.
create or replace function relay.order_named(target regclass, said jsonb, same boolean) returns text[]
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce(pg_catalog.array_agg(pg_catalog.quote_ident(coalesce(c.name, e.said ->> 1)) || (e.said ->> 2) order by e.n)
                        filter (where c.name is not null or not relay.is_usual_order(order_named.said)), '{}')
    from pg_catalog.jsonb_array_elements(said) with ordinality e (said, n)
    cross join lateral (select relay.column_named(target, e.said, same) as name) c
$$;

-- Whether columns are a key: they have a unique index of their own, and are not null.
create or replace function relay.is_key(target regclass, columns name[]) returns boolean
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select exists (
        select from pg_catalog.pg_index i
        where i.indrelid = target and i.indisunique and i.indisvalid and i.indpred is null
          and i.indnkeyatts = pg_catalog.cardinality(columns)
          and pg_catalog.cardinality(columns) = (
              select count(distinct a.attname) from pg_catalog.pg_attribute a
              where a.attrelid = target and a.attname = any (columns) and a.attnotnull
                and a.attnum = any (i.indkey::smallint[]))
          -- With a deferrable key, two rows could have the same key until the end of a transaction.
          and i.indimmediate)
$$;

-- The type as which values of a column are compared with those of another table, or null if they cannot be. Text is not
-- comparable if different texts can be equal, as in citext or under a nondeterministic collation, because clients
-- identify a lane by its exact id.
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
      and not exists (select from pg_catalog.pg_collation c where c.oid = a.attcollation and not c.collisdeterministic)
$$;

-- The arguments of the triggers on TRUNCATE that call a function of this name, and whether each is still on the table
-- that it was created on. Triggers on partitions only have the watch's id, and are left out. "materialized" reads each
-- once: in a new database the planner has no statistics, and would read it again for each use.
--
-- The same text is stored as a comment on the functions of the row triggers. So if somebody has dropped a table's
-- triggers, it is found there, with the table's name. Another table may have that name by now.
create or replace function relay.statements(func name, out target regclass, out said jsonb, out same boolean, out on_trigger boolean)
    returns setof record
    language plpgsql
    stable
    rows 10
    set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    kind constant text := pg_catalog.split_part(func, '_', 1);
begin
    -- Most databases have neither lanes nor extras, and this is called for each watched table.
    if not exists (select from pg_catalog.pg_proc p where p.pronamespace = 'relay'::regnamespace
                   and p.proname >= (kind || '_0')::name and p.proname < (kind || '_:')::name) then
        return;
    end if;
    return query
        with made as materialized (
            select t.tgrelid::regclass as target, relay.said(t.tgargs) as said
            from pg_catalog.pg_trigger t
            where t.tgnargs = 2 and t.tgfoid = (select p.oid from pg_catalog.pg_proc p
                                                where p.pronamespace = 'relay'::regnamespace and p.proname = func)
        ), noted as materialized (
            select pg_catalog.substr(d.comment, 10)::jsonb as said
            from (select p.oid from pg_catalog.pg_proc p
                  where p.pronamespace = 'relay'::regnamespace and p.pronargs = 0
                    and p.proname >= (kind || '_')::name and p.proname < (kind || '`')::name
                    and pg_catalog.split_part(p.proname, '_', 2) not in (
                        select coalesce(m.said ->> 'watch', m.said ->> 'lane_table', m.said ->> 'extra', '') from made m)
                  offset 0) p
            cross join lateral pg_catalog.obj_description(p.oid, 'pg_proc') d (comment)
            where d.comment ~ '^made for {'
        )
        select m.target, m.said, (m.said ->> 'oid')::oid = m.target, true from made m
        union all
        select c.oid::regclass, n.said, (n.said ->> 'oid')::oid = c.oid, false
        from noted n
        join pg_catalog.pg_class c on c.oid = pg_catalog.to_regclass(coalesce(n.said ->> 'name', n.said -> 'near' ->> 1))
        where c.relkind in ('r', 'p') and (kind = 'extra' or c.oid not in (select m.target from made m));
end
$$;

-- Stores in a function's comment what the function is for, see relay.statements.
create or replace function relay.note_purpose(func text, said jsonb) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    execute pg_catalog.format('comment on function %s is %L', func, 'made for ' || said::text);
end
$$;

-- Whether converting a column's value to text with relay.as_text runs no users' code. Anybody can create a cast for a
-- composite type.
create or replace function relay.is_shown_as_text(target regclass, col name) returns boolean
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select t.typcategory in ('S', 'E') or t.typnamespace = 'pg_catalog'::regnamespace
    from pg_catalog.pg_attribute a
    join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid)
    where a.attrelid = target and a.attname = col and a.attnum > 0 and not a.attisdropped
$$;

-- The tables whose rows are lanes, as recorded in their triggers.
--
-- "offset 0" makes Postgres evaluate the view separately, here and below. Otherwise it would plan and evaluate all of it
-- again wherever another query passes a row of it to a function.
create or replace view relay.lane_tables as
select (d.said ->> 'lane_table')::integer as id,
       d.target,
       relay.column_named(d.target, d.said -> 'id', d.same) as id_column,
       relay.column_named(d.target, d.said -> 'board', d.same) as board_column,
       relay.column_named(d.target, d.said -> 'title', d.same) as name_column,
       relay.order_named(d.target, d.said -> 'order_by', d.same) as order_by,
       relay.spelled(d.target, d.said -> 'filter', d.same) as filter,
       coalesce(case when not d.same and not d.on_trigger then 'is another table than the one that was declared' end,
                (select pg_catalog.format('has no column %s any more, its lanes'' %s', d.said -> e.key ->> 1, e.role)
                 from (values ('id', 'id'), ('board', 'board'), ('title', 'name')) e (key, role)
                 where d.said ? e.key and relay.column_named(d.target, d.said -> e.key, d.same) is null limit 1),
                relay.outgrown(d.target, d.said -> 'filter', d.same) || ', which its filter is made of',
                (select pg_catalog.format('has %s of lanes of a type whose text a user''s code makes', e.role)
                 from (values ('id', 'ids'), ('board', 'boards'), ('title', 'names')) e (key, role)
                 where not relay.is_shown_as_text(d.target, relay.column_named(d.target, d.said -> e.key, d.same)) limit 1)) as problem,
       triggers.number = 2 as triggers_complete,
       d.said,
       d.same,
       d.said ->> 'name' as declared_as,
       d.same or d.on_trigger as is_own,
       triggers.always as triggers_always
from relay.statements('lanes_truncate') d
cross join lateral (
    select pg_catalog.count(*) as number, pg_catalog.bool_and(o.tgenabled = 'A') as always
    from pg_catalog.pg_trigger o
    join pg_catalog.pg_proc g on g.oid = o.tgfoid and g.pronamespace = 'relay'::regnamespace
    where o.tgrelid = d.target and o.tgenabled in ('O', 'A') and o.tgattr::text = '' and o.tgqual is null
      and (o.tgname, o.tgtype, g.proname) in (('relay_lanes', 29, 'lanes_' || (d.said ->> 'lane_table')),
                                              ('relay_lanes_truncate', 32, 'lanes_truncate'))
) triggers
offset 0;

comment on view relay.lane_tables is 'The tables whose rows are lanes, as recorded in their triggers.';

-- What is watched is recorded on the table itself, in the arguments of its trigger on TRUNCATE. So it is renamed, dumped,
-- restored and dropped with the table. A column is stored by number, which survives a rename, and by name, which survives
-- a restore: the restored table has another oid, and its numbers may differ.
create or replace view relay.watches as
select (d.said ->> 'watch')::integer as id,
       d.target,
       col.id_column,
       col.board_column,
       col.lane_column,
       -- A column is hidden if it has the number or the name of a hidden one. If the shown columns are listed, all others
       -- are hidden: found by number, or by name after a restore. Virtual columns are always hidden, because triggers do
       -- not see them.
       array(select a.attname from pg_catalog.pg_attribute a
             where a.attrelid = d.target and a.attnum > 0 and not a.attisdropped
               and (a.attgenerated = 'v'
                    or exists (
                        select from pg_catalog.jsonb_array_elements(d.said -> 'hidden') h
                        where h ->> 1 = a.attname or (d.same and (h ->> 0)::integer = a.attnum))
                    or (d.said ? 'shown' and not exists (
                        select from pg_catalog.jsonb_array_elements(d.said -> 'shown') h
                        where case when d.same then (h ->> 0)::integer = a.attnum else h ->> 1 = a.attname end)))
             order by a.attnum) as hidden,
       relay.order_named(d.target, d.said -> 'order_by', d.same) as order_by,
       case
           -- After a restore, a hidden column may exist under another name.
           when not d.same and exists (
               select from pg_catalog.jsonb_array_elements(d.said -> 'hidden') h
               where not exists (select from pg_catalog.pg_attribute a
                                 where a.attrelid = d.target and a.attname = h ->> 1 and not a.attisdropped))
           then 'was restored, and a column that it hides is not there'
           when not d.same and not d.on_trigger then 'is another table than the one that was watched'
           when pg_catalog.array_position(key.columns, null) is not null
           then 'has no column ' || (key.said -> (pg_catalog.array_position(key.columns, null) - 1) ->> 1) || ' any more, its id'
           when d.said ? 'board' and col.board_column is null
           then 'has no column ' || (d.said -> 'board' ->> 1) || ' any more, its board'
           when d.said ? 'lane' and col.lane_column is null
           then 'has no column ' || (d.said -> 'lane' ->> 1) || ' any more, its lane'
           when outgrown.why is not null then outgrown.why
           when retyped.why is not null then retyped.why
           when d.said ? 'lanes' and lanes.target is null
           then pg_catalog.format('has its lanes in %s, which relay.lanes has not declared', d.said -> 'lanes' ->> 1)
           when lanes.problem is not null then pg_catalog.format('has its lanes in %s, which %s', lanes.target, lanes.problem)
           when d.said ? 'lanes' and relay.comparable(lanes.target, lanes.id_column)
               is distinct from case when d.said ? 'lane' then relay.comparable(d.target, col.lane_column) else 'text' end
           then pg_catalog.format('has lanes of another type than those in %s', lanes.target)
           when d.said ? 'lanes' and lanes.board_column is null and not d.said ?| array['board', 'board_as']
           then pg_catalog.format('has no board, and %s has none any more', lanes.target)
       end as problem,
       d.said ->> 'name' as watched_as,
       -- The columns that are not hidden, if the shown ones are listed; otherwise null.
       case when d.said ? 'shown' then array(
           select a.attname from pg_catalog.pg_attribute a
           where a.attrelid = d.target and a.attnum > 0 and not a.attisdropped and a.attgenerated <> 'v' and exists (
               select from pg_catalog.jsonb_array_elements(d.said -> 'shown') h
               where case when d.same then (h ->> 0)::integer = a.attnum else h ->> 1 = a.attname end)
           order by a.attnum) end as shown,
       relay.spelled(d.target, d.said -> 'filter', d.same) as filter,
       relay.spelled(d.target, d.said -> 'board_as', d.same) as board_as,
       relay.spelled(d.target, d.said -> 'lane_as', d.same) as lane_as,
       lanes.target as lanes,
       -- The id's column, or the columns whose values make up the id.
       key.columns as key_columns,
       d.said ->> 'prefix' as id_prefix,
       d.said ? 'as_text' as as_text,
       d.said,
       d.same,
       d.said ? 'distinct_ids' as distinct_ids,
       -- Whether it is the table that was watched, or a restored copy of it.
       d.same or d.on_trigger as is_own
from relay.statements('journal_truncate') d
cross join lateral (
    select max(a.attname) filter (where a.role = 'id') as id_column,
           max(a.attname) filter (where a.role = 'board') as board_column,
           max(a.attname) filter (where a.role = 'lane') as lane_column
    from (select r.role, a.attname::text
          from (values ('id'), ('board'), ('lane')) r (role)
          join pg_catalog.pg_attribute a on a.attrelid = d.target and a.attnum > 0 and not a.attisdropped
              and case when d.same then a.attnum = (d.said -> r.role ->> 0)::integer
                       else a.attname = d.said -> r.role ->> 1 end) a
) col
cross join lateral (
    select k.said, array(select relay.column_named(d.target, e.value, d.same)
                         from pg_catalog.jsonb_array_elements(k.said) with ordinality e (value, n) order by e.n)::text[] as columns
    from (select coalesce(d.said -> 'key', pg_catalog.jsonb_build_array(d.said -> 'id'))) k (said)
) key
cross join lateral (
    select max(pg_catalog.format('%s, which its %s is made of', why, e.role)) as why
    from (values ('filter', 'filter'), ('board_as', 'board'), ('lane_as', 'lane')) e (key, role)
    cross join lateral relay.outgrown(d.target, d.said -> e.key, d.same) why
    where why is not null
) outgrown
-- The owner of a table may change the type of a column after it was checked. Reading boards converts these columns to
-- text, and anybody can create a cast for a composite type or an enum.
left join lateral (
    select pg_catalog.format('has %s as %s now, whose text a user''s code may make: expected text, uuid or integer', a.attname,
                             pg_catalog.format_type(a.atttypid, null)) as why
    from pg_catalog.pg_attribute a
    where a.attrelid = d.target and a.attnum > 0 and not a.attisdropped and a.atttypid >= 16384
      and a.attname = any (key.columns || array[col.board_column, col.lane_column])
      and not exists (select from pg_catalog.pg_type t
                      where t.oid = relay.base_type(a.atttypid)
                        and (t.typnamespace = 'pg_catalog'::regnamespace or t.typcategory = 'S'
                             or t.typcategory = 'E' and a.attname <> all (key.columns)))
    limit 1
) retyped on true
left join relay.lane_tables lanes on d.said ? 'lanes'
    and case when d.same then lanes.target = (d.said -> 'lanes' ->> 0)::oid
             else lanes.target = pg_catalog.to_regclass(d.said -> 'lanes' ->> 1) end
offset 0;

comment on view relay.watches is 'What is watched, as recorded in the triggers.';

-- The kind of a watch's board names: bigint, uuid or text.
create or replace function relay.board_kind(w relay.watches) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce((select relay.comparable(l.target, l.board_column) from relay.lane_tables l where l.target = w.lanes),
                    relay.comparable(w.target, w.board_column), 'text')
$$;

-- The kind of its ids, without their prefix; for several columns, their number.
create or replace function relay.id_kind(w relay.watches) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select case when pg_catalog.cardinality(w.key_columns) = 1 then coalesce(relay.comparable(w.target, w.key_columns[1]), 'text')
           else 'key of ' || pg_catalog.cardinality(w.key_columns) end
$$;
