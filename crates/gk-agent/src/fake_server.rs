//! The model server behind a real socket, for the agent as a whole.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use flate2::read::GzDecoder;
use gk_client::ServerAddress;
use gk_model::contact::Contact;
use gk_model::id::InstanceId;
use gk_model::instance::{Instance, JoinRequest, Presence};
use gk_model::port_set::PortSet;
use gk_model::problem::Code;
use gk_model::protection::ReservedPorts;
use gk_model::secret::{Secret, SecretHash};
use gk_model::time::Timestamp;

use crate::failure::Failure;
use crate::model_server::Server;
use crate::samples::{at, problem};

const PATIENCE: Duration = Duration::from_secs(20);

/// What the server knows.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) model: Server,
    pub(crate) joins: Vec<JoinRequest>,
    pub(crate) contacts: usize,
    /// What it says is reserved; none when it does not know the credential.
    pub(crate) reserved: Option<PortSet>,
    /// Knows the instance as one that has left.
    pub(crate) has_left: bool,
    pub(crate) connections: usize,
    /// Takes contacts and never answers.
    pub(crate) hangs: bool,
    /// Of instances, lets in only whoever comes with the credential of one of these joins.
    pub(crate) lets_in: Option<Vec<SecretHash>>,
    /// Finds the credential of the first join too old.
    pub(crate) wants_another: bool,
    /// Takes the next join and loses the answer.
    pub(crate) loses_an_answer: bool,
}

pub(crate) struct FakeServer {
    pub(crate) address: ServerAddress,
    known: Arc<(Mutex<Known>, Condvar)>,
}

impl FakeServer {
    pub(crate) fn start() -> FakeServer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let known = Arc::new((Mutex::new(Known::default()), Condvar::new()));
        let shared = Arc::clone(&known);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || serve(&stream.unwrap(), &shared));
            }
        });
        FakeServer { address, known }
    }

    /// Makes it know something.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known.0.lock().unwrap());
    }

    /// Waits until the server knows what is expected, and returns what `look` finds there.
    pub(crate) fn wait<T>(&self, mut look: impl FnMut(&mut Known) -> Option<T>) -> T {
        let (mutex, changed) = &*self.known;
        let mut found = None;
        let knows = |known: &mut Known| {
            found = look(known);
            found.is_none()
        };
        let (_known, timeout) = changed.wait_timeout_while(mutex.lock().unwrap(), PATIENCE, knows).unwrap();
        assert!(!timeout.timed_out(), "waited in vain");
        found.unwrap()
    }
}

fn serve(stream: &TcpStream, known: &(Mutex<Known>, Condvar)) {
    known.0.lock().unwrap().connections += 1;
    let mut reader = BufReader::new(stream);
    while let Some((path, token, body)) = read_request(&mut reader) {
        let mut guard = known.0.lock().unwrap();
        let is_stranger = guard.lets_in.as_ref().is_some_and(|valid| !valid.contains(&token));
        let answer = match path {
            _ if is_stranger => refusal(401, Code::Unauthenticated),
            path if path.ends_with("/contact") => contact(&mut guard, token, &body),
            path if path.ends_with("/reserved") => reserved(&guard),
            _ => join(&mut guard, &body),
        };
        if answer.is_empty() && !guard.hangs {
            return;
        }
        known.1.notify_all();
        let hangs = guard.hangs;
        drop(guard);
        if !hangs {
            let mut writer = stream;
            writer.write_all(answer.as_bytes()).unwrap();
        }
    }
}

fn contact(known: &mut Known, token: SecretHash, body: &[u8]) -> String {
    let contact: Contact = serde_json::from_slice(body).unwrap();
    known.contacts += 1;
    if known.hangs {
        return String::new();
    }
    if known.has_left {
        return refusal(404, Code::NoSuchInstance);
    }
    match known.model.contact(&contact, Timestamp::from_clock()) {
        Ok(mut answer) => {
            answer.renew_credential = known.wants_another && known.joins[0].credential_hash == token;
            response("200 OK", &serde_json::to_string(&answer).unwrap())
        }
        Err(Failure::Ended(_)) => refusal(409, Code::IdentitySuperseded),
        Err(_) => refusal(503, Code::Unavailable),
    }
}

fn reserved(known: &Known) -> String {
    match known.reserved.clone() {
        Some(ports) => response("200 OK", &serde_json::to_string(&ReservedPorts { ports }).unwrap()),
        None => refusal(401, Code::Unauthenticated),
    }
}

fn join(known: &mut Known, body: &[u8]) -> String {
    let request: JoinRequest = serde_json::from_slice(body).unwrap();
    let instance = Instance {
        id: InstanceId::generate(at(0)),
        name: "web-1".parse().unwrap(),
        presence: Presence::Online,
        labels: gk_model::labels::Labels::default(),
        forget_after_seconds: None,
        facts: request.facts.clone(),
        joined_at: at(0),
        left_at: None,
        last_contact_at: None,
        observed_at: None,
        version: 1,
    };
    known.lets_in.iter_mut().for_each(|valid| valid.push(request.credential_hash));
    known.joins.push(request);
    if std::mem::take(&mut known.loses_an_answer) {
        return String::new();
    }
    response("201 Created", &serde_json::to_string(&instance).unwrap())
}

fn refusal(status: u16, code: Code) -> String {
    let problem = serde_json::to_string(&problem(status, code)).unwrap();
    response(&format!("{status} No"), &problem).replace("application/json", "application/problem+json")
}

fn response(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// Path, token and body of the next request.
fn read_request(reader: &mut impl BufRead) -> Option<(String, SecretHash, Vec<u8>)> {
    let (mut path, mut token, mut length, mut is_gzip) = (None, None, 0, false);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        match line.split_once(": ") {
            Some(("content-length", digits)) => length = digits.parse().unwrap(),
            Some(("authorization", bearer)) => token = bearer.strip_prefix("bearer ").map(str::to_owned),
            Some(("content-encoding", encoding)) => is_gzip = encoding == "gzip",
            Some(_) => {}
            None => path = line.split(' ').nth(1).map(str::to_owned),
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    if is_gzip {
        let mut plain = Vec::new();
        GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
        body = plain;
    }
    let token: Secret = token?.parse().unwrap();
    Some((path?, token.hash(), body))
}
