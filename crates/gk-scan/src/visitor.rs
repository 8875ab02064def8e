//! The thread that looks into other network namespaces, so that no other thread is ever away from home.
//!
//! A thread keeps the namespace alive that it is in, and so does an open socket or an open file of it. So nothing stays
//! open, and the thread goes home after each round. Should that ever fail, it ends, which lets go of everything.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SendError, Sender, channel};
use std::thread;

use crate::doors::Identity;
use crate::error::Chain;
use crate::namespace::Namespace;
use crate::sys;
use crate::tables::Tables;

/// A namespace that is to be looked at, and what came of it.
#[derive(Debug)]
pub(crate) struct Errand {
    /// What is known of it; brought up to date by [`Outcome::Seen`].
    pub(crate) namespace: Namespace,
    pub(crate) inode: u64,
    /// Files that lead there, to be tried in turn.
    pub(crate) doors: Vec<PathBuf>,
    pub(crate) outcome: Outcome,
}

/// What came of an errand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nobody was there, or no door leads there any more.
    NoDoor,
    /// There is a door, and it may not be passed, or the tables may not be read.
    Denied,
    /// At least one part was dumped.
    Seen(Identity),
}

/// The thread, as seen from outside.
#[derive(Debug, Default)]
pub(crate) struct Visitor(Option<Running>);

#[derive(Debug)]
struct Running {
    errands: Sender<Vec<Errand>>,
    answers: Receiver<Vec<Errand>>,
}

impl Visitor {
    /// Looks at each of them and waits for all. The thread is started for the first, since many machines have nothing
    /// to visit, and replaced when it has ended. Home is the network namespace of the calling thread.
    pub(crate) fn visit(&mut self, errands: Vec<Errand>) -> Vec<Errand> {
        let errands = match &self.0 {
            Some(running) => match running.visit(errands) {
                Ok(answers) => return answers,
                Err(errands) => errands,
            },
            None => errands,
        };
        match Running::start() {
            Ok(running) => self.0.insert(running).visit(errands).unwrap_or_else(deny),
            Err(_) => deny(errands),
        }
    }
}

impl Running {
    fn start() -> io::Result<Running> {
        let (errands, inbox) = channel();
        let (outbox, answers) = channel();
        let home = File::open("/proc/thread-self/ns/net")?;
        thread::Builder::new().name("namespaces".to_owned()).spawn(move || travel(&home, inbox, &outbox))?;
        Ok(Running { errands, answers })
    }

    /// The errands themselves when nobody is there to take them.
    fn visit(&self, errands: Vec<Errand>) -> Result<Vec<Errand>, Vec<Errand>> {
        self.errands.send(errands).map_err(|SendError(errands)| errands)?;
        Ok(self.answers.recv().expect("the thread answers before it ends, and does not panic"))
    }
}

fn deny(mut errands: Vec<Errand>) -> Vec<Errand> {
    errands.iter_mut().for_each(|errand| errand.outcome = Outcome::Denied);
    errands
}

fn travel(home: &File, inbox: Receiver<Vec<Errand>>, outbox: &Sender<Vec<Errand>>) {
    while let Ok(mut errands) = inbox.recv() {
        let times_away = errands.iter_mut().map(run).filter(|was_away| *was_away).count();
        // Without CAP_SYS_ADMIN nobody gets home, but then nobody left either.
        let is_home = if times_away == 0 { Ok(()) } else { sys::enter(home) };
        if let Err(error) = is_home {
            tracing::warn!(%error, "cannot leave a network namespace; its thread ends");
            // Before the answer, so that the next errands find nobody rather than vanish.
            drop(inbox);
            drop(outbox.send(errands));
            return;
        }
        if outbox.send(errands).is_err() {
            return;
        }
    }
}

/// Whether the thread has left the namespace that it was in.
fn run(errand: &mut Errand) -> bool {
    errand.outcome = Outcome::NoDoor;
    for door in &errand.doors {
        let entered = File::open(door).and_then(|door| match door.metadata()?.ino() {
            // The process has moved, or its number stands for another one now.
            elsewhere if elsewhere != errand.inode => Err(io::ErrorKind::NotFound.into()),
            _ => sys::enter(&door),
        });
        match entered {
            Ok(()) => {
                errand.outcome = look(&mut errand.namespace, errand.inode);
                return true;
            }
            Err(error) if is_closed(&error) => {}
            Err(error) => {
                tracing::debug!(netns.inode = errand.inode, door = %door.display(), %error, "may not enter");
                errand.outcome = Outcome::Denied;
            }
        }
    }
    false
}

/// From inside.
fn look(namespace: &mut Namespace, inode: u64) -> Outcome {
    let dumped = Tables::open().and_then(|mut tables| namespace.dump(&mut tables));
    match (dumped, Identity::own()) {
        (Ok(()), Ok(identity)) if identity.inode == inode => Outcome::Seen(identity),
        (Err(error), _) => {
            tracing::debug!(netns.inode = inode, error = %Chain(&error), "cannot look at a network namespace");
            Outcome::Denied
        }
        _ => Outcome::Denied,
    }
}

/// Whether nothing is behind a door, rather than something that is denied.
fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}
