-- Columns are bigint and text only, so that one text serves every database: times in microseconds since the Unix
-- epoch, booleans 0 or 1, ids and structured values as text.

create table event_seq (
    id bigint not null primary key,
    seq bigint not null
);
insert into event_seq (id, seq) values (0, 0);

create table event (
    seq bigint not null primary key,
    at bigint not null,
    recorded_at bigint not null,
    kind text not null,
    instance text,
    protocol text,
    first_port bigint,
    last_port bigint,
    actor text not null,
    reservation text,
    listener text,
    message text not null
);
create index event_instance on event (instance, seq);

create table instance (
    id text not null primary key,
    name text not null,
    name_key text not null,
    subject text not null,
    credential text,
    facts text not null,
    boot_id text,
    netns_inode bigint,
    joined_at bigint not null,
    left_at bigint,
    last_contact_at bigint,
    observed_at bigint,
    version bigint not null,
    session bigint not null,
    opening text,
    sequence bigint not null,
    digest text not null,
    complete bigint not null,
    occupied text not null
);
create unique index instance_name on instance (name_key) where left_at is null;
create unique index instance_credential on instance (credential) where credential is not null;
create index instance_stack on instance (boot_id, netns_inode) where left_at is null;

create table token (
    hash text not null primary key,
    kind text not null,
    subject text not null,
    role text not null,
    created_at bigint not null,
    expires_at bigint,
    revoked_at bigint
);

create table reservation (
    id text not null primary key,
    instance text not null,
    scope text not null,
    protocol text not null,
    first_port bigint not null,
    last_port bigint not null,
    name text,
    service text,
    holder text not null,
    note text,
    pool text,
    created_at bigint not null,
    released_at bigint,
    released_by text,
    version bigint not null,
    began_seq bigint not null
);
create index reservation_live on reservation (instance, protocol, first_port) where released_at is null;

-- The safety net behind rule 2 of the domain: one row per live port, whatever the code above it believes. The port
-- comes before the space, because fleet-wide reservations look at every space.
create table claim (
    space text not null,
    protocol text not null,
    port bigint not null,
    reservation text not null,
    primary key (protocol, port, space)
);

create table quarantine (
    space text not null,
    protocol text not null,
    port bigint not null,
    until_at bigint not null,
    primary key (space, protocol, port)
);

create table listener (
    instance text not null,
    protocol text not null,
    port bigint not null,
    netns text not null,
    address text not null,
    interface text not null,
    v6only bigint not null,
    first_seen_at bigint not null,
    began_seq bigint not null,
    body text not null,
    primary key (instance, protocol, port, netns, address, interface, v6only)
);

create table interval (
    seq bigint not null primary key,
    kind text not null,
    instance text not null,
    protocol text not null,
    first_port bigint not null,
    last_port bigint not null,
    began_at bigint not null,
    ended_at bigint,
    service text,
    name text,
    holder text,
    reservation text,
    listener text
);
