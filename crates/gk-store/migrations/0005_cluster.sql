-- What another server must know though history does not tell it: which instances changed, by consecutive numbers of
-- which the newest is kept beside the number of the newest event. Old rows are deleted; whoever is further behind
-- than that forgets everything.

alter table event_seq add column changes bigint not null default 0;

create table instance_change (
    number bigint not null primary key,
    instance text not null
);
