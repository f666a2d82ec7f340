-- Creates a tasks table, for databases that have none yet.
--
-- Safe to run twice: an existing table public.tasks, this one or yours, is left unchanged, and nobody waits for a lock.
-- Nothing here depends on the relay, and removing the relay leaves this table alone. Any table of your own will do as
-- well: see relay.watch in install.sql.

do $tasks$
declare
    path constant text := pg_catalog.current_setting('search_path');
    owner text;
begin
    if pg_catalog.to_regclass('public.tasks') is not null then
        return;
    end if;
    if not pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace('public')::oid, 'create') then
        raise exception '% may not create a table in schema public: have an administrator run: grant create on schema public to %',
            current_user, pg_catalog.quote_ident(current_user) using errcode = 'insufficient_privilege';
    end if;
    -- Somebody may have created an operator that fits better; see install/path.sql.
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    -- Its owner could replace it, and so run code as every role that writes the table.
    select r.rolname into owner
    from pg_catalog.pg_proc p join pg_catalog.pg_roles r on r.oid = p.proowner
    where p.oid = pg_catalog.to_regprocedure('public.tasks_set_updated_at()') and r.rolname <> current_user;
    if owner is not null then
        raise exception 'function public.tasks_set_updated_at() belongs to %, expected %: have it dropped or renamed',
            owner, current_user using errcode = 'duplicate_function';
    end if;

    create table public.tasks (
        id              text        primary key default 'task-' || pg_catalog.gen_random_uuid(),
        board_id        text        not null default 'default',
        title           text        not null check (title <> ''),
        description     text,
        lane            text        not null default 'backlog' check (lane <> ''),
        status          text,
        priority        text        not null default 'medium',
        estimated_hours numeric     check (estimated_hours >= 0),
        created_at      timestamptz not null default pg_catalog.now(),
        updated_at      timestamptz not null default pg_catalog.now()
    );

    comment on table public.tasks is 'Tasks on boards; each task stands in one lane of one board.';

    -- A board is read as a whole, in the order in which its tasks were created.
    create index tasks_board on public.tasks (board_id, created_at);

    -- The database sets updated_at, so that it is right for every writer: psql, an ORM, a bulk job.
    create or replace function public.tasks_set_updated_at() returns trigger
        language plpgsql
        set search_path = ''
    as $$
    begin
        new.updated_at := pg_catalog.now();
        return new;
    end
    $$;

    -- An update that changes nothing does not count as an update.
    create trigger tasks_set_updated_at
        before update on public.tasks
        for each row when (old operator(pg_catalog.*<>) new)
        execute function public.tasks_set_updated_at();
    perform pg_catalog.set_config('search_path', path, true);
end
$tasks$;
