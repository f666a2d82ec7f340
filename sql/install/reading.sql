-- Reading

-- How a type writes a board's name, which is given as text: an integer type writes '007' as '7', and 'abc' has no value.
-- For a domain, its base type decides, so that the domain's checks do not run. For an enum, its labels decide, because
-- its owner can create casts from and to text. A type that can contain users' code, such as a composite type of domains,
-- has no value: the column's owner may have changed the column to it since it was watched.
create or replace function relay.written(board text, typ regtype) returns text
    language plpgsql
    stable
    strict
    set search_path = pg_catalog, pg_temp
as $$
declare
    written text;
begin
    if exists (select from pg_catalog.pg_type t where t.oid = typ and t.typtype = 'e') then
        return (select e.enumlabel from pg_catalog.pg_enum e where e.enumtypid = typ and e.enumlabel = board);
    end if;
    if not exists (select from pg_catalog.pg_type t
                   where t.oid = typ and (t.typnamespace = 'pg_catalog'::regnamespace or t.typcategory = 'S')) then
        return null;
    end if;
    execute pg_catalog.format('select $1::%s::text', pg_catalog.format_type(typ, -1)) into written using board;
    return written;
exception when data_exception then
    return null;
end
$$;

-- The type of a watch's boards: that of its own column, or of the column in the table of its lanes. Null if an expression
-- determines the board.
create or replace function relay.board_type(w relay.watches) returns regtype
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select relay.base_type(a.atttypid)::regtype
    from (select w.target, w.board_column
          union all
          select l.target, l.board_column from relay.lane_tables l where l.target = w.lanes) c (target, board_column)
    join pg_catalog.pg_attribute a on a.attrelid = c.target and a.attname = c.board_column
$$;

-- The type that determines how the names of a watch's boards are written, if any.
create or replace function relay.written_as(w relay.watches) returns regtype
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    -- The value of an expression on a uuid is usually the uuid.
    select coalesce(relay.board_type(w), (select 'uuid'::regtype from pg_catalog.jsonb_array_elements(w.said -> 'board_as' -> 'uses') u
                                          where u ->> 2 = 'uuid' limit 1))
$$;

-- The equality operator of a type's own indexes: that of citext, for example, is not in pg_catalog.
create or replace function relay.equals(typ regtype) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select coalesce((
        select pg_catalog.format('operator(%I.%s)', n.nspname, o.oprname)
        from pg_catalog.pg_opclass c
        join pg_catalog.pg_am m on m.oid = c.opcmethod and m.amname = 'btree'
        join pg_catalog.pg_amop p on p.amopfamily = c.opcfamily and p.amoplefttype = typ and p.amoprighttype = typ and p.amopstrategy = 3
        join pg_catalog.pg_operator o on o.oid = p.amopopr
        join pg_catalog.pg_namespace n on n.oid = o.oprnamespace
        where c.opcintype = typ and c.opcdefault), '=')
$$;

-- The condition that finds the rows of a board by an index, in SQL, given the column that names the board, and its type. For
-- case-insensitive text it finds more rows. The board is a literal, because literals are not cast by functions of users. The
-- column is cast for domains, some of which have no operators. If an enum's owner has made implicit casts, Postgres may find
-- no operator, or theirs, so there is no such condition.
create or replace function relay.in_index(own_table text, col name, typ regtype, board text) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select case when exists (select from pg_catalog.pg_cast c join pg_catalog.pg_type t on t.oid = c.castsource
                             where t.oid = typ and t.typtype = 'e' and c.castcontext = 'i') then 'true'
           else pg_catalog.format('%1$s.%2$I::%4$s %5$s %3$L::%4$s', own_table, col, board, pg_catalog.format_type(typ, -1), relay.equals(typ)) end
$$;

-- Locks the tables that a board may have rows in, so that they are not truncated or rewritten before the transaction ends:
-- an older snapshot would see no rows in such a table. So the statement that reads must come after this one, to take a later
-- snapshot. The caller sets the lock timeout. Returns the watches, and whether their tables could be locked.
--
-- It is an error if a table cannot be locked or a right is missing, except for watches that the caller knows to have no
-- row on the board.
create or replace function relay.hold_tables(board text, absent integer[] default '{}')
    returns table (watch integer, held boolean)
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    patience constant text := pg_catalog.current_setting('lock_timeout');
    -- Read once: planning this takes longer than everything else here.
    watches  constant relay.watches[] := array(
        select w from relay.watches w
        where w.problem is null and (relay.board_type(w) is null or relay.written(hold_tables.board, relay.board_type(w)) = hold_tables.board));
    table_   record;
    locked   oid[] := '{}';
begin
    for table_ in
        select t.oid::regclass as name, t.needed
        from (
            select t.oid, pg_catalog.bool_or(w.id <> all (hold_tables.absent)) as needed, min(w.id) as first
            from pg_catalog.unnest(watches) w
            cross join lateral relay.tables_of(w) t (oid)
            group by t.oid
        ) t
        order by t.first, t.oid
    loop
        begin
            perform pg_catalog.set_config('lock_timeout', case when table_.needed then patience else '100ms' end, true);
            execute pg_catalog.format('lock table %s in access share mode', table_.name);
            if not table_.needed and relay.missing_right(table_.name) is not null then
                raise insufficient_privilege;  -- row security is on, which no lock says
            end if;
        exception when lock_not_available or insufficient_privilege then
            if table_.needed and sqlstate = '55P03' then
                raise exception '% is locked by %, for more than %', table_.name, relay.holders(table_.name, 'access share'),
                    patience using errcode = 'lock_not_available';
            elsif table_.needed then
                raise exception '%: %', table_.name, coalesce('boards are read by role relay_reader: ' || relay.missing_right(table_.name), sqlerrm)
                    using errcode = 'insufficient_privilege';
            end if;
            locked := locked || table_.name::oid;
        end;
    end loop;
    perform pg_catalog.set_config('lock_timeout', patience, true);
    return query
        select w.id, not exists (select from relay.tables_of(w) t where t = any (locked))
        from pg_catalog.unnest(watches) w;
end
$$;

-- Whether a row, whose alias is "lane", is a lane, in SQL.
create or replace function relay.lane_condition(l relay.lane_tables, careful boolean) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select case when careful and l.filter is not null then pg_catalog.format('(relay.lane_%s(lane.*))[3] is not null', l.id)
           else coalesce(relay.spelled(l.target, l.said -> 'filter', l.same, 'lane.'), 'true') end
$$;

-- The join of a watch's rows with the table of their lanes, whose alias is "lane", in SQL, given the lane of a row. With
-- "careful", a lane at which the filter fails is left out, instead of an error.
create or replace function relay.lane_join(w relay.watches, lane text, careful boolean) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    -- Columns with different collations can only be compared by naming one: that of the index.
    select pg_catalog.format('join only %1$s lane on lane.%2$I::%3$s = %4$s::%3$s%5$s and %6$s', l.target, l.id_column, comparable,
                             lane, case comparable when 'text' then pg_catalog.format(' collate %s', a.attcollation::regcollation) end,
                             relay.lane_condition(l, careful))
    from relay.lane_tables l
    join pg_catalog.pg_attribute a on a.attrelid = l.target and a.attname = l.id_column
    cross join relay.comparable(l.target, l.id_column) comparable
    where l.target = w.lanes
$$;

-- Keeps tables from being truncated, rewritten or altered until the end of the transaction. It is an error if they differ
-- from what the snapshot of the calling transaction shows. Since then, a column may have been given the name of another:
-- a query that was built from the snapshot would read it, and, if it is of another type, run its owner's code. The caller
-- sets the lock timeout.
create or replace function relay.hold_in_snapshot(tables regclass[]) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    tab regclass;
begin
    foreach tab in array tables loop
        execute pg_catalog.format('lock table %s in access share mode', tab);
    end loop;
    -- The catalog in this snapshot, and the current one.
    if exists (select from pg_catalog.unnest(tables) t cross join lateral relay.parts(t) p
               join pg_catalog.pg_class c on c.oid = p
               where c.relkind = 'r' and c.relfilenode <> pg_catalog.pg_relation_filenode(p))
        or exists (select from pg_catalog.unnest(tables) t
                   join pg_catalog.pg_attribute a on a.attrelid = t and a.attnum > 0 and not a.attisdropped
                   cross join lateral pg_catalog.pg_identify_object_as_address('pg_catalog.pg_class'::regclass, t, a.attnum) o
                   where o.object_names[3] is distinct from a.attname)
    then
        raise lock_not_available;
    end if;
end
$$;

-- The boards of places whose lanes are rows of a table, see relay.placing_body, in the snapshot of the calling transaction.
-- Places without a board are not returned. A watch whose lanes cannot be read, because their table is locked or has been
-- rewritten since that snapshot, has a row without a place.
create or replace function relay.resolve(watches integer[], places text[])
    returns table (watch integer, place text, board text)
    language plpgsql
    security definer
    set row_security = off
    set lock_timeout = '100ms'
    set search_path = pg_catalog, pg_temp
as $$
declare
    w     relay.watches;
    query text;
begin
    if current_user <> 'relay_reader' then
        raise exception 'relay.resolve belongs to %, expected relay_reader: run relay sql install', current_user
            using errcode = 'insufficient_privilege';
    end if;
    for w in select * from relay.watches s where s.problem is null and s.lanes is not null and s.id = any (watches) loop
        query := pg_catalog.format(
            'select $1, p.place, %s from (select p.place, p.place::json ->> 0 as board, p.place::json ->> 1 as lane '
            'from unnest($2, $3) p (watch, place) where p.watch = $1 offset 0) p ',
            (select coalesce(relay.as_text(l.target, l.board_column, 'lane.' || pg_catalog.quote_ident(l.board_column)), 'p.board')
             from relay.lane_tables l where l.target = w.lanes));
        begin
            perform relay.hold_in_snapshot(array[w.lanes]);
            begin
                return query execute query || relay.lane_join(w, 'p.lane', false) using w.id, watches, places;
            exception when data_exception or program_limit_exceeded then
                -- What has been returned so far is right, and is returned again.
                return query execute query || relay.lane_join(w, 'p.lane', true) using w.id, watches, places;
            end;
        exception when others then
            watch := w.id;
            place := null;
            board := null;
            return next;
        end;
    end loop;
    raise sqlstate 'RL003';
exception when sqlstate 'RL003' then
    return;  -- see relay.board
end
$$;

comment on function relay.resolve(integer[], text[]) is 'The boards of tasks that are found through their lanes.';

-- The lanes of a board in order, as JSON: the id and the name of each. Returns nothing if no table of lanes is declared for
-- it, not counting watches that are left out. With "careful", also returns each row at which the filter fails, as "!"
-- followed by JSON: its table, its id, and why.
create or replace function relay.lanes_of(board text, careful boolean, absent integer[]) returns setof text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    l        relay.lane_tables;
    typ      regtype;
    on_board text;
    its      json;
    listed   text;
begin
    for l in select * from relay.lane_tables t where t.problem is null
        and t.target in (select w.lanes from relay.watches w where w.id <> all (absent)) order by t.id
    loop
        typ := (select relay.base_type(a.atttypid) from pg_catalog.pg_attribute a where a.attrelid = l.target and a.attname = l.board_column);
        continue when typ is not null and relay.written(board, typ) is distinct from board;
        on_board := case when typ is null then 'true' else pg_catalog.format('%s and %s = %L collate "C"',
            relay.in_index('lane', l.board_column, typ, board),
            relay.as_text(l.target, l.board_column, 'lane.' || pg_catalog.quote_ident(l.board_column)), board) end;
        execute pg_catalog.format(
            'select pg_catalog.json_agg(pg_catalog.json_build_array(%s, %s) order by %slane.%I) from only %s lane where %s and %s',
            relay.as_text(l.target, l.id_column, 'lane.' || pg_catalog.quote_ident(l.id_column)),
            relay.as_text(l.target, l.name_column, 'lane.' || pg_catalog.quote_ident(l.name_column)),
            relay.order_clause(l.target, l.order_by, 'lane'),
            l.id_column, l.target, on_board, relay.lane_condition(l, careful)) into its;
        -- Join two JSON arrays.
        listed := coalesce(pg_catalog.left(listed, -1) || ',' || pg_catalog.substr(its::text, 2), listed, its::text);
        if careful and l.filter is not null then
            return query execute pg_catalog.format(
                'select ''!'' || pg_catalog.json_build_array(%L, %s, (relay.lane_%s(lane.*))[1]) from only %s lane '
                'where %s and (relay.lane_%3$s(lane.*))[1] is not null', l.target,
                relay.as_text(l.target, l.id_column, 'lane.' || pg_catalog.quote_ident(l.id_column)), l.id, l.target, on_board);
        end if;
    end loop;
    listed := coalesce(listed, case when not exists (select from relay.watches w where w.problem is null and w.lanes is null)
                                  then '[]' end);
    if listed is not null then
        return next listed;
    end if;
end
$$;

-- How the rows of a watch are read, in SQL: the tables, in which the row's alias is "row_of_table"; which rows are tasks;
-- and, for each task, the board and the image, with names and values of extras, if there are any. With "careful", the
-- image of a row that cannot be shown, for example because an expression fails at its values, is "!" followed by JSON:
-- its id, and why.
create or replace function relay.reading(
    w relay.watches, careful boolean, extras text, out rows text, out filter text, out board text, out task text
)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    has_places constant boolean := relay.has_places(w);
    guarded    constant boolean := careful and has_places;
    columns    text;
    row_name   text;
    lane       text;
    of_lane    text;
begin
    select pg_catalog.string_agg(pg_catalog.format('row_of_table.%I', a.attname), ', ' order by a.attnum) into columns
    from pg_catalog.pg_attribute a
    where a.attrelid = w.target and a.attnum > 0 and not a.attisdropped and a.attname <> all (w.hidden);
    -- No column may have the row's alias as its name, or it would be taken for the row.
    row_name := 'row_' || pg_catalog.md5(columns);

    select relay.as_text(l.target, l.board_column, 'lane.' || pg_catalog.quote_ident(l.board_column)) into of_lane
    from relay.lane_tables l where l.target = w.lanes and l.board_column is not null;
    lane := case when guarded then 'p.at[3]'
            else coalesce(relay.spelled(w.target, w.said -> 'lane_as', w.same, 'row_of_table.'),
                          'row_of_table.' || pg_catalog.quote_ident(w.lane_column)) end;
    board := coalesce(of_lane, relay.spelled(w.target, w.said -> 'board_as', w.same, 'row_of_table.'),
                      relay.as_text(w.target, w.board_column, 'row_of_table.' || pg_catalog.quote_ident(w.board_column)));
    filter := coalesce(relay.spelled(w.target, w.said -> 'filter', w.same, 'row_of_table.'), 'true');
    task := relay.labelled(w, 'p.at', 'i.image', extras);
    -- An expression may fail at any row. If a column names the board, such a row is reported as one of that board.
    if guarded then
        filter := 'true';
        board := case when of_lane is not null then pg_catalog.format('case when p.at[4] is null then %s end', of_lane)
                 when w.board_as is not null then 'p.at[2]'
                 else pg_catalog.format('case when p.at[4] is null then p.at[2] else %s end', board) end;
    end if;
    if careful then
        task := pg_catalog.format(
            'case when %1$s is null and pg_catalog.left(i.image, 1) <> ''!'' then %2$s '
            'else ''!'' || pg_catalog.json_build_array(%3$s, coalesce(%1$s, pg_catalog.substr(i.image, 2))) end',
            case when has_places then 'p.at[4]' else 'null' end, task, relay.id_of(w, 'row_of_table.'));
    end if;
    rows := pg_catalog.format(
        '%s %s row_of_table %s %s cross join lateral (select (select %s from (select %s) %s) as image) i',
        case when exists (select from pg_catalog.pg_class c where c.oid = w.target and c.relkind = 'r') then 'only' end, w.target,
        case when has_places then pg_catalog.format('cross join lateral (select %s as at offset 0) p', case
            when guarded then pg_catalog.format('relay.place_%s(row_of_table.*)', w.id) else relay.place_of(w, 'row_of_table.') end) end,
        relay.lane_join(w, lane, careful),
        pg_catalog.format(case when careful or relay.has_user_types(w.target) then 'relay.image(%s)' else 'pg_catalog.row_to_json(%s)::text' end, row_name),
        columns, row_name);
end
$$;

-- Every visible task of a board, in the order of its lanes, from the snapshot of the calling statement. Before them comes
-- a row without a watch that has the board's lanes, if lanes are declared. The function runs as relay_reader: a role that
-- may read boards does not need to read the tables and their hidden columns. With "careful", a row that cannot be shown
-- is "!" followed by JSON, its id and why, and affects nothing else. Tables with a problem are not shown, nor are
-- "absent" watches, because their tables are not locked.
--
-- If there is no task, no other table can have a board of this name, and the type of a table's boards writes the name
-- differently, as with a uuid in capitals, another row without a watch follows: the name as the type writes it, a text in
-- JSON.
create or replace function relay.board(board text, careful boolean default false, absent integer[] default '{}')
    returns table (watch integer, task text)
    language plpgsql
    stable
    security definer
    -- Make a policy that would filter rows an error, instead of silently leaving boards empty.
    set row_security = off
    set search_path = pg_catalog, pg_temp
    -- The same settings as for the journal's images.
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
    w         relay.watches;
    its       record;
    typ       regtype;
    own_table text;
    col       name;
    indexed   text;
    written   text;
    otherwise text;
    has_tasks boolean := false;
begin
    if current_user <> 'relay_reader' then
        raise exception 'relay.board belongs to %, expected relay_reader: run relay sql install', current_user
            using errcode = 'invalid_object_definition';
    end if;
    begin
        return query select null::integer, l from relay.lanes_of(board, careful, absent) l;
        for w in select s.* from relay.watches s where s.problem is null and s.id <> all (absent) order by s.id loop
            typ := relay.board_type(w);
            written := relay.written(board, relay.written_as(w));
            otherwise := coalesce(nullif(written, board), otherwise);
            continue when typ is not null and written is distinct from board;

            its := relay.reading(w, careful, relay.extras_of(w.target, 'row_of_table.', careful));
            -- The first condition finds the rows by an index, and the second is exact. An expression that may fail is only
            -- evaluated with "careful".
            select case when l.board_column is null then 'row_of_table' else 'lane' end, coalesce(l.board_column, w.board_column)
            into own_table, col from (select) one left join relay.lane_tables l on l.target = w.lanes;
            indexed := case
                when careful and relay.has_places(w) then 'true'
                when col is null then pg_catalog.format('%s = %L', its.board, board)
                else relay.in_index(own_table, col, typ, board) end;
            begin
                perform pg_catalog.set_config('transaction_read_only', 'on', true);  -- see relay.entry_body
                return query execute pg_catalog.format(
                    'select $1, %s from %s where %s and %s and %s = $2 collate "C" order by %s%s', its.task, its.rows, indexed, its.filter, its.board,
                    relay.order_clause(w.target, w.order_by, 'row_of_table'),
                    (select pg_catalog.string_agg(pg_catalog.format('row_of_table.%I', k.name), ', ' order by k.n)
                     from pg_catalog.unnest(w.key_columns) with ordinality k (name, n)))
                    using w.id, board;
                has_tasks := has_tasks or found;
            exception when others then
                raise exception '%: %', w.target,
                    coalesce('boards are read by role relay_reader: ' || relay.missing_right(w.target), sqlerrm)
                    using errcode = sqlstate;
            end;
        end loop;
        if otherwise is not null and not has_tasks and not exists (
            select from relay.watches s
            where coalesce(relay.written(board, relay.written_as(s)) = board, relay.written_as(s) is null)) then
            return query select null::integer, pg_catalog.to_json(otherwise)::text;
        end if;
        raise sqlstate 'RL003';
    -- The result is returned. What users' code has set in the reader's session is reset, because it could stop the feed
    -- for everybody.
    exception when sqlstate 'RL003' then
        return;
    when others then
        -- Users' code may have raised the error with a code that means to the daemon that more than a board has failed,
        -- so only the text is passed on.
        raise exception '%', sqlerrm
            using errcode = case when sqlstate ~ '^(08|22P05|25|28|3D|3F|42P17|53|57|58)' then 'XX000' else sqlstate end;
    end;
end
$$;

-- The query by which relay.touched reads tasks, in SQL: those of some boards, or of all. For keys of the far table, the
-- near one leads to the tasks.
create or replace function relay.touched_query(w relay.watches, e relay.extras, far boolean, careful boolean) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.format('select %s as key, %s as board, %s as task from %s%s where %s and %s and (%2$s) is not null '
                             'and ($2 is null or (%2$s) collate "C" = any ($2))',
                             touched.key, r.board, r.task, touched.tables, r.rows, touched.said, r.filter)
    from relay.reading(w, careful, relay.extra_of(e, 'row_of_table.', careful)) r
    cross join (select pg_catalog.format('row_of_table.%I::%s', e.task_column, relay.joinable(e.target, e.task_column)) as col,
                       relay.collation_of(e.target, e.task_column) as collated) task
    cross join lateral (
        select task.col || '::text' as key, '' as tables,
               pg_catalog.format('%s = any ($1::%s[])', task.col, relay.joinable(e.target, e.task_column)) as said where not far
        union all
        select 't.key',
               pg_catalog.format('(select distinct near.%1$I::text as key, near.%2$I::%3$s as at from only %4$s near '
                                 'where near.%1$I::%5$s = any ($1::%5$s[]) and %6$s) t cross join ',
                                 e.link_column, e.key_column, relay.joinable(e.near, e.key_column), e.near,
                                 relay.joinable(e.near, e.link_column), relay.extra_condition(e, false, careful, 'near')),
               pg_catalog.format('%s = t.at%s', task.col, task.collated) where far
    ) touched
$$;

-- The result of relay.touched, by such a query.
create or replace function relay.read_touched(w relay.watches, e relay.extras, query text, keys text[], boards text[])
    returns table (key text, watch integer, board text, task text, tasks bigint)
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
declare
    few  constant integer := 100;
    many boolean;
begin
    if boards is null then
        execute pg_catalog.format('select pg_catalog.count(*) > %s from (select from (%s) q limit %1$s + 1) q', few, query)
            using keys, boards into many;
    end if;
    if many then
        return query execute pg_catalog.format('select null, $3, q.board, null, pg_catalog.count(*) from (%s) q group by q.board', query)
            using keys, boards, w.id;
    else
        return query execute pg_catalog.format('select q.key, $3, q.board, q.task, null::bigint from (%s) q', query) using keys, boards, w.id;
    end if;
end
$$;

comment on function relay.board(text, boolean, integer[]) is 'The tasks of one board as subscribers see them.';

-- A text that can be sent to the daemon in UTF-8. In a database with another encoding, some texts cannot.
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

-- Whether a client may read a board, if the daemon is configured to ask (WS_MAY_READ). Replace this function as you like;
-- upgrades keep yours. "claims" are those of the client's token. If they name boards, the daemon has already compared them.
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
