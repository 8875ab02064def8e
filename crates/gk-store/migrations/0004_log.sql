-- The identity of the event log: whoever resumes at a number must know that it is a number of this log. One row.
create table log (
    id bigint not null primary key,
    log_id text not null,
    began_at bigint not null
);

-- Lists, in the order of the list for each filter that few rows pass: no page sorts, or reads the whole log.
create index event_kind on event (kind, seq);
create index event_actor on event (actor, seq);
create index event_at on event (at, seq);

-- Pruning by age: each batch begins at the oldest row.
create index interval_ended on interval (ended_at) where ended_at is not null;
create index reservation_released on reservation (released_at) where released_at is not null;
create index quarantine_until on quarantine (until_at);
