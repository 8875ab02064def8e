-- History by who listened, and at a moment of a long one; and in which time nobody watched.
--
-- `lasting` files an interval by how long it lasted: below 1, 16, 256 … seconds are 0, 1, 2 …, and 7 is what lasted longer
-- or still does. What lasted at a moment is then found by few, short looks: of each class in the time that is as long as
-- the class before that moment. The words of a listener are in lower case; an empty process says that nobody knows it,
-- and none that nobody has looked yet.

alter table interval add column lasting bigint not null default 7;
alter table interval add column process text;
alter table interval add column unit text;
alter table interval add column container text;
alter table interval add column container_id text;
alter table interval add column account text;

update interval set lasting = case
    when ended_at - began_at < 1000000 then 0
    when ended_at - began_at < 16000000 then 1
    when ended_at - began_at < 256000000 then 2
    when ended_at - began_at < 4096000000 then 3
    when ended_at - began_at < 65536000000 then 4
    when ended_at - began_at < 1048576000000 then 5
    when ended_at - began_at < 16777216000000 then 6
    else 7 end
where ended_at is not null;

-- Whoever reserves waits for each index that a held interval enters: the first two, a port, and a service if it has one.
-- A listened one enters a process instead. The others get what has ended only.

-- The whole fleet in the order of time, and what lasted at a moment.
create index interval_lasting on interval (kind, lasting, began_at, seq);
-- The same of an instance, which may have a thousandth of it.
create index interval_instance_lasting on interval (instance, kind, lasting, began_at, seq);
-- A port, everywhere or on the instance at the end of the entry: at most what one port ever had is looked through.
-- (Equal would do, but then PostgreSQL puts the number that is asked for in the place of both.)
create index interval_number on interval (first_port, lasting, began_at, seq, instance) where first_port >= last_port;
-- What was held as a range, for a port inside of it: few, of which the entry says which ports and where.
create index interval_range on interval (lasting, began_at, seq, instance, first_port, last_port)
    where first_port < last_port;
-- "Where has this service been?"
create index interval_service on interval (service, lasting, began_at, seq) where service is not null;
-- "Where has this program listened?"
create index interval_process on interval (process, lasting, began_at, seq) where process is not null;
-- The other words of who it was: what lasts still is found among all that does.
create index interval_holder on interval (holder, lasting, began_at, seq) where holder is not null and lasting < 7;
create index interval_unit on interval (unit, lasting, began_at, seq) where unit is not null and lasting < 7;
create index interval_container on interval (container, lasting, began_at, seq)
    where container is not null and lasting < 7;
create index interval_container_id on interval (container_id, lasting, began_at, seq)
    where container_id is not null and lasting < 7;
create index interval_account on interval (account, lasting, began_at, seq) where account is not null and lasting < 7;
-- The rarer protocol, which there may be none of.
create index interval_udp on interval (lasting, began_at, seq) where protocol = 'udp' and lasting < 7;
-- What an older version wrote and nobody has made searchable yet.
create index interval_unread on interval (seq) where kind = 'listened' and process is null;

-- From when to when nobody watched the listeners of an instance. While it is offline, that is in its own row.
create table gap (
    instance text not null,
    from_at bigint not null,
    until_at bigint not null,
    primary key (instance, from_at)
);
create index gap_from on gap (from_at, instance);
create index gap_until on gap (until_at);

-- Since when it is offline, if it is: its last contact then.
alter table instance add column offline_since bigint;
create index instance_offline on instance (id) where offline_since is not null;
