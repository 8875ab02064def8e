//! Listeners: how they are told, bounded and summed up.

use super::*;

pub(crate) fn listener(protocol: Protocol, address: &str, port: u16, pid: u32) -> Listener {
    let now = Timestamp::from_micros(0);
    let owner = Owner {
        pid,
        started_ticks: 7,
        name: "nginx".into(),
        exe: Some("/usr/sbin/nginx".into()),
        account: "www-data".into(),
    };
    Listener {
        key: ListenerKey {
            netns: Netns::Home,
            protocol,
            port: Port::new(port).unwrap(),
            address: address.parse().unwrap(),
            interface: None,
            v6only: false,
        },
        account: Some("root".into()),
        owners: vec![owner].into(),
        more_owners: 0,
        unit: None,
        container: None,
        first_seen_at: now,
        last_seen_at: now,
    }
}

#[test]
fn where_a_listener_is_bound_is_written_one_way() {
    let table = [
        // (address, interface, v6only, written)
        ("0.0.0.0", None, false, "0.0.0.0"),
        ("127.0.0.1", None, false, "127.0.0.1"),
        ("127.0.0.1", Some("lo"), false, "127.0.0.1%lo"),
        ("::", None, false, "[::]"),
        ("::", None, true, "[::] v6only"),
        ("::", Some("eth0"), true, "[::]%eth0 v6only"),
        ("::1", None, true, "[::1]"),
        ("fe80::1", Some("eth0"), false, "[fe80::1]%eth0"),
    ];
    for (address, interface, v6only, written) in table {
        let key = listener(Protocol::Tcp, address, 80, 1).key;
        let key = ListenerKey { interface: interface.map(Into::into), v6only, ..key };
        assert_eq!(key.bound_to().to_string(), written);
    }
}

#[test]
fn an_upgrade_under_a_running_program_makes_no_other_owner_of_it() {
    let (old, mut new) = (listener(Protocol::Tcp, "0.0.0.0", 80, 1), listener(Protocol::Tcp, "::", 80, 2));
    new.owners[0].exe = Some("/usr/sbin/nginx (deleted)".into());
    assert_eq!(new.owners[0].program(), "/usr/sbin/nginx");
    let groups =
        |listeners: &[&Listener]| owner_groups(&listeners.iter().copied().cloned().collect::<Vec<_>>()).len();
    assert_eq!(groups(&[&old, &new]), 1);
    new.owners[0].account = "ada".into();
    assert_eq!(groups(&[&old, &new]), 2);
    let hidden = Listener { owners: Owners::default(), ..old.clone() };
    assert_eq!((groups(&[&hidden]), groups(&[&hidden, &old])), (1, 2));
}

#[test]
fn a_digest_ignores_order_times_and_names_and_nothing_else() {
    let (a, b) = (listener(Protocol::Tcp, "0.0.0.0", 80, 1), listener(Protocol::Udp, "::", 53, 2));
    assert_eq!(Digest::of([&a, &b]), Digest::of([&b, &a]));
    let mut renamed = a.clone();
    renamed.owners[0].name = "other".into();
    renamed.last_seen_at = Timestamp::from_micros(5);
    assert_eq!(Digest::of([&a]), Digest::of([&renamed]));
    for different in [
        listener(Protocol::Tcp, "0.0.0.0", 81, 1),
        listener(Protocol::Udp, "0.0.0.0", 80, 1),
        listener(Protocol::Tcp, "127.0.0.1", 80, 1),
        listener(Protocol::Tcp, "0.0.0.0", 80, 2),
    ] {
        assert_ne!(Digest::of([&a]), Digest::of([&different]));
    }
}

/// One with so many owners, of which the given ones run another program.
fn crowded(count: u32, strangers: &[u32]) -> Listener {
    let mut crowded = listener(Protocol::Tcp, "0.0.0.0", 80, 1);
    let worker = crowded.owners.remove(0);
    crowded.owners = (1..=count).map(|pid| Owner { pid, ..worker.clone() }).collect();
    for stranger in strangers {
        crowded.owners[*stranger as usize - 1].exe = Some(format!("/tmp/{stranger}").as_str().into());
    }
    crowded
}

fn pids(listener: &Listener) -> Vec<u32> {
    listener.owners.iter().map(|owner| owner.pid).collect()
}

#[test]
fn of_countless_owners_one_of_each_kind_is_told_first_and_the_rest_are_counted() {
    let first = |count: u32| (1..=count).collect::<Vec<_>>();
    let except = |last: u32, strangers: &[u32]| [first(last), strangers.to_vec()].concat();
    let all: Vec<u32> = (1..=100).collect();
    let table = [
        // (owners, strangers, told, more, whether every kind is told)
        (1, vec![], first(1), 0, true),
        (64, vec![64], first(64), 0, true),
        (65, vec![], first(64), 1, true),
        (65, vec![65], except(63, &[65]), 1, true),
        (40_000, vec![300, 40_000], except(62, &[300, 40_000]), 39_936, true),
        (100, all, first(64), 36, false),
    ];
    for (row, (count, strangers, told, more, every_kind)) in table.into_iter().enumerate() {
        let whole = crowded(count, &strangers);
        let bounded = whole.clone().bounded();
        assert_eq!((pids(&bounded), bounded.more_owners), (told, more), "row {row}");
        assert_eq!(bounded.tells_every_kind(), every_kind, "row {row}");
        assert_eq!(bounded.clone().bounded(), bounded, "row {row}: once is enough");
        let words = whole.describe().to_string();
        assert_eq!(bounded.describe().to_string(), words, "row {row}");
        assert!(count == 1 || words.ends_with(&format!("(pid 1 and {} more)", count - 1)), "{words}");
    }
}

#[test]
fn a_listener_that_is_read_is_bounded_and_agent_and_server_mean_the_same() {
    let whole = crowded(40_000, &[39_000]);
    let read: Listener = serde_json::from_str(&serde_json::to_string(&whole).unwrap()).unwrap();
    assert_eq!(read, whole.bounded());
    let again: Listener = serde_json::from_str(&serde_json::to_string(&read).unwrap()).unwrap();
    assert_eq!((&again, Digest::of([&again])), (&read, Digest::of([&read])));
    assert!(!again.same_but_times(&Listener { more_owners: 7, ..read }), "it is a change to be told");
    let usual = serde_json::to_value(crowded(64, &[])).unwrap();
    assert!(usual.get("more_owners").is_none(), "as agents have always told it");
}

#[test]
fn no_listener_is_larger_than_a_tenth_of_what_a_watch_takes_for_one_event() {
    for longest in ["𝄞", "\"", "\u{1b}"] {
        let text = Observed::new(&longest.repeat(100_000));
        let mut huge = crowded(200, &[]);
        for owner in huge.owners.iter_mut() {
            owner.name = format!("{}{text}", owner.pid).as_str().into();
            (owner.exe, owner.account) = (Some(text.clone()), text.clone());
        }
        let [id, engine] = [&text; 2].map(Clone::clone);
        let container = Container { id, name: Some(text.clone()), engine, pod: Some(text.clone()) };
        huge.container = Some(Box::new(container));
        (huge.account, huge.unit, huge.key.interface) = (Some(text.clone()), Some(text.clone()), Some(text));
        let bounded = huge.bounded();
        let bytes = serde_json::to_vec(&bounded).unwrap().len();
        assert!(bytes < 100_000 && bounded.owners.len() >= 2, "{bytes} bytes");
    }
}

#[test]
fn who_holds_a_listener_stays_when_more_becomes_known_of_the_same_processes() {
    let contained = |id: &str, name: Option<&str>, owners: bool| {
        let mut listener = listener(Protocol::Tcp, "0.0.0.0", 80, 1);
        listener.owners.truncate(usize::from(owners));
        let (name, engine) = (name.map(Into::into), "docker".into());
        let container = Container { id: id.into(), name, engine, pod: None };
        listener.container = (!id.is_empty()).then_some(Box::new(container));
        listener
    };
    let table = [
        (contained("", None, true), contained("a", None, true), true),
        (contained("a", None, true), contained("a", Some("web"), true), true),
        (contained("a", None, false), contained("a", Some("web"), false), true),
        (contained("a", None, true), contained("b", None, true), false),
        (contained("", None, false), contained("a", None, false), false),
        (contained("a", None, false), contained("a", None, true), false),
    ];
    for (one, other, expected) in table {
        assert_eq!(one.has_same_holder(&other), expected, "{one:?} {other:?}");
        assert_eq!(other.has_same_holder(&one), expected, "{other:?} {one:?}");
    }
}

#[test]
fn a_digest_follows_single_changes() {
    let (a, b) = (listener(Protocol::Tcp, "0.0.0.0", 80, 1), listener(Protocol::Tcp, "::1", 81, 2));
    let mut digest = Digest::of([&a, &b]);
    digest.remove(&a);
    assert_eq!(digest, Digest::of([&b]));
    digest.remove(&b);
    assert_eq!(digest, Digest::default());
    assert_eq!(digest.to_string().parse(), Ok(digest));
}

#[test]
fn copies_of_owners_are_one_list_until_one_is_changed() {
    let one = listener(Protocol::Tcp, "0.0.0.0", 80, 1).owners;
    let mut other = one.clone();
    assert!(std::ptr::eq(one.as_slice(), other.as_slice()));
    other[0].pid += 1;
    assert_eq!((one == other, one.len(), other.len()), (false, 1, 1));
    let text = serde_json::to_string(&one).unwrap();
    assert_eq!(text, serde_json::to_string(&Vec::clone(&one)).unwrap());
    assert_eq!(serde_json::from_str::<Owners>(&text).unwrap(), one);
    assert_eq!(serde_json::from_str::<Owners>("[]").unwrap(), Owners::default());
}
