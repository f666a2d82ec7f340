-- Rights

do $$
declare
    own regclass;
begin
    perform relay.revoke_others();
    -- An event trigger may switch it on for every new table, and then nobody but the owner can read them.
    for own in
        select c.oid from pg_catalog.pg_class c
        where c.relnamespace = 'relay'::regnamespace and c.relkind = 'r' and c.relrowsecurity
    loop
        execute pg_catalog.format('alter table %s disable row level security', own);
    end loop;
end
$$;

-- Roles get the rights that they need; and existing watches, as after a restore, trigger functions that fit them.
do $$
begin
    perform relay.refresh();
    perform relay.remove_orphans();
end
$$;
