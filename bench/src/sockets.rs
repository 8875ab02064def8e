//! A bed of sockets: a network namespace with listeners, UDP sockets and connections of twenty processes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::netns;
use crate::syncs::without_shim;
use crate::{holder, report::Row};

/// How many processes share the sockets, each under an account of its own.
const HOLDERS: usize = 20;

/// How many sockets there are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) listeners: usize,
    pub(crate) udp: usize,
    /// Each has two ends.
    pub(crate) connections: usize,
}

impl Size {
    pub(crate) const fn new(listeners: usize, udp: usize, connections: usize) -> Size {
        Size { listeners, udp, connections }
    }

    /// As the report calls it.
    pub(crate) fn name(self) -> String {
        let Size { listeners, udp, connections } = self;
        let connections =
            if connections > 0 { format!(" + {connections} connections") } else { String::new() };
        format!("{listeners} listeners + {udp} UDP{connections}")
    }
}

/// Those sockets, in the namespace of the thread that opened them. Dropped, they are gone.
pub(crate) struct Sockets(Vec<Holder>);

struct Holder {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Sockets {
    /// In the calling thread's network namespace.
    pub(crate) fn open(size: Size) -> Result<Sockets> {
        let holders = (0..HOLDERS).map(|number| Holder::start(u32::try_from(number)? + 1));
        let mut sockets = Sockets(holders.collect::<Result<_>>()?);
        // Servers get ports here, and clients there later: a UDP server would be taken for a client for 30 s.
        netns::give_ports_from("1024 31999")?;
        sockets.add("listen", size.listeners)?;
        sockets.add("udp", size.udp)?;
        netns::give_ports_from("32000 65535")?;
        sockets.add("connect", size.connections)?;
        Ok(sockets)
    }

    /// So many more, shared by all.
    pub(crate) fn add(&mut self, what: &str, count: usize) -> Result<()> {
        for (index, holder) in self.0.iter_mut().enumerate() {
            let share = count / HOLDERS + usize::from(index < count % HOLDERS);
            holder.tell(what, share)?;
        }
        self.0.iter_mut().try_for_each(Holder::hear)
    }

    /// One more listener, of a process in the middle.
    pub(crate) fn add_listener(&mut self) -> Result<()> {
        let holder = &mut self.0[HOLDERS / 2];
        holder.tell("listen", 1)?;
        holder.hear()
    }
}

impl Holder {
    fn start(uid: u32) -> Result<Holder> {
        // By this name also for an account that may not look into the directory of this program.
        let mut command = Command::new("/proc/self/exe");
        without_shim(&mut command);
        command.arg(holder::WORD).uid(uid).gid(uid).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start a process that holds sockets")?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let orders = orders.context("its input is a pipe")?;
        Ok(Holder { child, orders, answers: BufReader::new(answers.context("its output is a pipe")?) })
    }

    fn tell(&mut self, what: &str, count: usize) -> Result<()> {
        Ok(writeln!(self.orders, "{what} {count}")?)
    }

    fn hear(&mut self) -> Result<()> {
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        ensure!(answer == "ok\n", "a process that was to hold sockets has ended");
        Ok(())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It holds nothing but sockets.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Runs `measure` on a thread with a network namespace of its own. Where that is refused, what it would have measured
/// is said to be not measured.
pub(crate) fn in_new_namespace(
    what: &str,
    measure: impl FnOnce() -> Result<Vec<Row>> + Send,
) -> Result<Vec<Row>> {
    std::thread::scope(|scope| {
        let measured = scope.spawn(|| match netns::enter_new() {
            Ok(()) => measure(),
            Err(error) => {
                eprintln!("no network namespace of our own: {error}");
                Ok(vec![Row::not_measured(what, "")])
            }
        });
        measured.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
