-- Rights

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

-- The needs of the trigger functions: to insert, to read the control, and their helpers.
grant insert on relay.journal to relay_writer;
grant select on sequence relay.control to relay_writer;
grant execute on function relay.journal_sync(integer, text), relay.notify(), relay.polled_for(), relay.pauses(),
    relay.paused() to relay_writer;
grant execute on function relay.pause_if_full() to relay_writer;

-- A function that makes JSON of a row calls others that do.
grant execute on function relay.entry(text, text, record, text, text, record), relay.image(record) to relay_renderer;

-- The needs of the functions that read boards.
grant select on relay.watches, relay.lane_tables, relay.extras to relay_reader;
grant execute on function
    relay.parts(regclass), relay.types(regclass), relay.has_user_types(regclass), relay.base_type(oid),
    relay.is_plain(oid), relay.spelled(regclass, jsonb, boolean, text), relay.label_named(jsonb, boolean), relay.outgrown(regclass, jsonb, boolean),
    relay.said(bytea), relay.statements(name), relay.column_named(regclass, jsonb, boolean), relay.comparable(regclass, name),
    relay.is_shown_as_text(regclass, name), relay.lane_join(relay.watches, text, boolean), relay.lane_condition(relay.lane_tables, boolean), relay.lanes_of(text, boolean, integer[]),
    relay.board_type(relay.watches), relay.written_as(relay.watches), relay.id_of(relay.watches, text), relay.has_places(relay.watches), relay.place_of(relay.watches, text), relay.labelled(relay.watches, text, text, text),
    relay.as_text(regclass, name, text), relay.equals(regtype), relay.in_index(text, name, regtype, text), relay.order_parts(text), relay.order_named(regclass, jsonb, boolean), relay.is_usual_order(jsonb),
    relay.ordering(regclass, text[]), relay.lost_order(regclass, text[]), relay.order_clause(regclass, text[], text), relay.written(text, regtype), relay.image(record),
    relay.holders(regclass, text), relay.missing_right(regclass), relay.tables_of(relay.watches), relay.reading(relay.watches, boolean, text),
    relay.joinable(regclass, name), relay.collation_of(regclass, name), relay.columns_named(regclass, jsonb, boolean),
    relay.table_named(jsonb, boolean), relay.extra_tables(regclass), relay.camel_case(text), relay.shown_value(regclass, name, text),
    relay.readable(text), relay.extra_function(integer, boolean), relay.extra_condition(relay.extras, boolean, boolean, text),
    relay.extra_value(relay.extras, text, boolean), relay.extra_of(relay.extras, text, boolean), relay.extras_of(regclass, text, boolean),
    relay.hold_in_snapshot(regclass[]), relay.touched_query(relay.watches, relay.extras, boolean, boolean),
    relay.read_touched(relay.watches, relay.extras, text, text[], text[])
    to relay_reader;

-- Existing watches, as after a restore, get trigger functions that fit them.
do $$
begin
    perform relay.refresh();
    perform relay.remove_orphans();
end
$$;
