-- Rights

do $$
declare
    own regclass;
begin
    perform relay.revoke_others();
    -- An event trigger may enable row security for every new table, and then only the owner could read these.
    for own in
        select c.oid from pg_catalog.pg_class c
        where c.relnamespace = 'relay'::regnamespace and c.relkind = 'r' and c.relrowsecurity
    loop
        execute pg_catalog.format('alter table %s disable row level security', own);
    end loop;
end
$$;

-- Gives roles the rights that they need, and replaces trigger functions of existing watches that do not fit, for example
-- after a restore.
do $$
begin
    perform relay.refresh();
    perform relay.remove_orphans();
end
$$;
