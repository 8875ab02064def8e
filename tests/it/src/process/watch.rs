//! Watching real servers: killed, restarted, pruned and many at once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gk_client::session::{FullReport, open_session};
use gk_client::{Client, ClientError, News, ServerAddress};
use gk_model::access::Role;
use gk_model::contact::{Family, Part};
use gk_model::history::{Event, EventKind};
use gk_model::id::InstanceId;
use gk_model::instance::InstancePatch;
use gk_model::listener::Netns;
use gk_model::port::{Port, Protocol};
use gk_model::problem::Code;
use gk_model::query::{EventQuery, Limit, ReservationQuery};
use gk_model::reservation::ReserveRequest;
use gk_model::secret::{Secret, SecretKind};
use gk_model::time::Timestamp;
use gk_model::token::TokenRequest;
use gk_model::watch::{EventCursor, WatchQuery};
use gk_store::{DatabaseUrl, Store, StoreConfig};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::termios::{Winsize, tcsetwinsize};

use super::crash::{Load, join, kill};
use super::harness::{Place, Process, Server, gkctl, program, stdout, wait_for};
use super::tokens::terminal;
use crate::cluster;

/// Every event that was ever in the log, collected before it is pruned.
#[derive(Default)]
struct Ledger {
    events: Mutex<BTreeMap<u64, Event>>,
}

impl Ledger {
    /// Adds what is new in the list.
    fn read_on(&self, client: &Client) -> Result<(), ClientError> {
        let mut events = self.events.lock().unwrap();
        let last = events.last_key_value().map_or(0, |(seq, _)| *seq);
        let log =
            client.list_events(&EventQuery { limit: Some(Limit::at_most(1)), ..Default::default() })?.log;
        let mut cursor = Some(log.cursor(last).to_string());
        while let Some(from) = cursor {
            let query = EventQuery { cursor: Some(from), limit: Some(Limit::MAX), ..Default::default() };
            let page = client.list_events(&query)?;
            events.extend(page.items.into_iter().map(|event| (event.seq, event)));
            cursor = page.next;
        }
        assert!(events.keys().copied().eq(1..=events.len() as u64), "the ledger has a gap");
        Ok(())
    }
}

/// What one watcher was told from one place on, until the log did not reach it any more.
struct Told {
    begin: u64,
    events: Vec<Event>,
    end: u64,
}

/// Small numbers without order, the same in each run.
struct Luck(u64);

impl Luck {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// The filters of the watchers; the first is none.
fn filters() -> Vec<WatchQuery> {
    vec![
        WatchQuery::default(),
        WatchQuery { kind: Some("reserved,renamed".parse().unwrap()), ..Default::default() },
        WatchQuery::default(),
        WatchQuery { kind: Some("released,renamed".parse().unwrap()), ..Default::default() },
    ]
}

/// An event but for what its instance is called, which is told as it is now.
fn line(event: &Event) -> String {
    format!("{} {} {}: {}", event.seq, event.recorded_at, event.kind, event.message)
}

fn passes(query: &WatchQuery, event: &Event) -> bool {
    query.kind.as_ref().is_none_or(|kinds| kinds.contains(event.kind))
}

/// Watches until an instance is renamed, hanging up and coming back somewhere else again and again. `the_end` is the
/// number of that event, once it is known: whoever is beyond it was not told, and whoever stays before it is not going to be.
fn watch(
    clients: &[Client],
    filter: &WatchQuery,
    mut luck: Luck,
    (hung_up, the_end): (&AtomicUsize, &AtomicU64),
) -> Vec<Told> {
    let mut told: Vec<Told> = Vec::new();
    let mut at: Option<EventCursor> = None;
    loop {
        let client = &clients[luck.below(clients.len() as u64) as usize];
        let mut news = client.watch(&WatchQuery { after: at, ..filter.clone() });
        let mut quiet = 0;
        for _ in 0..=luck.below(120) {
            match news.next() {
                Some(Ok(News::Event(event))) => {
                    let is_last = event.kind == EventKind::Renamed;
                    told.last_mut().expect("a bookmark comes first").events.push(*event);
                    if is_last {
                        told.last_mut().unwrap().end = news.cursor().unwrap().seq;
                        return told;
                    }
                }
                Some(Ok(News::Bookmark)) if told.is_empty() => {
                    let begin = news.cursor().unwrap().seq;
                    told.push(Told { begin, events: Vec::new(), end: begin });
                }
                Some(Ok(News::Bookmark)) => {
                    let (seq, end) = (news.cursor().unwrap().seq, the_end.load(Ordering::Relaxed));
                    quiet += usize::from(end < u64::MAX);
                    assert!(seq < end && quiet < 3, "at {seq}, and never told of {end}");
                }
                Some(Ok(News::Lost(_)) | Err(ClientError::Unreachable { .. })) => break,
                Some(Err(ClientError::Refused(problem))) if problem.code == Code::Unavailable => break,
                // Too slow for the pruning: said so, and begins anew.
                Some(Err(ClientError::Gone(_))) => {
                    let reached = at.or(news.cursor()).unwrap().seq;
                    let log = wait_for("the log", || client.list_events(&EventQuery::default()).ok()).log;
                    assert!(log.oldest_seq > reached + 1, "nothing is missing behind {reached}: {log:?}");
                    told.push(Told { begin: log.newest_seq, events: Vec::new(), end: log.newest_seq });
                    at = Some(log.end());
                    break;
                }
                other => panic!("{other:?}"),
            }
            at = news.cursor().or(at);
            if let (Some(told), Some(at)) = (told.last_mut(), at) {
                told.end = at.seq;
            }
        }
        hung_up.fetch_add(1, Ordering::Relaxed);
    }
}

/// Takes away what is older than a second, again and again, after the ledger has it.
fn prune(store: &Store, runtime: &tokio::runtime::Runtime) {
    let pruned = store.write(|tx| tx.prune(Timestamp::from_clock(), Duration::from_secs(1), 10_000));
    runtime.block_on(pruned).unwrap();
}

fn everybody_is_told_everything(servers: &mut [Server], pruner: Option<&Store>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (ledger, load) = (Ledger::default(), Load::default());
    let (hung_up, the_end) = (AtomicUsize::new(0), AtomicU64::new(u64::MAX));
    let instance = join(&servers[0].admin(), "web-1", 1);
    let clients: Vec<Client> =
        servers.iter().map(|server| server.admin().with_patience(Duration::ZERO)).collect();
    let filters = filters();
    let told: Vec<(usize, Vec<Told>)> = std::thread::scope(|scope| {
        let (clients, noted) = (&clients, (&hung_up, &the_end));
        let watchers: Vec<_> = (0..16)
            .map(|number| {
                let filter = &filters[number % filters.len()];
                scope.spawn(move || (number, watch(clients, filter, Luck(number as u64), noted)))
            })
            .collect();
        let keep = |rounds: usize| {
            for _ in 0..rounds {
                load.wait_for_more(60);
                ledger.read_on(&clients[0]).unwrap();
                if let Some(store) = pruner {
                    prune(store, &runtime);
                }
            }
        };
        let both: Vec<&Server> = servers.iter().collect();
        load.during(&both, instance, || keep(4));
        // The last one is killed in the middle of its work.
        let pid = servers.last().unwrap().process.id();
        load.during(&servers.iter().collect::<Vec<_>>(), instance, || {
            load.wait_for_more(40);
            kill(pid);
        });
        servers.last_mut().unwrap().process.kill();
        servers.last_mut().unwrap().restart();
        ledger.read_on(&servers[0].admin()).unwrap();
        load.during(&servers.iter().collect::<Vec<_>>(), instance, || keep(3));
        let patch = InstancePatch { name: Some("the-end".parse().unwrap()), ..InstancePatch::default() };
        servers[0].admin().update_instance(&instance.into(), &patch).unwrap();
        ledger.read_on(&servers[0].admin()).unwrap();
        the_end.store(ledger.events.lock().unwrap().len() as u64, Ordering::Relaxed);
        watchers.into_iter().map(|watcher| watcher.join().unwrap()).collect()
    });
    let ledger = ledger.events.into_inner().unwrap();
    let newest = ledger.len() as u64;
    for (number, told) in &told {
        let filter = &filters[number % filters.len()];
        for Told { begin, events, end } in told {
            let expected = ledger.range(begin + 1..=*end).map(|(_, event)| event);
            let expected: Vec<String> = expected.filter(|event| passes(filter, event)).map(line).collect();
            let told: Vec<String> = events.iter().map(line).collect();
            let differ = (0..told.len().max(expected.len())).find(|at| told.get(*at) != expected.get(*at));
            if let Some(at) = differ {
                let (told, expected) = (told.get(at), expected.get(at));
                panic!("watcher {number}, {begin} to {end}, at {at}: {told:?} instead of {expected:?}");
            }
        }
        assert_eq!(told.last().unwrap().end, newest, "watcher {number} was told the end");
    }
    assert!(hung_up.into_inner() > 16, "the watchers hung up now and then");
}

#[test]
fn watch_is_ordered_unique_gapless_resumable() {
    let place = Place::new();
    everybody_is_told_everything(&mut [Server::start(&place.join("one"))], None);

    let url = cluster::shared().create_url();
    let servers =
        &mut [Server::start_on(&url, &place.join("two")), Server::start_on(&url, &place.join("three"))];
    let database: DatabaseUrl = url.parse().unwrap();
    let config = StoreConfig {
        database: Some(database),
        database_clock: false,
        ..StoreConfig::embedded(place.join("pruner"))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let store = runtime.block_on(Store::open(config, Timestamp::from_clock())).unwrap();
    everybody_is_told_everything(servers, Some(&store));
    store.close();
}

fn over_tcp(server: &Server, token: &Secret) -> Client {
    let address: ServerAddress = format!("http://{}", server.address).parse().unwrap();
    Client::new(address, Some(token.clone()))
}

/// The next thing that is told and is no bookmark.
fn next(watch: &mut gk_client::Watch) -> Result<News, ClientError> {
    loop {
        match watch.next().expect("a watch ends with an error") {
            Ok(News::Bookmark) => {}
            other => return other,
        }
    }
}

#[test]
fn what_one_server_writes_the_watchers_of_another_are_told_within_a_second_until_their_token_ends() {
    let place = Place::new();
    let url = cluster::shared().create_url();
    let (here, there) =
        (Server::start_on(&url, &place.join("here")), Server::start_on(&url, &place.join("there")));
    let instance = join(&here.admin(), "web-1", 1);
    let secret = Secret::from_random(SecretKind::Subject, &[7; 32]);
    let mut wanted = TokenRequest::for_subject("ada".parse().unwrap(), Role::Viewer);
    wanted.hash = Some(secret.hash());
    let made = here.admin().create_token(&wanted).unwrap();
    let mut watch = over_tcp(&there, &secret).watch(&WatchQuery::default());
    assert!(matches!(watch.next(), Some(Ok(News::Bookmark))));
    let mut delays = Vec::new();
    for _ in 0..9 {
        here.admin().reserve(&ReserveRequest::next_free(instance)).unwrap();
        let written_at = Instant::now();
        assert!(matches!(next(&mut watch).unwrap(), News::Event(event) if event.kind == EventKind::Reserved));
        delays.push(written_at.elapsed());
    }
    delays.sort_unstable();
    assert!(delays[4] < Duration::from_secs(1), "{delays:?}");
    here.admin().revoke_token(made.token.id).unwrap();
    let ended_at = Instant::now();
    let refused = loop {
        match next(&mut watch) {
            Ok(News::Lost(_) | News::Event(_)) => {}
            other => break other.unwrap_err(),
        }
    };
    assert_eq!(refused.problem().unwrap().code, Code::Unauthenticated);
    assert!(ended_at.elapsed() < Duration::from_secs(3), "{:?}", ended_at.elapsed());
}

/// `gkctl` with its output in a pipe.
fn piped(server: &Server, place: &Place, words: &[&str]) -> Child {
    let socket = format!("unix:{}", server.data.join("gatekeeper.sock").display());
    let mut command = program("gkctl");
    command.args(words).env("GATEKEEPER_SERVER", socket).env("GATEKEEPER_STATE", place.join("state"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn reserve(server: &Server, instance: InstanceId, port: u16) {
    let request = ReserveRequest { port: Port::new(port), ..ReserveRequest::next_free(instance) };
    server.admin().reserve(&request).unwrap();
}

#[test]
fn what_ends_because_an_instance_leaves_is_told_to_whoever_follows_history() {
    let place = Place::new();
    let server = Server::start(&place.join("data"));
    let instance = join(&server.admin(), "web-1", 1);
    reserve(&server, instance, 8201);
    let credential = Secret::from_random(SecretKind::Instance, &[1; 32]);
    let agent = Client::new(ServerAddress::Unix(server.data.join("gatekeeper.sock")), Some(credential));
    let now = Timestamp::from_clock();
    let listener = serde_json::json!({
        "netns": "home", "protocol": "tcp", "port": 8200, "address": "0.0.0.0",
        "first_seen_at": now, "last_seen_at": now,
    });
    let part = Part { netns: Netns::Home, protocol: Protocol::Tcp, family: Family::V4 };
    let listeners = vec![serde_json::from_value(listener).unwrap()];
    let report = FullReport { covered: vec![part], listeners, occupied: Vec::new() };
    open_session(&agent, instance, &place.join("agent"), report, "test".into(), now).unwrap();
    let words = ["port", "history", "8200-8201", "--follow", "--since", "1h", "--instance", "web-1"];
    let mut child = piped(&server, &place, &words);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut two = || -> BTreeMap<u64, serde_json::Value> {
        let mut line =
            || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
        let told = [line(), line()];
        told.map(|line| (line["first_port"].as_u64().unwrap(), line["ended_at"].clone())).into()
    };
    let null = serde_json::Value::Null;
    assert_eq!(two(), [(8200, null.clone()), (8201, null)].into(), "they last");
    wait_for("the watch", || {
        metrics(&server).lines().any(|line| line == "gatekeeper_watchers 1").then_some(())
    });
    server.admin().leave_instance(&"web-1".parse().unwrap(), true).unwrap();
    let left = server.admin().get_instance(&instance.into()).unwrap();
    let at = |at: Option<Timestamp>| serde_json::to_value(at.unwrap()).unwrap();
    let ended = [(8200, at(left.last_contact_at)), (8201, at(left.left_at))];
    assert_eq!(two(), ended.into(), "since its last contact nobody knows of listeners");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_is_followed_comes_as_json_lines_over_a_restart_until_nobody_reads() {
    let place = Place::new();
    let mut server = Server::start(&place.join("data"));
    let instance = join(&server.admin(), "web-1", 1);
    reserve(&server, instance, 8100);
    let words: [&[&str]; 3] = [
        &["events", "--follow", "--since", "1h", "--kind", "reserved,released"],
        &["port", "watch", "8100-8109", "--instance", "web-1", "-o", "json"],
        &["port", "history", "--follow", "--since", "1h", "--instance", "web-1"],
    ];
    let mut children: Vec<Child> = words.iter().map(|words| piped(&server, &place, words)).collect();
    let mut lines: Vec<_> =
        children.iter_mut().map(|child| BufReader::new(child.stdout.take().unwrap()).lines()).collect();
    let mut line = |of: usize| -> serde_json::Value {
        serde_json::from_str(&lines[of].next().unwrap().unwrap()).unwrap()
    };
    assert_eq!((line(0)["first_port"].as_u64(), line(2)["first_port"].as_u64()), (Some(8100), Some(8100)));
    wait_for("all three to watch", || {
        let metrics = metrics(&server);
        metrics.lines().any(|line| line == "gatekeeper_watchers 3").then_some(())
    });
    for port in [8101, 8200] {
        reserve(&server, instance, port);
        assert_eq!(
            (line(0)["first_port"].as_u64(), line(2)["first_port"].as_u64()),
            (Some(port.into()), Some(port.into()))
        );
    }
    let held = server.admin().list_reservations(&ReservationQuery::default()).unwrap().items;
    server
        .admin()
        .release(held.iter().find(|held| held.first_port.get() == 8200).unwrap().id, false)
        .unwrap();
    let (event, interval) = (line(0), line(2));
    assert_eq!((event["kind"].as_str(), &interval["ended_at"]), (Some("released"), &event["at"]));
    assert_eq!((line(1)["kind"].as_str(), server.process.id() > 0), (Some("reserved"), true));
    server.process.kill();
    server.restart();
    reserve(&server, instance, 8102);
    assert_eq!([0, 1, 2].map(|of| line(of)["first_port"].as_u64()), [Some(8102); 3], "8200 is not watched");
    drop(lines);
    reserve(&server, instance, 8103);
    for mut child in children {
        assert!(child.wait().unwrap().success(), "whoever hung up had seen enough");
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(
            said.contains("going on as soon as it answers") && said.contains("nothing is missed"),
            "{said}"
        );
    }
}

fn metrics(server: &Server) -> String {
    use std::io::Write as _;
    let mut stream = std::os::unix::net::UnixStream::connect(server.data.join("gatekeeper.sock")).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_place_that_is_gone_is_told_as_that_and_a_server_that_is_away_at_once() {
    let place = Place::new();
    let server = Server::start(&place.join("data"));
    join(&server.admin(), "web-1", 1);
    let listed = stdout(&gkctl(&server, &place.join("state"), &["events", "-o", "json"]));
    assert!(listed.contains("joined"), "{listed}");
    let log = server.admin().list_events(&EventQuery::default()).unwrap().log;
    let beyond =
        WatchQuery { after: Some(log.cursor(99)), protocol: Some(Protocol::Tcp), ..Default::default() };
    let gone = server.admin().watch(&beyond).next().unwrap().unwrap_err();
    assert!(matches!(&gone, ClientError::Gone(problem) if problem.code == Code::StaleCursor), "{gone:?}");
    drop(server);
    let away = super::harness::gkctl_at("http://127.0.0.1:1", &place.join("state"), &["events", "--follow"]);
    assert_eq!(away.status.code(), Some(6));
}

/// The last picture that was drawn of those on a terminal.
fn last_picture(terminal: &mut File, drawn: &mut String) -> String {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = terminal.read(&mut buffer) {
        *drawn += &String::from_utf8_lossy(&buffer[..count]);
    }
    drawn.rsplit("\x1b[H\x1b[2J").next().unwrap().to_owned()
}

#[test]
fn a_small_terminal_shows_what_changed_last() {
    let place = Place::new();
    let server = Server::start(&place.join("data"));
    let instance = join(&server.admin(), "web-1", 1);
    let labels = InstancePatch {
        labels: Some(vec!["role=web".parse().unwrap()].try_into().unwrap()),
        ..Default::default()
    };
    server.admin().update_instance(&instance.into(), &labels).unwrap();
    let other = join(&server.admin(), "db-1", 2);
    for port in 8100..8130 {
        reserve(&server, instance, port);
        reserve(&server, other, port);
    }
    let (mut ours, theirs) = terminal();
    tcsetwinsize(&theirs, Winsize { ws_row: 10, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    fcntl_setfl(&ours, OFlags::NONBLOCK).unwrap();
    let socket = format!("unix:{}", server.data.join("gatekeeper.sock").display());
    let mut command = program("gkctl");
    command.args(["port", "watch", "-A", "--label", "role=web"]).env("GATEKEEPER_SERVER", socket);
    command.env("GATEKEEPER_STATE", place.join("state"));
    let _watching = Process::start_at(theirs, &mut command, place.join("watch.log"));
    let mut drawn = String::new();
    let mut wait_for_picture = |of: &[&str]| {
        wait_for(&format!("a picture of {of:?}"), || {
            let picture = last_picture(&mut ours, &mut drawn);
            let ports = picture.lines().filter_map(|line| line.split_once("web-1"));
            let ports = ports.map(|(mark, rest)| format!("{}{}", mark.trim(), &rest.trim_start()[..4]));
            (ports.eq(of.iter().copied())
                && !picture.contains("db-1")
                && picture.ends_with("more; ctrl-c ends"))
            .then_some(())
        });
    };
    wait_for_picture(&["8100", "8101", "8102", "8103", "8104", "8105", "8106", "8107"]);
    reserve(&server, instance, 8200);
    wait_for_picture(&["8100", "8101", "8102", "8103", "8104", "8105", "8106", "*8200"]);
    reserve(&server, instance, 8150);
    wait_for_picture(&["8100", "8101", "8102", "8103", "8104", "8105", "*8150", "8200"]);
    let told = |words: &[&str]| {
        let words = [&["events", "--limit", "1", "-o", "json"], words].concat();
        let events: serde_json::Value =
            serde_json::from_str(&stdout(&gkctl(&server, &place.join("state"), &words))).unwrap();
        events.as_array().unwrap().iter().map(|event| event["first_port"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(told(&[]), [8150], "the newest, unless since when is asked for");
    assert_eq!(told(&["--since", "1h"]), [serde_json::Value::Null], "that an instance joined");
}
