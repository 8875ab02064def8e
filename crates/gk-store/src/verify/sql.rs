//! The checks that one statement can make. Each lists a text for every violation, and is valid on every database.
//!
//! Neighbours are compared by window functions, never by joining a table with itself: the tables may be large.

use super::How;

/// Claims and live reservations, compared both ways.
pub(super) const CLAIMS: How = How::Sql {
    of: "claim",
    found: "
        select 'the claim on ' || c.port || '/' || c.protocol || ' in the space ' || c.space
            || ' is no port of reservation ' || c.reservation
        from claim c left join reservation r on r.id = c.reservation
        where r.id is null or (r.released_at is null and (r.protocol <> c.protocol
            or c.port < r.first_port or c.port > r.last_port
            or c.space <> case when r.scope = 'fleet' then 'fleet' else r.instance end))
        union all
        select 'reservation ' || h.id || ' of ' || h.first_port || '-' || h.last_port || '/' || h.protocol
            || ' claims ' || h.claims || ' of its ports: others may get the rest'
        from (
            select r.id, r.protocol, r.first_port, r.last_port, coalesce(c.claims, 0) as claims
            from reservation r left join (
                select reservation, count(*) as claims from claim group by reservation
            ) as c on c.reservation = r.id
            where r.released_at is null
        ) as h
        where h.claims <> h.last_port - h.first_port + 1",
};

/// A claim that outlived its reservation keeps its port from everybody.
pub(super) const ENDED: How = How::Sql {
    of: "reservation where released_at is not null",
    found: "
        select 'reservation ' || r.id || ' has ended, and ' || c.port || '/' || c.protocol
            || ' is still claimed for it: nobody can get it'
        from claim c join reservation r on r.id = c.reservation
        where r.released_at is not null",
};

/// In the order of ports, one that begins before an earlier one ends overlaps it: on its instance, or anywhere if one of
/// the two is of the whole fleet.
pub(super) const OVERLAPS: How = How::Sql {
    of: "reservation where released_at is null",
    found: "
        select 'reservation ' || o.id || ' of ' || o.first_port || '-' || o.last_port || '/' || o.protocol
            || ' overlaps reservation ' || coalesce((
                select min(q.id) from reservation q
                where q.released_at is null and q.id <> o.id and q.protocol = o.protocol
                    and q.first_port <= o.last_port and q.last_port >= o.first_port
                    and (q.instance = o.instance or q.scope = 'fleet' or o.scope = 'fleet')
            ), '(unknown)') || ': a port is given twice'
        from (
            select r.id, r.instance, r.scope, r.protocol, r.first_port, r.last_port,
                max(r.last_port) over here as here_before,
                max(r.last_port) over everywhere as before,
                max(case when r.scope = 'fleet' then r.last_port end) over everywhere as fleet_before
            from reservation r where r.released_at is null
            window here as (partition by r.instance, r.protocol order by r.first_port, r.last_port, r.id
                    rows between unbounded preceding and 1 preceding),
                everywhere as (partition by r.protocol order by r.first_port, r.last_port, r.id
                    rows between unbounded preceding and 1 preceding)
        ) as o
        where o.here_before >= o.first_port or o.fleet_before >= o.first_port
            or (o.scope = 'fleet' and o.before >= o.first_port)",
};

/// Pruning takes from the beginning and always leaves the newest event, so an empty log is one that never had any.
pub(super) const NUMBERS: How = How::Sql {
    of: "event",
    found: "
        select 'event ' || g.seq || ' comes after event ' || g.before || ': those between are missing'
        from (select seq, lag(seq) over (order by seq) as before from event) as g
        where g.seq <> g.before + 1
        union all
        select 'the newest event is ' || coalesce((select max(seq) from event), 0)
            || ', and the counter stands at ' || c.seq
        from event_seq c where c.seq <> coalesce((select max(seq) from event), 0)",
};

/// The labels of an instance, and the same one by one. Each is in the other when there are as many.
pub(super) const LABELS: How = How::Sql {
    of: "instance",
    found: "
        select 'instance ' || n.id || ' has the labels ' || n.labels || ', and ' || n.kept || ' are written down'
        from (
            select n.id, n.labels, (length(n.labels) - length(replace(n.labels, '\":\"', ''))) / 3 as labelled,
                count(l.label) as kept
            from instance n left join instance_label l on l.instance = n.id
            group by n.id, n.labels
        ) as n
        where n.kept <> n.labelled
        union all
        select 'instance ' || l.instance || ' has no label ' || l.label || ', and it is written down'
        from instance_label l left join instance n on n.id = l.instance
            and n.name_key = l.name_key and replace(n.labels, '\"' || replace(l.label, '=', '\":\"') || '\"', '') <> n.labels
        where n.id is null",
};

/// What is counted along with the claims, counted from them.
pub(super) const POOL_USE: How = How::Sql {
    of: "claim",
    found: "
        select 'pool ' || u.pool || ' has ' || u.counted || ' claims in the space ' || u.space || ' for ' || u.protocol
            || ', and ' || u.kept || ' are written down'
        from (
            select b.pool, b.space, b.protocol, sum(b.kept) as kept, sum(b.counted) as counted
            from (
                select pool, space, protocol, taken as kept, 0 as counted from pool_use
                union all
                select r.pool, c.space, c.protocol, 0, count(*)
                from pool_range r join claim c on c.protocol in ('tcp', 'udp')
                    and c.port between r.first_port and r.last_port
                group by r.pool, c.space, c.protocol
                union all
                select pool, 'all', protocol, taken, 0 from pool_total
                union all
                select r.pool, 'all', c.protocol, 0, count(*)
                from pool_range r join claim c on c.protocol in ('tcp', 'udp')
                    and c.port between r.first_port and r.last_port
                group by r.pool, c.protocol
            ) as b
            group by b.pool, b.space, b.protocol
        ) as u
        where u.kept <> u.counted",
};

pub(super) const EVENT_TIMES: How = How::Sql {
    of: "event",
    found: "
        select 'event ' || e.seq || ' happened ' || (e.at - e.recorded_at) || ' microseconds after it was recorded'
        from event e where e.at > e.recorded_at",
};

/// Both ways: a live reservation shows in history once, and what shows there as held is.
pub(super) const HELD: How = How::Sql {
    of: "reservation where released_at is null",
    found: "
        select 'reservation ' || h.id || ' is live, and has ' || h.intervals || ' open intervals of its ports'
        from (
            select r.id, count(i.seq) as intervals
            from reservation r left join interval i on i.instance = r.instance and i.first_port = r.first_port
                and i.last_port = r.last_port and i.protocol = r.protocol and i.reservation = r.id
                and i.kind = 'held' and i.ended_at is null
            where r.released_at is null
            group by r.id
        ) as h
        where h.intervals <> 1
        union all
        select 'interval ' || i.seq || ' is open, and its reservation ' || coalesce(i.reservation, '(none)')
            || ' is not live'
        from interval i left join reservation r on r.id = i.reservation and r.released_at is null
        where i.kind = 'held' and i.ended_at is null and r.id is null",
};

/// Both ways: a listener shows in history once, and what shows there as listened on is.
pub(super) const LISTENED: How = How::Sql {
    of: "listener",
    found: "
        select 'the listener on ' || l.port || '/' || l.protocol || ' of instance ' || l.instance
            || ' has no open interval of its own: ' || l.began_seq || ' is none'
        from listener l left join interval i on i.seq = l.began_seq and i.kind = 'listened'
            and i.ended_at is null and i.instance = l.instance and i.protocol = l.protocol and i.first_port = l.port
        where i.seq is null
        union all
        select 'interval ' || o.seq || ' of ' || o.first_port || '/' || o.protocol || ' is open, and has '
            || o.listeners || ' stored listeners'
        from (
            select i.seq, i.first_port, i.protocol, count(l.port) as listeners
            from interval i left join listener l on l.began_seq = i.seq
            where i.kind = 'listened' and i.ended_at is null
            group by i.seq, i.first_port, i.protocol
        ) as o
        where o.listeners <> 1",
};

pub(super) const INTERVAL_TIMES: How = How::Sql {
    of: "interval",
    found: "
        select 'interval ' || i.seq || ' ends ' || (i.began_at - i.ended_at) || ' microseconds before it begins'
        from interval i where i.ended_at < i.began_at",
};

pub(super) const NAMES: How = How::Sql {
    of: "instance where left_at is null",
    found: "
        select n.members || ' joined instances are named ' || n.name_key
        from (
            select name_key, count(*) as members from instance
            where left_at is null group by name_key having count(*) > 1
        ) as n",
};

/// A reservation for all instances belongs to `fleet`.
pub(super) const REFERENCES: How = How::Sql {
    of: "instance",
    found: "
        select 'instance ' || m.instance || ' is unknown, and has ' || m.members || ' rows in ' || m.home
        from (
            select 'event' as home, instance, count(*) as members from event group by instance
            union all select 'interval', instance, count(*) from interval group by instance
            union all select 'listener', instance, count(*) from listener group by instance
            union all select 'reservation', instance, count(*) from reservation group by instance
            union all select 'drift', instance, count(*) from drift group by instance
        ) as m
        left join instance n on n.id = m.instance
        where n.id is null and m.instance <> 'fleet'",
};
