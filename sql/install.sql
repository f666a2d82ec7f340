-- The relay's side of the database: the journal, the triggers that write it, and what the daemon reads.
--
-- Creates the schema "relay" and touches nothing outside it but three roles. Feeding a table is a second step:
--
--     select relay.watch('public.tasks');
--
-- Safe to run twice: tables and data stay, functions are replaced. It has no transaction control, so that a migration
-- tool or "psql -1" can run it; run it in one transaction. A file for each chapter is in install/; psql
-- includes them, and "relay sql print install" prints all as one text.
--
-- Roles:
--   the installing role  owns the schema and the functions that housekeeping needs.
--   relay_writer         owns the trigger functions. It may insert into the journal, and nothing else.
--   relay_reader         owns the functions that read boards. It may read the watched tables, and nothing else.
--   relay_renderer       owns the functions that make JSON of a row, for that can run code of the owner of a type in it:
--                        a cast, a domain's check. It has no right at all. No other role renders a user's type.
--
-- Functions run with the search path "pg_catalog, pg_temp", not the empty one: under that, a temporary schema comes
-- first where types are resolved, so that the caller of a SECURITY DEFINER function could slip a type of its own
-- into it. All names but those of types and operators are qualified nevertheless.
--
-- All tables are unlogged. Their content is worthless after a crash, a failover or a restore, since continuity ends
-- there. So no change costs WAL, and backups, publications and standbys hold none of it. What must survive a crash is
-- in the catalog: a watch in the arguments of its triggers, the settings in a function.
--
-- Words: a *change* is what happened to one row, a *board* is the group of rows that share the value of the board
-- column, a *watch* says which columns of a table are the id, the board and the lane.

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
