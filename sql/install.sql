-- The relay's side of the database: the journal, the triggers that write it, and what the daemon reads.
--
-- Creates the schema "relay" and three roles, and touches nothing else. Feeding a table is a second step:
--
--     select relay.watch('public.tasks');
--
-- Safe to run twice: tables and data stay, functions are replaced. It has no transaction control, so that a migration
-- tool or "psql -1" can run it; run it in one transaction. The folder install/ has a file for each chapter; psql
-- includes them, and "relay sql print install" prints everything as one text.
--
-- Roles:
--   the installing role  owns the schema and the functions that housekeeping needs.
--   relay_writer         owns the trigger functions. It may insert into the journal, and nothing else.
--   relay_reader         owns the functions that read boards. It may read the watched tables, and nothing else.
--   relay_renderer       owns the functions that convert a row to JSON, because that can run code of a type's owner:
--                        a cast, or a domain's check. It has no rights at all. No other role renders a user's type.
--
-- Functions run with the search path "pg_catalog, pg_temp", not with an empty one: with that, Postgres searches the
-- temporary schema for types first, so that the caller of a SECURITY DEFINER function could substitute a type of its own.
-- All names except those of types and operators are qualified anyway.
--
-- All tables are unlogged. Their content is worthless after a crash, a failover or a restore, because continuity ends
-- there. So changes add nothing to the WAL, to backups, publications or standbys. What must survive a crash is in the
-- catalog: watches in the arguments of their triggers, the settings in a function.
--
-- Terms: a *change* is what happened to one row, a *board* is the group of rows with the same value in the board
-- column, and a *watch* says which columns of a table are the id, the board and the lane.

\ir install/path.sql
\ir install/schema.sql
\ir install/journal.sql
\ir install/epochs.sql
\ir install/watches.sql
\ir install/writing.sql
\ir install/watching.sql
\ir install/extras.sql
\ir install/lanes.sql
\ir install/reading.sql
\ir install/pruning.sql
\ir install/vitals.sql
\ir install/rights.sql
\ir install/path_end.sql
