-- Removes the relay from the database: its triggers, then the schema "relay" and all its objects.
--
-- Touches no user data. Safe to run twice; run it in one transaction. Takes ACCESS EXCLUSIVE on each watched table for a
-- moment, in attempts of a tenth of a second, so that nobody waits longer behind it. Gives up after half a minute without
-- having changed anything; then run it again at a quieter time. If one of your objects depends on the schema, it says so
-- and changes nothing. It removes what any version created. The roles relay_writer, relay_reader, relay_renderer and
-- relay_daemon stay, because other databases may use them, but lose their rights here.

do $$
declare
    ours    record;
    watched  text;
    strays   text;
    previous constant text := pg_catalog.current_setting('lock_timeout');
    messages constant text := pg_catalog.current_setting('client_min_messages');
    path     constant text := pg_catalog.current_setting('search_path');
    until    constant timestamptz := pg_catalog.clock_timestamp() + interval '30 seconds';
begin
    if pg_catalog.to_regnamespace('relay') is null then
        return;
    end if;
    -- Somebody may have created an operator that fits better; see install/path.sql.
    perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
    if not exists (select from pg_catalog.pg_class c where c.oid = pg_catalog.to_regclass('relay.journal')) then
        raise exception 'schema relay is not the relay''s: it has no table journal: nothing was removed'
            using errcode = 'invalid_schema_name';
    end if;

    -- Postgres would only say "permission denied".
    select pg_catalog.format(
        'nothing was removed: %s belongs to %s, and only its owner may drop its triggers: have %s', c.oid::regclass, c.relowner::regrole,
        case when (select r.rolsuper from pg_catalog.pg_roles r where r.oid = c.relowner) then 'a superuser run this'
        else pg_catalog.format('an administrator run: grant %s to %I', c.relowner::regrole, current_user) end) into strays
    from pg_catalog.pg_trigger t
    join pg_catalog.pg_proc f on f.oid = t.tgfoid
    join pg_catalog.pg_class c on c.oid = t.tgrelid
    where f.pronamespace = pg_catalog.to_regnamespace('relay') and t.tgparentid = 0
      and not pg_catalog.pg_has_role(c.relowner, 'usage')
    order by 1 limit 1;
    if strays is not null then
        raise exception '%', strays using errcode = 'insufficient_privilege';
    end if;

    -- Gets all locks or none, because holding one lock while waiting for another would block everybody.
    select pg_catalog.string_agg(distinct t.tgrelid::regclass::text, ', ') into watched
    from pg_catalog.pg_trigger t
    join pg_catalog.pg_proc f on f.oid = t.tgfoid
    join pg_catalog.pg_class c on c.oid = t.tgrelid
    where f.pronamespace = pg_catalog.to_regnamespace('relay') and t.tgparentid = 0
      and c.relnamespace <> pg_catalog.to_regnamespace('relay');
    while watched is not null loop
        begin
            perform pg_catalog.set_config('lock_timeout', '100ms', true);
            execute 'lock table ' || watched || ' in access exclusive mode';
            exit;
        exception when lock_not_available then
            if pg_catalog.clock_timestamp() >= until then
                select pg_catalog.string_agg(distinct pg_catalog.format('process %s (%s)', l.pid, coalesce(a.usename, a.backend_type)), ', ')
                into strays
                from pg_catalog.pg_locks l
                left join pg_catalog.pg_stat_activity a on a.pid = l.pid
                where l.granted and l.pid <> pg_catalog.pg_backend_pid()
                  and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = pg_catalog.current_database())
                  and l.relation in (
                      select coalesce(p.relid, t.tgrelid)
                      from pg_catalog.pg_trigger t
                      join pg_catalog.pg_proc f on f.oid = t.tgfoid
                      left join lateral pg_catalog.pg_partition_tree(t.tgrelid) p on true
                      where f.pronamespace = pg_catalog.to_regnamespace('relay'));
                raise exception '% is in use by %, for more than 30 seconds: nothing was removed; try again when it is over',
                    watched, coalesce(strays, 'others') using errcode = 'lock_not_available';
            end if;
        end;
        perform pg_catalog.pg_sleep(0.2);
    end loop;
    perform pg_catalog.set_config('lock_timeout', '3s', true);

    for ours in
        select t.tgname, t.tgrelid::regclass as target
        from pg_catalog.pg_trigger t
        join pg_catalog.pg_proc f on f.oid = t.tgfoid
        join pg_catalog.pg_class c on c.oid = t.tgrelid
        where f.pronamespace = pg_catalog.to_regnamespace('relay') and t.tgparentid = 0
          and c.relnamespace <> pg_catalog.to_regnamespace('relay')
    loop
        execute pg_catalog.format('drop trigger %I on %s', ours.tgname, ours.target);
    end loop;

    -- Objects of the relay in the schema are dropped with it. An object elsewhere that depends on the schema, or an
    -- object of others in it, must not be dropped.
    select pg_catalog.string_agg(distinct pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid), ', ') into strays
    from pg_catalog.pg_depend d
    left join pg_catalog.pg_rewrite w on d.classid = 'pg_catalog.pg_rewrite'::regclass and w.oid = d.objid
    left join pg_catalog.pg_class c on c.oid = coalesce(w.ev_class, case when d.classid = 'pg_catalog.pg_class'::regclass then d.objid end)
    left join pg_catalog.pg_proc p on d.classid = 'pg_catalog.pg_proc'::regclass and p.oid = d.objid
    where d.deptype = 'n'
      and coalesce(c.relnamespace, p.pronamespace) <> pg_catalog.to_regnamespace('relay')
      and (d.refobjid in (select o.oid from pg_catalog.pg_class o where o.relnamespace = pg_catalog.to_regnamespace('relay'))
           or d.refobjid in (select o.oid from pg_catalog.pg_proc o where o.pronamespace = pg_catalog.to_regnamespace('relay'))
           or d.refobjid in (select o.oid from pg_catalog.pg_type o where o.typnamespace = pg_catalog.to_regnamespace('relay')));
    if strays is not null then
        raise exception 'cannot remove schema relay, because this depends on it: %: drop that first; nothing was removed', strays
            using errcode = 'dependent_objects_still_exist';
    end if;
    select pg_catalog.string_agg(o.name, ', ') into strays
    from (
        select c.oid::regclass::text as name, c.relowner as owner
        from pg_catalog.pg_class c where c.relnamespace = pg_catalog.to_regnamespace('relay') and c.relkind <> 'i'
        union all
        select p.oid::regprocedure::text, p.proowner
        from pg_catalog.pg_proc p where p.pronamespace = pg_catalog.to_regnamespace('relay')
    ) o
    join pg_catalog.pg_roles r on r.oid = o.owner
    join pg_catalog.pg_namespace n on n.nspname = 'relay'
    where o.owner <> n.nspowner and r.rolname not in ('relay_writer', 'relay_reader', 'relay_renderer');
    if strays is not null then
        raise exception 'cannot remove schema relay, because other roles own objects in it: %: drop or move them first; nothing was '
            'removed', strays using errcode = 'dependent_objects_still_exist';
    end if;

    perform pg_catalog.set_config('client_min_messages', 'warning', true);
    drop schema relay cascade;
    perform pg_catalog.set_config('client_min_messages', messages, true);
    if exists (select from pg_catalog.pg_database d cross join lateral pg_catalog.aclexplode(d.datacl) a
               where d.datname = pg_catalog.current_database() and pg_catalog.pg_has_role(d.datdba, 'usage')
                 and a.grantee = (select r.oid from pg_catalog.pg_roles r where r.rolname = 'relay_daemon')) then
        execute pg_catalog.format('revoke connect on database %I from relay_daemon', pg_catalog.current_database());
    end if;
    if exists (select from pg_catalog.pg_roles r where r.rolname = 'relay_reader') then
        for ours in
            select distinct c.oid::regclass as object
            from pg_catalog.pg_class c
            cross join lateral pg_catalog.aclexplode(c.relacl) a
            where a.grantee = (select r.oid from pg_catalog.pg_roles r where r.rolname = 'relay_reader')
        loop
            execute pg_catalog.format('revoke all on %s from relay_reader', ours.object);
        end loop;
        for ours in
            select distinct n.oid::regnamespace as object
            from pg_catalog.pg_namespace n
            cross join lateral pg_catalog.aclexplode(n.nspacl) a
            where a.grantee = (select r.oid from pg_catalog.pg_roles r where r.rolname = 'relay_reader')
        loop
            execute pg_catalog.format('revoke all on schema %s from relay_reader', ours.object);
        end loop;
    end if;
    perform pg_catalog.set_config('lock_timeout', previous, true);
    perform pg_catalog.set_config('search_path', path, true);
end
$$;
