//! Refusals help: who stands in the way, what is free instead, and the command that would work.
//!
//! Hints are in the words of `gkctl`, complete enough to be pasted: they name the instance, because "this machine" of
//! whoever pastes them may be another one.

use gk_model::id::InstanceRef;
use gk_model::instance::InstanceLink;
use gk_model::listener::Listener;
use gk_model::port::{Port, Protocol};
use gk_model::problem::{Code, Holder};
use gk_model::reservation::{Reservation, ReserveRequest};
use gk_model::text::PoolName;
use gk_store::Refusal;

/// For whoever's role does not do.
pub(crate) const OTHER_ROLE: &str =
    "use a token with that role: `gkctl login`, or GATEKEEPER_TOKEN; `gkctl whoami` tells what yours may do";

/// The stable word for a refusal.
pub(crate) fn code(refusal: &Refusal) -> Code {
    match refusal {
        // An instance that has left is found by its id in history only; for everything else it is not there.
        Refusal::NoSuchInstance(_) | Refusal::InstanceLeft(_) | Refusal::NobodyChosen(_) => {
            Code::NoSuchInstance
        }
        Refusal::NoSuchReservation(_) => Code::NoSuchReservation,
        Refusal::NoSuchIgnore(_) => Code::NoSuchIgnore,
        Refusal::NoSuchPool(_) => Code::NoSuchPool,
        Refusal::NoSuchToken(_) => Code::NoSuchToken,
        Refusal::TokenEnded(_) => Code::TokenEnded,
        Refusal::SecretTaken => Code::SecretTaken,
        Refusal::BeyondLimits(_) => Code::BeyondLimits,
        Refusal::PortReserved { .. } => Code::PortReserved,
        Refusal::PortInUse { .. } => Code::PortInUse,
        Refusal::SeveralOwners { .. } => Code::SeveralOwners,
        Refusal::NothingToAdopt { .. } => Code::NothingToAdopt,
        Refusal::PoolExhausted { .. } => Code::PoolExhausted,
        Refusal::PoolNotForInstance { .. } => Code::PoolNotForInstance,
        Refusal::PoolOverlaps { .. } => Code::PoolOverlaps,
        Refusal::AlreadyReleased(_) => Code::AlreadyReleased,
        Refusal::NotTheHolder(_) => Code::NotTheHolder,
        Refusal::NameTaken(_) => Code::NameTaken,
        Refusal::AlreadyJoined(_) => Code::AlreadyJoined,
        Refusal::ReservationsLive { .. } => Code::ReservationsLive,
        Refusal::CredentialReplaced | Refusal::JoinTokenUsed => Code::Unauthenticated,
        Refusal::CredentialTaken => Code::CredentialTaken,
        Refusal::IdentitySuperseded { .. } => Code::IdentitySuperseded,
        Refusal::OpensWithoutReport(_)
        | Refusal::Contradiction(_)
        | Refusal::NotInReservation { .. }
        | Refusal::DefaultPoolStays
        | Refusal::TooManyTargets { .. }
        | Refusal::NoLease(_) => Code::Impossible,
        Refusal::BeyondOwnInstance | Refusal::LabelsNotYours | Refusal::TakeOverNotYours => Code::Forbidden,
        Refusal::EnsureDiffers { .. } => Code::EnsureDiffers,
        Refusal::VersionMismatch { .. } => Code::VersionMismatch,
        Refusal::IdempotencyKeyReused(_) => Code::IdempotencyKeyReused,
        Refusal::BadCursor => Code::Malformed,
        Refusal::StaleCursor { .. } => Code::StaleCursor,
    }
}

/// What to do next.
pub(crate) fn hint(refusal: &Refusal) -> Option<String> {
    let hint = match refusal {
        Refusal::PortReserved { holder, .. } => list_ports("to see what is free", holder.instance.as_ref()),
        Refusal::PortInUse { instance, .. } => list_ports("to see who uses it", Some(instance)),
        Refusal::SeveralOwners { protocol, .. } => {
            format!("stop all but one of them, or take another port: {}", reserve(*protocol, None, None))
        }
        Refusal::NothingToAdopt { port, protocol, instance } => {
            reserve(*protocol, Some(instance), Some(*port))
        }
        Refusal::PoolExhausted { pool, instances, others, .. } => make_room(pool, instances.first(), others),
        Refusal::PoolNotForInstance { place, others, .. } => {
            draw_instead(place.as_deref().map(|(instance, _)| instance), others)
        }
        Refusal::PoolOverlaps { other, .. } => {
            format!("keep out of the numbers of {other}, as shown by: gkctl pool show {other}")
        }
        Refusal::AlreadyReleased(gone) => show_history(gone),
        Refusal::NotInReservation { held, .. } => format!("give ports of {}", held.ports()),
        Refusal::NoLease(held) => format!("to end it: {}", release(held)),
        Refusal::EnsureDiffers { held, .. } => {
            format!("ask for what it is, or end it first: {}", release(held))
        }
        Refusal::BeyondOwnInstance => {
            "use a subject's token with the role user: `gkctl login`, or GATEKEEPER_TOKEN".to_owned()
        }
        Refusal::NotTheHolder(held) => format!("an operator may: {} --force", release(held)),
        Refusal::NameTaken(name) => format!("gkctl instance join --name {name}-2"),
        Refusal::AlreadyJoined(joined) => {
            format!(
                "if its credential was lost, an operator may: gkctl instance join --replace {}",
                joined.name
            )
        }
        Refusal::ReservationsLive { instance, .. } => {
            format!("gkctl instance leave {} --release", instance.name)
        }
        Refusal::CredentialReplaced => "to see how this machine stands: gkctl doctor".to_owned(),
        Refusal::CredentialTaken => "make a new credential; one is never shared".to_owned(),
        Refusal::JoinTokenUsed => "ask for a new join token".to_owned(),
        Refusal::BadCursor => "start again without `cursor`".to_owned(),
        Refusal::StaleCursor { log, .. } => format!(
            "what happened in between cannot be told any more: look at how things are now, and go on from {}",
            log.end()
        ),
        other => return advice(other).map(str::to_owned),
    };
    Some(hint)
}

/// For a request whose numbers are taken: itself, with others that are free, or adopting.
pub(crate) fn instead(refusal: &Refusal, request: &ReserveRequest) -> Option<String> {
    let (Refusal::PortReserved { alternatives, .. } | Refusal::PortInUse { alternatives, .. }) = refusal
    else {
        return None;
    };
    let link = match refusal {
        Refusal::PortInUse { instance, .. } => Some(instance),
        Refusal::PortReserved { holder, .. } => holder.instance.as_ref(),
        _ => None,
    };
    // People read names.
    let name = link.filter(|link| request.instance == Some(link.id.into())).map(|link| link.name.clone());
    let instance = name.map(InstanceRef::Name).or_else(|| request.instance.clone());
    let request = ReserveRequest { instance, ..request.clone() };
    if matches!(refusal, Refusal::PortInUse { .. }) && request.is_one_port() && request.port.is_some() {
        return Some(format!(
            "if that process is the rightful one: {} --adopt",
            request.command(None, false)
        ));
    }
    alternatives.first().map(|port| request.command(Some(*port), false))
}

/// What to do next where that depends on nothing else. What contradicts itself says all there is to say.
fn advice(refusal: &Refusal) -> Option<&'static str> {
    let advice = match refusal {
        Refusal::NoSuchInstance(_) => "to see which there are: gkctl instance list",
        Refusal::NobodyChosen(_) => "to see how they are labelled: gkctl instance list",
        Refusal::InstanceLeft(_) => "to bring it back, run on that machine: gkctl instance join",
        Refusal::NoSuchReservation(_) => "to see which there are: gkctl reservation list --all-instances",
        Refusal::NoSuchIgnore(_) => "to see which there are: gkctl ignore list",
        Refusal::NoSuchToken(_) | Refusal::TokenEnded(_) => "to see which there are: gkctl token list",
        Refusal::SecretTaken => "leave out the hash to have the server make a secret",
        Refusal::BeyondLimits(_) => "to see what this token may do: gkctl whoami",
        Refusal::TakeOverNotYours => OTHER_ROLE,
        Refusal::LabelsNotYours => {
            "an operator labels it, or makes the join token with them: gkctl token create --join --label KEY=VALUE"
        }
        Refusal::NoSuchPool(_) => "to see which there are: gkctl pool list",
        Refusal::TooManyTargets { .. } => {
            "ask for fewer, as with service=node or label=env=prod, in several jobs"
        }
        Refusal::DefaultPoolStays => "change it instead: gkctl pool set default --ports 8000-9999",
        Refusal::IdentitySuperseded { .. } => {
            "stop whoever else uses this identity, then take it back with gkctl instance join --replace NAME"
        }
        Refusal::OpensWithoutReport(_) => "send a full report",
        Refusal::VersionMismatch { .. } => "read it again, and repeat the change with its new ETag",
        Refusal::IdempotencyKeyReused(_) => {
            "make a new key for a new request, and keep one for repetitions of the same"
        }
        _ => return None,
    };
    Some(advice)
}

/// The field of the request that it is about.
pub(crate) fn field(refusal: &Refusal) -> Option<&'static str> {
    match refusal {
        Refusal::NoSuchInstance(_) | Refusal::InstanceLeft(_) | Refusal::BeyondOwnInstance => {
            Some("instance")
        }
        Refusal::NobodyChosen(_) => Some("on"),
        Refusal::NoSuchPool(_) | Refusal::PoolExhausted { .. } | Refusal::PoolNotForInstance { .. } => {
            Some("pool")
        }
        Refusal::PoolOverlaps { .. } => Some("ranges"),
        Refusal::Contradiction(contradiction) => Some(contradiction.field),
        Refusal::EnsureDiffers { field, .. } => Some(field),
        Refusal::NotInReservation { .. } => Some("ports"),
        Refusal::NoLease(_) => Some("ttl_seconds"),
        Refusal::PortReserved { .. } | Refusal::PortInUse { .. } => Some("port"),
        Refusal::SeveralOwners { .. } | Refusal::NothingToAdopt { .. } => Some("adopt"),
        Refusal::NameTaken(_) | Refusal::DefaultPoolStays => Some("name"),
        Refusal::TakeOverNotYours => Some("replace"),
        Refusal::LabelsNotYours => Some("labels"),
        Refusal::SecretTaken => Some("hash"),
        Refusal::CredentialTaken => Some("credential_hash"),
        Refusal::IdentitySuperseded { .. } => Some("session"),
        Refusal::OpensWithoutReport(_) => Some("kind"),
        Refusal::VersionMismatch { .. } => Some("If-Match"),
        Refusal::IdempotencyKeyReused(_) => Some("Idempotency-Key"),
        Refusal::BadCursor => Some("cursor"),
        // `cursor`, `after` or a header.
        Refusal::StaleCursor { .. }
        | Refusal::NoSuchReservation(_)
        | Refusal::NoSuchIgnore(_)
        | Refusal::NoSuchToken(_)
        | Refusal::TokenEnded(_)
        | Refusal::BeyondLimits(_)
        | Refusal::AlreadyReleased(_)
        | Refusal::NotTheHolder(_)
        | Refusal::AlreadyJoined(_)
        | Refusal::CredentialReplaced
        | Refusal::JoinTokenUsed
        | Refusal::TooManyTargets { .. }
        | Refusal::ReservationsLive { .. } => None,
    }
}

/// Who stands in the way.
pub(crate) fn holder(refusal: &Refusal) -> Option<Holder> {
    match refusal {
        Refusal::PortReserved { holder, listeners, .. } => Some(holds(holder, listeners)),
        Refusal::NotTheHolder(held) | Refusal::EnsureDiffers { held, .. } => Some(holds(held, &[])),
        Refusal::PortInUse { listeners, .. } => Some(Holder {
            subject: None,
            service: None,
            since: listeners.iter().map(|listener| listener.first_seen_at).min(),
            listener: words(listeners),
        }),
        _ => None,
    }
}

/// Ports that are free instead.
pub(crate) fn alternatives(refusal: &Refusal) -> Vec<Port> {
    match refusal {
        Refusal::PortReserved { alternatives, .. } | Refusal::PortInUse { alternatives, .. } => {
            alternatives.clone()
        }
        _ => Vec::new(),
    }
}

fn holds(reservation: &Reservation, listeners: &[Listener]) -> Holder {
    Holder {
        subject: Some(reservation.holder.clone()),
        service: reservation.service.clone(),
        since: Some(reservation.created_at),
        listener: words(listeners),
    }
}

fn words(listeners: &[Listener]) -> Option<String> {
    let words: Vec<String> = listeners.iter().map(|listener| listener.describe().to_string()).collect();
    (!words.is_empty()).then(|| words.join(" and "))
}

/// `gkctl port reserve …`; without a port, the next free one.
fn reserve(protocol: Protocol, instance: Option<&InstanceLink>, port: Option<Port>) -> String {
    let port = port.map(|port| format!(" --port {port}")).unwrap_or_default();
    format!("gkctl port reserve{port}{}{}", protocol_option(protocol), whose(instance))
}

/// What helps when a pool is used up: less, another one, or more.
fn make_room(pool: &PoolName, instance: Option<&InstanceLink>, others: &[PoolName]) -> String {
    let release = list_ports("release what is idle, as shown by", instance) + " --state reserved";
    let another = others.first().map(|other| format!("; draw from {}", named(other, instance, others)));
    let enlarge = format!("; or have an admin enlarge it: gkctl pool set {pool} --ports RANGES");
    format!("{release}{}{enlarge}", another.unwrap_or_default())
}

fn draw_instead(instance: Option<&InstanceLink>, others: &[PoolName]) -> String {
    match others.first() {
        Some(other) => format!("draw from {}", named(other, instance, others)),
        None => "no other pool would do either; an admin makes one with: gkctl pool set NAME --ports RANGES"
            .to_owned(),
    }
}

/// `pool b or c: gkctl port reserve --pool b --instance web-1`.
fn named(first: &PoolName, instance: Option<&InstanceLink>, all: &[PoolName]) -> String {
    let names: Vec<&str> = all.iter().map(PoolName::as_str).collect();
    format!("pool {}: gkctl port reserve --pool {first}{}", names.join(" or "), whose(instance))
}

fn show_history(gone: &Reservation) -> String {
    let (ports, whose) = (gone.ports(), whose(gone.instance.as_ref()));
    format!("to see when and by whom: gkctl port history --port {ports}{whose}")
}

fn whose(instance: Option<&InstanceLink>) -> String {
    instance.map(|instance| format!(" --instance {}", instance.name)).unwrap_or_default()
}

fn list_ports(to: &str, instance: Option<&InstanceLink>) -> String {
    match instance {
        Some(instance) => format!("{to}: gkctl port list --instance {}", instance.name),
        None => format!("{to}: gkctl port list --all-instances"),
    }
}

fn release(held: &Reservation) -> String {
    let (ports, protocol) = (held.ports(), protocol_option(held.protocol));
    format!("gkctl port release --port {ports}{protocol}{}", whose(held.instance.as_ref()))
}

/// TCP is what `gkctl` means unless told.
fn protocol_option(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "",
        Protocol::Udp => " --protocol udp",
    }
}

#[cfg(test)]
mod tests {
    use gk_model::id::{InstanceId, ReservationId};
    use gk_model::reservation::{PortCount, Scope};
    use gk_model::time::Timestamp;

    use super::*;

    fn link() -> InstanceLink {
        InstanceLink { id: InstanceId::generate(Timestamp::from_micros(0)), name: "web-1".parse().unwrap() }
    }

    fn reservation(protocol: Protocol, scope: Scope) -> Box<Reservation> {
        let now = Timestamp::from_micros(0);
        Box::new(Reservation {
            id: ReservationId::generate(now),
            instance: Some(link()),
            scope,
            protocol,
            first_port: Port::new(8080).unwrap(),
            last_port: Port::new(8080).unwrap(),
            name: None,
            service: Some("billing".parse().unwrap()),
            holder: "ada".parse().unwrap(),
            note: None,
            labels: gk_model::labels::Labels::default(),
            expect: None,
            pool: None,
            expires_at: None,
            ttl_seconds: None,
            renew_while_listening: false,
            group: None,
            split_from: None,
            idle_since: None,
            created_at: now,
            released_at: None,
            released_by: None,
            version: 1,
        })
    }

    fn reserved(protocol: Protocol, scope: Scope) -> Refusal {
        Refusal::PortReserved {
            port: Port::new(8080).unwrap(),
            protocol,
            holder: reservation(protocol, scope),
            listeners: Vec::new(),
            wanted: 1,
            alternatives: vec![Port::new(8003).unwrap()],
        }
    }

    #[test]
    fn hints_are_commands_that_work() {
        let table = [
            (
                Refusal::NotTheHolder(reservation(Protocol::Udp, Scope::Instance)),
                "an operator may: gkctl port release --port 8080 --protocol udp --instance web-1 --force",
            ),
            (
                Refusal::EnsureDiffers { held: reservation(Protocol::Tcp, Scope::Instance), field: "count" },
                "ask for what it is, or end it first: gkctl port release --port 8080 --instance web-1",
            ),
            (Refusal::NameTaken("web-1".parse().unwrap()), "gkctl instance join --name web-1-2"),
            (
                Refusal::ReservationsLive { instance: link(), count: 2 },
                "gkctl instance leave web-1 --release",
            ),
        ];
        for (refusal, expected) in table {
            assert_eq!(hint(&refusal).as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_pool_that_is_used_up_has_three_ways_out_and_one_for_others_has_another() {
        let pools =
            |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect::<Vec<PoolName>>();
        let exhausted = |instances: Vec<InstanceLink>, others: &[&str]| Refusal::PoolExhausted {
            pool: "web".parse().unwrap(),
            size: 2000,
            protocols: vec![Protocol::Tcp],
            instances,
            count: PortCount::ONE,
            runs: 1,
            resting: 0,
            others: pools(others),
        };
        let not_for = |others: &[&str]| Refusal::PoolNotForInstance {
            pool: "web".parse().unwrap(),
            selector: "env=prod".parse().unwrap(),
            place: Some(Box::new((link(), gk_model::labels::Labels::default()))),
            others: pools(others),
        };
        let table = [
            (
                exhausted(Vec::new(), &[]),
                "release what is idle, as shown by: gkctl port list --all-instances --state reserved; or have an admin \
                 enlarge it: gkctl pool set web --ports RANGES",
            ),
            (
                exhausted(vec![link()], &["batch", "default"]),
                "release what is idle, as shown by: gkctl port list --instance web-1 --state reserved; draw from pool \
                 batch or default: gkctl port reserve --pool batch --instance web-1; or have an admin enlarge it: gkctl \
                 pool set web --ports RANGES",
            ),
            (
                not_for(&["default", "dev"]),
                "draw from pool default or dev: gkctl port reserve --pool default --instance web-1",
            ),
            (
                not_for(&[]),
                "no other pool would do either; an admin makes one with: gkctl pool set NAME --ports RANGES",
            ),
        ];
        for (refusal, expected) in table {
            assert_eq!(hint(&refusal).as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_taken_number_is_answered_with_the_same_request_for_others() {
        let in_use = || Refusal::PortInUse {
            port: Port::new(8080).unwrap(),
            protocol: Protocol::Tcp,
            instance: link(),
            listeners: Vec::new(),
            wanted: 1,
            alternatives: vec![Port::new(8003).unwrap()],
        };
        let asked = |json: &str| serde_json::from_str::<ReserveRequest>(json).unwrap();
        let taken = || reserved(Protocol::Tcp, Scope::Instance);
        let table = [
            (
                taken(),
                r#"{"instance":"web-1","port":8080}"#,
                "gkctl port reserve --port 8003 --instance web-1",
            ),
            (
                taken(),
                r#"{"on":"env=prod","port":8080,"count":10,"protocol":"both"}"#,
                "gkctl port reserve --port 8003 --count 10 --protocol both --on env=prod",
            ),
            (
                in_use(),
                r#"{"instance":"web-1","port":8080}"#,
                "if that process is the rightful one: gkctl port reserve --port 8080 --instance web-1 --adopt",
            ),
            (
                in_use(),
                r#"{"instance":"web-1","port":8080,"count":2}"#,
                "gkctl port reserve --port 8003 --count 2 --instance web-1",
            ),
        ];
        for (refusal, request, expected) in table {
            assert_eq!(instead(&refusal, &asked(request)).as_deref(), Some(expected), "{request}");
        }
        let by_id =
            ReserveRequest::next_free(reservation(Protocol::Tcp, Scope::Instance).instance.unwrap().id);
        assert!(instead(&Refusal::BadCursor, &by_id).is_none());
    }

    #[test]
    fn a_conflict_names_its_holder() {
        let holder = holder(&reserved(Protocol::Tcp, Scope::Instance)).unwrap();
        assert_eq!(holder.subject.unwrap().as_str(), "ada");
        assert_eq!(holder.service.unwrap().as_str(), "billing");
        assert_eq!(holder.listener, None);
    }
}
