//! A server for tests: a real socket that answers what it was told to, and shows what it was asked.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use crate::{Client, ServerAddress};

/// What to do with one connection: answer these requests one after another, then close.
pub(crate) type Connection = Vec<Vec<u8>>;

/// A server that has taken its place and answers on a thread of its own.
pub(crate) struct Canned {
    pub(crate) address: ServerAddress,
    requests: Receiver<Vec<u8>>,
}

impl Canned {
    /// Answers over TCP on a free port of the loopback.
    pub(crate) fn tcp(connections: Vec<Connection>) -> Canned {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        Canned::serve(address, connections, move || listener.accept().unwrap().0)
    }

    /// Answers over a Unix socket.
    pub(crate) fn unix(socket: &Path, connections: Vec<Connection>) -> Canned {
        let listener = UnixListener::bind(socket).unwrap();
        let address = ServerAddress::Unix(socket.to_owned());
        Canned::serve(address, connections, move || listener.accept().unwrap().0)
    }

    fn serve<S: Read + Write>(
        address: ServerAddress,
        connections: Vec<Connection>,
        accept: impl Fn() -> S + Send + 'static,
    ) -> Canned {
        let (sender, requests) = mpsc::channel();
        thread::spawn(move || {
            for connection in connections {
                answer(accept(), connection, &sender);
            }
        });
        Canned { address, requests }
    }

    /// A client of this server, without a token.
    pub(crate) fn client(&self) -> Client {
        Client::new(self.address.clone(), None)
    }

    /// The next request it got: its head as text, and its body.
    pub(crate) fn request(&self) -> (String, Vec<u8>) {
        let bytes = self.requests.recv().unwrap();
        let end = head_end(&bytes).unwrap();
        (String::from_utf8(bytes[..end].to_vec()).unwrap(), bytes[end..].to_vec())
    }
}

fn answer(mut stream: impl Read + Write, answers: Connection, seen: &Sender<Vec<u8>>) {
    for bytes in answers {
        let request = read_request(&mut stream);
        if request.is_empty() {
            return;
        }
        seen.send(request).ok();
        // The client may hang up before it has read a huge body; that is its right.
        if stream.write_all(&bytes).is_err() {
            return;
        }
    }
}

fn read_request(stream: &mut impl Read) -> Vec<u8> {
    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(end) = head_end(&request)
            && request.len() >= end + body_length(&request[..end])
        {
            return request;
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return request,
            Ok(count) => request.extend_from_slice(&buffer[..count]),
        }
    }
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|start| start + 4)
}

fn body_length(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    length.map_or(0, |length| length.trim().parse().unwrap())
}

/// An answer with a JSON body.
pub(crate) fn json(status: u16, body: &str) -> Vec<u8> {
    with_header(status, "content-type: application/json", body)
}

/// An answer with one header and a body.
pub(crate) fn with_header(status: u16, header: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status} x\r\n{header}\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}
