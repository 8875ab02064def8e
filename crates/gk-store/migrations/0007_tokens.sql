-- Tokens that people make, list and revoke; where a change came from; and what a join token says of who joins with it.
-- Structured values are JSON: limits, labels, origin.

alter table token add column id text;
alter table token add column created_by text;
alter table token add column note text;
alter table token add column limits text;
alter table token add column reusable bigint not null default 0;
alter table token add column labels text;
alter table token add column forget_after bigint;
alter table token add column last_used_at bigint;
create unique index token_id on token (id) where id is not null;
create index token_expires on token (expires_at) where expires_at is not null;
create index token_revoked on token (revoked_at) where revoked_at is not null;

alter table event add column origin text;

alter table instance add column labels text not null default '{}';
alter table instance add column forget_after bigint;
create index instance_forget on instance (last_contact_at) where left_at is null and forget_after is not null;
