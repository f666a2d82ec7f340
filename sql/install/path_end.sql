-- The search path as it was.
do $$
begin
    perform pg_catalog.set_config('search_path', pg_catalog.current_setting('pg_change_relay.search_path'), true);
end
$$;
do $$
begin
    if pg_catalog.current_setting('search_path') <> pg_catalog.current_setting('pg_change_relay.search_path') then
        perform pg_catalog.set_config('search_path', pg_catalog.current_setting('pg_change_relay.search_path'), false);
    end if;
end
$$;
