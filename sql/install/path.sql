-- The search path while a file runs: only Postgres's own objects. An operator that somebody created in another schema may
-- fit two types better than Postgres's, and would run with the rights of the installing role.
do $$
begin
    perform pg_catalog.set_config('pg_change_relay.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
end
$$;
do $$
begin
    -- If each statement is a transaction of its own, local settings have ended.
    if pg_catalog.current_setting('search_path') <> 'pg_catalog, pg_temp' then
        perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
    end if;
end
$$;
