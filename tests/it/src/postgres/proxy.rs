//! Between a store and PostgreSQL: passes everything on, and cuts the connection where it hurts most.
//!
//! Around a commit that is before it is passed on, right after that, and once it has happened and its answer is all
//! that gets lost. It recognises a commit by the name of the prepared statement, which it has seen go by.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use tempfile::TempDir;

/// What one proxy did so far.
#[derive(Default)]
struct Counts {
    /// Commits cut off before they reached the database.
    kept_back: AtomicUsize,
    /// Commits that happened, and whose answers were lost.
    lost: AtomicUsize,
    /// Connections cut anywhere else.
    cut: AtomicUsize,
    dice: AtomicU64,
    cutting: AtomicBool,
}

impl Counts {
    /// One in so many, once it has begun: the same sequence in each run, whoever asks.
    fn one_in(&self, chances: u64) -> bool {
        // Knuth's MMIX generator; its high bits are the good ones.
        let next = |state: u64| {
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
        };
        let state =
            self.dice.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| Some(next(state))).unwrap();
        self.cutting.load(Ordering::Relaxed) && (state >> 33).is_multiple_of(chances)
    }
}

/// A directory with a socket to connect to instead.
pub(crate) struct Proxy {
    directory: TempDir,
    counts: Arc<Counts>,
}

impl Proxy {
    /// In front of the server with this socket.
    pub(crate) fn start(server: &Path) -> Proxy {
        let directory = TempDir::with_prefix("gatekeeper-proxy-").unwrap();
        let listener = UnixListener::bind(directory.path().join(".s.PGSQL.5432")).unwrap();
        let counts = Arc::new(Counts::default());
        let (server, counting) = (server.to_owned(), Arc::clone(&counts));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (server, counts) = (server.clone(), Arc::clone(&counting));
                std::thread::spawn(move || relay(client.unwrap(), &server, &counts));
            }
        });
        Proxy { directory, counts }
    }

    /// From now on.
    pub(crate) fn begin_cutting(&self) {
        self.counts.cutting.store(true, Ordering::Relaxed);
    }

    /// Where its socket is.
    pub(crate) fn directory(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// Commits kept back, commits whose answers were lost, and other cuts.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let read = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        (read(&self.counts.kept_back), read(&self.counts.lost), read(&self.counts.cut))
    }
}

/// One connection, until it ends or is cut.
fn relay(mut client: UnixStream, server: &Path, counts: &Arc<Counts>) {
    let Ok(mut server) = UnixStream::connect(server) else { return };
    let swallow = Arc::new(AtomicBool::new(false));
    let (mut answers, mut back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let (swallowing, counting) = (Arc::clone(&swallow), Arc::clone(counts));
    std::thread::spawn(move || pass_answers(&mut answers, &mut back, &swallowing, &counting));
    let (mut commit, mut buffer) = (None, vec![0; 1 << 16]);
    while let Ok(count @ 1..) = client.read(&mut buffer) {
        let request = &buffer[..count];
        commit = find_commit(request).or(commit);
        let is_commit = commit.as_ref().is_some_and(|name: &Vec<u8>| contains(request, name));
        if !is_commit && counts.one_in(80) {
            counts.cut.fetch_add(1, Ordering::Relaxed);
            // As it comes: before the request is passed on, or after.
            if counts.one_in(2) {
                let _gone = server.write_all(request);
            }
            break;
        }
        if is_commit && counts.one_in(6) {
            if counts.one_in(3) {
                counts.kept_back.fetch_add(1, Ordering::Relaxed);
                break;
            }
            swallow.store(true, Ordering::SeqCst);
            let _gone = server.write_all(request);
            // The other direction cuts when it has seen the answer.
            return;
        }
        if server.write_all(request).is_err() {
            break;
        }
    }
    cut(&client, &server);
}

fn pass_answers(server: &mut UnixStream, client: &mut UnixStream, swallow: &AtomicBool, counts: &Counts) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count @ 1..) = server.read(&mut buffer) {
        if !swallow.load(Ordering::SeqCst) {
            if client.write_all(&buffer[..count]).is_err() {
                break;
            }
        } else if contains(&buffer[..count], b"COMMIT\0") {
            counts.lost.fetch_add(1, Ordering::Relaxed);
            break;
        }
    }
    cut(client, server);
}

fn cut(one: &UnixStream, other: &UnixStream) {
    // Whoever was cut already is cut.
    let _cut = (one.shutdown(Shutdown::Both), other.shutdown(Shutdown::Both));
}

/// The name under which a commit was prepared, as it stands in a request to run it: between two zeros.
fn find_commit(request: &[u8]) -> Option<Vec<u8>> {
    let text = b"\0commit\0";
    let end = request.windows(text.len()).position(|window| window == text)?;
    // A `Parse` message is its type, its length in four bytes, the name and the text.
    let begin = request[..end].iter().rposition(|byte| *byte == b's')?;
    Some([b"\0", &request[begin..end], b"\0"].concat())
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
