-- Creates a login role for the daemon, with only the rights that it needs.
--
-- Run it after install.sql, and again after each upgrade. Safe to run twice: an existing role keeps its password and
-- everything else. A new role has no password, so it can log in only where pg_hba.conf requires none. Set one with
-- \password relay_daemon in psql, or with alter role relay_daemon password '...'.
--
-- The role reads boards through relay.board, which runs as relay_reader. So it needs no rights on your tables, cannot see
-- hidden columns, and can write nothing except through prune, resume, poll_for, probe and refresh. The journal, which it
-- reads, contains no hidden values either. uninstall.sql keeps the role; to remove it: drop role relay_daemon.

do $$
begin
    if not exists (select from pg_catalog.pg_roles r where r.rolname = 'relay_daemon') then
        if not exists (select from pg_catalog.pg_roles r
                       where r.rolname = current_user and (r.rolsuper or r.rolcreaterole)) then
            raise exception 'role relay_daemon is missing, and % may not create it: have an administrator run: '
                'create role relay_daemon login; then run this again', current_user using errcode = 'insufficient_privilege';
        end if;
        create role relay_daemon login;
    end if;
    -- Where connecting is reserved to some roles.
    if not pg_catalog.has_database_privilege('relay_daemon', pg_catalog.current_database(), 'connect') then
        begin
            execute pg_catalog.format('grant connect on database %I to relay_daemon', pg_catalog.current_database());
        exception when insufficient_privilege then
            null;  -- the database's owner may; until then, Postgres refuses the daemon and says why
        end;
    end if;
end
$$;

grant usage on schema relay to relay_daemon;

-- To follow the journal: its entries, its lower end, and whether it was full.
grant select on relay.entries, relay.horizon to relay_daemon;

-- What is watched, and the functions that these views call.
grant select on relay.watches, relay.watched, relay.lane_tables, relay.extras to relay_daemon;
grant execute on function relay.parts(regclass), relay.detaching(regclass), relay.tables_of(relay.watches), relay.extra_tables(regclass), relay.triggers_enabled(integer, regclass, text, boolean), relay.is_key(regclass, name[]), relay.pauses(),
    relay.polled_for(), relay.base_type(oid), relay.is_plain(oid), relay.spelled(regclass, jsonb, boolean, text), relay.label_named(jsonb, boolean),
    relay.outgrown(regclass, jsonb, boolean), relay.said(bytea), relay.statements(name), relay.column_named(regclass, jsonb, boolean),
    relay.comparable(regclass, name), relay.is_shown_as_text(regclass, name), relay.ordering(regclass, text[]), relay.order_parts(text),
    relay.order_named(regclass, jsonb, boolean), relay.is_usual_order(jsonb), relay.lost_order(regclass, text[]),
    relay.id_kind(relay.watches), relay.board_kind(relay.watches), relay.joinable(regclass, name),
    relay.columns_named(regclass, jsonb, boolean), relay.table_named(jsonb, boolean) to relay_daemon;
grant select on sequence relay.control to relay_daemon;

-- Functions that run with the rights of the schema's owner, or of relay_reader.
grant execute on function relay.version(), relay.place(), relay.epoch(), relay.shape(), relay.note_shape(), relay.refresh(), relay.restore_rights(), relay.hold_tables(text, integer[]),
    relay.board(text, boolean, integer[]), relay.resolve(integer[], text[]), relay.extra_values(integer, text[]), relay.touched(integer, boolean, text[], text[]), relay.readable(text), relay.poll_for(integer), relay.prune(interval, bigint), relay.resume(),
    relay.probe(text), relay.vitals(), relay.vacuum_holders(), relay.may_read(jsonb, text), relay.altered(),
    relay.widest(), relay.missing_right(regclass), relay.needed_rights() to relay_daemon;
