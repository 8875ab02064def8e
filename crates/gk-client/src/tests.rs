//! The client against real sockets: what is sent, what is kept, what every bad answer is called.

use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use gk_model::access::Role;
use gk_model::contact::{Contact, ContactAnswer, ContactBody, Session};
use gk_model::facts::Facts;
use gk_model::history::EventKind;
use gk_model::id::{InstanceId, ReservationId};
use gk_model::instance::{InstancePatch, JoinRequest};
use gk_model::listener::Digest;
use gk_model::pin::Pin;
use gk_model::problem::Code;
use gk_model::query::{EventQuery, InstanceQuery, Limit, PortQuery};
use gk_model::reservation::ReserveRequest;
use gk_model::secret::SecretKind;
use gk_model::time::Timestamp;
use gk_model::token::TokenRequest;

use crate::canned::{Canned, json, with_header};
use crate::identity::generate_secret;
use crate::join::begin_join;
use crate::session::{FullReport, load_session, open_session};
use crate::{Client, ClientError, ProtocolFault, ServerAddress};

const NO_ITEMS: &str = r#"{"items":[],"next":null}"#;

fn an_id() -> InstanceId {
    InstanceId::generate(Timestamp::from_micros(0))
}

fn list(client: &Client) -> Result<usize, ClientError> {
    client.list_instances(&InstanceQuery::default()).map(|page| page.items.len())
}

fn reserve(client: &Client) -> ClientError {
    client.reserve(&ReserveRequest::next_free(an_id())).unwrap_err()
}

fn fault(error: ClientError) -> ProtocolFault {
    match error {
        ClientError::Protocol { fault, .. } => *fault,
        other => panic!("not a protocol error: {other:?}"),
    }
}

#[test]
fn filters_travel_encoded_and_unset_ones_do_not() {
    let server = Canned::tcp(vec![vec![json(200, NO_ITEMS), json(200, NO_ITEMS)]]);
    let query = PortQuery {
        port: Some("8000-8009".parse().unwrap()),
        q: Some("a b&c=é".to_owned()),
        limit: Some(Limit::at_most(5)),
        ..PortQuery::default()
    };
    server.client().list_ports(&query).unwrap();
    assert!(
        server
            .request()
            .0
            .starts_with("GET /v1/ports?limit=5&port=8000-8009&q=a%20b%26c%3D%C3%A9 HTTP/1.1\r\n")
    );
}

#[test]
fn one_connection_is_kept_also_over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    // The servers accept a single connection each, so a second one would never be answered.
    let answers = vec![json(200, NO_ITEMS), json(200, NO_ITEMS), json(200, NO_ITEMS)];
    let unix = Canned::unix(&dir.path().join("sock"), vec![answers.clone()]);
    for server in [unix, Canned::tcp(vec![answers])] {
        let client = server.client();
        for _ in 0..3 {
            assert_eq!(list(&client).unwrap(), 0);
        }
    }
}

#[test]
fn a_kept_connection_that_closed_is_replaced_for_reading_and_releasing_is_not_repeated() {
    // The second request of the first connection is read and then hung up on, as a server does that is restarted.
    let hang_up = || vec![json(200, NO_ITEMS), Vec::new()];
    let server = Canned::tcp(vec![hang_up(), vec![json(200, NO_ITEMS)]]);
    let client = server.client();
    list(&client).unwrap();
    assert_eq!(list(&client).unwrap(), 0, "asked again on a fresh connection");

    let server = Canned::tcp(vec![hang_up(), vec![json(200, "{}")]]);
    let client = server.client();
    list(&client).unwrap();
    let released = client.release(ReservationId::generate(Timestamp::from_micros(0)), false);
    assert!(matches!(released, Err(ClientError::Unreachable { .. })));
}

/// The idempotency key of the next request.
fn key(server: &Canned) -> String {
    let (head, _) = server.request();
    let key = head.lines().find_map(|line| line.strip_prefix("idempotency-key: "));
    key.unwrap_or_else(|| panic!("no key in {head}")).to_owned()
}

fn problem(status: u16, code: Code, retry_after: &str) -> Vec<u8> {
    let body = format!(r#"{{"type":"x","title":"x","status":{status},"code":"{code}","detail":"{code}"}}"#);
    with_header(status, &format!("retry-after: {retry_after}"), &body)
}

#[test]
fn what_makes_something_is_sent_again_under_the_same_key_until_it_is_answered() {
    let lost = || vec![Vec::new()];
    let half = b"HTTP/1.1 201 x\r\ncontent-length: 99\r\n\r\n{".to_vec();
    let server = Canned::tcp(vec![
        lost(),
        vec![problem(503, Code::Unavailable, "0")],
        vec![problem(409, Code::IdempotencyInFlight, "0")],
        vec![half],
        vec![problem(409, Code::PortReserved, "0"), problem(409, Code::PortReserved, "0")],
    ]);
    let client = server.client();
    assert_eq!(reserve(&client).to_string(), "port_reserved", "an answer is an answer");
    let first = key(&server);
    assert_eq!(first.len(), 36);
    for _ in 1..5 {
        assert_eq!(key(&server), first);
    }
    reserve(&client);
    assert_ne!(key(&server), first, "another request, another key");
}

#[test]
fn patience_ends_also_where_the_server_asks_for_more() {
    let server = Canned::tcp(vec![vec![problem(503, Code::Unavailable, "30")], vec![json(201, "{}")]]);
    assert_eq!(reserve(&server.client()).to_string(), "unavailable", "30 s are too long");
    let server = Canned::tcp(vec![vec![Vec::new()], vec![json(201, "{}")]]);
    let hasty = server.client().with_patience(Duration::ZERO);
    assert!(matches!(reserve(&hasty), ClientError::Unreachable { .. }));
}

#[test]
fn nobody_at_the_first_attempt_is_told_at_once_and_later_waited_for() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let begun = std::time::Instant::now();
    for address in [format!("http://{closed}"), "unix:/nonexistent/gatekeeper.sock".to_owned()] {
        // Retries would use up all of it.
        let client = Client::new(address.parse().unwrap(), None).with_patience(Duration::from_secs(20));
        assert!(matches!(reserve(&client), ClientError::Unreachable { .. }));
    }
    assert!(begun.elapsed() < Duration::from_secs(20));
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sock");
    let dies = Canned::unix(&socket, vec![vec![Vec::new()]]);
    let client = dies.client().with_patience(Duration::from_secs(30));
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| reserve(&client));
        let first = key(&dies);
        std::fs::remove_file(&socket).unwrap();
        let returns = Canned::unix(&socket, vec![vec![problem(409, Code::PortReserved, "0")]]);
        assert_eq!(key(&returns), first);
        assert_eq!(asking.join().unwrap().to_string(), "port_reserved");
    });
}

#[test]
fn a_fresh_connection_that_closes_is_an_error_at_once() {
    let server = Canned::tcp(vec![vec![Vec::new()], vec![json(200, NO_ITEMS)]]);
    assert!(matches!(list(&server.client()), Err(ClientError::Unreachable { .. })));
}

#[test]
fn a_refusal_is_the_servers_own_problem() {
    let body = r#"{"type":"/docs#port_reserved","title":"Conflict","status":409,"code":"port_reserved",
        "detail":"8080/tcp on web-1 is reserved","alternatives":[8081],"hint":"try another"}"#;
    let server = Canned::tcp(vec![vec![with_header(409, "content-type: application/problem+json", body)]]);
    let error = reserve(&server.client());
    let problem = error.problem().expect("a refusal");
    assert_eq!((problem.code, problem.alternatives.len()), (Code::PortReserved, 1));
    assert_eq!(error.to_string(), "8080/tcp on web-1 is reserved");
}

#[test]
fn garbage_is_called_garbage_and_cut_short() {
    let html = format!("<html>\x1b[31m{}", "x".repeat(10_000));
    let server = Canned::tcp(vec![
        vec![json(502, &html)],
        vec![json(200, &html)],
        vec![b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec()],
    ]);
    let gateway = fault(list(&server.client()).unwrap_err());
    assert!(matches!(&gateway, ProtocolFault::Status { status: 502, excerpt, .. } if excerpt.len() < 400));
    assert!(gateway.to_string().starts_with("GET /v1/instances was answered with status 502: <html>\\u{1b}"));
    let body = fault(list(&server.client()).unwrap_err());
    assert!(matches!(body, ProtocolFault::Body { .. }));
    let ssh = fault(list(&server.client()).unwrap_err());
    assert!(matches!(ssh, ProtocolFault::Http { .. }), "{ssh:?}");
}

#[test]
fn a_redirect_is_not_followed() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let location = format!("location: http://{}/", elsewhere.local_addr().unwrap());
    let server = Canned::tcp(vec![vec![with_header(302, &location, "")]]);
    let client = Client::new(server.address.clone(), Some(generate_secret(SecretKind::Subject)));
    let refused = fault(list(&client).unwrap_err());
    assert!(matches!(refused, ProtocolFault::Status { status: 302, .. }), "{refused:?}");
    assert_eq!(elsewhere.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "nobody was asked there");
}

#[test]
fn an_endless_answer_is_not_read_to_its_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: ServerAddress = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let writer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 200 x\r\ncontent-length: 9999999999\r\n\r\n").unwrap();
        let spaces = vec![b' '; 1 << 20];
        while stream.write_all(&spaces).is_ok() {}
    });
    let large = fault(list(&Client::new(address, None)).unwrap_err());
    assert!(matches!(large, ProtocolFault::TooLarge { limit_bytes: 67_108_864, .. }), "{large:?}");
    writer.join().unwrap();
}

#[test]
fn nobody_there_is_told_apart_from_a_bad_answer() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [format!("http://{closed}"), "unix:/nonexistent/gatekeeper.sock".to_owned()] {
        let error = list(&Client::new(address.parse().unwrap(), None)).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot reach the server at {address}"));
        assert!(matches!(&error, ClientError::Unreachable { .. }) && !error.is_timeout());
    }
}

#[test]
fn a_silent_server_is_given_up_on() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sock");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let _unix = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (http, https) = (tcp.local_addr().unwrap(), tcp.local_addr().unwrap());
    for address in
        [format!("http://{http}"), format!("https://{https}"), format!("unix:{}", socket.display())]
    {
        let client = Client::new(address.parse().unwrap(), None).with_pins(vec![Pin::of_public_key(b"any")]);
        let client = client.with_timeout(Duration::from_millis(50));
        let error = list(&client).unwrap_err();
        assert!(error.is_timeout(), "{error:?}");
    }
}

#[test]
fn a_token_goes_in_the_header_and_never_in_clear_over_a_network() {
    let token = generate_secret(SecretKind::Subject);
    let server = Canned::tcp(vec![vec![json(200, NO_ITEMS)]]);
    list(&Client::new(server.address.clone(), Some(token.clone()))).unwrap();
    assert!(server.request().0.contains(&format!("authorization: Bearer {}\r\n", token.reveal())));

    let far: ServerAddress = "http://192.0.2.1:5000".parse().unwrap();
    let client = Client::new(far.clone(), Some(token.clone()));
    assert!(matches!(list(&client), Err(ClientError::InsecureHttp { .. })));
    let allowed = client.allow_insecure_http(true).with_timeout(Duration::from_millis(1));
    assert!(matches!(list(&allowed), Err(ClientError::Unreachable { .. })), "allowed, and nobody is there");
    let tls = format!("https://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let client = Client::new(tls.parse().unwrap(), Some(token));
    assert!(matches!(list(&client), Err(ClientError::Unreachable { .. })), "allowed, and nobody is there");
}

#[test]
fn flags_of_deletions_are_written_when_set() {
    let empty = b"HTTP/1.1 204 x\r\n\r\n".to_vec();
    let server = Canned::tcp(vec![vec![empty.clone(), empty, json(200, "{}")]]);
    let (client, id) = (server.client(), an_id());
    client.leave_instance(&id.into(), false).unwrap();
    client.leave_instance(&"web-1".parse().unwrap(), true).unwrap();
    client.release(ReservationId::generate(Timestamp::from_micros(0)), true).unwrap_err();
    assert!(server.request().0.starts_with(&format!("DELETE /v1/instances/{id} HTTP")));
    assert!(server.request().0.starts_with("DELETE /v1/instances/web-1?release=true HTTP"));
    assert!(server.request().0.contains("?force=true HTTP"));
}

#[test]
fn a_name_that_nobody_knows_is_not_found() {
    let nowhere = Client::new("http://nowhere.invalid:5000".parse().unwrap(), None);
    match list(&nowhere).unwrap_err() {
        // Where nobody is there to be asked for names, that may take too long.
        ClientError::Unreachable { source, .. } => {
            assert!(matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::TimedOut), "{source:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_change_may_insist_on_its_version_and_an_answer_tells_the_servers_time() {
    let health = r#"{"status":"ok","version":"0.1.0","address":null}"#;
    let dated = with_header(200, "date: Tue, 14 Nov 2023 22:13:20 GMT", health);
    let server = Canned::tcp(vec![vec![json(412, "{}"), dated, json(200, health)]]);
    let client = server.client();
    client.update_instance_version(&an_id().into(), &InstancePatch::default(), 7).unwrap_err();
    assert!(server.request().0.contains("if-match: \"7\"\r\n"));
    let (_, date) = client.ready_at().unwrap();
    assert_eq!(date, Some(Timestamp::from_micros(1_700_000_000_000_000)));
    assert_eq!(client.ready_at().unwrap().1, None);
}

#[test]
fn a_token_goes_by_its_hash_and_is_asked_for_again_under_the_same_key() {
    let server = Canned::tcp(vec![vec![json(503, "{}"), json(503, "{}")]]);
    let secret = generate_secret(SecretKind::Subject);
    let request = TokenRequest {
        hash: Some(secret.hash()),
        ..TokenRequest::for_subject("ci".parse().unwrap(), Role::User)
    };
    let client = server.client().with_patience(Duration::from_secs(1));
    client.create_token(&request).unwrap_err();
    let requests = [server.request(), server.request()];
    let key =
        |head: &str| head.lines().find(|line| line.starts_with("idempotency-key: ")).unwrap().to_owned();
    assert_eq!(key(&requests[0].0), key(&requests[1].0));
    for (head, body) in requests {
        let body = String::from_utf8(body).unwrap();
        assert!(!head.contains(secret.reveal()) && !body.contains(secret.reveal()), "{body}");
        assert!(body.contains(&secret.hash().to_string()), "{body}");
    }
}

#[test]
fn large_contacts_are_compressed_and_small_ones_are_not() {
    let answer = r#"{"session":1,"acknowledged":1,"want_report":false,"heartbeat_seconds":30}"#;
    let server = Canned::tcp(vec![vec![json(200, answer), json(200, answer)]]);
    let client = server.client();
    let contact = |agent_version: &str| Contact {
        session: Session(1),
        opening: None,
        sequence: 1,
        sent_at: Timestamp::from_micros(0),
        digest: Digest::default(),
        agent_version: agent_version.into(),
        body: ContactBody::Heartbeat,
    };
    for (text, compressed) in [("1", false), (&*"x".repeat(1_000), true)] {
        let sent = contact(text);
        assert_eq!(client.contact(an_id(), &sent).unwrap().acknowledged, 1);
        let (head, body) = server.request();
        assert_eq!(head.contains("content-encoding: gzip"), compressed, "{head}");
        let mut plain = body.clone();
        if compressed {
            plain.clear();
            flate2::read::GzDecoder::new(body.as_slice()).read_to_end(&mut plain).unwrap();
        }
        assert_eq!(serde_json::from_slice::<Contact>(&plain).unwrap(), sent);
    }
}

#[test]
fn opening_a_session_repeats_its_nonce_until_it_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let answer = r#"{"session":7,"acknowledged":1,"want_report":false,"heartbeat_seconds":30}"#;
    let server = Canned::tcp(vec![vec![Vec::new()], vec![json(200, answer)], vec![json(200, answer)]]);
    let nonce = || {
        let (_, body) = server.request();
        let contact: Contact = serde_json::from_slice(&body).unwrap();
        (contact.session, contact.opening.expect("an opening"))
    };
    let open = || {
        let (report, now) = (FullReport::default(), Timestamp::from_micros(0));
        open_session(&server.client(), an_id(), dir.path(), report, "1".into(), now)
    };
    open().unwrap_err();
    let first = nonce();
    assert_eq!(open().unwrap().session, Session(7));
    assert_eq!(nonce(), first);
    assert_eq!(load_session(dir.path()).unwrap().session, Session(7));
    open().unwrap();
    let next = nonce();
    assert_eq!(next.0, Session(7));
    assert_ne!(next.1, first.1, "a new opening has a new nonce");
}

#[test]
fn a_repeated_opening_whose_report_is_old_is_followed_by_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let answer = |acknowledged: u64, want_report: bool| {
        let answer = ContactAnswer {
            session: Session(3),
            acknowledged,
            want_report,
            heartbeat_seconds: 30,
            previous: None,
            renew_credential: false,
        };
        json(200, &serde_json::to_string(&answer).unwrap())
    };
    let server = Canned::tcp(vec![vec![answer(1, true), answer(2, false)]]);
    let (report, now) = (FullReport::default(), Timestamp::from_micros(0));
    let last = open_session(&server.client(), an_id(), dir.path(), report, "1".into(), now).unwrap();
    assert_eq!(last.acknowledged, 2);
    server.request();
    let second: Contact = serde_json::from_slice(&server.request().1).unwrap();
    assert_eq!((second.session, second.opening, second.sequence), (Session(3), None, 2));
}

#[test]
fn a_join_tells_whether_it_was_the_first() {
    let instance = format!(
        r#"{{"id":"{}","name":"web-1","presence":"offline","facts":{{}},"joined_at":"2026-11-22T20:00:00Z",
            "left_at":null,"last_contact_at":null,"observed_at":null,"version":1}}"#,
        an_id()
    );
    let health = r#"{"status":"ok","version":"1","address":"127.0.0.1:5000"}"#;
    let server = Canned::tcp(vec![vec![json(201, &instance), json(200, &instance), json(200, health)]]);
    let client = server.client();
    let credential = generate_secret(SecretKind::Instance);
    let request = JoinRequest {
        name: None,
        credential_hash: credential.hash(),
        facts: Facts::default(),
        labels: gk_model::labels::Labels::default(),
        replace: None,
    };
    assert!(!client.join(&request).unwrap().refreshed);
    assert!(client.join(&request).unwrap().refreshed);
    assert_eq!(client.ready().unwrap().address, "127.0.0.1:5000".parse().ok());
    let (head, body) = server.request();
    assert!(head.starts_with("POST /v1/instances HTTP/1.1\r\n"), "{head}");
    let body = String::from_utf8(body).unwrap();
    assert!(!body.contains(credential.reveal()) && body.contains(&credential.hash().to_string()));
}

#[test]
fn a_join_that_used_up_its_token_before_the_answer_was_lost_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let instance = format!(
        r#"{{"id":"{}","name":"web-1","presence":"offline","facts":{{}},"joined_at":"2026-11-22T20:00:00Z",
            "left_at":null,"last_contact_at":null,"observed_at":null,"version":1}}"#,
        an_id()
    );
    let stranger = problem(401, Code::Unauthenticated, "0");
    let server = Canned::tcp(vec![vec![Vec::new()], vec![stranger, json(200, &instance)]]);
    let token = generate_secret(SecretKind::Join);
    let client = Client::new(server.address.clone(), Some(token.clone()));
    let request = |credential_hash| JoinRequest {
        name: None,
        credential_hash,
        facts: Facts::default(),
        labels: gk_model::labels::Labels::default(),
        replace: None,
    };
    let (joined, credential) = begin_join(&client, dir.path(), request).unwrap();
    assert!(joined.refreshed, "by the second request it was known");
    let shown = [token.reveal(), token.reveal(), credential.reveal()];
    assert!(shown.iter().all(|shown| server.request().0.contains(&format!("Bearer {shown}\r\n"))));
}

#[test]
fn words_in_queries_are_the_words_of_the_model() {
    let log_id = gk_model::id::LogId::generate(Timestamp::from_micros(0));
    let page =
        format!(r#"{{"items":[],"next":null,"log":{{"log_id":"{log_id}","oldest_seq":1,"newest_seq":0}}}}"#);
    let server = Canned::tcp(vec![vec![json(200, &page)]]);
    let query = EventQuery { kind: Some(EventKind::OwnerChanged.into()), ..EventQuery::default() };
    server.client().list_events(&query).unwrap();
    assert!(server.request().0.starts_with("GET /v1/events?kind=owner_changed HTTP"));
}
