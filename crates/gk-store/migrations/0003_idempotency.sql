-- The answers that a repeated request gets again. Of the request itself only a fingerprint is kept.
create table idempotency (
    subject text not null,
    key text not null,
    fingerprint text not null,
    answer text not null,
    created_at bigint not null,
    primary key (subject, key)
);
create index idempotency_age on idempotency (created_at);
