-- How far the session before had come when this one was opened: an agent that was killed meanwhile asks, so that it
-- tells nothing twice of what it still has.
alter table instance add column previous_sequence bigint;
