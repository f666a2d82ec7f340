-- A login role for the daemon, with the least rights it can do with.
--
-- Run it after install.sql, once more after each upgrade. Safe to run twice: a role that is there already keeps its
-- password and everything else. It has no password at first, so it can log in only where pg_hba.conf asks for
-- none; give it one with \password relay_daemon in psql, or alter role relay_daemon password '…'.
--
-- The role reads boards through relay.board, which runs as the schema's owner: so it needs no right on your tables,
-- and cannot see hidden columns, or write anything but what prune, resume, stay_awake and canary do. The journal, which it
-- reads, holds no hidden values either. uninstall.sql leaves the role: drop role relay_daemon.

begin;

set local lock_timeout = '3s';
set local client_min_messages = warning;

do $$
begin
    if not exists (select from pg_catalog.pg_roles r where r.rolname = 'relay_daemon') then
        create role relay_daemon login;
    end if;
end
$$;

grant usage on schema relay to relay_daemon;

-- What follows the journal: its entries, its lower end, whether it was full.
grant select on relay.journal, relay.horizon, relay.pauses to relay_daemon;

-- What is watched, and the functions that this view calls.
grant select on relay.watched to relay_daemon;
grant execute on function relay.parts(regclass), relay.triggers_complete(relay.watches),
    relay.unseen_columns(relay.watches) to relay_daemon;

-- What runs as the schema's owner.
grant execute on function relay.epoch(), relay.shape(), relay.hold_tables(), relay.board(text), relay.awake_for(),
    relay.stay_awake(integer), relay.prune(interval, bigint), relay.resume(), relay.canary(text), relay.vitals(),
    relay.may_read(jsonb, text), relay.altered(), relay.widest() to relay_daemon;

commit;
