//! Port states: where intent and fact meet.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::expect::Fit;
use crate::id::InstanceId;
use crate::instance::{InstanceLink, Presence};
use crate::listener::{Listener, Netns};
use crate::port::{Port, Protocol};
use crate::reservation::{Reservation, Scope};
use crate::text_form::words;
use crate::time::Timestamp;

words! {
    /// What intent and fact together say of a port on an instance.
    State, "a port state" {
        /// Neither reserved nor listened on; answered only for ports that were asked for.
        Free = "free",
        /// Reserved, and nobody listens.
        Reserved = "reserved",
        /// Reserved and listened on.
        InUse = "in_use",
        /// Reserved, and listened on by somebody else than expected.
        Conflict = "conflict",
        /// Listened on, and nobody reserved it.
        Unreserved = "unreserved",
    }
}

/// What is known of one port of one instance: intent, fact, and what they say together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The intent.
    pub reservation: Option<Reservation>,
    /// The fact: every listener on the port, in order.
    pub listeners: Vec<Listener>,
    /// Both together.
    pub state: State,
    /// How those who listen fit what is expected; none unless the port is reserved and listened on.
    pub fit: Option<Fit>,
}

impl Joined {
    /// Joins intent and fact of one port.
    ///
    /// Only listeners of the home namespace count. Of whom the agent may not see enough, nobody is held to be the wrong
    /// one. A number that is held fleet-wide for another instance fits nobody here.
    pub fn new(
        instance: InstanceId,
        reservation: Option<Reservation>,
        mut listeners: Vec<Listener>,
    ) -> Joined {
        listeners.sort_by(|one, other| one.key.cmp(&other.key));
        let is_listened = listeners.iter().any(|listener| listener.key.netns == Netns::Home);
        let fit = reservation.as_ref().filter(|_| is_listened).map(|held| match &held.instance {
            Some(holder) if holder.id != instance => Fit::Differs,
            _ => held.expect.as_ref().and_then(|expect| expect.fit(&listeners)).unwrap_or(Fit::Fits),
        });
        let state = match (reservation.is_some(), fit) {
            (false, _) if is_listened => State::Unreserved,
            (false, _) => State::Free,
            (true, None) => State::Reserved,
            (true, Some(Fit::Differs)) => State::Conflict,
            (true, Some(Fit::Fits | Fit::Unknown)) => State::InUse,
        };
        Joined { reservation, listeners, state, fit }
    }
}

/// Joins intent and fact of an instance: every port that is reserved or listened on there, by protocol and port, as far
/// as it is `wanted`, and every port that is `asked` for. Each listener is in exactly one of them.
///
/// `reservations` may be any live ones. Those of other instances count where they are fleet-wide and somebody listens on
/// their number here, or where it is asked for; elsewhere they are nobody's business here.
pub fn join<'a>(
    instance: InstanceId,
    reservations: impl IntoIterator<Item = &'a Reservation>,
    listeners: impl IntoIterator<Item = Listener>,
    asked: impl IntoIterator<Item = (Protocol, Port)>,
    wanted: impl Fn(Protocol, Port) -> bool,
) -> BTreeMap<(Protocol, Port), Joined> {
    type Parts<'a> = (Option<&'a Reservation>, Vec<Listener>);
    let mut ports: BTreeMap<(Protocol, Port), Parts<'_>> =
        asked.into_iter().map(|key| (key, Parts::default())).collect();
    for listener in listeners {
        if wanted(listener.key.protocol, listener.key.port) {
            ports.entry((listener.key.protocol, listener.key.port)).or_default().1.push(listener);
        }
    }
    for held in reservations {
        let is_elsewhere = held.instance.as_ref().is_some_and(|holder| holder.id != instance);
        if is_elsewhere && held.scope != Scope::Fleet {
            continue;
        }
        for port in held.ports().ports().filter(|port| wanted(held.protocol, *port)) {
            let key = (held.protocol, port);
            if is_elsewhere && !ports.contains_key(&key) {
                continue;
            }
            ports.entry(key).or_default().0 = Some(held);
        }
    }
    let joined = ports
        .into_iter()
        .map(|(key, (held, listeners))| (key, Joined::new(instance, held.cloned(), listeners)));
    joined.collect()
}

/// One port of one instance: who may use it, and who does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortState {
    /// The instance.
    pub instance: InstanceLink,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: Port,
    /// Intent and fact joined.
    pub state: State,
    /// How those who listen fit what is expected; none unless the port is reserved and listened on.
    #[serde(default)]
    pub fit: Option<Fit>,
    /// The intent.
    pub reservation: Option<Reservation>,
    /// The fact: every listener on the port.
    pub listeners: Vec<Listener>,
    /// When the instance's listeners were last confirmed; what is shown was true then.
    pub observed_at: Option<Timestamp>,
    /// Whether the instance is there now.
    pub presence: Presence,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::ReservationId;
    use crate::listener::tests::listener;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn instance(name: &str) -> InstanceLink {
        InstanceLink { id: InstanceId::generate(at(1)), name: name.parse().unwrap() }
    }

    fn held(holder: Option<&InstanceLink>, scope: Scope, port: u16, expect: &str) -> Reservation {
        Reservation {
            id: ReservationId::generate(at(1)),
            instance: holder.cloned(),
            scope,
            protocol: Protocol::Tcp,
            first_port: Port::new(port).unwrap(),
            last_port: Port::new(port).unwrap(),
            name: None,
            service: None,
            holder: "ada".parse().unwrap(),
            note: None,
            labels: Default::default(),
            expect: (!expect.is_empty()).then(|| expect.parse().unwrap()),
            pool: None,
            created_at: at(1),
            expires_at: None,
            ttl_seconds: None,
            renew_while_listening: false,
            group: None,
            split_from: None,
            idle_since: None,
            released_at: None,
            released_by: None,
            version: 1,
        }
    }

    #[test]
    fn the_table_of_the_domain() {
        let (here, there) = (instance("web-1"), instance("web-2"));
        let own = |expect| Some(held(Some(&here), Scope::Instance, 80, expect));
        let fleet = |holder| Some(held(holder, Scope::Fleet, 80, "process=nginx"));
        let home = listener(Protocol::Tcp, "0.0.0.0", 80, 1);
        let (mut elsewhere, mut unseen, mut squatter) = (home.clone(), home.clone(), home.clone());
        elsewhere.key.netns = Netns::Other(4_026_532_000);
        unseen.key.address = "127.0.0.1".parse().unwrap();
        unseen.owners.clear();
        squatter.key.address = "::1".parse().unwrap();
        squatter.owners[0].name = "nc".into();
        squatter.owners[0].exe = None;
        type Row<'a> = (Option<Reservation>, &'a [&'a Listener], State, Option<Fit>);
        let table: [Row<'_>; 18] = [
            (None, &[], State::Free, None),
            (None, &[&elsewhere], State::Free, None),
            (None, &[&home], State::Unreserved, None),
            (None, &[&home, &elsewhere], State::Unreserved, None),
            (own(""), &[], State::Reserved, None),
            (own(""), &[&elsewhere], State::Reserved, None),
            (own(""), &[&squatter], State::InUse, Some(Fit::Fits)),
            (own("process=nginx"), &[&home], State::InUse, Some(Fit::Fits)),
            (own("process=nginx"), &[&elsewhere, &home], State::InUse, Some(Fit::Fits)),
            (own("process=nginx"), &[&home, &unseen], State::InUse, Some(Fit::Unknown)),
            (own("process=nginx"), &[&unseen], State::InUse, Some(Fit::Unknown)),
            (own("process=nginx"), &[&squatter], State::Conflict, Some(Fit::Differs)),
            (own("process=nginx"), &[&unseen, &home, &squatter], State::Conflict, Some(Fit::Differs)),
            (fleet(Some(&here)), &[&home], State::InUse, Some(Fit::Fits)),
            (fleet(Some(&there)), &[&home], State::Conflict, Some(Fit::Differs)),
            (fleet(Some(&there)), &[&elsewhere], State::Reserved, None),
            (fleet(None), &[&home], State::InUse, Some(Fit::Fits)),
            (fleet(None), &[&squatter], State::Conflict, Some(Fit::Differs)),
        ];
        for (reservation, listeners, state, fit) in table {
            let listeners: Vec<Listener> = listeners.iter().copied().cloned().collect();
            let joined = Joined::new(here.id, reservation.clone(), listeners.clone());
            assert_eq!((joined.state, joined.fit), (state, fit), "{reservation:?} {listeners:?}");
        }
    }

    #[test]
    fn what_is_held_elsewhere_matters_where_somebody_listens() {
        let (here, there) = (instance("web-1"), instance("web-2"));
        let reservations = [
            held(Some(&there), Scope::Fleet, 80, ""),
            held(Some(&there), Scope::Fleet, 81, ""),
            held(Some(&there), Scope::Instance, 82, ""),
            held(None, Scope::Fleet, 83, ""),
        ];
        let listeners = [80, 82].map(|port| listener(Protocol::Tcp, "0.0.0.0", port, 1));
        let joined = join(here.id, &reservations, listeners, [], |_, _| true);
        let states: Vec<(u16, State)> =
            joined.iter().map(|((_, port), joined)| (port.get(), joined.state)).collect();
        assert_eq!(states, [(80, State::Conflict), (82, State::Unreserved), (83, State::Reserved)]);
    }

    proptest! {
        /// Few ports, so that listeners and reservations meet.
        #[test]
        fn joining_ignores_order_loses_nothing_and_changes_no_intent(
            ports in proptest::collection::vec((1u16..8, 0u8..4, any::<bool>(), any::<bool>()), 0..12),
            reserved in proptest::collection::btree_map(1u16..8, (0u8..4, any::<bool>()), 0..6),
            turn in 0usize..12,
        ) {
            let (here, there) = (instance("web-1"), instance("web-2"));
            let mut listeners = BTreeMap::new();
            for (port, address, is_home, is_nginx) in ports {
                let mut seen = listener(Protocol::Tcp, &format!("127.0.0.{address}"), port, 1);
                seen.key.netns = if is_home { Netns::Home } else { Netns::Other(7) };
                seen.owners[0].name = if is_nginx { "nginx".into() } else { "nc".into() };
                seen.owners[0].exe = None;
                listeners.insert(seen.key.clone(), seen);
            }
            let listeners: Vec<Listener> = listeners.into_values().collect();
            let reservations: Vec<Reservation> = reserved.into_iter().map(|(port, (whose, is_picky))| {
                let (holder, scope) = match whose {
                    0 => (Some(&here), Scope::Instance),
                    1 => (Some(&here), Scope::Fleet),
                    2 => (Some(&there), Scope::Fleet),
                    _ => (None, Scope::Fleet),
                };
                held(holder, scope, port, if is_picky { "process=nginx" } else { "" })
            }).collect();
            let joined = join(here.id, &reservations, listeners.clone(), [], |_, _| true);

            let (mut turned, mut shuffled) = (listeners.clone(), reservations.clone());
            turned.rotate_left(turn.min(listeners.len()));
            turned.reverse();
            shuffled.reverse();
            prop_assert_eq!(&join(here.id, &shuffled, turned, [], |_, _| true), &joined, "order matters");

            let mut shown: Vec<Listener> = joined.values().flat_map(|it| it.listeners.clone()).collect();
            shown.sort_by(|one, other| one.key.cmp(&other.key));
            prop_assert_eq!(&shown, &listeners, "each listener once");
            for ((_, port), it) in &joined {
                let intent = reservations.iter().find(|held| held.first_port == *port);
                let is_ours = intent.is_some_and(|held| {
                    held.instance.is_none() || held.is_held_for(here.id) || !it.listeners.is_empty()
                });
                prop_assert_eq!(it.reservation.as_ref(), intent.filter(|_| is_ours), "intent as it was");
            }
            for held in reservations.iter().filter(|held| held.instance.as_ref() != Some(&there)) {
                prop_assert!(joined.contains_key(&(Protocol::Tcp, held.first_port)), "what is held here is shown");
            }
        }
    }
}
