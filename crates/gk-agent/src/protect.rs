//! Keeping the kernel off reserved ports, decided: what is to be added to its list, what taken out of it, and how well
//! that went. Pure; `protector` reads and writes.
//!
//! Three sets are all there is to know: what is *reserved*, what is *ours* in the list, and what the *list* holds.
//!
//! - Reserved and not in the list: added, and from then on ours.
//! - Ours and not reserved: taken out.
//! - In the list and not ours is somebody else's, also when it is reserved: it stays when the reservation ends.
//! - Ours, reserved, and not in the list: somebody took it out. It is told, and added again.

use std::io;

use gk_model::port::PortRange;
use gk_model::port_set::PortSet;
use gk_model::protection::{Protection, ProtectionState};
use gk_model::text::Observed;

/// The largest block of listed ports inside the ephemeral range that goes without a warning. The kernel looks for the
/// next free port from a random one, so that the port after a block gets the picks of the whole block.
const LARGEST_BLOCK: u16 = 64;

/// What is to be done about the kernel's list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) add: PortSet,
    pub(crate) take_out: PortSet,
    /// What is to be remembered as ours before anything is done: all that may be in the list because of us, whether
    /// the rest succeeds, fails or is cut off by a kill.
    pub(crate) ours: PortSet,
    /// Whether somebody took out what is ours and reserved.
    pub(crate) has_drifted: bool,
}

/// Decides.
pub(crate) fn plan(reserved: &PortSet, ours: &PortSet, list: &PortSet) -> Plan {
    let add = without(reserved, list);
    let still_there = both(ours, list);
    let take_out = without(&still_there, reserved);
    let mut ours_then = still_there;
    ours_then.insert_all(&add);
    Plan { has_drifted: !both(ours, &add).is_empty(), add, take_out, ours: ours_then }
}

impl Plan {
    /// Whether the list is as it should be.
    pub(crate) fn is_done(&self) -> bool {
        self.add.is_empty() && self.take_out.is_empty()
    }

    /// What is ours in the list as it was read back.
    pub(crate) fn ours_in(&self, list: &PortSet) -> PortSet {
        both(&self.ours, list)
    }
}

/// How well the kernel keeps off, now that `plan` was carried out as far as possible and `list` was read back.
pub(crate) fn judge(
    plan: &Plan,
    reserved: &PortSet,
    list: &PortSet,
    failure: Option<&str>,
    ephemeral: Option<PortRange>,
) -> Protection {
    let missing = without(reserved, list).len();
    let is_partial = missing > 0 || !both(&plan.take_out, list).is_empty();
    let (state, reason) = if is_partial {
        let unexplained = "the kernel's list does not hold what was written";
        (ProtectionState::Partial, Some(failure.unwrap_or(unexplained).to_owned()))
    } else if plan.has_drifted {
        let why = "somebody took reserved ports out of the kernel's list; they were put back";
        (ProtectionState::Drifted, Some(why.to_owned()))
    } else {
        (ProtectionState::Enforced, ephemeral.and_then(|range| warn_of_blocks(reserved, list, range)))
    };
    let reason = reason.as_deref().map(Observed::new);
    Protection { state, ports: reserved.len() - missing, missing, reason }
}

/// Nothing can be said of ports that nobody has named.
pub(crate) fn not_told_yet() -> Protection {
    let reason = "the server has not told which ports are reserved here";
    Protection { state: ProtectionState::Partial, ports: 0, missing: 0, reason: Some(reason.into()) }
}

/// Why the list cannot be changed, in words that say what to do about it.
pub(crate) fn why_not(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "the kernel's list may not be written: CAP_NET_ADMIN is missing".to_owned()
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "/proc/sys is read-only here, as by ProtectKernelTunables= of systemd or in a container"
                .to_owned()
        }
        _ => format!("the kernel's list cannot be changed: {error}"),
    }
}

fn warn_of_blocks(reserved: &PortSet, list: &PortSet, ephemeral: PortRange) -> Option<String> {
    let mut inside = PortSet::default();
    inside.insert_range(ephemeral);
    let inside = both(&inside, list);
    let is_large = |block: &PortRange| block.count() > LARGEST_BLOCK && reserved.first_in(*block).is_some();
    let large: Vec<String> =
        inside.ranges().iter().filter(|block| is_large(block)).map(ToString::to_string).collect();
    (!large.is_empty()).then(|| {
        format!(
            "the kernel picks the port after a block of more than {LARGEST_BLOCK} far too often, and {} is such a block \
             inside the ephemeral range {ephemeral}; reserve outside of it",
            large.join(", ")
        )
    })
}

fn without(set: &PortSet, other: &PortSet) -> PortSet {
    let mut rest = set.clone();
    rest.remove_all(other);
    rest
}

fn both(set: &PortSet, other: &PortSet) -> PortSet {
    let mut common = set.clone();
    common.keep_only(other);
    common
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use gk_model::port::Port;

    use super::*;

    fn set(ranges: &str) -> PortSet {
        let mut set = PortSet::default();
        ranges
            .split(' ')
            .filter(|range| !range.is_empty())
            .for_each(|range| set.insert_range(range.parse().unwrap()));
        set
    }

    #[test]
    fn what_is_to_be_done_follows_from_three_sets() {
        // reserved, ours, list; add, take out, ours then, has drifted
        let table = [
            ("", "", "", "", "", "", false),
            ("5-6", "", "", "5-6", "", "5-6", false),
            ("5-6", "5-6", "5-6", "", "", "5-6", false),
            ("6-7", "5-6", "5-6", "7", "5", "5-7", false),
            // Theirs stays, also when it is reserved and then is not.
            ("5", "", "5 9", "", "", "", false),
            ("", "", "5 9", "", "", "", false),
            // Theirs was reserved, and they took it out: it is ours from now on, and was not before.
            ("5", "", "9", "5", "", "5", false),
            // Somebody took ours out.
            ("5-6", "5-6", "6 9", "5", "", "5-6", true),
            ("5-6", "5-6", "", "5-6", "", "5-6", true),
            // What is not reserved any more may be taken out by whom it likes.
            ("6", "5-6", "6", "", "", "6", false),
            ("", "5-6", "", "", "", "", false),
        ];
        for (reserved, ours, list, add, take_out, ours_then, has_drifted) in table {
            let found = plan(&set(reserved), &set(ours), &set(list));
            let expected = Plan { add: set(add), take_out: set(take_out), ours: set(ours_then), has_drifted };
            assert_eq!(found, expected, "{reserved:?} {ours:?} {list:?}");
        }
    }

    #[test]
    fn the_state_follows_from_what_was_read_back() {
        use ProtectionState::{Drifted, Enforced, Partial};
        let fine = plan(&set("5-6"), &set("5-6"), &set("5-6"));
        let drifted = plan(&set("5-6"), &set("5-6"), &set("5"));
        let surplus = plan(&set("5-6"), &set("4-6"), &set("4-6"));
        let table = [
            (&fine, "5-6", Enforced, 2, 0),
            (&fine, "1-9", Enforced, 2, 0),
            (&drifted, "5-6", Drifted, 2, 0),
            (&drifted, "5", Partial, 1, 1),
            (&fine, "", Partial, 0, 2),
            (&surplus, "4-6", Partial, 2, 0),
            (&surplus, "5-6", Enforced, 2, 0),
        ];
        for (plan, list, state, ports, missing) in table {
            let found = judge(plan, &set("5-6"), &set(list), Some("because"), None);
            assert_eq!(
                (found.state, found.ports, found.missing),
                (state, ports, missing),
                "{plan:?} {list:?}"
            );
            assert_eq!(found.reason == Some("because".into()), state == Partial, "{found}");
            assert_eq!(found.reason.is_none(), state == Enforced, "{found}");
        }
    }

    #[test]
    fn large_blocks_inside_the_ephemeral_range_are_warned_of() {
        let warned = |reserved: &str, list: &str| {
            let (reserved, list) = (set(reserved), set(list));
            let plan = plan(&reserved, &reserved, &list);
            judge(&plan, &reserved, &list, None, "32768-60999".parse().ok())
                .reason
                .map(|reason| reason.to_string())
        };
        assert_eq!(warned("40000-40063", "40000-40063"), None);
        assert_eq!(warned("8000-9000", "8000-9000"), None, "outside");
        assert_eq!(warned("32000-32831", "32000-32831"), None, "64 of them are inside");
        assert_eq!(warned("5", "5 40000-40999"), None, "theirs alone");
        assert!(warned("40000-40064", "40000-40064").unwrap().contains("40000-40064"));
        assert!(warned("40064", "40000-40064").unwrap().contains("40000-40064"), "together with theirs");
    }

    fn ports() -> impl Strategy<Value = PortSet> {
        proptest::collection::btree_set(1u16..40, 0..30)
            .prop_map(|numbers| numbers.into_iter().filter_map(Port::new).collect())
    }

    proptest! {
        /// Whatever is reserved over time, and whatever others add and take out meanwhile, in the end what is theirs is
        /// in the list, and nothing of ours.
        #[test]
        fn foreign_entries_survive_and_ours_go(
            rounds in proptest::collection::vec((ports(), ports(), ports()), 1..8), killed in any::<bool>(),
        ) {
            let (mut list, mut ours, mut theirs) = (PortSet::default(), PortSet::default(), PortSet::default());
            for (reserved, added, removed) in rounds {
                // Others take out what they like. A number of ours that they add too cannot be told from ours.
                let added = without(&added, &ours);
                theirs.remove_all(&removed);
                list.remove_all(&removed);
                theirs.insert_all(&without(&added, &list));
                list.insert_all(&added);
                let plan = plan(&reserved, &ours, &list);
                ours = plan.ours.clone();
                if killed {
                    continue;
                }
                list.insert_all(&plan.add);
                list.remove_all(&plan.take_out);
                ours = plan.ours_in(&list);
                prop_assert!(without(&reserved, &list).is_empty());
                prop_assert!(without(&without(&list, &reserved), &theirs).is_empty());
            }
            let last = plan(&PortSet::default(), &ours, &list);
            list.remove_all(&last.take_out);
            prop_assert_eq!(list, theirs);
        }
    }
}
