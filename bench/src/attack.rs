//! Servers under attack: what honest agents notice of it, and what it costs the server in memory.
//!
//! The attackers come from an address of their own, `127.0.0.2`, have no token, and begin again whenever they are cut off.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::net::{TcpSocket, TcpStream};

use crate::agents::{Agent, join, send};
use crate::bed::{Bed, Disk};
use crate::loader::{Address, Load, Until, request};
use crate::report::Row;
use crate::server::Server;
use crate::stats::{mebibytes, milliseconds, quantile};
use crate::watching::allow_files;

const ATTACKER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2)), 0);

/// How long honest agents are listened to, without an attack and under each.
const SPAN: Duration = Duration::from_secs(6);

/// Agents that send a heartbeat ten times a second, which is three hundred times what they do.
const HONEST: usize = 30;
const EVERY: Duration = Duration::from_millis(100);

/// What is done over and over, on so many connections.
struct Attack {
    what: &'static str,
    connections: usize,
    opening: Vec<u8>,
    /// What follows on each connection, from time to time.
    drip: Vec<u8>,
    pause: Duration,
}

fn attacks() -> [Attack; 4] {
    let half_a_head = b"POST /v1/reservations HTTP/1.1\r\nhost: localhost\r\nx-slow: ".to_vec();
    let half_a_body =
        b"POST /v1/reservations HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n{".to_vec();
    let guess = request("GET", "/v1/ports", Some(&format!("gkt_{}", "a".repeat(43))), b"");
    let pause = Duration::from_millis(500);
    [
        Attack { what: "2,000 idle connections", connections: 2000, opening: vec![], drip: vec![], pause },
        Attack {
            what: "1,000 heads that never end",
            connections: 1000,
            opening: half_a_head,
            drip: b"x".to_vec(),
            pause,
        },
        Attack {
            what: "1,000 bodies that never end",
            connections: 1000,
            opening: half_a_body,
            drip: b" ".to_vec(),
            pause,
        },
        Attack {
            what: "2,000 guessed tokens a second",
            connections: 100,
            opening: guess.clone(),
            drip: guess,
            pause: Duration::from_millis(50),
        },
    ]
}

/// Each attack by itself.
pub(crate) fn rows() -> Result<Vec<Row>> {
    allow_files()?;
    let bed = Bed::sqlite(Disk::Memory)?;
    let server = Server::start_limited(&bed)?;
    let Address::Tcp(target) = server.tcp()? else { bail!("a server has a TCP address") };
    let mut agents = join(&server.socket(), HONEST, 30)?;
    send(&Address::Tcp(target), agents.iter_mut().map(Agent::report).collect::<Result<_>>()?)?;
    let mut rows = Vec::new();
    for attack in attacks() {
        let before = server.resident_bytes()?;
        let (quiet, _) = hear(target, &mut agents)?;
        let is_over = AtomicBool::new(false);
        let ((busy, failed), during) = std::thread::scope(|scope| {
            let attacker = scope.spawn(|| attack.run(target, &is_over));
            let heard = hear(target, &mut agents);
            let during = server.resident_bytes();
            is_over.store(true, Ordering::Relaxed);
            attacker.join().ok().context("the attacker does not panic")??;
            anyhow::Ok((heard?, during?))
        })?;
        let what = format!("SQLite, in memory: p99 of honest heartbeats under {}", attack.what);
        let memory = format!("{} of memory instead of {}", mebibytes(during), mebibytes(before));
        let figure =
            format!("{} against {}; {failed} refused; {memory}", milliseconds(busy), milliseconds(quiet));
        rows.push(Row::new(what, figure).with("0 refused", failed == 0));
    }
    Ok(rows)
}

/// How long the slowest hundredth of their heartbeats takes, and how many were refused.
fn hear(target: SocketAddr, agents: &mut [Agent]) -> Result<(f64, usize)> {
    let rounds = SPAN.as_millis() / EVERY.as_millis();
    let mut heartbeats = Vec::new();
    for _ in 0..rounds {
        for agent in &mut *agents {
            heartbeats.push(agent.heartbeat()?);
        }
    }
    let load = Load {
        address: Address::Tcp(target),
        requests: Rc::new(heartbeats),
        first: 0,
        connections: HONEST,
        until: Until::Sent,
        every: Some(EVERY),
    };
    let mut answers = load.run()?;
    Ok((quantile(&mut answers.times, 0.99), answers.failed))
}

impl Attack {
    fn run(&self, target: SocketAddr, is_over: &AtomicBool) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut open: Vec<Option<TcpStream>> = (0..self.connections).map(|_| None).collect();
            let mut ticks = tokio::time::interval(self.pause);
            while !is_over.load(Ordering::Relaxed) {
                ticks.tick().await;
                for connection in &mut open {
                    match connection.take() {
                        Some(stream) => *connection = stays(&stream, &self.drip).then_some(stream),
                        None => *connection = self.open(target).await,
                    }
                }
            }
        });
        Ok(())
    }

    /// None when it was refused, which may be; it is tried again.
    async fn open(&self, target: SocketAddr) -> Option<TcpStream> {
        let socket = TcpSocket::new_v4().ok()?;
        socket.bind(ATTACKER).ok()?;
        let stream = tokio::time::timeout(Duration::from_secs(1), socket.connect(target)).await.ok()?.ok()?;
        stays(&stream, &self.opening).then_some(stream)
    }
}

/// Sends what it can, and hears what there is; whether the server still listens.
fn stays(stream: &TcpStream, what: &[u8]) -> bool {
    let mut heard = [0; 4096];
    let goes_on = |result: std::io::Result<usize>| match result {
        Ok(count) => count > 0 || what.is_empty(),
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    };
    let is_written = what.is_empty() || goes_on(stream.try_write(what));
    is_written && goes_on(stream.try_read(&mut heard))
}
