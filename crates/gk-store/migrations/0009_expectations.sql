-- What a reservation expects, and since when nobody has listened there. Structured values are JSON; no labels is null.

alter table reservation add column labels text;
alter table reservation add column expect text;
alter table reservation add column idle_since bigint;
create index reservation_idle on reservation (idle_since) where released_at is null and idle_since is not null;
