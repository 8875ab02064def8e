-- How many claims there are on the numbers of each pool altogether, so that nobody sums up what each instance has.
create table pool_total (
    pool text not null,
    protocol text not null,
    taken bigint not null,
    primary key (pool, protocol)
);
insert into pool_total (pool, protocol, taken)
    select pool, protocol, cast(sum(taken) as bigint) from pool_use group by pool, protocol;
