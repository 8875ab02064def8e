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

create index interval_lasting on interval (lasting, began_at, seq);
create index interval_instance_lasting on interval (instance, lasting, began_at, seq);
create index interval_number on interval (first_port, lasting, began_at, seq);
create index interval_range on interval (began_at, seq) where first_port < last_port;
create index interval_instance_range on interval (instance, began_at, seq) where first_port < last_port;
create index interval_udp on interval (began_at, seq) where protocol = 'udp';
create index interval_service on interval (service, lasting, began_at, seq) where service is not null;
create index interval_holder on interval (holder, lasting, began_at, seq) where holder is not null;
create index interval_process on interval (process, lasting, began_at, seq) where process is not null;
create index interval_unit on interval (unit, lasting, began_at, seq) where unit is not null;
create index interval_container on interval (container, lasting, began_at, seq) where container is not null;
create index interval_container_id on interval (container_id, lasting, began_at, seq) where container_id is not null;
create index interval_account on interval (account, lasting, began_at, seq) where account is not null;
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
