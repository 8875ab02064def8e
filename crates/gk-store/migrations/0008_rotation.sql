-- Credentials are replaced now and then; the one before goes on for a moment, for whoever holds it still.
alter table instance add column credential_at bigint;
alter table instance add column previous_credential text;
alter table instance add column previous_until bigint;
create index instance_previous on instance (previous_credential) where previous_credential is not null;
