-- What compose.yaml does to its database each time that it comes up; safe to run again.
--
-- Run by psql, for it is made of the files that a DBA runs. RELAY_PASSWORD becomes the password of the daemon's role.

\set ON_ERROR_STOP on
\set QUIET on
\getenv password RELAY_PASSWORD

\ir ../sql/tasks.sql
\ir ../sql/install.sql
\ir ../sql/roles.sql

select relay.watch('public.tasks');
alter role relay_daemon password :'password';
