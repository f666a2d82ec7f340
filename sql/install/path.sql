-- The search path while a file runs: of Postgres's own objects alone. An operator that anybody made in another schema may fit
-- two types better than Postgres's, and would run with the rights of whoever installs.
do $$
begin
    perform pg_catalog.set_config('pg_change_relay.search_path', pg_catalog.current_setting('search_path'), false);
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
end
$$;
do $$
begin
    -- Where each statement is a transaction of its own, what is local has ended.
    if pg_catalog.current_setting('search_path') <> 'pg_catalog, pg_temp' then
        perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false);
    end if;
end
$$;
