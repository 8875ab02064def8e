//! Watching: how soon each of many watchers is told what happens, what each one costs, and whether who writes notices.

#![expect(unsafe_code, reason = "the limit of open files is raised by system calls")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use gk_model::id::InstanceId;
use gk_model::paths;
use gk_model::reservation::ReserveRequest;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::agents::join;
use crate::bed::{Disk, on_both};
use crate::fleet::wait;
use crate::loader::{Address, once, request};
use crate::report::Row;
use crate::server::Server;
use crate::stats::{milliseconds, quantile};

/// Enough ports for all that is reserved.
const INSTANCES: usize = 20;

/// So many streams are opened at a time: all at once would be put off, as they are when a server restarts.
const OPENING: usize = 100;

/// From one reservation to the next.
const PACE: Duration = Duration::from_millis(10);

/// On both databases.
pub(crate) fn rows(quick: bool) -> Result<Vec<Row>> {
    let (watchers, events) = if quick { (100, 100) } else { (1_000, 1_000) };
    allow_files()?;
    on_both(Disk::Memory, |bed| {
        let server = Server::start(bed, None)?;
        let agents = join(&server.socket(), INSTANCES, 0)?;
        let instances: Vec<InstanceId> = agents.iter().map(|agent| agent.id).collect();
        rows_of(bed.name, &server, &instances, watchers, events)
    })
}

/// Of one server, while so many reservations are made for these instances.
pub(crate) fn rows_of(
    whose: &str,
    server: &Server,
    instances: &[InstanceId],
    watchers: usize,
    events: usize,
) -> Result<Vec<Row>> {
    let Address::Unix(socket) = server.socket() else { bail!("a server has a socket") };
    let mut alone = reserve(server, instances, events)?;
    let before = server.resident_bytes()?;
    let crowd = Crowd::gather(socket, watchers)?;
    let each = server.resident_bytes()?.saturating_sub(before) as f64 / watchers as f64 / 1024.0;
    let mut watched = reserve(server, instances, events)?;
    wait(|| crowd.heard.load(Ordering::Relaxed) == watchers * events)?;
    let told = crowd.leave()?;
    let mut delays: Vec<Duration> = told
        .iter()
        .flat_map(|told| told.iter().zip(&watched.answered_at))
        .map(|(told, answered)| told.saturating_duration_since(*answered))
        .collect();
    ensure!(delays.len() == watchers * events, "{} delays", delays.len());
    let what = |what: &str| format!("{whose}, {watchers} watchers: {what}");
    let both = |times: &mut [Duration]| {
        format!("p50 {}, p99 {}", milliseconds(quantile(times, 0.5)), milliseconds(quantile(times, 0.99)))
    };
    let (quiet, busy) = (both(&mut alone.took), both(&mut watched.took));
    let late = quantile(&mut delays, 0.99);
    Ok(vec![
        Row::new(what("from a writer's answer until a watcher is told"), both(&mut delays))
            .with("p99 ≤ 1 s", late <= 1.0),
        Row::new(what("resident memory of the server for each"), format!("{each:.1} KiB")),
        Row::new(what("a reservation, 100 a second"), format!("{busy}; without watchers {quiet}")),
    ])
}

/// What a writer saw.
struct Written {
    answered_at: Vec<Instant>,
    took: Vec<Duration>,
}

/// One reservation after the other.
fn reserve(server: &Server, instances: &[InstanceId], count: usize) -> Result<Written> {
    let (mut answered_at, mut took) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    for number in 0..count {
        let due = begun + PACE * u32::try_from(number)?;
        while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            std::thread::park_timeout(left);
        }
        let asked = ReserveRequest::next_free(instances[number % instances.len()]);
        let request = request("POST", paths::RESERVATIONS, None, &serde_json::to_vec(&asked)?);
        let asked = Instant::now();
        once(&server.socket(), request)?;
        answered_at.push(Instant::now());
        took.push(asked.elapsed());
    }
    Ok(Written { answered_at, took })
}

/// Watchers on a thread of their own.
struct Crowd {
    heard: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
    thread: JoinHandle<Result<Vec<Vec<Instant>>>>,
}

impl Crowd {
    /// Opens as many streams, and waits until each has said where it begins.
    fn gather(socket: PathBuf, count: usize) -> Result<Crowd> {
        let (stop, stopping) = watch::channel(false);
        let (open, heard) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counters = (Arc::clone(&open), Arc::clone(&heard));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let (mut listening, opening) = (JoinSet::new(), Arc::new(Semaphore::new(OPENING)));
                for _ in 0..count {
                    let permit = Arc::clone(&opening).acquire_owned().await?;
                    listening.spawn(listen(socket.clone(), counters.clone(), stopping.clone(), permit));
                }
                listening.join_all().await.into_iter().collect()
            })
        });
        wait(|| open.load(Ordering::Relaxed) == count || thread.is_finished())?;
        ensure!(!thread.is_finished(), "a stream was refused: {:?}", thread.join().ok());
        Ok(Crowd { heard, stop, thread })
    }

    /// When each was told each reservation.
    fn leave(self) -> Result<Vec<Vec<Instant>>> {
        self.stop.send_replace(true);
        self.thread.join().ok().context("the watchers do not panic")?
    }
}

async fn listen(
    socket: PathBuf,
    (open, heard): (Arc<AtomicUsize>, Arc<AtomicUsize>),
    mut stopping: watch::Receiver<bool>,
    opening: OwnedSemaphorePermit,
) -> Result<Vec<Instant>> {
    let mut opening = Some(opening);
    let mut stream = UnixStream::connect(socket).await?;
    let request = format!("GET {} HTTP/1.1\r\nhost: localhost\r\n\r\n", paths::EVENT_STREAM);
    stream.write_all(request.as_bytes()).await?;
    let (mut lines, mut told, mut has_begun) = (BufReader::new(stream).lines(), Vec::new(), false);
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line?.context("the stream ended")?,
            _ = stopping.wait_for(|stop| *stop) => return Ok(told),
        };
        match line.as_str() {
            "event: bookmark" if !std::mem::replace(&mut has_begun, true) => {
                open.fetch_add(1, Ordering::Relaxed);
                drop(opening.take());
            }
            "event: reserved" => {
                told.push(Instant::now());
                heard.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

/// As many files as this process may have at most, for itself and the servers it starts.
pub(crate) fn allow_files() -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write one `rlimit` that outlives them.
    let allowed = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0
        }
    };
    if allowed { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}
