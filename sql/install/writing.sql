-- Writing: this runs inside the writer's transaction, so it must never fail

-- Pauses journalling when the file is full. A writer calls it about once in 32 kB of rows, since asking for the size
-- costs more than an entry; so by the time of the pause the file is larger by some 64 kB, ten times as much once in
-- 20,000 pauses, and by the row that was being written. The lock serializes changes of the control, and is held for this
-- moment only, for a subtransaction that fails lets go of its locks. Always returns true.
create or replace function relay.pause_if_full() returns boolean
    language plpgsql
    security definer
    set search_path = pg_catalog, pg_temp
as $$
declare
    bytes constant bigint := pg_catalog.pg_total_relation_size('relay.journal'::regclass);
begin
    -- Not from the view: a writer that had a lock on it would keep others from replacing it.
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

-- Notifies the relays that listen, but not while relays poll, nor when the server's notification queue fills up (a full
-- one fails commits), nor where two-phase commit is enabled (a transaction that has notified cannot be prepared).
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

-- Has the daemon read its boards again, with the reason: a word of docs/clients.md, then perhaps more for people. Needs
-- only the right to insert into the journal.
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
    if current_user <> 'relay_renderer' or pg_catalog.set_config('transaction_read_only', 'on', true) is null then
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

-- The careful way to make an entry. The trigger functions take it for wide rows, under other settings than those in which
-- images are made, and where the quick way failed. It makes each image by itself, so that one which cannot be made leaves
-- out only itself.
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

-- A column's value as text, in SQL. Not by a cast where the type is an enum, for its owner can make one.
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

-- Whether a row of a table is made of types of users: only then can making JSON of it run their code.
create or replace function relay.has_user_types(target regclass) returns boolean
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$ select exists (select from relay.types(target) t where t::oid >= 16384) $$;

-- Stands for the types of a table's columns. It is in each function that is made for a table: PL/pgSQL plans an expression
-- of a row once per session, and fails when a column has another type since; where the types have changed, the function
-- is another, and so is made again, and planned again.
create or replace function relay.types_stamp(target regclass) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select pg_catalog.md5(pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attnum, a.atttypid, a.atttypmod), ',' order by a.attnum))
    from pg_catalog.pg_attribute a where a.attrelid = target and a.attnum > 0 and not a.attisdropped
$$;

-- The body of the function that makes the entries of one watch. Generated, for a column can be named in PL/pgSQL only as it
-- is written: reading the id and the board out of the JSON image would cost more, and fails on JSON that holds \u0000.
-- The only columns it names are those and the hidden ones. If a later schema change renames or retypes one of them, the
-- block around them catches it: the writer goes on, the daemon learns of it, and has this made again (relay.refresh).
--
-- The role that runs users' code owns these functions, so that code could drop or alter them, those of other tables too.
-- So it runs where nothing can be written: in a block that catches errors, which is a subtransaction, the transaction is
-- read-only, and after it is not. No code can change that back within it.
--
-- Every writer pays for this code. PL/pgSQL prepares each expression in each transaction, which takes a
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
    guard text;
    col  name;
    old_row text := 'before';
    new_row text := 'after';
begin
    if relay.has_places(w) then
        return relay.placing_body(w);
    end if;
    said := pg_catalog.format('array[null, null, null, null, null, null, ''row_unreadable: relay.entry_%s must belong to '
                              'relay_renderer: run relay sql install'']', w.id);
    guard := E'\n        if current_user <> ''relay_renderer'' or pg_catalog.set_config(''transaction_read_only'', ''on'', true) is null then return '
             || said || '; end if;';
    if w.shown is not null then
        -- Columns that are not listed are removed before anything reads them, also those that come later.
        select pg_catalog.format('(select %1$I from (select %2$s) %1$I where op <> ''INSERT'')', s.alias, s.gone),
               pg_catalog.format('(select %1$I from (select %2$s) %1$I where op <> ''DELETE'')', s.alias, s.came)
        into old_row, new_row
        -- A column that had the row's alias as its name would be taken for the row.
        from (select 'row_' || pg_catalog.md5(w.shown::text) as alias,
                     pg_catalog.string_agg(pg_catalog.format('before.%I', c), ', ' order by n) as gone,
                     pg_catalog.string_agg(pg_catalog.format('after.%I', c), ', ' order by n) as came
              from pg_catalog.unnest(w.shown) with ordinality u (c, n)) s;
    elsif w.hidden <> '{}' then
        -- The value of a hidden column is removed before anything reads it, and is found under no other name.
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

    return '-- ' || relay.types_stamp(w.target) || pg_catalog.format($body$
#variable_conflict use_variable
begin
    -- "after" is null in a delete, "before" in an insert, and so is all that is taken from them.
    begin%2$s%3$s
        return case
            -- After a restore without owners, this would run users' code with the rights of the role that restored.
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
        hide, said, gone, came,
        -- Where types are a user's, each image is made by itself, for their code may do anything.
        case when relay.has_user_types(w.target) then 'false' else 'true' end,
        (select pg_catalog.string_agg(pg_catalog.format(E'\n                and pg_catalog.current_setting(%L) %s',
                                                        s.name, s.condition), '' order by s.name)
         from relay.settings_of(w.target) s),
        old_row, new_row, guard);
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
-- the empty one. In SQL, given the place, and names and values of extras, if there are any.
create or replace function relay.labelled(w relay.watches, place text, image text, extras text) returns text
    language sql
    stable
    set search_path = pg_catalog, pg_temp
as $$
    select case when made.said = '' then image
           else pg_catalog.format('''{"":'' || pg_catalog.json_build_object(%s)::text || '','' || pg_catalog.substr(%s, 2)',
                                  made.said, image) end
    from (select pg_catalog.concat_ws(', ', pg_catalog.string_agg(pg_catalog.format('%L, (%s)[%s]', e.name, place, e.n), ', ' order by e.n), extras) as said
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
    select '-- ' || relay.types_stamp(w.target) || pg_catalog.format($body$
begin
    if current_user <> 'relay_renderer' or pg_catalog.set_config('transaction_read_only', 'on', true) is null then
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

-- What relay.entry_body makes where rows have places. The places are computed before hidden values are removed.
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
    return '-- ' || relay.types_stamp(w.target) || pg_catalog.format($body$
#variable_conflict use_variable
declare
    was     text[];
    stands  text[];
    entry   text[];
    problem text;
    quick   boolean := %2$s;
begin
    if current_user <> 'relay_renderer' or pg_catalog.set_config('transaction_read_only', 'on', true) is null then
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
    -- A row that is no task has no image.
    before := case when was is not null then before end;
    after := case when stands is not null then after end;
    begin
        entry := case
            when quick and %6$s
                and coalesce(pg_catalog.pg_column_size(%10$s), 0) + coalesce(pg_catalog.pg_column_size(%11$s), 0) < 32768
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
        -- The types in an expression are not among the table's types.
        (select pg_catalog.string_agg(pg_catalog.format('pg_catalog.current_setting(%L) %s', s.name, s.condition), ' and ')
         from relay.settings_of(null) s),
        relay.place_of(w, 'before.'), relay.place_of(w, 'after.'), hide,
        case when relay.has_user_types(w.target) then 'false' else 'true' end,
        relay.labelled(w, 'was', 'entry[3]', null), relay.labelled(w, 'stands', 'entry[6]', null),
        -- Readers resolve the board of a lane.
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
                   -- The element type of an array is among the types.
                   or t.typcategory = 'A'))
$$;

-- True, in SQL; once in 32 kB of rows, it checks first whether the journal is full. The clock differs between the rows of
-- one statement, as the WAL's position does not.
create or replace function relay.has_room() returns text
    language sql
    immutable
    set search_path = pg_catalog, pg_temp
as $make$
    select '((pg_catalog.hashfloat8(pg_catalog.date_part(''epoch'', pg_catalog.clock_timestamp())) & 32767) '
           '>= coalesce(pg_catalog.pg_column_size(old), 0) + coalesce(pg_catalog.pg_column_size(new), 0) or relay.pause_if_full())'
$make$;

-- The body of the row trigger's function of one watch: it has the entry made without any right, and inserts it outside
-- the block that catches errors, for a block that writes would be a subtransaction with an id of its own. At high write
-- rates, an update that changes nothing makes an entry too, which cancels out: detecting it would cost all others more.
--
-- "return old" returns a variable and evaluates nothing; what a trigger after the fact returns does not matter.
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
    elsif pg_catalog.current_setting('max_prepared_transactions') <> '0' or pg_catalog.pg_notification_queue_usage() >= 0.5
        or pg_catalog.pg_notify('relay', '') is null
    then
        null;  -- as in relay.notify, for less: a bulk statement comes here with each row
    end if;
    insert into relay.journal (watch, entry) values (%1$s, relay.entry_%1$s(tg_op, old, new));
    return old;
end
$body$, w.id, relay.has_room())
    where not relay.has_places(w)
    union all
    -- Not every row is a task, nor every change one of a task.
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

-- Those who may make partitions of a table. Postgres asks them for the right to call the trigger function that a partition
-- then has too; they cannot make another trigger of it, for without a right on the schema they cannot name it.
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
    for maker in select m from relay.makers_of_parts(w.target) m loop
        execute pg_catalog.format('grant execute on function %s to %s', journal, maker);
    end loop;
    if relay.has_places(w) then
        execute pg_catalog.format('grant execute on function relay.place_%s(record) to relay_reader', w.id);
    end if;
end
$$;

-- The body of the row trigger's function of a table beside that of tasks: one of lanes, or one that an extra is made of. Given
-- the function that makes texts of a row, see relay.make_noting_functions, it notes where these have changed, with a word
-- for it. A row at which a filter fails is none to it, and is noted even so: an entry that says why, and touches nothing.
create or replace function relay.noting_body(id integer, reads text, op text, entry text, word text) returns text
    language sql
    immutable
    set search_path = pg_catalog, pg_temp
as $make$
    select pg_catalog.format($body$
declare
    was    text[];
    stands text[];
    kind   "char" := %3$L;
    reason text;
begin
    if relay.paused() then
        return null;
    end if;
    begin
        perform pg_catalog.set_config('transaction_read_only', 'on', true);  -- see relay.entry_body
        was := case when tg_op <> 'INSERT' then %2$s(old) end;
        stands := case when tg_op <> 'DELETE' then %2$s(new) end;
    exception when others or assert_failure then
        was := null;
        stands := null;
        kind := 'S';
        reason := 'row_unreadable: ' || pg_catalog.left(sqlerrm, 200);
    end;
    if was[1] is not null or stands[1] is not null then
        reason := pg_catalog.format('row_unreadable: a row of %%I.%%I is left out, for a filter fails at it: %%s',
                                    tg_table_schema, tg_table_name, coalesce(was[1], stands[1]));
        was := case when was[1] is null then was end;
        stands := case when stands[1] is null then stands end;
        kind := case when was is distinct from stands then kind else 'L' end;
    elsif reason is null and was is not distinct from stands then
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

-- Makes two functions for a table beside that of tasks. One makes texts of a row, without any right: behind a null those that
-- decide; or why there are none, where the row's own values make a filter fail; null if the row does not match it. The other
-- is that of its row trigger.
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
        'set search_path = pg_catalog, pg_temp as %L', notes, body);
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

-- Revokes every right here from every role but the relay's own: the role that installs may have default
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
          and not exists (select from relay.watches w cross join lateral relay.makers_of_parts(w.target) m
                          where o.name = pg_catalog.format('function relay.journal_%s()', w.id) and m = r.oid)
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
