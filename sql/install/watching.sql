-- Watching

-- Compiles an expression on a row to the *form* in which a watch stores it: every column that the expression *uses*, and
-- every label of an enum, is replaced by a *mark* and its index in a list. So the form survives renames of both. For a
-- domain, the base type is stored, because another type may get the domain's name. Raises an error, in one sentence,
-- unless the expression is immutable and made only of what Postgres provides. Then it runs no users' code, whichever role
-- evaluates it.
--
-- Postgres itself parses and prints the expression, as the generated column of a temporary table that is rolled back.
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
    enums   oid[] := '{}';
    labels  jsonb := '[]';
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
                   a.atttypid, pg_catalog.format_type(t.oid, null) as typ, t.typnamespace,
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
            -- Postgres 14 records these dependencies for the column, later versions for its default.
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
                enums := case when used.refclassid = 'pg_catalog.pg_type'::regclass then enums || used.refobjid else enums end;
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
        -- What it is printed with is what it is evaluated with: '02/01/2024'::date is another day under another datestyle.
        perform pg_catalog.set_config(s.name, s.value, true)
        from (values ('datestyle', 'ISO, MDY'), ('intervalstyle', 'postgres'), ('timezone', 'UTC'), ('lc_monetary', 'C'),
                     ('extra_float_digits', '1'), ('bytea_output', 'hex')) s (name, value);
        select pg_catalog.pg_get_expr(e.adbin, e.adrelid) into form
        from pg_catalog.pg_attrdef e where e.adrelid = scratch;
        for used in
            select e.oid, e.enumlabel, pg_catalog.format_type(e.enumtypid, null) as typ
            from pg_catalog.pg_enum e where e.enumtypid = any (enums) order by e.oid
        loop
            continue when pg_catalog.strpos(form, pg_catalog.format('%L::%s', used.enumlabel, used.typ)) = 0;
            form := pg_catalog.replace(form, pg_catalog.format('%L::%s', used.enumlabel, used.typ),
                                       pg_catalog.format('''%s:label %s''::%s', mark, pg_catalog.jsonb_array_length(labels), used.typ));
            labels := labels || pg_catalog.jsonb_build_array(pg_catalog.jsonb_build_array(used.oid::bigint, used.enumlabel, used.typ));
        end loop;
        raise exception using errcode = 'RL002';
    exception
        when sqlstate 'RL002' then null;
        when insufficient_privilege then raise;
        when others then
            problem := case sqlerrm when 'generation expression is not immutable'
                       then 'it is not immutable, because its value may change while the row does not' else sqlerrm end;
    end;
    if problem is null and form ~ E'\\\\' then
        problem := 'a backslash comes of it';
    end if;
    if problem is not null then
        raise exception '% of % cannot be %: %', role, target,
            pg_catalog.quote_literal(pg_catalog.regexp_replace(given, E'\\s+', ' ', 'g')), problem
            using errcode = 'invalid_parameter_value';
    end if;
    return pg_catalog.jsonb_build_object('form', form, 'mark', mark, 'uses', uses, 'labels', labels);
end
$$;

-- Parses order_by for everything that sorts: for each column, whether it is descending, whether nulls come first, and,
-- for an enum, its labels in order. Columns whose values clients cannot compare as the server does are left out.
create or replace function relay.ordering(target regclass, order_by text[], out n bigint, out key jsonb) returns setof record
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
    -- Planning takes longer than everything else here, and the plan does not depend on the arguments.
    set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    return query
        select o.n, pg_catalog.jsonb_build_object(
                   'column', p.col, 'descending', p.direction ~* 'desc',
                   'nulls_first', p.direction ~* 'first' or p.direction ~* 'desc' and p.direction !~* 'last',
                   'values', (select pg_catalog.jsonb_agg(e.enumlabel order by e.enumsortorder)
                              from pg_catalog.pg_enum e where e.enumtypid = t.oid))
        from pg_catalog.unnest(order_by) with ordinality o (entry, n)
        cross join lateral relay.order_parts(o.entry) p
        join pg_catalog.pg_attribute a on a.attrelid = target and a.attname = p.col and a.attnum > 0 and not a.attisdropped
        join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid)
        where a.attgenerated <> 'v'
          and (t.typcategory in ('S', 'E')
               -- Anybody can create a type named "date", with a cast of their own.
               or t.typnamespace = 'pg_catalog'::regnamespace and t.typname in (
                   'bool', 'uuid', 'int2', 'int4', 'int8', 'numeric', 'float4', 'float8', 'date', 'time', 'timestamp', 'timestamptz'));
end
$$;

-- The parts of an order that tasks cannot be sorted by: the column is gone, or its type is now of another kind.
create or replace function relay.lost_order(target regclass, order_by text[]) returns text[]
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select array(select o.entry from pg_catalog.unnest(order_by) with ordinality o (entry, n)
                 where not exists (select from relay.ordering(target, array[o.entry])) order by o.n)
$$;

-- An order in SQL; the caller appends the id. Parts that are lost are left out, because clients cannot sort by them
-- either.
create or replace function relay.order_clause(target regclass, order_by text[], alias text) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.string_agg(pg_catalog.format('%I.%I %s nulls %s, ', alias, o.key ->> 'column',
               case when (o.key -> 'descending')::boolean then 'desc' else 'asc' end,
               case when (o.key -> 'nulls_first')::boolean then 'first' else 'last' end), '' order by o.n)
    from relay.ordering(target, order_by) o
$$;

-- Lets only one session at a time change watches, until the end of its transaction. Otherwise two sessions that watch the
-- same table could each create a watch, and one that waits for the table could remove what another has just created.
create or replace function relay.one_at_a_time() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    lock table relay.ticks in share update exclusive mode;
end
$$;

-- The id of a new watch or table of lanes. Each change names the watch that it was made under. Ids are never reused, and
-- are unlikely to occur on another server, so no change is ever read with the settings of another watch. It does not use
-- random(), because that would advance the session's random sequence.
create or replace function relay.new_id() returns integer
    language sql
    set search_path = pg_catalog, pg_temp
as $$
    select ('x' || pg_catalog.left(pg_catalog.md5(pg_catalog.gen_random_uuid()::text), 8))::bit(32)::integer & 2147483647
$$;

-- Raises an error, in the name of the calling function, if an order names something that is not a column, or one that
-- tasks cannot be sorted by.
create or replace function relay.check_order(caller text, target regclass, order_by text[], hidden name[]) returns void
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    entry text;
begin
    foreach entry in array order_by loop
        if not exists (select from relay.order_parts(entry) p
                       join pg_catalog.pg_attribute a on a.attname = p.col
                       where a.attrelid = target and a.attnum > 0 and not a.attisdropped) then
            raise exception '%: order_by has %: expected a column of %, then optionally asc or desc, nulls first or last',
                caller, pg_catalog.quote_literal(entry), target using errcode = 'invalid_parameter_value';
        end if;
        if not exists (select from relay.ordering(target, array[entry]) o where o.key ->> 'column' <> all (hidden)) then
            raise exception '%: order_by has %, by which clients cannot sort: expected a column that is not hidden, and is '
                'a number, a text, a boolean, a uuid, an enum, a date or a time', caller, pg_catalog.quote_literal(entry)
                using errcode = 'invalid_parameter_value';
        end if;
    end loop;
end
$$;

-- Raises an error, in one sentence, if a table cannot be fed exactly.
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
    present  text;
    col      name;
    role     text;
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
        select pg_catalog.format_type(a.atttypid, a.atttypmod) into present
        from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid)
        where a.attrelid = target and a.attname = col and a.attnum > 0 and not a.attisdropped
          and a.attgenerated <> 'v'
          and (t.typcategory = 'S' or t.typname in ('uuid', 'int2', 'int4', 'int8')
               or (role in ('board_column', 'lane_column') and t.typcategory = 'E'));
        if present is null then
            select case when a.attgenerated = 'v' then 'virtual ' else '' end || pg_catalog.format_type(a.atttypid, a.atttypmod) into present
            from pg_catalog.pg_attribute a
            where a.attrelid = target and a.attname = col and a.attnum > 0 and not a.attisdropped;
            if present is null then
                raise exception 'relay.watch: % has no column %: name the column with % => ''...''',
                    target, pg_catalog.quote_literal(col), role using errcode = 'undefined_column';
            end if;
            raise exception 'relay.watch: column % of % is of type %: as % it must be text, uuid or integer%',
                pg_catalog.quote_ident(col), target, present, role,
                pg_catalog.concat(case when role in ('board_column', 'lane_column') then ', or an enum' end,
                                  case when present like 'virtual %' then ', and stored, because triggers do not see it' end) using errcode = 'datatype_mismatch';
        end if;
    end loop;
    if id_column = board_column or id_column = lane_column or board_column = lane_column then
        raise exception 'relay.watch: id_column, board_column and lane_column of % must be three columns, found %, % and %',
            target, id_column, board_column, lane_column using errcode = 'invalid_parameter_value';
    end if;

    -- Messages identify a row by its id alone, so the id alone must be a key.
    if not relay.is_key(target, key_columns) then
        select pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' order by k.n) into present
        from pg_catalog.pg_index i
        cross join lateral pg_catalog.unnest(i.indkey::smallint[]) with ordinality k (attnum, n)
        join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
        where i.indrelid = target and i.indisprimary;
        raise exception 'relay.watch: column % of % is not a key by itself (primary key: %): '
            'it needs a primary key or unique index of its own, not deferrable, and not null; '
            'or name another with id_column => ''...'', or all of them with key_columns => ''{...}''',
            (select pg_catalog.string_agg(pg_catalog.quote_ident(k), ', ') from pg_catalog.unnest(key_columns) k), target, coalesce('(' || present || ')', 'none')
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
            raise exception 'relay.watch: column % of % cannot be hidden, because its type is a domain that allows no null: '
                'give it the type that the domain is made of, and a not null constraint',
                pg_catalog.quote_ident(col), target using errcode = 'datatype_mismatch';
        end if;
        if col = any (key_columns) or col in (board_column, lane_column) then
            raise exception 'relay.watch: column % of % cannot be hidden: messages need the id, the board and the lane',
                pg_catalog.quote_ident(col), target using errcode = 'invalid_parameter_value';
        end if;
    end loop;
    perform relay.check_order('relay.watch', target, order_by, hidden);
end
$$;

-- Raises an error that names the missing grant, if the caller has no rights of the table's owner. A superuser's rights are
-- too much to grant for this.
create or replace function relay.require_owner(target regclass) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    owner constant regrole := (select c.relowner from pg_catalog.pg_class c where c.oid = target);
begin
    if not pg_catalog.pg_has_role(owner, 'usage') then
        raise exception '% belongs to %, and only its owner may change its triggers: have %', target, owner,
            case when (select r.rolsuper from pg_catalog.pg_roles r where r.oid = owner) then 'a superuser run this'
            else pg_catalog.format('an administrator run: grant %s to %I', owner, current_user) end
            using errcode = 'insufficient_privilege';
    end if;
end
$$;

-- Lets relay_reader read a table. Only the table's owner or a superuser can grant this, just as only they can create
-- triggers on it. If policies filtered rows, boards would silently be incomplete, so the reader must bypass them. The
-- reader names the types and collations of some columns, so it needs the right to use their schemas.
create or replace function relay.grant_reading(target regclass, columns name[]) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    schemas constant oid[] := array(
        select c.relnamespace from pg_catalog.pg_class c where c.oid = target
        union
        select pg_catalog.unnest(array[t.typnamespace, c.collnamespace]) from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid)
        left join pg_catalog.pg_collation c on c.oid = a.attcollation
        where a.attrelid = target and a.attname = any (columns));
    place   oid;
begin
    foreach place in array schemas loop
        continue when place is null or pg_catalog.has_schema_privilege('relay_reader', place, 'usage');
        begin
            execute pg_catalog.format('grant usage on schema %s to relay_reader', place::regnamespace);
        exception when insufficient_privilege then
            null;  -- and a role that may use it but not grant that gets a warning only
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

-- Revokes the right to read tables from relay_reader, except for tables that are still watched, or that lanes or extras
-- use.
create or replace function relay.revoke_reading(tables regclass[]) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    tab regclass;
begin
    for tab in
        select c.oid::regclass from pg_catalog.pg_class c where c.oid = any (tables)
        except
        (select w.target from relay.watches w union select l.target from relay.lane_tables l
         union select e.near from relay.extras e union select e.far from relay.extras e)
    loop
        begin
            execute pg_catalog.format('revoke select on %s from relay_reader', tab);
        exception when insufficient_privilege then
            null;  -- the role that granted it may revoke it
        end;
    end loop;
end
$$;

-- Locks tables and their partitions without blocking others for long. While a session waits for a lock, all later
-- requests for that table wait behind it. So each attempt gives up after a tenth of a second and lets the others proceed.
-- Attempts repeat until "patience" is over; then an error names the sessions that hold the table. Each attempt gets all
-- locks or none, because holding one lock while waiting for another would block everybody, too.
create or replace function relay.lock_tables(tables regclass[], mode text, patience interval) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '100ms'
as $$
declare
    until constant timestamptz := pg_catalog.clock_timestamp() + patience;
    tab   regclass;
begin
    loop
        begin
            for tab in select distinct t from pg_catalog.unnest(tables) t where t is not null order by t loop
                execute pg_catalog.format('lock table %s in %s mode', tab, mode);
            end loop;
            return;
        exception when lock_not_available then
            if pg_catalog.clock_timestamp() >= until then
                raise exception '% is in use by %, for more than %: nothing was changed; try again when it is over, '
                    'or give it more patience', tab, relay.holders(tab, mode), patience
                    using errcode = 'lock_not_available';
            end if;
        end;
        perform pg_catalog.pg_sleep(0.1 + 0.3 * (pg_catalog.date_part('microseconds', pg_catalog.clock_timestamp())::integer % 1000) / 1000.0);
    end loop;
end
$$;

-- Describes the processes that hold a lock on a table that conflicts with this mode; for "access share", also those that
-- wait for a lock that blocks all readers.
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

-- Whether all triggers of a watch exist as relay.create_triggers makes them, and are enabled in one of the given ways: O
-- in ordinary sessions, A also where logical replication applies changes. With "in_effect", partitions may lack the
-- trigger on TRUNCATE, which new partitions do not get by themselves: relay.shape detects that they were truncated.
create or replace function relay.triggers_enabled(watch integer, target regclass, ways text, in_effect boolean) returns boolean
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.bool_and(found.on_rows and (found.on_truncate or in_effect and p <> target))
    from relay.parts(target) p
    left join lateral (
        select coalesce(pg_catalog.bool_or(t.tgtype = 29), false) as on_rows,
               coalesce(pg_catalog.bool_or(t.tgtype = 32), false) as on_truncate
        from pg_catalog.pg_trigger t
        join pg_catalog.pg_proc f on f.oid = t.tgfoid
        where t.tgrelid = p and pg_catalog.strpos(ways, t.tgenabled::text) > 0
          and f.pronamespace = 'relay'::regnamespace
          and f.proname in ('journal_' || watch, 'journal_truncate')
          -- 29: after insert, update or delete, for each row; 32: after truncate, for each statement.
          and (t.tgname, t.tgtype) in (('relay_change', 29), ('relay_truncate', 32))
          -- Not limited to some columns or rows.
          and t.tgattr::text = '' and t.tgqual is null
    ) found on true
$$;

create or replace function relay.drop_triggers(target regclass) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    ours record;
begin
    for ours in
        select t.tgname, t.tgrelid::regclass as part
        from pg_catalog.pg_trigger t
        join pg_catalog.pg_proc f on f.oid = t.tgfoid
        where t.tgrelid in (select p from relay.parts(target) p)
          and f.pronamespace = 'relay'::regnamespace
          and t.tgname in ('relay_change', 'relay_truncate')
          -- A partition's row triggers are dropped with those of its parent.
          and t.tgparentid = 0
    loop
        execute pg_catalog.format('drop trigger %I on %s', ours.tgname, ours.part);
    end loop;
end
$$;

-- Uses row triggers, not statement triggers, because they also fire in logical replication and for direct writes to a
-- partition, and because a row that cannot be shown then affects no other row. "enable always" makes them fire on
-- replicas of logical replication. There is no "when (old.* is distinct from new.*)": Postgres would parse and compile it
-- for each statement, which costs more than it saves, so the function compares the rows. Triggers are replaced, not
-- dropped, because dropping one would block readers.
create or replace function relay.create_triggers(w relay.watches, said jsonb) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    part regclass;
    name text;
begin
    perform relay.note_purpose(pg_catalog.format('relay.journal_%s()', w.id), said);
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

-- The same for a table of lanes or of an extra: a trigger on rows, and one on TRUNCATE, whose arguments say what they are
-- for.
create or replace function relay.put_triggers(on_table regclass, name text, on_row text, on_truncate text, id integer, said jsonb) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    perform relay.note_purpose(on_row || '()', said);
    execute pg_catalog.format('create or replace trigger %I after insert or update or delete on %s for each row execute function %s()',
                              name, on_table, on_row);
    execute pg_catalog.format('create or replace trigger %I after truncate on %s for each statement execute function %s(%L, %L)',
                              name || '_truncate', on_table, on_truncate, id, said);
    execute pg_catalog.format('alter table %1$s enable always trigger %2$I, enable always trigger %3$I',
                              on_table, name, name || '_truncate');
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

-- A column as a watch stores it: its number and its name.
create or replace function relay.column_of(target regclass, col name) returns jsonb
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.jsonb_build_array(a.attnum, a.attname)
    from pg_catalog.pg_attribute a where a.attrelid = target and a.attname = col and not a.attisdropped
$$;

-- Drops the functions of watches that no longer exist, because dropping a table drops its triggers, but not their
-- functions. Functions of a table that exists are kept, because they record how it was watched. The daemon never calls
-- this, because a dump restores functions before their triggers.
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
        where f.pronamespace = 'relay'::regnamespace and f.proname ~ '^((journal|entry|place|lanes?)_[0-9]+|extra_[0-9]+(_far)?)$'
          and not exists (select from pg_catalog.pg_trigger t join pg_catalog.pg_proc j on j.oid = t.tgfoid
                          where j.pronamespace = f.pronamespace
                            and j.proname = case when f.proname ~ '^extra' then f.proname
                                            else case when f.proname ~ '^lane' then 'lanes_' else 'journal_' end
                                                 || pg_catalog.split_part(f.proname, '_', 2) end)
          and not exists (select from pg_catalog.unnest('{journal_truncate,lanes_truncate,extra_truncate}'::name[]) t
                          cross join lateral relay.statements(t) s
                          where pg_catalog.split_part(f.proname, '_', 2)
                              = coalesce(s.said ->> 'watch', s.said ->> 'lane_table', s.said ->> 'extra'))
    loop
        execute pg_catalog.format('drop function %s', orphan);
    end loop;
end
$$;

-- Raises an error, in one sentence, if tasks of a table may have the same ids as those of another on the same boards:
-- messages identify a task by its id alone. Two tables that number their rows will have the same ids sooner or later;
-- uuids differ. If two tasks have the same id nevertheless, their board is an error, see decode.py.
create or replace function relay.refuse_clash(wanted relay.watches) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    boards constant text := relay.board_kind(wanted);
    ids    constant text := relay.id_kind(wanted);
    other  regclass;
    remedy text;
begin
    select o.target into other from relay.watches o
    where o.target <> wanted.target and o.is_own and o.id_prefix is not distinct from wanted.id_prefix and not o.distinct_ids
      and relay.id_kind(o) = ids and relay.board_kind(o) = boards
    order by o.target::text limit 1;
    if other is null or ids = 'uuid' or wanted.distinct_ids then
        return;
    end if;
    -- With a schema for each tenant, tables have the same name, and their boards must not be merged.
    select case when t.relname = o.relname and coalesce(wanted.board_as, wanted.board_column) is not null
           then pg_catalog.format('board_as => %L, distinct_ids => true', pg_catalog.format('%L || (%s)::text',
                    n.nspname || '/', coalesce(wanted.board_as, pg_catalog.quote_ident(wanted.board_column))))
           else pg_catalog.format('id_prefix => %L', pg_catalog.concat(wanted.id_prefix, t.relname, '-')) end into remedy
    from pg_catalog.pg_class t
    join pg_catalog.pg_namespace n on n.oid = t.relnamespace
    join pg_catalog.pg_class o on o.oid = other
    where t.oid = wanted.target;
    raise exception 'tasks of % and % may have the same id on the same board, because their ids (%) and boards (%) are '
        'of the same kind: expected %; or distinct_ids => true, if you know that no two are the same', wanted.target, other, ids, boards, remedy
        using errcode = 'invalid_parameter_value';
end
$$;

-- Starts feeding a table, or changes how it is fed. If the table is watched already, omitted arguments keep their values.
-- With unchanged settings it takes no lock and changes nothing, except that it restores missing or disabled triggers,
-- covers new partitions, and records the table's new name.
--
-- Hidden columns never leave the database. Columns that are added later are shown, unless "shown" lists the columns to
-- show: then all others are hidden, whenever they are added. Columns are stored by number, so renaming one changes
-- nothing.
--
-- Takes SHARE ROW EXCLUSIVE on the table until the end of the transaction, so call it in a transaction of its own. That
-- lock does not block readers. Waits for it in short attempts (see relay.lock_tables), for "patience" in all.
create or replace function relay.watch(
    target       regclass,
    -- By default "id", "board_id" and "lane".
    id_column    name     default null,
    board_column name     default null,
    lane_column  name     default null,
    hidden       name[]   default null,
    -- "column [asc|desc] [nulls first|last]", ...; equal tasks are ordered by id. By default created_at, if there is such
    -- a column; '{}' or '{""}' for the id alone.
    order_by     text[]   default null,
    patience     interval default '30 seconds',
    -- The only columns to show, besides the id, the board and the lane; instead of "hidden".
    shown        name[]   default null,
    -- Which rows are tasks, such as "deleted_at is null and not is_draft"; '', the default, means all.
    filter       text     default null,
    -- Expressions instead of columns, such as "case when is_public then 'public' else 'team-' || team_id end".
    board_as     text     default null,
    lane_as      text     default null,
    -- A table that relay.lanes has declared: the lane is the id of one of its rows. If lanes have boards, a task's board
    -- is that of its lane.
    lanes        regclass default null,
    -- Instead of id_column, the columns of a key: the id is their values as text, joined by colons.
    key_columns  name[]   default null,
    -- A prefix of this table's ids, to keep them apart from those of other tables; the ids are then text.
    id_prefix    text     default null,
    -- Whether ids, boards and lanes are always text, for clients whose numbers cannot hold a bigint.
    as_text      boolean  default null,
    -- Whether you know that no other table has a task of the same id on the same board, when the relay cannot know it.
    distinct_ids boolean  default null
) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set quote_all_identifiers = off
    set lock_timeout = '2s'
as $$
declare
    current_watch relay.watches;
    wanted        relay.watches;
    col           name;
begin
    perform relay.one_at_a_time();
    select * into current_watch from relay.watches w where w.target = watch.target and w.is_own;
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
    wanted.distinct_ids := coalesce(watch.distinct_ids, current_watch.distinct_ids, false);
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
    wanted.order_by := pg_catalog.array_remove(coalesce(watch.order_by, current_watch.order_by, (
        select array['created_at'] from pg_catalog.pg_attribute a
        where a.attrelid = watch.target and a.attname = 'created_at' and not a.attisdropped), '{}'), '');
    perform relay.check_watch(wanted.target, wanted.key_columns, wanted.board_column, wanted.lane_column,
                              wanted.hidden, wanted.order_by);
    wanted.order_by := relay.order_named(wanted.target, relay.order_of(wanted.target, wanted.order_by), true);
    select a.attname into col
    from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid) and t.typname = 'bpchar'
    where a.attrelid = wanted.target and not a.attisdropped
      and a.attname in (wanted.id_column, wanted.board_column, wanted.lane_column);
    if col is not null and not wanted.as_text then
        raise exception 'relay.watch: column % of % is padded with blanks, as its type character demands: expected as_text => true, '
            'which leaves them out, or a column of type text', pg_catalog.quote_ident(col), wanted.target
            using errcode = 'datatype_mismatch';
    end if;
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
            'expected both to be integers, uuids, or text of collations that are deterministic', wanted.target, wanted.lanes using errcode = 'datatype_mismatch';
    end if;
    select e.task_column into col from relay.extras e
    where e.target = wanted.target and (e.task_column = any (wanted.hidden)
        or wanted.shown is not null and e.task_column <> all (
            array_remove(wanted.shown || wanted.key_columns || array[wanted.board_column, wanted.lane_column], null)));
    if col is not null then
        raise exception 'relay.watch: column % of % is what an extra is found by: expected it to be shown, or relay.drop_extra first',
            pg_catalog.quote_ident(col), wanted.target using errcode = 'invalid_parameter_value';
    end if;
    perform relay.require_owner(wanted.target);
    perform relay.refuse_clash(wanted);
    perform relay.grant_reading(wanted.target, array[wanted.board_column]);
    wanted.same := true;
    wanted.said := pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
        'filter', relay.expression(wanted.target, 'relay.watch: filter', 'boolean', wanted.filter),
        'board_as', relay.expression(wanted.target, 'relay.watch: board_as', 'text', wanted.board_as),
        'lane_as', relay.expression(wanted.target, 'relay.watch: lane_as', 'text', wanted.lane_as)));
    wanted.filter := relay.spelled(wanted.target, wanted.said -> 'filter', true);
    wanted.board_as := relay.spelled(wanted.target, wanted.said -> 'board_as', true);
    wanted.lane_as := relay.spelled(wanted.target, wanted.said -> 'lane_as', true);

    -- As the view will show it, which is also how it is compared.
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
       and row(current_watch.key_columns, current_watch.id_prefix, current_watch.as_text, current_watch.distinct_ids, current_watch.board_column, current_watch.lane_column,
               current_watch.hidden, current_watch.order_by, current_watch.filter, current_watch.board_as, current_watch.lane_as,
               current_watch.lanes, current_watch.watched_as, current_watch.shown)
           is not distinct from row(wanted.key_columns, wanted.id_prefix, wanted.as_text, wanted.distinct_ids, wanted.board_column, wanted.lane_column,
                                    wanted.hidden, wanted.order_by, wanted.filter, wanted.board_as, wanted.lane_as, wanted.lanes, wanted.watched_as, wanted.shown)
       and relay.triggers_enabled(current_watch.id, wanted.target, 'A', false)
    then
        perform relay.refresh();  -- the table may belong to another role now, see relay.makers_of_parts
        return;
    end if;

    perform relay.lock_tables(array[wanted.target], 'share row exclusive', patience);
    wanted.id := relay.new_id();
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
        'distinct_ids', case when wanted.distinct_ids then true end,
        'board', relay.column_of(wanted.target, wanted.board_column),
        'lane', relay.column_of(wanted.target, wanted.lane_column),
        'hidden', (select coalesce(pg_catalog.jsonb_agg(relay.column_of(wanted.target, h)), '[]')
                   from pg_catalog.unnest(wanted.hidden) h
                   join pg_catalog.pg_attribute a on a.attrelid = wanted.target and a.attname = h
                   where a.attgenerated <> 'v' and wanted.shown is null),
        'order_by', relay.order_of(wanted.target, wanted.order_by),
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

comment on function relay.watch(regclass, name, name, name, name[], text[], interval, name[], text, text, text, regclass, name[], text, boolean, boolean) is
    'Starts feeding a table. Example: select relay.watch(''public.tasks'', hidden => ''{secret}'')';

-- Stops feeding a table; its rows leave every board. Takes ACCESS EXCLUSIVE on the table and on those of its extras until
-- the end of the transaction, as dropping a trigger does, and waits for it as relay.watch does.
create or replace function relay.unwatch(target regclass, patience interval default '30 seconds') returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
    set lock_timeout = '2s'
as $$
declare
    current_watch relay.watches;
    tables        regclass[];
begin
    perform relay.one_at_a_time();
    select * into current_watch from relay.watches w where w.target = unwatch.target;
    -- If somebody has dropped one or both of the triggers, the functions still exist.
    if not found and not exists (
        select from pg_catalog.pg_trigger t join pg_catalog.pg_proc f on f.oid = t.tgfoid
        where t.tgrelid = unwatch.target and f.pronamespace = 'relay'::regnamespace and t.tgname = 'relay_change')
    then
        perform relay.remove_orphans();
        return;
    end if;
    tables := unwatch.target || array(select t from relay.extra_tables(unwatch.target) t);
    perform relay.require_owner(t) from pg_catalog.unnest(tables) t;
    perform relay.lock_tables(tables, 'access exclusive', patience);
    perform relay.drop_extra(e.target, e.name, patience) from relay.extras e where e.target = unwatch.target;
    perform relay.drop_triggers(unwatch.target);
    if current_watch.id is not null then
        perform relay.drop_functions(current_watch.id);
    end if;
    perform relay.revoke_reading(array[unwatch.target]);
    perform relay.remove_orphans();
    perform relay.journal_sync(null, 'watch_changed: unwatch');
end
$$;

comment on function relay.unwatch(regclass, interval) is 'Stops feeding a table. Does nothing if it is not watched.';
