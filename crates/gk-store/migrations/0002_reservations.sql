-- Groups, leases, split ranges, and what is held for every instance. Such a row has 'fleet' where others have the id of
-- an instance.

alter table reservation add column group_id text;
alter table reservation add column split_from text;
alter table reservation add column expires_at bigint;

create index reservation_lease on reservation (expires_at) where released_at is null and expires_at is not null;
-- For `ensure`, which needs a service: the live one, and the one released last.
create index reservation_purpose on reservation (holder, service, instance, protocol, released_at)
    where service is not null;
create index reservation_fleet on reservation (protocol, first_port) where released_at is null and scope = 'fleet';

-- Fleet-wide reservations look at every space. Only for the home namespace: nobody who asks about one instance is to
-- go through the whole fleet.
create index listener_port on listener (protocol, port, instance) where netns = 'home';
create index quarantine_port on quarantine (protocol, port);

-- Whose reservation the number rests from: its own `ensure` need not wait.
alter table quarantine add column holder text;

-- What the wall clock said at the last tick of any server that found a lease; 0 before the first.
create table lease_clock (
    id bigint not null primary key,
    last_at bigint not null
);
insert into lease_clock (id, last_at) values (0, 0);
