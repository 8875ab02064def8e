//! The house rules that a compiler does not check: arrows between rooms, who may name what, sizes, prose.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use gk_model::history::EventKind;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Which room may depend on which; `ARCHITECTURE.md` draws it.
const ARROWS: &[(&str, &[&str])] = &[
    ("gk-model", &[]),
    ("gk-store", &["gk-model"]),
    ("gk-client", &["gk-model"]),
    ("gk-scan", &["gk-model"]),
    ("gk-agent", &["gk-client", "gk-scan", "gk-model"]),
    ("gk-server", &["gk-store", "gk-model"]),
    ("gk-program", &["gk-model"]),
    ("gkctl", &["gk-client", "gk-scan", "gk-model"]),
    ("gatekeeper-agent", &["gk-agent", "gk-client", "gk-model", "gk-program"]),
    (
        "gatekeeper",
        &[
            "gatekeeper-agent",
            "gk-agent",
            "gk-client",
            "gk-model",
            "gk-program",
            "gk-scan",
            "gk-server",
            "gk-store",
        ],
    ),
];

/// Libraries that only one room may name.
const KEPT_IN: &[(&str, &str)] = &[
    ("rusqlite", "gk-store"),
    ("tokio-postgres", "gk-store"),
    ("ureq", "gk-client"),
    ("axum", "gk-server"),
    ("tokio-rustls", "gk-server"),
    ("rcgen", "gk-server"),
    ("prometheus-client", "gk-server"),
    ("toml", "gk-program"),
    ("tracing-subscriber", "gk-program"),
    ("sd-notify", "gk-program"),
];

const LONGEST_FILE: usize = 500;
const LONGEST_MAIN: usize = 60;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names below `[dependencies]` of a crate.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let section = manifest.split("\n[").find_map(|part| part.strip_prefix("dependencies]")).unwrap_or("");
    let names = section.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
    names.filter(|name| !name.is_empty() && !name.starts_with('#')).map(str::to_owned).collect()
}

fn manifests() -> BTreeMap<String, BTreeSet<String>> {
    let crates = std::fs::read_dir(Path::new(ROOT).join("crates")).unwrap();
    let named = crates.map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, dependencies(&read(&path.join("Cargo.toml"))))
    });
    named.collect()
}

fn sources() -> Vec<PathBuf> {
    let mut waiting = vec![Path::new(ROOT).join("crates"), Path::new(ROOT).join("tests")];
    let mut found = Vec::new();
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 50, "the sources were not found");
    found
}

#[test]
fn arrows_between_rooms_are_those_of_the_plan() {
    let manifests = manifests();
    let rooms: BTreeSet<&str> = ARROWS.iter().map(|(room, _)| *room).collect();
    assert_eq!(manifests.keys().map(String::as_str).collect::<BTreeSet<_>>(), rooms, "a room without a rule");
    for (room, allowed) in ARROWS {
        let arrows = manifests[*room].iter().filter(|name| rooms.contains(name.as_str()));
        for arrow in arrows {
            assert!(allowed.contains(&arrow.as_str()), "{room} may not depend on {arrow}");
        }
    }
    for (library, owner) in KEPT_IN {
        for (room, named) in &manifests {
            assert!(
                room == owner || !named.contains(*library),
                "{room} names {library}, which only {owner} may"
            );
        }
    }
}

#[test]
fn the_audit_and_the_house_agree_on_who_may_name_what() {
    let rules = read(&Path::new(ROOT).join("deny.toml"));
    for (library, owner) in KEPT_IN {
        let begin = format!("{{ crate = \"{library}\", wrappers = [");
        let rule = rules.lines().find_map(|line| line.trim().strip_prefix(&begin));
        let rule = rule.unwrap_or_else(|| panic!("deny.toml has no rule for {library}"));
        assert!(rule.contains(&format!("\"{owner}\"")), "deny.toml keeps {library} from {owner}");
    }
}

/// A child would have the environment, and so the token or the database's password in it. Whoever adds the first one takes
/// them out, and changes this test.
#[test]
fn our_programs_start_no_others() {
    let is_a_test = |path: &Path| {
        // The root is named by the way from here, which leads through `tests` itself.
        let path = path.strip_prefix(ROOT).unwrap_or(path).to_string_lossy();
        path.starts_with("tests/")
            || ["/tests/", "/truth/", "gk-agent/src/namespace.rs"].iter().any(|part| path.contains(part))
    };
    for path in sources().into_iter().filter(|path| !is_a_test(path)) {
        let text = read(&path);
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(&text);
        assert!(!text.contains("Command::new(\""), "{} starts a program", path.display());
        assert!(!text.contains("process::Command"), "{} may start a program", path.display());
    }
}

/// A promise whose test was renamed or removed is a promise that nobody proves.
#[test]
fn the_tests_that_documents_name_are_there() {
    let code: String = sources().iter().map(|path| read(path)).collect();
    for document in ["docs/security.md", "docs/guarantees.md"] {
        let text = read(&Path::new(ROOT).join(document));
        // The first column says whom or what it is about.
        let cells = text.lines().filter_map(|line| line.strip_prefix('|')?.split_once('|'));
        let named = cells.flat_map(|(_, cells)| cells.split('`').skip(1).step_by(2));
        // Names of tests are sentences; what is shorter is an option, a file or a constant.
        let tests: Vec<&str> = named
            .filter_map(|name| name.rsplit("::").next())
            .filter(|name| name.matches('_').count() > 3 && !name.contains([' ', '.', '/', '=', '(']))
            .collect();
        assert!(tests.len() > 20, "{document} names no tests");
        for name in tests {
            assert!(code.contains(&format!("fn {name}(")), "{document} names {name}, which is not there");
        }
    }
}

/// Rule 11 says what history is made of.
#[test]
fn the_rules_name_every_kind_of_event() {
    let domain = read(&Path::new(ROOT).join("docs/domain.md"));
    let rule = domain.lines().find(|line| line.contains("**History is append-only**")).unwrap();
    let kinds = rule.split_once(". An event has").unwrap().0;
    let named: BTreeSet<&str> = kinds.split('`').skip(1).step_by(2).collect();
    let known: BTreeSet<String> = EventKind::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(named, known.iter().map(String::as_str).collect());
}

#[test]
fn every_module_says_what_it_owns() {
    for path in sources() {
        assert!(read(&path).starts_with("//! "), "{} begins without prose", path.display());
    }
}

/// clippy refuses axum's registration functions everywhere; this is about who may say "but here".
#[test]
fn routes_are_registered_in_one_file() {
    let excused = sources().into_iter().filter(|path| read(path).contains("clippy::disallowed_methods"));
    let of_server = excused.filter(|path| path.starts_with(Path::new(ROOT).join("crates/gk-server/src")));
    let names = of_server.map(|path| path.file_name().unwrap().to_string_lossy().into_owned());
    // The latter has two routes that exist in a test only.
    assert_eq!(
        names.collect::<BTreeSet<_>>(),
        BTreeSet::from(["routes.rs".to_owned(), "serving.rs".to_owned()])
    );
}

#[test]
fn no_file_is_too_long() {
    for path in sources() {
        let text = read(&path);
        let lines = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(&text).lines().count();
        let most = if path.ends_with("src/main.rs") && !path.starts_with(Path::new(ROOT).join("tests")) {
            LONGEST_MAIN
        } else {
            LONGEST_FILE
        };
        assert!(lines <= most, "{} has {lines} lines, at most {most}", path.display());
    }
}
