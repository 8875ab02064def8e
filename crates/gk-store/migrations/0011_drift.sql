-- Where reality differs from the plan, kept so that nobody has to look for it: one row for each port in conflict or
-- unreserved, in the order in which they are listed. `name_key` is that of the instance.

create table drift (
    instance text not null,
    protocol text not null,
    port bigint not null,
    kind text not null,
    since bigint not null,
    reservation text,
    ignored bigint not null,
    ignored_by text,
    name_key text not null,
    primary key (instance, protocol, port)
);
create index drift_listed on drift (kind, ignored, name_key, protocol, port);

create table ignore_rule (
    name text not null primary key,
    rule text not null,
    created_at bigint not null,
    version bigint not null
);

-- Up to which instance everything has been settled anew; no row when there is nothing to do. What was here before the
-- table of drift has to be, and counted.
create table sweep (
    id bigint not null primary key,
    after_instance text not null,
    recount bigint not null
);
insert into sweep (id, after_instance, recount)
    select 0, '', 1 from event_seq where exists (select 1 from instance);

-- How many there are, in the row that each batch writes anyway.
alter table event_seq add column instances bigint not null default 0;
alter table event_seq add column reservations bigint not null default 0;
alter table event_seq add column leases bigint not null default 0;
alter table event_seq add column listeners bigint not null default 0;
alter table event_seq add column conflicts bigint not null default 0;
alter table event_seq add column unreserved bigint not null default 0;
alter table event_seq add column ignored bigint not null default 0;
create index instance_contact on instance (last_contact_at) where left_at is null;

-- "Where is this service", and "what does she hold".
create index reservation_service on reservation (service, instance) where released_at is null and service is not null;
create index reservation_holder on reservation (holder, instance) where released_at is null;

-- How long a lease is, whether it is renewed while somebody listens, when its end is to be announced, and since when it
-- waits for its instance to come back.
alter table reservation add column ttl_seconds bigint;
alter table reservation add column renew_while_listening bigint not null default 0;
alter table reservation add column warn_at bigint;
alter table reservation add column awaited_since bigint;
create index reservation_warn on reservation (warn_at) where released_at is null and warn_at is not null;
create index reservation_awaited on reservation (awaited_since) where released_at is null and awaited_since is not null;
