-- Roles and schema

-- Made before it is checked: somebody else could make it in between.
do $$
begin
    if pg_catalog.to_regnamespace('relay') is not null then
        return;
    end if;
    if not pg_catalog.has_database_privilege(pg_catalog.current_database(), 'create') then
        raise exception '% may not create a schema in this database: have an administrator run: grant create on database % to %',
            current_user, pg_catalog.quote_ident(pg_catalog.current_database()), pg_catalog.quote_ident(current_user)
            using errcode = 'insufficient_privilege';
    end if;
    create schema relay;
end
$$;

-- Refuses objects that others made under the relay's names: they would run with its rights.
do $$
declare
    me      constant text := current_user;
    name    text;
    foreign_object text;
    grantor text;
    owns    boolean;
begin
    if pg_catalog.current_setting('restrict_nonsystem_relation_kind', true) ~ 'view' then
        raise exception 'views cannot be read here, because restrict_nonsystem_relation_kind is ''%'': run this first, in the same '
            'session: set restrict_nonsystem_relation_kind = ''''', pg_catalog.current_setting('restrict_nonsystem_relation_kind')
            using errcode = 'object_not_in_prerequisite_state';
    end if;

    select r.rolname into foreign_object
    from pg_catalog.pg_namespace n join pg_catalog.pg_roles r on r.oid = n.nspowner
    where n.nspname = 'relay';
    if foreign_object is null then
        raise exception 'schema relay was dropped meanwhile: run this again' using errcode = 'duplicate_schema';
    elsif foreign_object <> me then
        raise exception 'schema relay belongs to %, expected %: if % installed the relay, run this as that role '
            '(set role %); otherwise have the schema renamed or dropped', foreign_object, me, foreign_object,
            pg_catalog.quote_ident(foreign_object) using errcode = 'duplicate_schema';
    end if;

    foreach name in array array['relay_writer', 'relay_reader', 'relay_renderer'] loop
        if not exists (select from pg_catalog.pg_roles r where r.rolname = name) then
            -- It cannot have been dropped while it owns functions here. These functions are the relay's own only where the
            -- relay is installed; elsewhere, somebody else may have made functions of these names.
            select r.rolname into foreign_object
            from pg_catalog.pg_proc p join pg_catalog.pg_roles r on r.oid = p.proowner
            where r.rolname <> me and not r.rolcanlogin
              and p.oid = pg_catalog.to_regprocedure(case name when 'relay_writer' then 'relay.journal_truncate()'
                  when 'relay_reader' then 'relay.board(text, boolean, integer[])' else 'relay.image(record)' end)
              and exists (select from pg_catalog.pg_proc v where v.oid = pg_catalog.to_regprocedure('relay.version()')
                          and v.proowner = (select o.oid from pg_catalog.pg_roles o where o.rolname = me));
            if foreign_object is not null then
                raise exception 'role % is missing, and % owns its functions: if it was renamed, have an administrator run: '
                    'alter role % rename to %', name, foreign_object, pg_catalog.quote_ident(foreign_object), name
                    using errcode = 'undefined_object';
            end if;
            if not exists (select from pg_catalog.pg_roles r
                           where r.rolname = me and (r.rolsuper or r.rolcreaterole)) then
                raise exception 'role % is missing, and % may not create it: have an administrator run: %; '
                    'grant relay_writer, relay_reader, relay_renderer to %; then run this again', name, me,
                    (select pg_catalog.string_agg('create role ' || n, '; ')
                     from pg_catalog.unnest(array['relay_writer', 'relay_reader', 'relay_renderer']) n
                     where not exists (select from pg_catalog.pg_roles r where r.rolname = n)),
                    pg_catalog.quote_ident(me) using errcode = 'insufficient_privilege';
            end if;
            execute pg_catalog.format('create role %I nologin', name);
        end if;
        if exists (select from pg_catalog.pg_roles r where r.rolname = name
                   and (r.rolcanlogin or r.rolsuper or r.rolcreaterole or r.rolcreatedb or r.rolreplication)) then
            raise exception 'role % exists with more rights than the relay may have: expected no login and no '
                'attributes: alter role % nologin nosuperuser nocreaterole nocreatedb noreplication', name, name
                using errcode = 'duplicate_object';
        end if;
        -- Since Postgres 16, a grant is revoked as the role that made it.
        select r.rolname, case when pg_catalog.current_setting('server_version_num')::integer >= 160000
                          then pg_catalog.format(' granted by %s', m.grantor::regrole) end into foreign_object, grantor
        from pg_catalog.pg_auth_members m
        join pg_catalog.pg_roles r on r.oid = m.member
        where m.roleid = (select o.oid from pg_catalog.pg_roles o where o.rolname = name)
          and r.rolname <> me and not r.rolsuper and not r.rolcreaterole limit 1;
        if foreign_object is not null then
            raise exception 'role % has the member %, which could act as it: if % installed the relay in another '
                'database, install it here as the same role; otherwise have an administrator run: revoke % from %', name,
                foreign_object, foreign_object, name, pg_catalog.concat(pg_catalog.quote_ident(foreign_object), grantor)
                using errcode = 'duplicate_object';
        end if;
        select r.rolname, case when pg_catalog.current_setting('server_version_num')::integer >= 160000
                          then pg_catalog.format(' granted by %s', m.grantor::regrole) end into foreign_object, grantor
        from pg_catalog.pg_auth_members m
        join pg_catalog.pg_roles r on r.oid = m.roleid
        where m.member = (select o.oid from pg_catalog.pg_roles o where o.rolname = name) limit 1;
        if foreign_object is not null then
            raise exception 'role % is a member of %, whose rights it must not have: have an administrator run: revoke % from %',
                name, foreign_object, pg_catalog.quote_ident(foreign_object), pg_catalog.concat(name, grantor)
                using errcode = 'duplicate_object';
        end if;
        if name <> 'relay_reader' then
            select pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid), d.deptype = 'o' into foreign_object, owns
            from pg_catalog.pg_shdepend d
            left join pg_catalog.pg_class c on d.classid = 'pg_catalog.pg_class'::regclass and c.oid = d.objid
            left join pg_catalog.pg_proc p on d.classid = 'pg_catalog.pg_proc'::regclass and p.oid = d.objid
            where d.refclassid = 'pg_catalog.pg_authid'::regclass
              and d.refobjid = (select o.oid from pg_catalog.pg_roles o where o.rolname = name)
              and d.dbid = (select b.oid from pg_catalog.pg_database b where b.datname = pg_catalog.current_database())
              and coalesce(c.relnamespace, p.pronamespace, d.objid)
                  is distinct from coalesce(pg_catalog.to_regnamespace('relay')::oid, 0) limit 1;
            if foreign_object is not null then
                raise exception 'role % % %, but users'' code could run as it: expected nothing: %', name,
                    case when owns then 'owns' else 'has a right on' end, foreign_object,
                    case when owns then 'drop it, or give it to another role'
                         else pg_catalog.format('revoke all on %s from %s', foreign_object, name) end
                    using errcode = 'duplicate_object';
            end if;
        end if;
        -- Giving functions to a role requires membership in it.
        if not pg_catalog.pg_has_role(me, name, 'usage') then
            begin
                execute pg_catalog.format('grant %I to %I', name, me);
            exception when insufficient_privilege then
                raise exception '% is not a member of role %: have an administrator run: grant relay_writer, relay_reader, '
                    'relay_renderer to %', me, name, pg_catalog.quote_ident(me) using errcode = 'insufficient_privilege';
            end;
        end if;
    end loop;

    select o.kind || ' ' || o.name || ' belongs to ' || r.rolname into foreign_object
    from (
        select 'relation' as kind, 'relay.' || c.relname as name, c.relowner as owner
        from pg_catalog.pg_class c where c.relnamespace = pg_catalog.to_regnamespace('relay') and c.relkind <> 'i'
        union all
        select 'function', p.oid::regprocedure::text, p.proowner
        from pg_catalog.pg_proc p where p.pronamespace = pg_catalog.to_regnamespace('relay')
        union all
        select 'type', 'relay.' || t.typname, t.typowner
        from pg_catalog.pg_type t where t.typnamespace = pg_catalog.to_regnamespace('relay')
        union all
        select 'operator', o.oid::regoperator::text, o.oprowner
        from pg_catalog.pg_operator o where o.oprnamespace = pg_catalog.to_regnamespace('relay')
        union all
        -- Triggers on tables of the relay that call functions of others.
        select 'the function of trigger ' || t.tgname || ' on', t.tgrelid::regclass::text, p.proowner
        from pg_catalog.pg_trigger t
        join pg_catalog.pg_class c on c.oid = t.tgrelid and c.relnamespace = pg_catalog.to_regnamespace('relay')
        join pg_catalog.pg_proc p on p.oid = t.tgfoid
    ) o join pg_catalog.pg_roles r on r.oid = o.owner
    where r.rolname not in (me, 'relay_writer', 'relay_reader', 'relay_renderer') limit 1;
    if foreign_object is not null then
        raise exception '%, expected %: an object that does not belong to the relay is in its schema: drop it or move it '
            'elsewhere', foreign_object, me using errcode = 'duplicate_object';
    end if;
    if exists (
        select from (values ('journal', 'r', 'xid lsn watch op entry reason'),
                            ('horizon', 'r', 'place seen swept pauses ceiling emptied shape shaped'),
                            ('ticks', 'r', 'place at seen entries bytes'),
                            ('epochs', 'r', 'run key place started'),
                            ('entries', 'v', null), ('extras', 'v', null), ('settings', 'v', null), ('watches', 'v', null), ('watched', 'v', null)) e (name, kind, columns)
        join pg_catalog.pg_class c on c.relname = e.name and c.relnamespace = pg_catalog.to_regnamespace('relay')
        where c.relkind <> e.kind::"char" or c.relkind = 'r' and c.relpersistence <> 'u'
           or e.columns <> (select pg_catalog.string_agg(a.attname, ' ' order by a.attnum) from pg_catalog.pg_attribute a
                            where a.attrelid = c.oid and a.attnum > 0))
    then
        raise exception 'schema relay holds tables of another edition, or somebody else''s: run uninstall.sql first '
            '(relay sql uninstall), then install and watch your tables again' using errcode = 'duplicate_table';
    end if;
end
$$;

comment on schema relay is 'The change feed of the watched tables. Removed by uninstall.sql.';

create or replace function relay.version() returns text
    language sql
    immutable
    set search_path = pg_catalog, pg_temp
as $$ select '0.1.0'::text $$;

comment on function relay.version() is 'Which version of the relay is installed here.';
