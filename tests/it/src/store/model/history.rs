//! Random histories: what people, agents and clocks may do to a fleet, over few machines and few ports, so that they
//! collide all the time.
//!
//! A step names machines and reservations by small numbers that mean something whatever happened before, so that any
//! part of a history is a history, and a failing one can shrink.

use std::fmt;

use gk_model::labels::{Label, Selector};
use gk_model::reservation::{Protocols, Scope};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// How many machines there are.
pub(crate) const MACHINES: usize = 3;

/// The names that machines fight for; one more than machines.
pub(crate) const NAMES: [&str; 4] = ["web-1", "web-2", "db-1", "db-2"];

/// Who asks: two people who may only touch their own, and an operator.
pub(crate) const PEOPLE: [&str; 3] = ["ada", "bob", "op"];

/// One step of a history, and the server that takes it.
#[derive(Clone)]
pub(crate) struct Step {
    pub(crate) server: usize,
    pub(crate) op: Op,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {:?}", self.server, self.op)
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// A machine joins, or tells its facts anew if it has joined.
    Join {
        machine: usize,
        name: usize,
    },
    Leave {
        machine: usize,
        release: bool,
    },
    Rename {
        machine: usize,
        name: usize,
    },
    Reserve(Ask),
    /// The same request again that was made so many requests ago, to get the same ports again.
    Repeat(usize),
    /// Of any reservation ever seen; a part is an offset and a count.
    Release {
        which: usize,
        by: usize,
        part: Option<(u16, u16)>,
        force: bool,
    },
    /// A pool that nobody draws from gets these numbers, or is deleted: it shares them with the default, and is counted.
    SetPool(Option<(u16, u16)>),
    Renew {
        which: usize,
        by: usize,
        seconds: u32,
        force: bool,
    },
    Contact {
        machine: usize,
        say: Say,
    },
    /// Time passes, and every clock shows it.
    Wait(u64),
    /// The wall clock is set.
    Set(i64),
    /// Every server looks at its leases.
    Tick,
    /// The server stops, and is back so many seconds later.
    Restart(u64),
    Prune,
}

/// A request for ports.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) by: usize,
    /// With the credential of this machine instead of a person's.
    pub(crate) own: Option<usize>,
    pub(crate) machine: usize,
    pub(crate) by_name: bool,
    pub(crate) also_on: Vec<usize>,
    pub(crate) udp: bool,
    pub(crate) both: bool,
    pub(crate) port: Option<u16>,
    pub(crate) count: u16,
    /// None for a single one without a name.
    pub(crate) names: Vec<&'static str>,
    pub(crate) service: Option<&'static str>,
    pub(crate) place: Where,
    pub(crate) ttl: Option<u32>,
    pub(crate) ensure: bool,
    pub(crate) adopt: bool,
    /// Ports that are busy, and the first of the upper end of the pool that is busy altogether.
    pub(crate) busy: Vec<u16>,
    pub(crate) busy_from: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    Instance,
    FleetForOne,
    Everywhere,
}

/// What the machine at this place is labelled with.
pub(crate) fn label(machine: usize) -> Label {
    format!("machine={machine}").parse().unwrap()
}

impl Ask {
    /// Whether it names its machine.
    pub(crate) fn is_for_one(&self) -> bool {
        self.also_on.is_empty() && self.place != Where::Everywhere
    }

    /// What chooses its machines, where they are several.
    pub(crate) fn selector(&self) -> Option<Selector> {
        let all: Vec<String> = self.also_on.iter().chain([&self.machine]).map(ToString::to_string).collect();
        let several = !self.also_on.is_empty();
        several.then(|| format!("machine in ({})", all.join(",")).parse().unwrap())
    }

    pub(crate) fn protocol(&self) -> Protocols {
        match (self.both, self.udp) {
            (true, _) => Protocols::Both,
            (false, true) => Protocols::Udp,
            (false, false) => Protocols::Tcp,
        }
    }

    pub(crate) fn scope(&self) -> Scope {
        if self.place == Where::Instance { Scope::Instance } else { Scope::Fleet }
    }
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} asks for ",
            self.own.map_or(PEOPLE[self.by].to_owned(), |own| format!("machine {own}"))
        )?;
        match self.port {
            Some(port) => write!(f, "{port}")?,
            None => write!(f, "the next free")?,
        }
        let protocol = if self.both { "tcp+udp" } else { ["tcp", "udp"][usize::from(self.udp)] };
        write!(f, " x{} {protocol} on machine {}", self.count, self.machine)?;
        self.also_on.iter().try_for_each(|also| write!(f, "+{also}"))?;
        if self.place != Where::Instance {
            write!(f, " {:?}", self.place)?;
        }
        let words = [(self.ensure, " ensure"), (self.adopt, " adopt"), (self.by_name, " by name")];
        words.iter().filter(|(is, _)| *is).try_for_each(|(_, word)| f.write_str(word))?;
        self.service.map_or(Ok(()), |service| write!(f, " for {service} {:?}", self.names))?;
        self.ttl.map_or(Ok(()), |ttl| write!(f, " for {ttl} s"))?;
        if self.port.is_none() {
            write!(f, " busy {:?} and from {}", self.busy, self.busy_from)?;
        }
        Ok(())
    }
}

/// What an agent says. Sets of listeners are bits over the candidates of [`super::agents`].
#[derive(Clone, Debug)]
pub(crate) enum Say {
    Heartbeat {
        honest: bool,
    },
    /// A report of the parts that these bits cover.
    Report {
        set: u8,
        pids: u8,
        covered: u8,
        occupied: u8,
        ahead: u64,
    },
    Delta {
        seen: u8,
        closed: u8,
        pids: u8,
        gap: bool,
        honest: bool,
        occupied: Option<u8>,
    },
    /// A new session, by whoever presents this much less than the last one.
    Open {
        behind: u64,
        set: u8,
        with_report: bool,
    },
    /// A contact that was sent before, in whatever session.
    Again(usize),
    /// A contact with an older session number.
    Stale {
        behind: u64,
        set: u8,
    },
}

fn machine() -> impl Strategy<Value = usize> {
    0..MACHINES
}

fn person() -> impl Strategy<Value = usize> {
    prop_oneof![4 => Just(0usize), 3 => Just(1), 1 => Just(2)]
}

/// Some names of a service's ports; mostly none.
fn names() -> impl Strategy<Value = Vec<&'static str>> {
    prop_oneof![
        6 => Just(vec![]),
        2 => select(vec!["http", "grpc"]).prop_map(|name| vec![name]),
        1 => Just(vec!["http", "grpc"]),
        1 => Just(vec!["grpc", "debug", "http"]),
    ]
}

fn place() -> impl Strategy<Value = Where> {
    prop_oneof![6 => Just(Where::Instance), 2 => Just(Where::FleetForOne), 1 => Just(Where::Everywhere)]
}

/// A request that does not contradict itself: those that do are a table in `gk-model`.
pub(crate) fn ask() -> impl Strategy<Value = Ask> {
    let whose = (person(), option::weighted(0.1, machine()), machine(), any::<bool>());
    let where_to = (option::weighted(0.2, vec(machine(), 1..3)), place());
    let what = (any::<bool>(), prop::bool::weighted(0.2), option::weighted(0.4, 7999u16..8010), names());
    let how_many = prop_oneof![5 => Just(1u16), 2 => Just(2), 1 => 3u16..5];
    let extra = (
        option::weighted(0.6, select(vec!["billing", "search"])),
        option::weighted(0.3, prop_oneof![1 => 1u32..90, 1 => 90u32..2000]),
        prop::bool::weighted(0.4),
        prop::bool::weighted(0.15),
    );
    let busy = (vec(8000u16..8010, 0..3), prop_oneof![2 => 8003u16..8014, 1 => Just(10_000u16)]);
    (whose, where_to, what, how_many, extra, busy).prop_map(
        |((by, own, machine, by_name), (also_on, place), (udp, both, port, names), count, extra, busy)| {
            let (service, ttl, ensure, adopt) = extra;
            let adopt = adopt && port.is_some();
            let single = adopt || place != Where::Instance;
            Ask {
                by,
                own,
                machine,
                by_name,
                also_on: if single { vec![] } else { also_on.unwrap_or_default() },
                udp,
                both: both && !adopt,
                port,
                count: if adopt { 1 } else { count },
                names: if adopt { vec![] } else { names },
                service,
                place: if adopt && place == Where::Everywhere { Where::Instance } else { place },
                ttl,
                ensure: ensure && service.is_some(),
                adopt,
                busy: busy.0,
                busy_from: busy.1,
            }
        },
    )
}

pub(crate) fn say() -> impl Strategy<Value = Say> {
    let bits = any::<u8>;
    let covered = prop_oneof![3 => Just(15u8), 2 => 0u8..16];
    let ahead = prop_oneof![4 => Just(1u64), 1 => 2u64..4];
    prop_oneof![
        2 => prop::bool::weighted(0.8).prop_map(|honest| Say::Heartbeat { honest }),
        4 => (bits(), 0u8..2, covered, bits(), ahead).prop_map(|(set, pids, covered, occupied, ahead)| {
            Say::Report { set, pids, covered, occupied, ahead }
        }),
        3 => (bits(), bits(), 0u8..2, prop::bool::weighted(0.2), prop::bool::weighted(0.8), option::of(bits()))
            .prop_map(|(seen, closed, pids, gap, honest, occupied)| {
                Say::Delta { seen, closed, pids, gap, honest, occupied }
            }),
        2 => (0u64..2, bits(), prop::bool::weighted(0.9))
            .prop_map(|(behind, set, with_report)| Say::Open { behind, set, with_report }),
        3 => (0usize..20).prop_map(Say::Again),
        1 => (1u64..3, bits()).prop_map(|(behind, set)| Say::Stale { behind, set }),
    ]
}

fn part() -> impl Strategy<Value = Option<(u16, u16)>> {
    option::weighted(0.5, (0u16..4, 1u16..4))
}

fn op() -> impl Strategy<Value = Op> {
    let which = || 0usize..40;
    let step = prop_oneof![Just(600i64), Just(4000), Just(-300), Just(-4000), Just(-60)];
    prop_oneof![
        2 => (machine(), 0..NAMES.len()).prop_map(|(machine, name)| Op::Join { machine, name }),
        1 => (machine(), prop::bool::weighted(0.7)).prop_map(|(machine, release)| Op::Leave { machine, release }),
        1 => (machine(), 0..NAMES.len()).prop_map(|(machine, name)| Op::Rename { machine, name }),
        14 => ask().prop_map(Op::Reserve),
        4 => (0usize..4).prop_map(Op::Repeat),
        8 => (which(), person(), part(), prop::bool::weighted(0.3))
            .prop_map(|(which, by, part, force)| Op::Release { which, by, part, force }),
        2 => (which(), person(), 1u32..2000, prop::bool::weighted(0.3))
            .prop_map(|(which, by, seconds, force)| Op::Renew { which, by, seconds, force }),
        8 => (machine(), say()).prop_map(|(machine, say)| Op::Contact { machine, say }),
        1 => option::weighted(0.8, (7998u16..8008, 0u16..8))
            .prop_map(|range| Op::SetPool(range.map(|(first, more)| (first, first + more)))),
        3 => prop_oneof![3 => 1u64..100, 1 => 100u64..2000].prop_map(Op::Wait),
        1 => step.prop_map(Op::Set),
        5 => Just(Op::Tick),
        1 => (1u64..200).prop_map(Op::Restart),
        1 => Just(Op::Prune),
    ]
}

/// A history of so many steps, which begins with two machines that have joined.
pub(crate) fn history(steps: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Step>> {
    let step = (0usize..2, op()).prop_map(|(server, op)| Step { server, op });
    vec(step, steps).prop_map(|steps| {
        let join = |machine| Step { server: 0, op: Op::Join { machine, name: machine } };
        (0..2).map(join).chain(steps).collect()
    })
}
