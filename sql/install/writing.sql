-- Writing: this runs inside the writer's transaction, so it must never fail

-- Pauses journalling when the file is full. A writer calls it about once in 32 kB of rows, because reading the size costs
-- more than an entry. So the file exceeds the limit by some 64 kB, by ten times as much once in 20,000 pauses, and by the
-- row being written. The lock serializes changes of the control. It is held only for a moment, because a subtransaction
-- that fails releases its locks. A writer does not see what it logs. Always returns true.
create or replace function relay.pause_if_full() returns boolean
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
    set client_min_messages = warning
    set exit_on_error = off
as $$
declare
    bytes constant bigint := pg_catalog.pg_total_relation_size('relay.journal'::regclass);
begin
    -- Not from the view: a writer's lock on it would prevent its replacement.
    if bytes > (select greatest(s.stop_bytes, (select max(h.ceiling) from relay.horizon h)) from relay.configured() s) then
        lock table relay.horizon in share update exclusive mode nowait;
        if not relay.paused() then
            perform relay.set_control(true, relay.pauses() + 1, 0);
            raise log 'relay: the journal holds % bytes: journalling pauses until a relay finds room', bytes;
        end if;
        raise sqlstate 'RL003';
    end if;
    return true;
exception when others then
    return true;
end
$$;

-- Notifies the relays, except while they poll, if there is none, while the server's notification queue is filling up
-- (commits fail when it is full), or if two-phase commit is enabled (a transaction that has notified cannot be prepared).
create or replace function relay.notify() returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    if relay.polled_for() = 0 and relay.renewed_within(900) and pg_catalog.current_setting('max_prepared_transactions') = '0'
        and pg_catalog.pg_notification_queue_usage() < 0.5
    then
        perform pg_catalog.pg_notify('relay', '');
    end if;
end
$$;

-- Has the daemon read all boards again. The reason is one of docs/clients.md, and may continue with details for people.
-- Needs only the right to insert into the journal.
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

-- The image of a row, or "!" and why there is none. A row that is too large has none: as JSON, its text can be six times
-- as large, and a value of a gigabyte is an error. The limits exceed what readers accept (see docs/clients.md), whose JSON
-- of 4 MiB can be a text of 16: in an array of jsonb, a quotation mark has eight characters instead of two. Converting a
-- record to text runs only output functions. A row of 32 kB that is compressed has less than 8 MiB.
--
-- The block always fails, so that whatever users' code has set in the session is undone. Otherwise the owner of a type
-- could choose the search path of everybody who writes a row of it.
create or replace function relay.image(of_row record) returns text
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    image text;
    made  boolean := false;
begin
    if current_user <> 'relay_renderer' or pg_catalog.set_config('transaction_read_only', 'on', true) is null then
        return pg_catalog.concat('!relay.image belongs to ', current_user, ', expected relay_renderer: run relay sql install');
    end if;
    if pg_catalog.pg_column_size(of_row) > 32768
        and pg_catalog.octet_length(pg_catalog.textin(pg_catalog.record_out(of_row))) > 20971520
    then
        return '!the row is larger than 20 MiB';
    end if;
    image := pg_catalog.row_to_json(of_row)::text;
    made := true;
    raise sqlstate 'RL003';
exception when others or assert_failure then
    return case
        when not made then pg_catalog.concat('!', sqlstate, ' ', pg_catalog.left(sqlerrm, 200))
        when pg_catalog.octet_length(image) > 8388608 then '!its JSON is larger than 8 MiB'
        else image end;
end
$$;

-- The careful way to make an entry. Trigger functions use it for wide rows, if the session has other settings than those
-- in which images are made, and if the quick way failed. It makes each image separately, so that a failure leaves out one.
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

-- A column's value as text, in SQL. For an enum, not by a cast, because the enum's owner can create one.
create or replace function relay.as_text(target regclass, col name, expression text) returns text
    language plpgsql
    stable
    set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select case when t.typtype = 'e'
               then pg_catalog.format('case when %1$s is not null then pg_catalog.format(''%%s'', %1$s) end', expression)
               else pg_catalog.format('%s::text', expression) end
        from pg_catalog.pg_attribute a
        join pg_catalog.pg_type t on t.oid = relay.base_type(a.atttypid)
        where a.attrelid = target and a.attname = col and not a.attisdropped);
end
$$;

-- Whether a table has columns of user-defined types: only then can converting its rows to JSON run users' code.
create or replace function relay.has_user_types(target regclass) returns boolean
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$ select exists (select from relay.types(target) t where t::oid >= 16384) $$;

-- Identifies the types of a table's columns. Each function that is generated for a table contains it. PL/pgSQL plans an
-- expression on a row once per session, and fails if the type of a column changes after that. With the stamp, the function
-- changes whenever the types do, so it is replaced and planned again.
create or replace function relay.types_stamp(target regclass) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.md5(pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attnum, a.atttypid, a.atttypmod), ',' order by a.attnum))
    from pg_catalog.pg_attribute a where a.attrelid = target and a.attnum > 0 and not a.attisdropped
$$;

-- The body of the function that makes the entries of one watch. It is generated, because PL/pgSQL can only access a column
-- by a literal name: reading the id and the board from the JSON image would cost more, and fails on JSON that contains
-- \u0000. It names only these columns and the hidden ones. If a schema change renames or retypes one of them, the block
-- around them catches the error. Then the writer continues, and the daemon notices and regenerates this (relay.refresh).
--
-- The role that runs users' code owns these functions, so that code could drop or alter them, and those of other tables. So
-- the transaction is made read-only while that code runs: in a block that catches errors, which is a subtransaction, the
-- setting ends with the block, and no code can revert it before.
--
-- Every writer pays for this code. PL/pgSQL prepares each expression in each transaction, which takes a microsecond or two,
-- and as much again for five to ten functions and operators in it. An INSERT prepares its expressions for each row. So the
-- quick way is a single expression here, another in journal_body, and an INSERT that is as simple as possible.
--
-- Columns can have the names of variables, hence use_variable.
--
-- What catches errors has exit_on_error off: a session with that setting ends at any error, also at one that is caught.
create or replace function relay.entry_body(w relay.watches) returns text
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $make$
declare
    hide text := '';
    old_values text;
    new_values text;
    refusal text;
    guard text;
    col  name;
    old_row text := 'before';
    new_row text := 'after';
begin
    if relay.has_places(w) then
        return relay.placing_body(w);
    end if;
    refusal := pg_catalog.format('array[null, null, null, null, null, null, ''row_unreadable: relay.entry_%s must belong to '
                              'relay_renderer: run relay sql install'']', w.id);
    guard := E'\n        if current_user <> ''relay_renderer'' or pg_catalog.set_config(''transaction_read_only'', ''on'', true) is null then return '
             || refusal || '; end if;';
    if w.shown is not null then
        -- Columns that are not listed are removed before anything reads them, also those that are added later.
        select pg_catalog.format('(select %1$I from (select %2$s) %1$I where op <> ''INSERT'')', s.alias, s.of_old),
               pg_catalog.format('(select %1$I from (select %2$s) %1$I where op <> ''DELETE'')', s.alias, s.of_new)
        into old_row, new_row
        -- No column may have the row's alias as its name, or it would be taken for the row.
        from (select 'row_' || pg_catalog.md5(w.shown::text) as alias,
                     pg_catalog.string_agg(pg_catalog.format('before.%I', c), ', ' order by n) as of_old,
                     pg_catalog.string_agg(pg_catalog.format('after.%I', c), ', ' order by n) as of_new
              from pg_catalog.unnest(w.shown) with ordinality u (c, n)) s;
    elsif w.hidden <> '{}' then
        -- Values of hidden columns are removed before anything reads them.
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
    old_values := pg_catalog.format('before.%I::text, %s', w.id_column,
                             relay.as_text(w.target, w.board_column, pg_catalog.format('before.%I', w.board_column)));
    new_values := pg_catalog.format('after.%I::text, %s', w.id_column,
                             relay.as_text(w.target, w.board_column, pg_catalog.format('after.%I', w.board_column)));

    return '-- ' || relay.types_stamp(w.target) || pg_catalog.format($body$
#variable_conflict use_variable
begin
    -- In a delete, "after" and everything taken from it is null, and in an insert "before".
    begin%2$s%3$s
        return case
            -- After a restore without owners, this would run users' code with the rights of the restoring role.
            when current_user <> 'relay_renderer' or pg_catalog.set_config('transaction_read_only', 'on', true) is null then %4$s
            -- Rows that are not too wide. Images must not depend on the settings of the writer.
            when %7$s
                and coalesce(pg_catalog.pg_column_size(%9$s), 0) + coalesce(pg_catalog.pg_column_size(%10$s), 0) < 32768%8$s
            then array[%5$s, pg_catalog.row_to_json(%9$s)::text, %6$s, pg_catalog.row_to_json(%10$s)::text]
            else relay.entry(%5$s, %9$s, %6$s, %10$s) end;
    exception when others or assert_failure then
        begin%11$s%3$s
            return relay.entry(%5$s, %9$s, %6$s, %10$s);
        exception when others or assert_failure then
            return array[null, null, null, null, null, null,
                         pg_catalog.concat('row_unreadable: ', pg_catalog.left(sqlerrm, 200))];
        end;
    end;
end
$body$, w.id,
        -- Setting a column to null can run code, too.
        case when hide <> '' then guard else '' end,
        hide, refusal, old_values, new_values,
        -- With user-defined types, each image is made separately, because their code may do anything.
        case when relay.has_user_types(w.target) then 'false' else 'true' end,
        (select pg_catalog.string_agg(pg_catalog.format(E'\n                and pg_catalog.current_setting(%L) %s',
                                                        s.name, s.condition), '' order by s.name)
         from relay.settings_of(w.target) s),
        old_row, new_row, guard);
end
$make$;

-- If a watch has a filter, computes the id, the board or the lane, or has lanes that are rows of another table, each task
-- has a *place*: its id, its board and its lane as texts. A row that is not a task has none.
create or replace function relay.has_places(w relay.watches) returns boolean
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$ select w.said ?| array['filter', 'board_as', 'lane_as', 'lanes', 'key', 'prefix', 'as_text'] $$;

-- The id of a row as text, in SQL. Several columns are joined by colons; a colon or backslash in a value is escaped by a
-- backslash, so that different keys have different ids.
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

-- The place of a row, in SQL; the prefix is that of its columns.
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

-- Adds computed values to the image of a row that has a place, in SQL: as JSON under the empty key, which no column can
-- have. Given the place, and keys and values of extras, if there are any.
create or replace function relay.labelled(w relay.watches, place text, image text, extras text) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select case when made.computed = '' then image
           else pg_catalog.format('''{"":'' || pg_catalog.json_build_object(%s)::text || '','' || pg_catalog.substr(%s, 2)',
                                  made.computed, image) end
    from (select pg_catalog.concat_ws(', ', pg_catalog.string_agg(pg_catalog.format('%L, (%s)[%s]', e.name, place, e.n), ', ' order by e.n), extras) as computed
          from (values (1, w.said ?| array['key', 'prefix', 'as_text'], 'id'),
                       (2, w.said ? 'board_as' or w.said ? 'as_text' and w.board_column is not null, 'boardId'),
                       (3, w.said ?| array['lane_as', 'as_text'], 'lane')) e (n, is_computed, name)
          where e.is_computed) made
$$;

-- The careful way to compute a row's place: under the settings in which expressions are evaluated, whatever those of the
-- session are. If an expression fails, the row has no place, and a fourth text says why.
create or replace function relay.place_body(w relay.watches) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $make$
    select '-- ' || relay.types_stamp(w.target) || pg_catalog.format($body$
begin
    if current_user <> 'relay_renderer' or pg_catalog.set_config('transaction_read_only', 'on', true) is null then
        return array[null, null, null, pg_catalog.concat('relay.place_%1$s belongs to ', current_user,
                                                         ', expected relay_renderer: run relay sql install')];
    end if;
    return %2$s;
-- Errors that the values of this row cause. Others, such as a renamed column, are not the row's fault.
exception when data_exception or program_limit_exceeded then
    return array[null, null, null, pg_catalog.concat(sqlstate, ' ', pg_catalog.left(sqlerrm, 200))];
end
$body$, w.id, relay.place_of(w, 'of_row.'))
$make$;

-- What relay.entry_body makes if rows have places. Places are computed before hidden values are removed.
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
        select pg_catalog.format('(select %1$I from (select %2$s) %1$I where old_place is not null)', s.alias, s.of_old),
               pg_catalog.format('(select %1$I from (select %2$s) %1$I where new_place is not null)', s.alias, s.of_new)
        into old_row, new_row
        from (select 'row_' || pg_catalog.md5(w.shown::text) as alias,
                     pg_catalog.string_agg(pg_catalog.format('before.%I', c), ', ' order by n) as of_old,
                     pg_catalog.string_agg(pg_catalog.format('after.%I', c), ', ' order by n) as of_new
              from pg_catalog.unnest(w.shown) with ordinality u (c, n)) s;
    end if;
    return '-- ' || relay.types_stamp(w.target) || pg_catalog.format($body$
#variable_conflict use_variable
declare
    old_place text[];
    new_place text[];
    entry     text[];
    problem   text;
    quick     boolean := %2$s;
begin
    if current_user <> 'relay_renderer' or pg_catalog.set_config('transaction_read_only', 'on', true) is null then
        return array[null, null, null, null, null, null, pg_catalog.concat('row_unreadable: relay.entry_%1$s belongs to ',
                     current_user, ', expected relay_renderer: run relay sql install')];
    end if;
    if quick then
        begin
            if op <> 'INSERT' then old_place := %3$s; end if;
            if op <> 'DELETE' then new_place := %4$s; end if;
        exception when others or assert_failure then
            quick := false;
        end;
    end if;
    if not quick then
        old_place := case when op <> 'INSERT' then relay.place_%1$s(before) end;
        new_place := case when op <> 'DELETE' then relay.place_%1$s(after) end;
        problem := coalesce(old_place[4], new_place[4]);
        old_place := case when old_place[4] is null then old_place end;
        new_place := case when new_place[4] is null then new_place end;
    end if;
    if problem is null and old_place is null and new_place is null then
        return null;
    end if;%5$s
    if old_place = new_place and before operator(pg_catalog.*=) after then
        return null;
    end if;
    -- A row that is not a task has no image.
    before := case when old_place is not null then before end;
    after := case when new_place is not null then after end;
    begin
        entry := case
            when quick and %6$s
                and coalesce(pg_catalog.pg_column_size(%10$s), 0) + coalesce(pg_catalog.pg_column_size(%11$s), 0) < 32768
            then array[old_place[1], old_place[2], pg_catalog.row_to_json(%10$s)::text,
                       new_place[1], new_place[2], pg_catalog.row_to_json(%11$s)::text, null]
            else relay.entry(old_place[1], old_place[2], %10$s, new_place[1], new_place[2], %11$s) end;
    exception when others or assert_failure then
        entry := relay.entry(old_place[1], old_place[2], %10$s, new_place[1], new_place[2], %11$s);
    end;
    entry[3] := %7$s;
    entry[6] := %8$s;%9$s
    if problem is not null then
        entry[4] := coalesce(entry[4], entry[1], '?');  -- without an id, the whole entry would be unreadable
        entry[7] := coalesce(entry[7], 'row_unreadable: ' || problem);
    end if;
    return entry;
exception when others or assert_failure then
    return array[null, null, null, null, null, null, pg_catalog.concat('row_unreadable: ', pg_catalog.left(sqlerrm, 200))];
end
$body$, w.id,
        -- The types in an expression are not among the table's types.
        (select pg_catalog.string_agg(pg_catalog.format('pg_catalog.current_setting(%L) %s', s.name, s.condition), ' and ')
         from relay.settings_of(null) s),
        relay.place_of(w, 'before.'), relay.place_of(w, 'after.'), hide,
        case when relay.has_user_types(w.target) then 'false' else 'true' end,
        relay.labelled(w, 'old_place', 'entry[3]', null), relay.labelled(w, 'new_place', 'entry[6]', null),
        -- Readers resolve the board of a lane.
        case when w.said ? 'lanes' then $lanes$
    entry[2] := case when old_place is not null then pg_catalog.json_build_array(old_place[2], old_place[3])::text end;
    entry[5] := case when new_place is not null then pg_catalog.json_build_array(new_place[2], new_place[3])::text end;$lanes$ else '' end,
        old_row, new_row);
end
$make$;

-- The settings that the JSON of a table's rows depends on, and their required values. JSON has its own form for dates, but
-- not for ranges of dates. A type that is not listed here is assumed to depend on all settings.
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
                   -- The element type of an array is among the types.
                   or t.typcategory = 'A'))
$$;

-- True, in SQL. Once in 32 kB of rows, it first checks whether the journal is full. The clock serves as the random number,
-- because it differs between the rows of a statement.
create or replace function relay.has_room() returns text
    language sql
    immutable
    set search_path = pg_catalog, pg_temp
as $make$
    select '((pg_catalog.hashfloat8(pg_catalog.date_part(''epoch'', pg_catalog.clock_timestamp())) & 32767) '
           '>= coalesce(pg_catalog.pg_column_size(old), 0) + coalesce(pg_catalog.pg_column_size(new), 0) or relay.pause_if_full())'
$make$;

-- The body of the row trigger's function of one watch. The entry is made by a function without rights, and inserted outside
-- the block that catches errors, because a block that writes would be a subtransaction with an id of its own. At high write
-- rates, an update that changes nothing makes an entry, too, which cancels out: detecting it would cost all others more.
--
-- "return old" returns a variable without evaluating anything. The result of an AFTER trigger is ignored.
create or replace function relay.journal_body(w relay.watches) returns text
    language sql
    set search_path = pg_catalog, pg_temp
as $make$
    select pg_catalog.format($body$
begin
    -- While relays poll, as they do at high write rates, this is the only check. See relay.polled_for.
    if pg_catalog.abs(pg_catalog.pg_sequence_last_value('relay.control'::regclass)
           - pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1048576000) < 1048576000 and %2$s
    then
        null;
    elsif pg_catalog.pg_sequence_last_value('relay.control'::regclass) < 0 or old operator(pg_catalog.*=) new or not %2$s then
        return old;  -- journalling is paused, or nothing has changed
    elsif pg_catalog.pg_sequence_last_value('relay.control'::regclass)
            <= (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) - 900) * 1048576000
        or pg_catalog.current_setting('max_prepared_transactions') <> '0' or pg_catalog.pg_notification_queue_usage() >= 0.5
        or pg_catalog.pg_notify('relay', '') is null
    then
        null;  -- as relay.notify, but cheaper: a bulk statement does this for each row
    end if;
    insert into relay.journal (watch, entry) values (%1$s, relay.entry_%1$s(tg_op, old, new));
    return old;
end
$body$, w.id, relay.has_room())
    where not relay.has_places(w)
    union all
    -- Not every row is a task, and not every change concerns one.
    select pg_catalog.format($body$
declare
    entry text[] := case when not relay.paused() then relay.entry_%1$s(tg_op, old, new) end;
begin
    if entry is not null and %2$s then
        perform relay.notify();
        insert into relay.journal (watch, entry) values (%1$s, entry);
    end if;
    return old;
end
$body$, w.id, relay.has_room())
    where relay.has_places(w)
$make$;

-- The roles that create partitions of a table. Postgres requires them to have the right to call the trigger function, which
-- the partition gets, too. They cannot create other triggers with it: without rights on the schema, they cannot name it.
create or replace function relay.makers_of_parts(target regclass) returns setof regrole
    language sql
    stable
    rows 1
    set search_path = pg_catalog, pg_temp
as $$
    select distinct c.relowner::regrole from relay.parts(target) p join pg_catalog.pg_class c on c.oid = p and c.relkind = 'p'
$$;

create or replace function relay.make_functions(w relay.watches) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
declare
    entry   constant text := pg_catalog.format('relay.entry_%s(text, record, record)', w.id);
    journal constant text := pg_catalog.format('relay.journal_%s()', w.id);
    maker   regrole;
begin
    execute pg_catalog.format(
        'create or replace function relay.entry_%s(op text, before record, after record) returns text[] language plpgsql '
        'security definer set search_path = pg_catalog, pg_temp set exit_on_error = off as %L', w.id, relay.entry_body(w));
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
    for maker in select m from relay.makers_of_parts(w.target) m loop
        execute pg_catalog.format('grant execute on function %s to %s', journal, maker);
    end loop;
    if relay.has_places(w) then
        execute pg_catalog.format('grant execute on function relay.place_%s(record) to relay_reader', w.id);
    end if;
end
$$;

-- The body of the row trigger's function of a table of lanes or of an extra. "reads" is the function that makes texts of a
-- row, see relay.make_noting_functions; if these have changed, an entry is made. A row at which a filter fails counts as
-- absent, and causes an entry that says why and touches nothing.
create or replace function relay.noting_body(id integer, reads text, op text, entry text, word text) returns text
    language sql
    immutable
    set search_path = pg_catalog, pg_temp
as $make$
    select pg_catalog.format($body$
declare
    old_texts text[];
    new_texts text[];
    kind      "char" := %3$L;
    reason    text;
begin
    if relay.paused() then
        return null;
    end if;
    begin
        perform pg_catalog.set_config('transaction_read_only', 'on', true);  -- see relay.entry_body
        old_texts := case when tg_op <> 'INSERT' then %2$s(old) end;
        new_texts := case when tg_op <> 'DELETE' then %2$s(new) end;
    exception when others or assert_failure then
        old_texts := null;
        new_texts := null;
        kind := 'S';
        reason := 'row_unreadable: ' || pg_catalog.left(sqlerrm, 200);
    end;
    if old_texts[1] is not null or new_texts[1] is not null then
        reason := pg_catalog.format('row_unreadable: a row of %%I.%%I is left out, for a filter fails at it: %%s',
                                    tg_table_schema, tg_table_name, coalesce(old_texts[1], new_texts[1]));
        old_texts := case when old_texts[1] is null then old_texts end;
        new_texts := case when new_texts[1] is null then new_texts end;
        kind := case when old_texts is distinct from new_texts then kind else 'L' end;
    elsif reason is null and old_texts is not distinct from new_texts then
        return null;
    end if;
    -- Once in 256 times, see relay.has_room.
    if pg_catalog.hashfloat8(pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())) & 255 = 0 then
        perform relay.pause_if_full();
    end if;
    insert into relay.journal (watch, op, entry, reason) values (%1$s, kind, array[%4$s], coalesce(reason, %5$L));
    perform relay.notify();
    return null;
end
$body$, id, reads, op, entry, word)
$make$;

-- Makes two functions for a table of lanes or of an extra. One, without rights, makes texts of a row: null followed by the
-- relevant values; or why there are none, if the row's own values make a filter fail; or null, if the row does not match
-- the filter. The other is that of the row trigger.
create or replace function relay.make_noting_functions(reads text, row_body text, notes text, body text) returns void
    language plpgsql
    set search_path = pg_catalog, pg_temp
as $$
begin
    execute pg_catalog.format(
        'create or replace function %s(of_row record) returns text[] language plpgsql '
        'security definer set search_path = pg_catalog, pg_temp set timezone = ''UTC'' set datestyle = ''ISO, MDY'' '
        'set extra_float_digits = 1 as %L', reads, row_body);
    execute pg_catalog.format(
        'create or replace function %s() returns trigger language plpgsql security definer '
        'set search_path = pg_catalog, pg_temp set exit_on_error = off as %L', notes, body);
    perform relay.give((reads || '(record)')::regprocedure, 'relay_renderer');
    perform relay.give((notes || '()')::regprocedure, 'relay_writer');
    perform relay.revoke_others();
    execute pg_catalog.format('grant execute on function %s(record) to relay_writer, relay_reader', reads);
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

-- Revokes all rights on the relay's objects from roles other than its own, because the installing role may have default
-- privileges that grant rights to others.
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
          and not exists (select from relay.watches w cross join lateral relay.makers_of_parts(w.target) m
                          where o.name = pg_catalog.format('function relay.journal_%s()', w.id) and m = r.oid)
        group by o.name
    loop
        execute pg_catalog.format('revoke all on %s from %s cascade', object, grantees);
    end loop;
end
$$;

-- Gives a function to another role, which needs the right to create in the schema for that moment.
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
