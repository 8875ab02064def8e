//! Streams of events: what they tell, from where to where, to whom, and when they end.

mod sockets;

use std::time::Duration;

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Method, Request};
use gk_model::access::{Actor, Authority, Role};
use gk_model::id::{InstanceRef, LogId};
use gk_model::reservation::ReserveRequest;
use gk_model::secret::{Secret, SecretKind};
use gk_model::time::Timestamp;
use gk_model::token::TokenRequest;
use gk_model::watch::{EventCursor, EventPage, Log};
use gk_store::Store;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tower::ServiceExt as _;

use super::{Api, LOCAL_UID, secret};
use crate::Peer;
use crate::watch::Stopping;

/// What a client reads.
#[derive(Clone, Debug, PartialEq)]
struct Heard {
    kind: String,
    id: Option<EventCursor>,
    data: Value,
}

impl Heard {
    fn parse(text: &str) -> Heard {
        let field = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            let value = lines.next().map(str::to_owned);
            assert!(lines.next().is_none(), "{name} twice in {text}");
            value
        };
        let id = field("id").map(|id| id.parse().unwrap());
        let data = serde_json::from_str(&field("data").unwrap()).unwrap();
        Heard { kind: field("event").unwrap(), id, data }
    }

    fn seq(&self) -> u64 {
        self.data["seq"].as_u64().unwrap()
    }
}

/// The reader's end of a stream.
struct Ear {
    body: Body,
    text: String,
}

impl Ear {
    /// The next event; none at the end of the stream.
    async fn next(&mut self) -> Option<Heard> {
        loop {
            if let Some((one, rest)) = self.text.split_once("\n\n") {
                let (heard, rest) = (Heard::parse(one), rest.to_owned());
                self.text = rest;
                return Some(heard);
            }
            let Some(frame) = self.body.frame().await else {
                assert_eq!(self.text, "", "the stream ends within an event");
                return None;
            };
            self.text.push_str(std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
        }
    }

    /// The next one that is no bookmark, within a minute.
    async fn next_event(&mut self) -> Heard {
        let event = async {
            loop {
                match self.next().await {
                    Some(heard) if heard.kind == "bookmark" => {}
                    heard => return heard.expect("the stream goes on"),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), event).await.expect("an event comes")
    }

    /// The numbers of all events up to this one.
    async fn until(&mut self, seq: u64) -> Vec<u64> {
        let mut heard = Vec::new();
        while heard.last() != Some(&seq) {
            heard.push(self.next_event().await.seq());
        }
        heard
    }
}

impl Api {
    async fn log(&self) -> Log {
        self.store.log().await.unwrap()
    }

    /// Sends a request for a stream as it is; the stream, or the refusal.
    async fn open(&self, request: Request<Body>) -> Result<Ear, (u16, Value)> {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        if head.status.is_success() {
            assert_eq!(head.headers["content-type"], "text/event-stream");
            assert_eq!(head.headers["cache-control"], "no-store");
            return Ok(Ear { body, text: String::new() });
        }
        let body = body.collect().await.unwrap().to_bytes();
        Err((head.status.as_u16(), serde_json::from_slice(&body).unwrap()))
    }

    /// A stream for the local admin.
    async fn watch(&self, query: &str) -> Result<Ear, (u16, Value)> {
        self.open(
            stream(query).extension(ConnectInfo(Peer::Unix { uid: LOCAL_UID })).body(Body::empty()).unwrap(),
        )
        .await
    }

    async fn watch_with(&self, token: &Secret, query: &str) -> Result<Ear, (u16, Value)> {
        let bearer = format!("Bearer {}", token.reveal());
        self.open(stream(query).header("authorization", bearer).body(Body::empty()).unwrap()).await
    }

    /// Makes one event, and answers its number.
    async fn happen(&self) -> u64 {
        self.happen_often(1).await
    }

    /// Makes as many in one batch, and answers the number of the last.
    async fn happen_often(&self, count: u64) -> u64 {
        let (admin, now) =
            (Actor::new("root".parse().unwrap(), Authority::Role(Role::Admin)), Timestamp::from_clock());
        let request = ReserveRequest::next_free(InstanceRef::Name("web-1".parse().unwrap()));
        let made = self
            .store
            .write(move |tx| (0..count).try_for_each(|_| tx.reserve(&admin, &request, now).map(drop)));
        made.await.unwrap();
        self.log().await.newest_seq
    }

    async fn prune(&self) {
        let far_ahead = Timestamp::from_clock().plus(Duration::from_secs(86_400));
        self.store.write(move |tx| tx.prune(far_ahead, Duration::from_secs(3600), 100_000)).await.unwrap();
    }
}

fn stream(query: &str) -> axum::http::request::Builder {
    Request::get(format!("/v1/events/stream?{query}")).header("host", "localhost")
}

/// As many events, about anything, in one batch.
async fn make_tokens(store: &Store, count: usize) {
    let admin = Actor::new("root".parse().unwrap(), Authority::Role(Role::Admin));
    let wanted = TokenRequest::for_subject("ada".parse().unwrap(), Role::Viewer);
    let make = move |tx: &mut gk_store::Tx<'_>| {
        let now = Timestamp::from_clock();
        (0..count).try_for_each(|_| {
            tx.create_token(&admin, secret(SecretKind::Subject).hash(), &wanted, now).map(drop)
        })
    };
    store.write(make).await.unwrap();
}

async fn api() -> Api {
    let api = Api::new().await;
    api.join("web-1").await;
    api
}

#[tokio::test]
async fn a_stream_says_where_it_begins_and_tells_what_the_list_has() {
    let api = api().await;
    let log = api.log().await;
    let mut ear = api.watch("").await.unwrap();
    let begin = ear.next().await.unwrap();
    assert_eq!((begin.kind.as_str(), begin.id), ("bookmark", Some(log.end())));
    assert_eq!(begin.data, json!({"cursor": log.end()}));
    let seq = api.happen().await;
    let heard = ear.next().await.unwrap();
    let listed = api.local(Method::GET, &format!("/v1/events?cursor={}", log.end()), Value::Null).await.body;
    assert_eq!((heard.kind.as_str(), heard.id), ("reserved", Some(log.cursor(seq))));
    assert_eq!((&heard.data, 1), (&listed["items"][0], listed["items"].as_array().unwrap().len()));
    assert_eq!(listed["log"], json!({"log_id": log.log_id, "oldest_seq": 1, "newest_seq": seq}));
}

#[tokio::test]
async fn a_list_and_the_stream_behind_it_have_everything_once() {
    let api = api().await;
    api.happen_often(20).await;
    let page = api.local(Method::GET, "/v1/events?limit=1000", Value::Null).await.body;
    let page: EventPage = serde_json::from_value(page).unwrap();
    let last = api.happen_often(3).await;
    let mut ear = api.watch(&format!("after={}", page.log.end())).await.unwrap();
    let seqs: Vec<u64> = page.items.iter().map(|event| event.seq).chain(ear.until(last).await).collect();
    assert_eq!(seqs, (1..=last).collect::<Vec<_>>());
}

/// From every place there is: some are in memory, the others are not, and the seam is somewhere in between.
#[tokio::test]
async fn whoever_begins_wherever_hears_everything_behind_once() {
    let api = api().await;
    api.happen_often(600).await;
    let mut first = api.watch("").await.unwrap();
    let last = api.happen_often(30).await;
    first.until(last).await;
    let log = api.log().await;
    let begins = (0..8).chain(250..262).chain(506..520).chain(595..=last);
    for begin in begins {
        let mut ear = api.watch(&format!("after={}", log.cursor(begin))).await.unwrap();
        if begin < last {
            assert_eq!(ear.until(last).await, (begin + 1..=last).collect::<Vec<_>>(), "after {begin}");
        }
    }
}

#[tokio::test]
async fn the_header_of_a_browser_goes_before_the_parameter() {
    let api = api().await;
    let last = api.happen_often(5).await;
    let log = api.log().await;
    let request = |header: &str| {
        stream(&format!("after={}", log.cursor(1)))
            .header("last-event-id", header)
            .extension(ConnectInfo(Peer::Unix { uid: LOCAL_UID }))
            .body(Body::empty())
            .unwrap()
    };
    let mut ear = api.open(request(&log.cursor(last - 2).to_string())).await.unwrap();
    assert_eq!(ear.until(last).await, [last - 1, last]);
    let mut ear = api.open(request("")).await.unwrap();
    assert_eq!(
        ear.until(last).await.len() as u64,
        last - 1,
        "a browser that has heard nothing sends nothing"
    );
    let (status, problem) = api.open(request("7")).await.err().unwrap();
    assert_eq!(
        (status, problem["code"].as_str(), problem["field"].as_str()),
        (400, Some("malformed"), Some("Last-Event-ID"))
    );
}

const FILTERS: [&str; 17] = [
    "",
    "instance=web-2",
    "label=env=prod",
    "label=env!=prod",
    "label=env",
    "port=8100-8110",
    "port=8105",
    "protocol=udp",
    "protocol=tcp",
    "kind=reserved",
    "kind=reserved,released",
    "kind=joined,labelled",
    "actor=bob",
    "actor=local:test",
    "instance=web-1&kind=released",
    "label=env=prod&protocol=udp",
    "port=8000-9999&actor=bob&kind=reserved,released&protocol=udp",
];

#[tokio::test]
async fn a_filtered_stream_is_the_log_filtered() {
    let api = api().await;
    api.join("web-2").await;
    api.local(Method::PATCH, "/v1/instances/web-1", json!({"labels": {"env": "prod"}})).await;
    let token = api.token(SecretKind::Subject, Role::User, "bob").await;
    for (instance, port, protocol) in
        [("web-1", 8100, "tcp"), ("web-2", 8100, "udp"), ("web-1", 8105, "udp"), ("web-2", 9000, "tcp")]
    {
        let body = json!({"instance": instance, "port": port, "protocol": protocol});
        let made = api.with_token(&token, Method::POST, "/v1/reservations", body).await;
        assert_eq!(made.status, 201, "{}", made.body);
        if protocol == "udp" {
            let path = format!("/v1/reservations/{}", made.body["items"][0]["id"].as_str().unwrap());
            api.with_token(&token, Method::DELETE, &path, Value::Null).await;
        }
    }
    let fleet = json!({"instance": "web-2", "scope": "fleet", "port": 8200});
    assert_eq!(api.local(Method::POST, "/v1/reservations", fleet).await.status, 201);
    let last = api.happen().await;
    let log = api.log().await;
    for filter in FILTERS {
        let filter = filter.replace("!=", "!%3D").replace("label=env=", "label=env%3D");
        let mut listed = Vec::new();
        let mut cursor = String::new();
        loop {
            let page =
                api.local(Method::GET, &format!("/v1/events?limit=2&{filter}{cursor}"), Value::Null).await;
            assert_eq!(page.status, 200, "{filter}: {}", page.body);
            let page: EventPage = serde_json::from_value(page.body).unwrap();
            listed.extend(page.items.into_iter().map(|event| event.seq));
            let Some(next) = page.next else { break };
            cursor = format!("&cursor={next}");
        }
        let mut ear = api.watch(&format!("after={}&{filter}", log.cursor(0))).await.unwrap();
        let mut heard = Vec::new();
        // The bookmark of the beginning, then everything that there is.
        assert_eq!(ear.next().await.unwrap().id, Some(log.cursor(0)));
        while heard.len() < listed.len() {
            heard.push(ear.next_event().await.seq());
        }
        assert_eq!(heard, listed, "{filter}");
        assert!(!filter.is_empty() || listed.len() as u64 == last);
        assert!(
            filter.is_empty() || (listed.len() as u64) < last && !listed.is_empty(),
            "{filter} chooses nothing"
        );
    }
}

#[tokio::test]
async fn a_bookmark_every_15_seconds_tells_how_far_a_stream_has_come_whatever_was_filtered_away() {
    let api = api().await;
    let mut ear = api.watch("kind=left").await.unwrap();
    ear.next().await.unwrap();
    for _ in 0..3 {
        api.happen().await;
        let end = api.log().await.end();
        // From here on time passes when everybody waits.
        tokio::time::pause();
        let begun = Instant::now();
        for _ in 0..20 {
            let mark = ear.next().await.unwrap();
            assert_eq!((mark.kind.as_str(), mark.id), ("bookmark", Some(end)));
        }
        let took = begun.elapsed().as_secs_f64();
        assert!((285.0..301.0).contains(&took), "{took} s");
        tokio::time::resume();
    }
}

#[tokio::test]
async fn stale_cursor_is_gone() {
    let api = api().await;
    let last = api.happen_often(9).await;
    let log = api.log().await;
    let other = EventCursor { log_id: LogId::generate(Timestamp::from_clock()), seq: last };
    api.prune().await;
    assert_eq!(api.log().await, Log { oldest_seq: last, ..log });
    for stale in [log.cursor(0), log.cursor(last - 2), log.cursor(last + 1), other] {
        let (status, problem) = api.watch(&format!("after={stale}")).await.err().unwrap();
        assert_eq!((status, problem["code"].as_str()), (410, Some("stale_cursor")), "{stale}");
        assert!(problem["hint"].as_str().unwrap().contains(&log.end().to_string()), "{problem}");
        let list = api.local(Method::GET, &format!("/v1/events?cursor={stale}"), Value::Null).await;
        assert_eq!(list.refusal(), (410, "stale_cursor", None), "{stale}");
    }
    for good in [last - 1, last] {
        assert!(api.watch(&format!("after={}", log.cursor(good))).await.is_ok());
        let list =
            api.local(Method::GET, &format!("/v1/events?cursor={}", log.cursor(good)), Value::Null).await;
        assert_eq!(list.body["items"].as_array().unwrap().len() as u64, last - good);
    }
    for bad in ["7", "x", &format!("{}.", log.log_id)] {
        assert_eq!(api.watch(&format!("after={bad}")).await.err().unwrap().0, 400, "{bad}");
        let list = api.local(Method::GET, &format!("/v1/events?cursor={bad}"), Value::Null).await;
        assert_eq!(list.refusal(), (400, "malformed", Some("cursor")), "{bad}");
    }
}

/// A client that reads nothing holds nobody up. When it reads again, what it would be told next is gone.
#[tokio::test]
async fn a_stream_that_pruning_overtakes_says_so_and_ends() {
    let api = api().await;
    let mut slow = api.watch("").await.unwrap();
    let mut quick = api.watch("").await.unwrap();
    let begin = slow.next().await.unwrap().id.unwrap();
    // More than is kept in memory.
    for _ in 0..9 {
        make_tokens(&api.store, 500).await;
    }
    let newest = api.log().await.newest_seq;
    assert_eq!(quick.until(newest).await, (begin.seq + 1..=newest).collect::<Vec<_>>());
    api.prune().await;
    let last = slow.next().await.unwrap();
    assert_eq!((last.kind.as_str(), last.id), ("gone", None));
    assert_eq!((last.data["code"].as_str(), last.data["status"].as_u64()), (Some("stale_cursor"), Some(410)));
    assert_eq!(slow.next().await, None);
    assert_eq!(api.watch(&format!("after={begin}")).await.err().unwrap().0, 410);
    let seq = api.happen().await;
    assert_eq!(quick.until(seq).await, [seq], "others go on");
}

#[tokio::test]
async fn revoked_token_stops() {
    let api = api().await;
    let token = api.token(SecretKind::Subject, Role::Viewer, "ada").await;
    let (_, machine) = api.join("web-2").await;
    let mut ears =
        vec![api.watch_with(&token, "").await.unwrap(), api.watch_with(&machine, "").await.unwrap()];
    for ear in &mut ears {
        ear.next().await.unwrap();
    }
    let tokens = api.local(Method::GET, "/v1/tokens?subject=ada", Value::Null).await.body;
    let path = format!("/v1/tokens/{}", tokens["items"][0]["id"].as_str().unwrap());
    assert_eq!(api.local(Method::DELETE, &path, Value::Null).await.status, 200);
    assert_eq!(api.local(Method::DELETE, "/v1/instances/web-2", Value::Null).await.status, 204);
    let since = Instant::now();
    for ear in &mut ears {
        while ear.next().await.is_some() {}
    }
    assert!(since.elapsed() <= Duration::from_secs(2), "{:?}", since.elapsed());
    assert_eq!(api.watch_with(&token, "").await.err().unwrap().0, 401);
    let mut local = api.watch("").await.unwrap();
    local.next().await.unwrap();
    api.happen().await;
    assert_eq!(local.next().await.unwrap().kind, "reserved", "others go on");
}

#[tokio::test]
async fn one_token_has_so_many_streams_and_no_more() {
    let api = api().await;
    let token = api.token(SecretKind::Subject, Role::Viewer, "ada").await;
    let mut ears = Vec::new();
    for _ in 0..128 {
        ears.push(api.watch_with(&token, "").await.unwrap());
    }
    let (status, problem) = api.watch_with(&token, "").await.err().unwrap();
    assert_eq!((status, problem["code"].as_str()), (429, Some("too_many_streams")));
    assert!(api.watch("").await.is_ok(), "others have places");
    assert_eq!(
        api.with_token(&token, Method::GET, "/v1/instances", Value::Null).await.status,
        200,
        "so have requests"
    );
    ears.pop();
    assert!(api.watch_with(&token, "").await.is_ok(), "a place is given back");
}

#[tokio::test]
async fn a_stream_ends_with_its_place_when_the_server_stops() {
    let api = api().await;
    let (stop, stopping) = watch::channel(false);
    let request = stream("kind=left")
        .extension(ConnectInfo(Peer::Unix { uid: LOCAL_UID }))
        .extension(Stopping(stopping));
    let mut ear = api.open(request.body(Body::empty()).unwrap()).await.unwrap();
    ear.next().await.unwrap();
    stop.send_replace(true);
    let last = ear.next().await.unwrap();
    assert_eq!((last.kind.as_str(), last.id), ("bookmark", Some(api.log().await.end())));
    assert_eq!(ear.next().await, None);
}

#[tokio::test]
async fn metrics_count_streams_and_what_they_were_told() {
    let api = api().await;
    let mut ears = vec![api.watch("").await.unwrap(), api.watch("kind=left").await.unwrap()];
    let seq = api.happen_often(3).await;
    ears[0].until(seq).await;
    let text = api.local(Method::GET, "/metrics", Value::Null).await.body;
    let text = text.as_str().unwrap();
    for line in
        ["gatekeeper_watchers 2", "gatekeeper_watch_events_sent_total 3", "gatekeeper_watch_lag_events 3"]
    {
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
    drop(ears);
    let text = api.local(Method::GET, "/metrics", Value::Null).await.body;
    assert!(text.as_str().unwrap().contains("\ngatekeeper_watchers 0\n"));
}
