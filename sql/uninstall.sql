-- Removes the relay from the database: its triggers, then the schema "relay" and all that it made there.
--
-- Touches no user data. Safe to run twice. Takes ACCESS EXCLUSIVE on each watched table for a moment, in attempts of a
-- tenth of a second, so that nobody waits behind it for longer, and gives up after half a minute; nothing has changed
-- then, run it again at a quieter time.
-- If something of yours stands in the schema or depends on it, it says so and changes nothing.

begin;

set local lock_timeout = '3s';
set local client_min_messages = warning;

do $$
declare
    found   record;
    watched text;
    until   constant timestamptz := pg_catalog.clock_timestamp() + interval '30 seconds';
begin
    if pg_catalog.to_regnamespace('relay') is null then
        return;
    end if;

    -- All at once, or none: whoever waits for one while it holds another makes everybody wait.
    select pg_catalog.string_agg(distinct t.tgrelid::regclass::text, ', ') || ', relay.journal' into watched
    from pg_catalog.pg_trigger t
    join pg_catalog.pg_proc f on f.oid = t.tgfoid
    where f.pronamespace = pg_catalog.to_regnamespace('relay') and t.tgparentid = 0;
    while watched is not null loop
        begin
            set local lock_timeout = '100ms';
            execute 'lock table ' || watched || ' in access exclusive mode';
            exit;
        exception when lock_not_available then
            if pg_catalog.clock_timestamp() >= until then
                raise;
            end if;
        end;
        perform pg_catalog.pg_sleep(0.1 + 0.3 * pg_catalog.random());
    end loop;
    set local lock_timeout = '3s';

    for found in
        select t.tgname, t.tgrelid::regclass as target
        from pg_catalog.pg_trigger t
        join pg_catalog.pg_proc f on f.oid = t.tgfoid
        where f.pronamespace = pg_catalog.to_regnamespace('relay')
          and f.proname ~ '^journal_([0-9]+|truncate)$'
          and t.tgparentid = 0
    loop
        execute pg_catalog.format('drop trigger %I on %s', found.tgname, found.target);
    end loop;

    -- Whatever the installed version made; a view before the functions that it calls, these before their types.
    drop view if exists relay.watched;
    for found in
        select f.oid::regprocedure as signature
        from pg_catalog.pg_proc f
        where f.pronamespace = pg_catalog.to_regnamespace('relay')
          and (f.proname ~ '^journal_[0-9]+$' or f.proname in (
              'altered', 'awake_for', 'base_type', 'board', 'canary', 'changed', 'check_watch', 'close_slots',
              'create_triggers', 'drop_triggers', 'empty_slots', 'epoch', 'hold_tables', 'holders', 'images',
              'is_written', 'journal_body', 'journal_sync', 'journal_truncate', 'lock_slot', 'lock_table',
              'made_here', 'make_journal_function', 'may_read', 'narrow', 'next_slot', 'next_xid', 'order_parts',
              'parts', 'pause_if_full', 'paused', 'prune', 'require_read_committed', 'resume', 'resync', 'ring',
              'settle_in', 'shape', 'slot_bytes', 'stay_awake', 'stop_watch', 'triggers_complete', 'unseen_columns',
              'unwatch', 'vitals', 'watch', 'widest'))
    loop
        execute pg_catalog.format('drop function %s', found.signature);
    end loop;
    drop table if exists relay.journal, relay.watches, relay.horizon, relay.ticks, relay.epochs, relay.slots,
        relay.settings;
    drop sequence if exists relay.journal_seq, relay.slot, relay.pauses, relay.resumed, relay.awake;
    drop schema relay;
end
$$;

commit;
