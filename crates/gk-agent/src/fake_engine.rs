//! A container engine for tests: a real Unix socket that answers every question with what it was set to answer.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// It ends, and its socket is gone, when this is dropped.
pub(crate) struct FakeEngine {
    pub(crate) socket: PathBuf,
    shared: Arc<(Mutex<Shared>, Condvar)>,
}

#[derive(Default)]
struct Shared {
    answer: (u16, String),
    requests: Vec<String>,
    /// How many of them met the answer set last.
    answered: usize,
}

/// What Docker answers that runs one container, `web`, with these ports published on every IPv4 address.
pub(crate) fn published(ports: &[u16]) -> String {
    let port =
        |port: &u16| format!(r#"{{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":{port},"Type":"tcp"}}"#);
    let ports: Vec<String> = ports.iter().map(port).collect();
    let id = "3f2a91c05b7e4d6f".repeat(4);
    format!(r#"[{{"Id":"{id}","Names":["/web"],"Ports":[{}],"State":"running"}}]"#, ports.join(","))
}

impl FakeEngine {
    pub(crate) fn start(socket: &Path) -> FakeEngine {
        let listener = UnixListener::bind(socket).unwrap();
        let shared = Arc::new((Mutex::new(Shared::default()), Condvar::new()));
        let serves = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &serves);
            }
        });
        FakeEngine { socket: socket.to_owned(), shared }
    }

    /// From now on.
    pub(crate) fn answer(&self, status: u16, body: &str) {
        let mut shared = self.shared.0.lock().unwrap();
        (shared.answer, shared.answered) = ((status, body.to_owned()), 0);
    }

    /// Waits until it has answered as set.
    pub(crate) fn wait_asked(&self) {
        let (shared, changed) = &*self.shared;
        let waits = |shared: &mut Shared| shared.answered == 0;
        let waited = changed.wait_timeout_while(shared.lock().unwrap(), Duration::from_secs(20), waits);
        assert!(waited.unwrap().0.answered > 0, "waited in vain to be asked");
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> usize {
        self.shared.0.lock().unwrap().requests.len()
    }

    /// The head of the last request.
    pub(crate) fn last_request(&self) -> String {
        self.shared.0.lock().unwrap().requests.last().unwrap().clone()
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        std::fs::remove_file(&self.socket).unwrap();
    }
}

fn answer(mut stream: UnixStream, (shared, changed): &(Mutex<Shared>, Condvar)) {
    let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(count) => head.extend_from_slice(&buffer[..count]),
        }
    }
    let mut shared = shared.lock().unwrap();
    shared.requests.push(String::from_utf8(head).unwrap());
    let (status, body) = shared.answer.clone();
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} x\r\nserver: Docker/27.3.1 (linux)\r\ncontent-length: {length}\r\n\r\n");
    // Whoever asked may have gone.
    let _gone = stream.write_all(format!("{head}{body}").as_bytes());
    shared.answered += 1;
    changed.notify_all();
}
