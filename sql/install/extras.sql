-- Extras

-- An extra is what other tables say about a task: a list of values, one value, or a count. Clients see it as a column of
-- the task. The *near* table has the task's key in one of its columns. An extra shows columns of the near table, or of a
-- *far* table, whose key is in another column of the near one. For example, labels are far, and the table that links
-- tasks to labels is near.
--
-- Writers of these tables neither lock nor read tasks: their triggers only journal which key was touched. Readers find
-- the tasks and the extra's value in the same snapshot in which they read the journal. So no race can leave a task with
-- an extra that fits no committed moment.
--
-- Either table may have a filter. A row that does not match it counts as absent, as in a watched table.

-- The type as which values of a column are compared, if equal values have equal text. Null for other columns, and for
-- virtual ones, which triggers do not see. Both sides must have the same type, so that an index can be used.
create or replace function relay.joinable(target regclass, col name) returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select case t.typname when 'varchar' then 'text' else t.typname::text end
        from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid) and t.typnamespace = 'pg_catalog'::regnamespace
        left join pg_catalog.pg_collation c on c.oid = a.attcollation
        where a.attrelid = target and a.attname = col and a.attnum > 0 and not a.attisdropped and a.attgenerated <> 'v'
          and t.typname in ('uuid', 'text', 'varchar', 'int2', 'int4', 'int8') and coalesce(c.collisdeterministic, true));
end
$$;

-- A column's collation as a clause in SQL. If two columns have different ones, their comparison must name one of them.
create or replace function relay.collation_of(target regclass, col name) returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select coalesce((select pg_catalog.format(' collate %I.%I', n.nspname, c.collname)
                         from pg_catalog.pg_attribute a
                         join pg_catalog.pg_collation c on c.oid = a.attcollation
                         join pg_catalog.pg_namespace n on n.oid = c.collnamespace
                         where a.attrelid = target and a.attname = col and a.attnum > 0 and not a.attisdropped), ''));
end
$$;

-- The current names of columns that are stored in a trigger's argument.
create or replace function relay.columns_named(target regclass, said jsonb, same boolean) returns name[]
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select array(select relay.column_named(target, c.said, same)
                 from pg_catalog.jsonb_array_elements(said) with ordinality c (said, n) order by c.n)
$$;

-- A table that is stored in a trigger's argument.
create or replace function relay.table_named(said jsonb, same boolean) returns regclass
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select case when same then (select c.oid::regclass from pg_catalog.pg_class c where c.oid = (said ->> 0)::oid)
               else pg_catalog.to_regclass(said ->> 1) end);
end
$$;

-- The extras, as recorded in the triggers of their near tables. For "offset 0" see relay.lane_tables; here it also keeps
-- Postgres from computing values again wherever they are used.
create or replace view relay.extras as
select (d.said ->> 'extra')::integer as id,
       d.said ->> 'name' as name,
       -- The watched table, and its column that contains the key.
       own.target,
       own.task_column,
       d.target as near,
       col.key_column,
       col.link_column,
       own.far,
       own.far_key,
       -- Columns of the far table, or of the near one if there is no far one. If empty, rows are counted.
       shown.columns as shown,
       -- "column [asc|desc] [nulls first|last]", ...
       shown.order_by,
       -- Whether it is one value instead of a list.
       d.said ? 'single' as single,
       case when not d.same and not d.on_trigger or own.task_column is null or col.key_column is null or (d.said ? 'link' and (col.link_column is null or own.far_key is null))
                or pg_catalog.array_position(shown.columns, null) is not null
            then 'is made of a table or column that is not there any more'
            when relay.joinable(own.target, own.task_column) is distinct from relay.joinable(d.target, col.key_column)
                or relay.joinable(own.far, own.far_key) is distinct from relay.joinable(d.target, col.link_column)
            then 'compares columns whose types differ now'
            when relay.lost_order(coalesce(own.far, d.target), shown.order_by || array(
                select pg_catalog.quote_ident(c) from pg_catalog.unnest(shown.columns) c)) <> '{}'
            then 'shows a column, or is ordered by one, that has another type now'
            when filters.problem is not null then filters.problem
       end as problem,
       triggers.number = case when d.said ? 'far' then 4 else 2 end as triggers_complete,
       d.said -> 'near' ->> 1 as near_as,
       d.said -> 'far' ->> 1 as far_as,
       -- Whether another table now has the name that one of the two had when the extra was declared.
       exists (select from pg_catalog.pg_class o join pg_catalog.pg_namespace n on n.oid = o.relnamespace
               where o.relkind in ('r', 'p') and (
                   o.oid <> d.target and array[n.nspname, o.relname]::text[] = pg_catalog.parse_ident(d.said -> 'near' ->> 1)
                   or o.oid <> own.far and array[n.nspname, o.relname]::text[] = pg_catalog.parse_ident(d.said -> 'far' ->> 1))) as replaced,
       triggers.always as triggers_always,
       -- Which rows of the near table count, and which of the far one; null if all do.
       relay.spelled(d.target, d.said -> 'near_filter', d.same) as near_filter,
       relay.spelled(own.far, d.said -> 'far_filter', d.same) as far_filter,
       d.said,
       d.same
from relay.statements('extra_truncate') d
cross join lateral (
    select t.target, relay.column_named(t.target, d.said -> 'to', d.same) as task_column, t.far,
           relay.column_named(t.far, d.said -> 'far_key', d.same) as far_key
    from (select relay.table_named(d.said -> 'task', d.same) as target, relay.table_named(d.said -> 'far', d.same) as far offset 0) t
    offset 0
) own
cross join lateral (
    select relay.column_named(d.target, d.said -> 'key', d.same) as key_column,
           relay.column_named(d.target, d.said -> 'link', d.same) as link_column
    offset 0
) col
cross join lateral (
    select relay.columns_named(t, d.said -> 'shown', d.same) as columns, relay.order_named(t, d.said -> 'order_by', d.same) as order_by
    from (select case when d.said ? 'far' then own.far else d.target end) s (t)
    offset 0
) shown
cross join lateral (
    select pg_catalog.min(pg_catalog.format('has a filter for rows of %s, which %s', f.target, outgrown)) as problem
    from (values (d.target, 'near_filter'), (own.far, 'far_filter')) f (target, name)
    cross join relay.outgrown(f.target, d.said -> f.name, d.same)
    where outgrown is not null
) filters
cross join lateral (
    select pg_catalog.count(*) as number, pg_catalog.bool_and(t.tgenabled = 'A') as always
    from pg_catalog.pg_trigger t
    join pg_catalog.pg_proc f on f.oid = t.tgfoid and f.pronamespace = 'relay'::regnamespace
    where t.tgrelid in (d.target, own.far) and t.tgenabled in ('O', 'A') and t.tgattr::text = '' and t.tgqual is null
      and t.tgname in ('relay_extra_' || (d.said ->> 'extra'), pg_catalog.format('relay_extra_%s_truncate', d.said ->> 'extra'))
      and (t.tgtype, f.proname) in ((29, case when t.tgrelid = d.target then 'extra_' || (d.said ->> 'extra')
                                              else pg_catalog.format('extra_%s_far', d.said ->> 'extra') end),
                                    (32, 'extra_truncate'))
) triggers
where not d.said ? 'far_of'
offset 0;

comment on view relay.extras is 'Data of other tables about tasks, as declared in their triggers.';

-- The tables that the extras of a watched table use.
create or replace function relay.extra_tables(target regclass) returns setof regclass
    language plpgsql
    stable
    rows 1
    set search_path = pg_catalog, pg_temp
as $$
begin
    return query
        select d.target from relay.statements('extra_truncate') d
        where relay.table_named(d.said -> 'task', d.same) = extra_tables.target;
end
$$;

-- A column's name as clients know it: in camel case, as in decode.py.
create or replace function relay.camel_case(col text) returns text
    language sql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.string_agg(case when p.n > 1 and p.part[1] <> '' and p.part[2] ~ '^[a-z0-9]'
                                 then pg_catalog.upper(pg_catalog.left(p.part[2], 1)) || pg_catalog.substr(p.part[2], 2)
                                 else p.part[1] || p.part[2] end, '' order by p.n)
    from pg_catalog.regexp_matches(col, '(_*)([^_]*)', 'g') with ordinality p (part, n)
$$;

-- A value that an extra shows, in SQL: as text, if its type has no other form in JSON. A value of more than 8 KiB is
-- null, and so is a text that cannot be converted to UTF-8. So the size of a task's extras is limited, and they never
-- make the task unreadable.
create or replace function relay.shown_value(target regclass, col name, expression text) returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select case
            when t.typcategory in ('S', 'E')
            then pg_catalog.format('case when pg_catalog.octet_length(%1$s) <= 8192%2$s then %1$s end', relay.as_text(target, col, expression),
                     case when pg_catalog.getdatabaseencoding() <> 'UTF8' then pg_catalog.format(
                         ' and relay.readable(%1$s) = (%1$s) collate "C"', relay.as_text(target, col, expression)) end)
            when t.typname = 'numeric'
            then pg_catalog.format('case when pg_catalog.octet_length(%1$s::numeric::text) <= 8192 then %1$s::numeric end', expression)
            else pg_catalog.format('%s::%s', expression, pg_catalog.format_type(t.oid, null)) end
        from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid)
        where a.attrelid = target and a.attname = col and a.attnum > 0 and not a.attisdropped);
end
$$;

-- The name of the trigger function of an extra's near table, or of its far one.
create or replace function relay.extra_function(id integer, far boolean) returns text
    language sql
    immutable
    set search_path = pg_catalog, pg_temp
as $$ select pg_catalog.format('relay.extra_%s%s', id, case when far then '_far' end) $$;

-- Whether a row of an extra's near table, or of its far one, counts, in SQL, given its alias. With "careful", a row at
-- which the filter fails does not count, instead of causing an error.
create or replace function relay.extra_condition(e relay.extras, far boolean, careful boolean, alias text) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select case when f.said is null then 'true'
           when careful then pg_catalog.format('(%s(%s.*))[2] is not null', relay.extra_function(e.id, far), alias)
           else relay.spelled(f.target, f.said, e.same, alias || '.') end
    from (select case when far then e.far else e.near end, e.said -> case when far then 'far_filter' else 'near_filter' end) f (target, said)
$$;

-- An extra's value as JSON, in SQL, given the task's key: at most 1,000 values, and null if it is longer than 64 KiB.
--
-- "offset 0" keeps Postgres from computing a value again wherever it is used.
create or replace function relay.extra_value(e relay.extras, key text, careful boolean) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.format('(select case when pg_catalog.octet_length(v::text) <= 65536 then v end from (select %s offset 0) s (v))', case
        when e.shown = '{}' then pg_catalog.format('(select pg_catalog.to_json(pg_catalog.count(*)) from %s where %s)', found.tables, found.rows)
        when e.single then pg_catalog.format('(select made.v from %s %s where %s order by %s limit 1)',
                                             found.tables, made.said, found.rows, sorted.said)
        else pg_catalog.format('(select coalesce(pg_catalog.json_agg(l.v), ''[]'') '
                               'from (select made.v from %s %s where %s order by %s limit 1000) l)',
                               found.tables, made.said, found.rows, sorted.said) end)
    from (select pg_catalog.format('only %s near', e.near)
                 || case when e.far is not null
                    then pg_catalog.format(' join only %s far on far.%I::%s = near.%I::%3$s%5$s and %6$s', e.far, e.far_key,
                                           relay.joinable(e.far, e.far_key), e.link_column, relay.collation_of(e.far, e.far_key),
                                           relay.extra_condition(e, true, careful, 'far')) else '' end,
                 pg_catalog.format('near.%I::%s = %s%s and %s', e.key_column, relay.joinable(e.near, e.key_column), key,
                                   relay.collation_of(e.near, e.key_column), relay.extra_condition(e, false, careful, 'near'))
         ) found (tables, rows)
    cross join (select case when e.far is null then 'near' else 'far' end as alias, coalesce(e.far, e.near) as from_table) t
    cross join lateral (
        select pg_catalog.format('cross join lateral (select %s as v offset 0) made',
                   case when pg_catalog.cardinality(e.shown) = 1 then pg_catalog.format('pg_catalog.to_json(%s)', max(s.value))
                   else pg_catalog.format('pg_catalog.json_build_object(%s)',
                            pg_catalog.string_agg(pg_catalog.format('%L, %s', relay.camel_case(s.col), s.value), ', ' order by s.n)) end) as said
        from (select c.n, c.col, relay.shown_value(t.from_table, c.col, pg_catalog.format('%s.%I', t.alias, c.col)) as value
              from pg_catalog.unnest(e.shown) with ordinality c (col, n)) s
    ) made
    cross join lateral (
        -- Equal values, such as 1.0 and 1.00, can differ as text.
        select pg_catalog.concat(relay.order_clause(t.from_table, e.order_by, t.alias),
                                 pg_catalog.string_agg(pg_catalog.format('%s.%I, ', t.alias, c.col), '' order by c.n),
                                 'made.v::text collate "C"') as said
        from pg_catalog.unnest(e.shown) with ordinality c (col, n)
    ) sorted
$$;

-- An extra's name and value in SQL, for json_build_object, given the prefix of the task's columns.
create or replace function relay.extra_of(e relay.extras, prefix text, careful boolean) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.format('%L, %s', e.name, relay.extra_value(
        e, pg_catalog.format('%s%I::%s', prefix, e.task_column, relay.joinable(e.target, e.task_column)), careful))
$$;

-- The same of all extras of a watched table; null if there are none.
create or replace function relay.extras_of(target regclass, prefix text, careful boolean) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.string_agg(relay.extra_of(e, prefix, careful), ', ' order by e.name)
    from relay.extras e where e.target = extras_of.target and e.problem is null
$$;

-- The body of the function that makes texts of a row of the near or of the far table: null followed by the row's key and
-- by a digest of each value that the extra depends on. It returns null if the row does not count, see
-- relay.make_noting_functions. A key longer than 8 KiB is an error, because an entry must fit into the journal; then all
-- boards are read again.
create or replace function relay.extra_body(e relay.extras, far boolean) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $make$
    select pg_catalog.format($body$-- %3$s
begin
    if current_user <> 'relay_renderer' then
        raise exception '%1$s belongs to %%, expected relay_renderer: run relay sql install', current_user
            using errcode = 'invalid_object_definition';
    end if;%5$s
    if pg_catalog.octet_length(of_row.%4$I::text) > 8192 then
        raise exception 'a key is longer than 8 KiB' using errcode = 'program_limit_exceeded';
    end if;
    return case when of_row.%4$I is not null then array[null, %2$s] end;
end
$body$, relay.extra_function(e.id, far),
        pg_catalog.string_agg(pg_catalog.format(case c.n when 1 then 'of_row.%I::text' else 'pg_catalog.md5(%2$s)' end, c.name,
            relay.as_text(t.own, c.name, pg_catalog.format('of_row.%I', c.name))), ', ' order by c.n),
        relay.types_stamp(t.own), t.key,
        -- Errors that the values of this row cause. Others, such as a renamed column, are not the row's fault.
        (select pg_catalog.format($filter$
    begin
        if (%s) is not true then
            return null;
        end if;
    exception when data_exception or program_limit_exceeded then
        return array[pg_catalog.concat(sqlstate, ' ', pg_catalog.left(sqlerrm, 200))];
    end;$filter$, condition) from relay.extra_condition(e, far, false, 'of_row') condition where condition <> 'true'))
    from (select case when far then e.far else e.near end as own, case when far then e.far_key else e.key_column end as key) t
    cross join lateral (
        select 1 as n, t.key as name
        union all
        select 2, e.link_column where not far and e.link_column is not null
        union all
        select 2 + o.n, o.name from pg_catalog.unnest(e.shown || array(
            select (o.key ->> 'column')::name from relay.ordering(t.own, e.order_by) o)) with ordinality o (name, n)
        where far or e.far is null
    ) c
    group by t.own, t.key
$make$;

-- The body of the trigger function: it journals the key that was touched, before and after.
create or replace function relay.touch_body(e relay.extras, far boolean) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select relay.noting_body(e.id, relay.extra_function(e.id, far), case when far then 'F' else 'N' end,
                             'old_texts[2], null, null, new_texts[2], null, null, null', null)
$$;

create or replace function relay.extra_truncate() returns trigger
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform relay.journal_sync((tg_argv[0])::integer, 'truncate');
    return null;
end
$$;

create or replace function relay.make_extra_functions(e relay.extras) returns void
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select relay.make_noting_functions(func, relay.extra_body(e, far), func, relay.touch_body(e, far))
    from (select false where e.near is not null union all select true where e.far is not null) t (far)
    cross join relay.extra_function(e.id, far) func
$$;

-- Drops the triggers of extras and their functions; the caller has locked their tables.
create or replace function relay.drop_extra_triggers(extra integer) returns void
    language plpgsql
    set client_min_messages = warning
    set search_path = pg_catalog, pg_temp
as $$
declare
    ours record;
begin
    for ours in
        select t.tgrelid::regclass as target, t.tgname from pg_catalog.pg_trigger t
        join pg_catalog.pg_proc f on f.oid = t.tgfoid and f.pronamespace = 'relay'::regnamespace
        where t.tgname in ('relay_extra_' || extra, pg_catalog.format('relay_extra_%s_truncate', extra))
    loop
        execute pg_catalog.format('drop trigger %I on %s', ours.tgname, ours.target);
    end loop;
    execute pg_catalog.format('drop function if exists %1$s(), %1$s(record), %2$s(), %2$s(record)',
                              relay.extra_function(extra, false), relay.extra_function(extra, true));
end
$$;

-- The column of one table that refers to a column of another by a single-column foreign key, if there is exactly one.
create or replace function relay.referring(from_table regclass, to_table regclass, to_column name) returns name
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select min(a.attname::text)::name
    from pg_catalog.pg_constraint r
    join pg_catalog.pg_attribute a on a.attrelid = r.conrelid and a.attnum = r.conkey[1]
    join pg_catalog.pg_attribute b on b.attrelid = r.confrelid and b.attnum = r.confkey[1]
    where r.contype = 'f' and r.conrelid = from_table and r.confrelid = to_table and pg_catalog.cardinality(r.conkey) = 1
      and b.attname = to_column
    having count(distinct a.attnum) = 1
$$;

-- The column that alone is a table's primary key.
create or replace function relay.only_key(target regclass) returns name
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select a.attname from pg_catalog.pg_index i
    join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
    where i.indrelid = target and i.indisprimary and i.indnkeyatts = 1
$$;

-- Raises an error, in one sentence, if an extra cannot have this name, or if there would be too many.
create or replace function relay.check_extra_name(e relay.extras) returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    if e.name !~ '^[A-Za-z_][A-Za-z0-9_]{0,62}$' or e.name in ('id', 'boardId', 'lane') or exists (
        select from pg_catalog.pg_attribute a
        where a.attrelid = e.target and a.attnum > 0 and not a.attisdropped
          and pg_catalog.lower(pg_catalog.replace(a.attname, '_', '')) = pg_catalog.lower(pg_catalog.replace(e.name, '_', '')))
    then
        raise exception 'relay.extra: % cannot be the name of an extra of %: expected letters, digits and underscores, and the name '
            'of no column', pg_catalog.quote_literal(e.name), e.target using errcode = 'invalid_parameter_value';
    end if;
    -- Each adds to the cost of reading a board, and the function that converts all of them to JSON takes a hundred
    -- arguments.
    if (select pg_catalog.count(*) from relay.extras o where o.target = e.target and o.name <> e.name) >= 20 then
        raise exception 'relay.extra: % has 20 extras: expected no more', e.target using errcode = 'program_limit_exceeded';
    end if;
end
$$;

-- Raises an error, in one sentence, if an extra cannot use its tables.
create or replace function relay.check_extra_tables(e relay.extras) returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    tab regclass;
begin
    foreach tab in array array_remove(array[e.near, e.far], null) loop
        if tab = e.target or e.near = e.far or not exists (select from pg_catalog.pg_class c where c.oid = tab and c.relkind = 'r'
                   and c.relpersistence <> 't' and not c.relispartition) then
            raise exception 'relay.extra: % cannot be what an extra of % is made of: expected another table, which is an ordinary one', tab, e.target
                using errcode = 'wrong_object_type';
        end if;
    end loop;
end
$$;

-- Raises an error, in one sentence, if an extra's rows cannot be found by its columns.
create or replace function relay.check_extra_keys(e relay.extras, hidden name[]) returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    tab   regclass;
    entry name;
begin
    for tab, entry in
        select e.target, e.task_column union all select e.near, e.key_column
        union all select e.near, e.link_column where e.far is not null union all select e.far, e.far_key where e.far is not null
    loop
        if entry is null then
            raise exception 'relay.extra: no foreign key says which column of % to use, or several do: name it with % => ''...''', tab,
                case when tab = e.target then 'task_column' when tab = e.near and e.key_column is null then 'key_column'
                     else 'link_column' end using errcode = 'undefined_column';
        elsif relay.joinable(tab, entry) is null then
            raise exception 'relay.extra: % has no column % by which rows can be found: expected an integer, a uuid or text',
                tab, pg_catalog.quote_literal(entry) using errcode = 'datatype_mismatch';
        end if;
    end loop;
    if relay.joinable(e.target, e.task_column) <> relay.joinable(e.near, e.key_column) then
        raise exception 'relay.extra: % of % and % of % are of different types: expected the same', e.task_column, e.target,
            e.key_column, e.near using errcode = 'datatype_mismatch';
    elsif e.far is not null and relay.joinable(e.far, e.far_key) <> relay.joinable(e.near, e.link_column) then
        raise exception 'relay.extra: % of % and % of % are of different types: expected the same', e.far_key, e.far,
            e.link_column, e.near using errcode = 'datatype_mismatch';
    elsif e.far is not null and not relay.is_key(e.far, array[e.far_key]) then
        raise exception 'relay.extra: column % of % is not a key by itself: expected a primary key or unique index of its own',
            e.far_key, e.far using errcode = 'invalid_table_definition';
    elsif e.task_column = any (hidden) then
        raise exception 'relay.extra: column % of % is hidden: expected a column that is shown', e.task_column, e.target
            using errcode = 'invalid_parameter_value';
    end if;
end
$$;

-- Raises an error, in one sentence, if an extra cannot show its columns. For types that it can show, the JSON is small,
-- equal for equal values, and made without users' code.
create or replace function relay.check_extra_values(e relay.extras) returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    shown_of constant regclass := coalesce(e.far, e.near);
    entry    text;
begin
    if pg_catalog.cardinality(e.shown) > 10 or (e.shown = '{}' and e.order_by <> '{}') then
        raise exception 'relay.extra: found % columns to show of %: expected 1 to 10, or none, without order_by, to count rows',
            pg_catalog.cardinality(e.shown), shown_of using errcode = 'invalid_parameter_value';
    end if;
    perform relay.check_order('relay.extra', shown_of, e.order_by, '{}');
    entry := (relay.lost_order(shown_of, array(select pg_catalog.quote_ident(c) from pg_catalog.unnest(e.shown) c)))[1];
    if entry is not null then
        raise exception 'relay.extra: % has no column % that an extra can show: expected a number, a text, a boolean, a uuid, an enum, '
            'a date or a time', shown_of, pg_catalog.quote_literal(entry) using errcode = 'datatype_mismatch';
    end if;
end
$$;

-- The filters of an extra's tables in the form that triggers store. Raises an error, in one sentence, as relay.watch
-- does.
create or replace function relay.extra_filters(e relay.extras, filter text, link_filter text) returns jsonb
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    -- Each is null if there is no such table or filter.
    near_filter constant jsonb := case when e.far is null then relay.expression(e.near, 'relay.extra: filter', 'boolean', filter)
                                  else relay.expression(e.near, 'relay.extra: link_filter', 'boolean', link_filter) end;
    far_filter  constant jsonb := relay.expression(e.far, 'relay.extra: filter', 'boolean', filter);
begin
    if e.far is null and link_filter is not null then
        raise exception 'relay.extra: found link_filter without through: expected filter, for the rows of %', e.near
            using errcode = 'invalid_parameter_value';
    end if;
    return pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object('near_filter', near_filter, 'far_filter', far_filter));
end
$$;

-- The argument of an extra's triggers; its filters have been compiled already.
create or replace function relay.extra_said(e relay.extras) returns jsonb
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.jsonb_strip_nulls(e.said || pg_catalog.jsonb_build_object(
        'extra', e.id, 'name', e.name, 'oid', e.near::oid::bigint,
        'task', pg_catalog.jsonb_build_array(e.target::oid::bigint, relay.full_name(e.target)),
        'to', relay.column_of(e.target, e.task_column),
        'near', pg_catalog.jsonb_build_array(e.near::oid::bigint, relay.full_name(e.near)),
        'key', relay.column_of(e.near, e.key_column),
        'link', relay.column_of(e.near, e.link_column),
        'far', case when e.far is not null then pg_catalog.jsonb_build_array(e.far::oid::bigint, relay.full_name(e.far)) end,
        'far_key', relay.column_of(e.far, e.far_key),
        'shown', (select coalesce(pg_catalog.jsonb_agg(relay.column_of(coalesce(e.far, e.near), c.name) order by c.n), '[]')
                  from pg_catalog.unnest(e.shown) with ordinality c (name, n)),
        'order_by', relay.order_of(coalesce(e.far, e.near), e.order_by),
        'single', case when e.single then true end))
$$;

-- Whether an extra already exists with these settings.
create or replace function relay.is_declared(present relay.extras, wanted relay.extras) returns boolean
    language sql
    immutable
    set search_path = pg_catalog, pg_temp
as $$
    select present.id is not null and present.problem is null and not present.replaced
        and present.triggers_complete and present.triggers_always
        and row(present.task_column, present.near, present.key_column, present.link_column, present.far, present.far_key,
                present.shown, present.order_by, present.single, present.near_filter, present.far_filter)
            is not distinct from row(wanted.task_column, wanted.near, wanted.key_column, wanted.link_column, wanted.far, wanted.far_key,
                                     wanted.shown, wanted.order_by, wanted.single, wanted.near_filter, wanted.far_filter)
$$;

-- Shows data of another table on the tasks of a watched one, as a column of the task: the values of one column, or
-- objects if there are several columns, or, if none is given, the number of rows. Replaces an extra of the same name;
-- with unchanged settings it takes no lock and changes nothing.
--
-- Takes SHARE ROW EXCLUSIVE on the other tables, in the way in which relay.watch locks its own, and ACCESS EXCLUSIVE to
-- replace an extra.
create or replace function relay.extra(
    target      regclass,
    -- The name that clients see.
    name        text,
    -- The table whose values are shown, or whose rows are counted.
    related     regclass,
    shown       name[]   default '{}',
    -- Its column that contains the task's key, or with "through", that of the linking table; by default the column of a
    -- foreign key.
    key_column  name     default null,
    -- The task's key, by default the id. It may be another column, such as "assignee_id", whose values are keys of
    -- "related".
    task_column name     default null,
    -- The table that links tasks to rows of "related", and its column that contains their key.
    through     regclass default null,
    link_column name     default null,
    -- "column [asc|desc] [nulls first|last]", ... of "related"; then by the values that are shown.
    order_by    text[]   default '{}',
    -- Which rows of "related" are shown or counted, such as "deleted_at is null"; and which rows of "through" count as
    -- links.
    filter      text     default null,
    link_filter text     default null,
    patience    interval default '30 seconds'
) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set quote_all_identifiers = off
    set lock_timeout = '2s'
as $$
declare
    w       relay.watches;
    present relay.extras;
    wanted  relay.extras;
    tab     regclass;
begin
    perform relay.one_at_a_time();
    select * into w from relay.watches s where s.target = extra.target;
    if not found then
        raise exception 'relay.extra: % is not watched: run select relay.watch(%) first', extra.target,
            pg_catalog.quote_literal(extra.target) using errcode = 'undefined_table';
    end if;
    select * into present from relay.extras e where e.target = extra.target and e.name = extra.name;
    wanted.name := extra.name;
    wanted.target := extra.target;
    wanted.task_column := coalesce(extra.task_column, w.id_column);
    wanted.near := coalesce(extra.through, extra.related);
    wanted.key_column := coalesce(extra.key_column, relay.referring(wanted.near, wanted.target, wanted.task_column),
                                  case when extra.through is null and extra.task_column is not null then relay.only_key(extra.related) end);
    if extra.through is not null then
        wanted.far := extra.related;
        wanted.far_key := relay.only_key(extra.related);
        wanted.link_column := coalesce(extra.link_column, relay.referring(wanted.near, wanted.far, wanted.far_key));
    end if;
    wanted.shown := coalesce(extra.shown, '{}');
    wanted.order_by := coalesce(extra.order_by, '{}');
    perform relay.check_extra_name(wanted), relay.check_extra_tables(wanted), relay.check_extra_keys(wanted, w.hidden),
        relay.check_extra_values(wanted);
    wanted.order_by := relay.order_named(extra.related, relay.order_of(extra.related, wanted.order_by), true);
    wanted.single := extra.through is null and wanted.shown <> '{}' and relay.is_key(wanted.near, array[wanted.key_column]);
    foreach tab in array array_remove(array[wanted.near, wanted.far], null) loop
        perform relay.require_owner(tab);
        perform relay.grant_reading(tab, array[wanted.key_column, wanted.link_column, wanted.far_key]);
    end loop;
    perform relay.grant_reading(wanted.target, array[wanted.task_column]);
    wanted.same := true;
    wanted.said := relay.extra_filters(wanted, nullif(extra.filter, ''), nullif(extra.link_filter, ''));
    wanted.near_filter := relay.spelled(wanted.near, wanted.said -> 'near_filter', true);
    wanted.far_filter := relay.spelled(wanted.far, wanted.said -> 'far_filter', true);
    if relay.is_declared(present, wanted) then
        return;
    end if;

    perform relay.lock_tables(array[wanted.near, wanted.far, present.near, present.far],
                              case when present.id is null then 'share row exclusive' else 'access exclusive' end, patience);
    if present.id is not null then
        perform relay.drop_extra_triggers(present.id);
    end if;
    wanted.id := relay.new_id();
    perform relay.make_extra_functions(wanted);
    perform relay.create_extra_triggers(wanted);
    perform relay.revoke_reading(array[present.near, present.far]);
    perform relay.journal_sync(wanted.id, 'watch_changed');
end
$$;

comment on function relay.extra(regclass, text, regclass, name[], name, name, regclass, name, text[], text, text, interval) is
    'Shows data of another table on tasks. Example: select relay.extra(''public.tasks'', ''commentCount'', ''public.comments'')';

create or replace function relay.create_extra_triggers(e relay.extras) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    said constant jsonb := relay.extra_said(e);
    name constant text := 'relay_extra_' || e.id;
begin
    perform relay.put_triggers(e.near, name, relay.extra_function(e.id, false), 'relay.extra_truncate', e.id, said);
    if e.far is not null then
        perform relay.put_triggers(e.far, name, relay.extra_function(e.id, true), 'relay.extra_truncate', e.id,
            pg_catalog.jsonb_build_object('far_of', e.id, 'oid', e.far::oid::bigint, 'task', said -> 'task'));
    end if;
end
$$;

-- Stops showing an extra. Takes ACCESS EXCLUSIVE on its tables, as relay.unwatch does.
create or replace function relay.drop_extra(target regclass, name text, patience interval default '30 seconds') returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '2s'
as $$
declare
    present relay.extras;
begin
    perform relay.one_at_a_time();
    select * into present from relay.extras e where e.target = drop_extra.target and e.name = drop_extra.name;
    if not found then
        return;
    end if;
    perform relay.require_owner(t) from pg_catalog.unnest(array[present.near, present.far]) t where t is not null;
    perform relay.lock_tables(array[present.near, present.far], 'access exclusive', patience);
    perform relay.drop_extra_triggers(present.id);
    perform relay.revoke_reading(array[present.near, present.far]);
    perform relay.journal_sync(null, 'watch_changed: an extra was dropped');
end
$$;

comment on function relay.drop_extra(regclass, text, interval) is 'Stops showing an extra. Does nothing if there is none of that name.';

-- The values of an extra for these keys of tasks, as JSON, in the snapshot of the calling transaction. Some are missing
-- if the extra's tables cannot be read, because they are locked, or were altered since that snapshot.
create or replace function relay.extra_values(extra integer, keys text[]) returns table (key text, value text)
    language plpgsql
    security definer
    set row_security = off
    set lock_timeout = '100ms'
    set search_path = pg_catalog, pg_temp
    set timezone = 'UTC'
    set datestyle = 'ISO, MDY'
    set extra_float_digits = 1
as $$
#variable_conflict use_column
declare
    e     relay.extras;
    query constant text := 'select k.key, %s::text from pg_catalog.unnest($1) k (key)';
    at    text;
begin
    if current_user <> 'relay_reader' then
        raise exception 'relay.extra_values belongs to %, expected relay_reader: run relay sql install', current_user
            using errcode = 'insufficient_privilege';
    end if;
    select * into e from relay.extras x where x.id = extra_values.extra and x.problem is null;
    if not found then
        return;
    end if;
    perform relay.hold_in_snapshot(array_remove(array[e.near, e.far], null));
    at := 'k.key::' || relay.joinable(e.target, e.task_column);
    begin
        perform pg_catalog.set_config('transaction_read_only', 'on', true);  -- see relay.entry_body
        return query execute pg_catalog.format(query, relay.extra_value(e, at, false)) using keys;
    exception when data_exception or program_limit_exceeded then
        -- What has been returned so far is right, and is returned again.
        return query execute pg_catalog.format(query, relay.extra_value(e, at, true)) using keys;
    end;
    raise sqlstate 'RL003';  -- see relay.board
exception when others then
    return;  -- values that could not be read are missing
end
$$;

comment on function relay.extra_values(integer, text[]) is 'The values of an extra for tasks with these keys.';

-- The tasks that an extra belongs to, if keys were touched in its near or its far table: each with its board and its
-- image, which contains that extra. Reads in the snapshot of the calling transaction; also returns a row of nulls if some
-- could not be read.
--
-- If no boards are named, and there are more than a hundred tasks, it returns only the boards, each with its number of
-- tasks. Then the caller names the boards whose tasks it wants.
create or replace function relay.touched(extra integer, far boolean, keys text[], boards text[] default null)
    returns table (key text, watch integer, board text, task text, tasks bigint)
    language plpgsql
    security definer
    set row_security = off
    set lock_timeout = '100ms'
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
#variable_conflict use_column
declare
    e relay.extras;
    w relay.watches;
begin
    if current_user <> 'relay_reader' then
        raise exception 'relay.touched belongs to %, expected relay_reader: run relay sql install', current_user
            using errcode = 'insufficient_privilege';
    end if;
    select * into e from relay.extras x where x.id = touched.extra and x.problem is null;
    select * into w from relay.watches x where x.target = e.target and x.problem is null;
    if w.id is null then
        return;
    end if;
    perform relay.hold_in_snapshot(array_remove(array[w.target, w.lanes, e.near, e.far], null));
    begin
        perform pg_catalog.set_config('transaction_read_only', 'on', true);  -- see relay.entry_body
        return query select * from relay.read_touched(w, e, relay.touched_query(w, e, far, false), keys, boards);
    exception when data_exception or program_limit_exceeded then
        return query select * from relay.read_touched(w, e, relay.touched_query(w, e, far, true), keys, boards);
    end;
    raise sqlstate 'RL003';  -- see relay.board
exception when sqlstate 'RL003' then
    return;
when others then
    return query select null::text, null::integer, null::text, null::text, null::bigint;
end
$$;

comment on function relay.touched(integer, boolean, text[], text[]) is 'The tasks whose extra may have changed.';
