-- Lists of what one request made, and of what was drawn from a pool, without reading all that is live. A single reservation
-- has no group; and most are drawn from the pool `default`, whose list finds them soon without an index. So neither costs
-- the usual reservation anything.
create index reservation_group on reservation (group_id, instance, protocol, first_port)
    where released_at is null and group_id is not null;
create index reservation_pool on reservation (pool, instance, protocol, first_port)
    where released_at is null and pool <> 'default';
