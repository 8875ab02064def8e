//! The agent and its server as processes: what is told late, after a kill, or in pieces.

use std::os::unix::fs::PermissionsExt as _;

use gk_client::identity::{load_credential, load_identity};
use gk_client::session::{FullReport, open_session};
use gk_client::{Client, ServerAddress};
use gk_model::contact::{Family, Part};
use gk_model::history::{Event, EventKind};
use gk_model::instance::Instance;
use gk_model::listener::{Listener, ListenerKey, Netns, Owner};
use gk_model::port::{Port, Protocol};
use gk_model::query::{EventQuery, Limit, PortQuery};
use gk_model::time::Timestamp;

use super::agent::{Joined, listen};
use super::harness::wait_for;

fn events(here: &Joined, port: u16) -> Vec<Event> {
    let query = EventQuery { port: Some(port.to_string().parse().unwrap()), ..Default::default() };
    here.server.admin().list_events(&query).unwrap().items
}

#[test]
fn what_happened_while_the_server_was_away_survives_the_kill_of_the_agent() {
    let mut here = Joined::new();
    let (_steady, steady) = listen();
    let mut agent = here.agent();
    here.wait_shown(Protocol::Tcp, steady, true);
    let spool = here.state.join("spool");
    assert!(!spool.exists(), "nothing is written while the server answers");
    here.server.process.kill();
    let spooled = |what: &str| {
        wait_for(what, || {
            let text = std::fs::read_to_string(&spool).unwrap_or_default();
            text.contains(what).then_some(())
        });
    };
    let (brief, port) = listen();
    spooled(&format!(r#""port":{port}"#));
    assert_eq!(std::fs::metadata(&spool).unwrap().permissions().mode() & 0o777, 0o600);
    drop(brief);
    spooled(r#""closed":[{"#);
    let killed_at = Timestamp::from_clock();
    agent.kill();
    let (_late, late) = listen();
    let agent = here.agent();
    spooled(&format!(r#""port":{late}"#));
    let back_at = Timestamp::from_clock();
    here.server.restart();
    here.wait_shown(Protocol::Tcp, late, true);
    let told = events(&here, port);
    let kinds: Vec<EventKind> = told.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Opened, EventKind::Closed], "{}", agent.log());
    // Corrected by a measured offset, which the way there makes a little wrong.
    assert!(
        told[0].at < told[1].at && told[1].at <= killed_at.plus(std::time::Duration::from_secs(1)),
        "{told:?}"
    );
    assert!(told[1].recorded_at > back_at);
    wait_for("the spool to be gone", || (!spool.exists()).then_some(()));
    assert_eq!(events(&here, steady).len(), 1, "what stayed is told once");
}

/// So many that they do not fit into one contact, whatever it is compressed to.
fn thirty_thousand() -> Vec<Listener> {
    let now = Timestamp::from_clock();
    let owner = |pid| Owner {
        pid,
        started_ticks: 12_345,
        name: "worker".into(),
        exe: Some("/usr/local/lib/worker/bin/worker".into()),
        account: "worker".into(),
    };
    let listener = |port: u16| Listener {
        key: ListenerKey {
            netns: Netns::Home,
            protocol: Protocol::Tcp,
            port: Port::new(port).unwrap(),
            address: "0.0.0.0".parse().unwrap(),
            interface: None,
            v6only: false,
        },
        account: Some("worker".into()),
        owners: (0..3).map(|worker| owner(u32::from(port) * 3 + worker)).collect(),
        more_owners: 0,
        unit: Some("worker.service".into()),
        container: None,
        first_seen_at: now,
        last_seen_at: now,
    };
    (20_000..50_000).map(listener).collect()
}

#[test]
fn a_machine_with_thirty_thousand_listeners_is_shown_whole() {
    let here = Joined::new();
    let (identity, credential) =
        (load_identity(&here.state).unwrap().unwrap(), load_credential(&here.state).unwrap().unwrap());
    let socket = ServerAddress::Unix(here.server.data.join("gatekeeper.sock"));
    let client = Client::new(socket, Some(credential));
    let listeners = thirty_thousand();
    let report = |listeners: &[Listener]| FullReport {
        covered: Protocol::ALL
            .iter()
            .flat_map(|protocol| {
                let part =
                    |family: &Family| Part { netns: Netns::Home, protocol: *protocol, family: *family };
                Family::ALL.iter().map(part).collect::<Vec<Part>>()
            })
            .collect(),
        listeners: listeners.to_vec(),
        occupied: Vec::new(),
    };
    let shown = || {
        let admin = here.server.admin();
        let count = |first: u16| {
            // A page at a time, by its range: a list that goes on from a cursor begins by reading all of them.
            let range = format!("{first}-{}", first + 499).parse().unwrap();
            let limit = Some(Limit::MAX);
            let query =
                PortQuery { port: Some(range), protocol: Some(Protocol::Tcp), limit, ..Default::default() };
            let states = admin.list_ports(&query).unwrap().items;
            states.iter().filter(|state| !state.listeners.is_empty()).count()
        };
        // The digests agree on all of them; these are samples of what is shown.
        (20_000..50_000).step_by(5_000).map(count).sum::<usize>()
    };
    let plain = serde_json::to_vec(&listeners).unwrap().len();
    assert!(plain > 12 << 20, "{plain} bytes");
    let open = |listeners: &[Listener]| {
        let now = Timestamp::from_clock();
        open_session(&client, identity.id, &here.state, report(listeners), "test".into(), now).unwrap()
    };
    let answer = open(&listeners);
    assert!(!answer.want_report && answer.acknowledged > 3, "{answer:?}");
    assert_eq!(shown(), 3_000);
    let instance: Instance = here.server.admin().get_instance(&identity.id.into()).unwrap();
    assert!(instance.observed_at.is_some(), "and it is known to be complete");
    // Every second one is gone.
    let half: Vec<Listener> = listeners.into_iter().step_by(2).collect();
    assert!(!open(&half).want_report);
    assert_eq!(shown(), 1_500);
}
