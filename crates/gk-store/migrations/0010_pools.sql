-- Pools: what people set, and what follows from it. The pool `default` is always there.
create table pool (
    name text not null primary key,
    ranges text not null,
    exclude text not null,
    scope text not null,
    pick text not null,
    quarantine_seconds bigint not null,
    instances text,
    ephemeral bigint not null,
    note text,
    version bigint not null
);
insert into pool (name, ranges, exclude, scope, pick, quarantine_seconds, ephemeral, version)
    values ('default', '["8000-9999"]', '[]', 'instance', 'lowest', 900, 0, 1);

-- The numbers that each of them gives, in as few ranges as possible.
create table pool_range (
    pool text not null,
    first_port bigint not null,
    last_port bigint not null,
    primary key (pool, first_port)
);
insert into pool_range (pool, first_port, last_port) values ('default', 8000, 9999);

-- How many claims each space has on the numbers of each pool, counted along with the claims. The space comes first in
-- the key, because an instance that leaves takes its counts with it.
create table pool_use (
    space text not null,
    protocol text not null,
    pool text not null,
    taken bigint not null,
    primary key (space, protocol, pool)
);
create index pool_use_fullest on pool_use (pool, protocol, taken, space);
insert into pool_use (space, protocol, pool, taken)
    select space, protocol, 'default', count(*) from claim where port between 8000 and 9999 group by space, protocol;
