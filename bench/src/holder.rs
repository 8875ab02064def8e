//! A process that holds sockets: this program once more, told by lines on its standard input.
//!
//! `listen 50`, `udp 20` and `connect 500` open so many more, each answered by `ok`; the end of the input ends it.

use std::io::{BufRead as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};

use anyhow::{Context as _, Result, bail};

/// The word on the command line that makes this program a holder.
pub(crate) const WORD: &str = "hold-sockets";

#[derive(Default)]
struct Held {
    listeners: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    /// Both ends of each connection.
    connections: Vec<[TcpStream; 2]>,
}

/// Until its input ends.
pub(crate) fn run() -> Result<()> {
    let mut held = Held::default();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (what, count) = line.split_once(' ').context("no count")?;
        held.open(what, count.parse()?)?;
        println!("ok");
        std::io::stdout().flush()?;
    }
    Ok(())
}

impl Held {
    fn open(&mut self, what: &str, count: usize) -> Result<()> {
        // Half of each is open to IPv4 alone, the other half to both.
        let address = |index: usize| ["0.0.0.0:0", "[::]:0"][index % 2];
        for index in 0..count {
            match what {
                "listen" => self.listeners.push(TcpListener::bind(address(index))?),
                "udp" => self.udp.push(UdpSocket::bind(address(index))?),
                "connect" => self.connect(index)?,
                _ => bail!("what is {what}?"),
            }
        }
        Ok(())
    }

    /// To its own listeners in turn, as programs of one machine talk to each other.
    fn connect(&mut self, index: usize) -> Result<()> {
        let listener = &self.listeners[index % self.listeners.len()];
        let to = ("127.0.0.1", listener.local_addr()?.port());
        let outgoing = TcpStream::connect(to)?;
        let (incoming, _) = listener.accept()?;
        self.connections.push([outgoing, incoming]);
        Ok(())
    }
}
