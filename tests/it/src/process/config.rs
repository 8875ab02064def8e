//! Options from the command line, the environment and a file, and what `gatekeeper config` says of them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::harness::{Place, Server, is_root, program, stdout};

/// A configuration file in a directory of its own, and `gatekeeper config` with it.
struct Desk {
    place: Place,
    file: PathBuf,
}

impl Desk {
    fn new(text: &str) -> Desk {
        let place = Place::new();
        let file = place.join("server.toml");
        let desk = Desk { place, file };
        desk.write(text);
        desk
    }

    /// For its owner only.
    fn write(&self, text: &str) {
        fs::write(&self.file, text).unwrap();
        self.set_mode(0o600);
    }

    fn set_mode(&self, mode: u32) {
        fs::set_permissions(&self.file, Permissions::from_mode(mode)).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = program("gatekeeper");
        command.args(words).env("GATEKEEPER_CONFIG", &self.file).env("HOME", self.place.path());
        command
    }

    /// What is in force, as lines of a key, a value and an origin; `~` stands for the file.
    fn config(&self, words: &[&str], env: &[(&str, &str)]) -> Vec<String> {
        let mut command = self.command(&["config"]);
        let printed = stdout(&command.args(words).envs(env.iter().copied()).output().unwrap());
        let of_words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        printed.replace(self.file.to_str().unwrap(), "~").lines().map(of_words).collect()
    }

    /// Why the options are not used.
    fn refusal(&self) -> String {
        refusal(&mut self.command(&["config"]))
    }
}

fn refusal(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(!told.contains("sesame"), "{told}");
    told
}

#[test]
fn the_command_line_goes_before_the_environment_and_that_before_the_file() {
    let file = "listen = '127.0.0.1:3'\nretention = 3\ninsecure-http = true\ntls-name = ['c', 'd']\n\
                database = 'postgres://ada@db/file'\nlog = 'warn'\n";
    let desk = Desk::new(file);
    let told = desk.config(
        &["--listen", "127.0.0.1:1"],
        &[
            ("GATEKEEPER_LISTEN", "127.0.0.1:2"),
            ("GATEKEEPER_TLS_NAME", "a,b"),
            ("GATEKEEPER_LOG", ""),
            ("DATABASE_URL", "postgres://ada@db/env"),
        ],
    );
    for line in [
        "listen = \"127.0.0.1:1\" # the command line",
        "tls-name = [\"a\", \"b\"] # GATEKEEPER_TLS_NAME of the environment",
        "database = \"postgres://ada@db/env\" # DATABASE_URL of the environment",
        "retention = \"3\" # ~",
        "insecure-http = true # ~",
        "log = \"warn\" # ~",
        "rate-limit = \"100\" # default",
        "# tls-cert # not set",
    ] {
        assert!(told.iter().any(|told| told == line), "{line}\n{told:#?}");
    }
    let mut off =
        desk.config(&[], &[("GATEKEEPER_INSECURE_HTTP", "0"), ("GATEKEEPER_DATABASE", "postgres:///gk")]);
    off.retain(|line| line.contains("GATEKEEPER_"));
    assert_eq!(
        off,
        [
            "database = \"postgres:///gk\" # GATEKEEPER_DATABASE of the environment",
            "insecure-http = \"0\" # GATEKEEPER_INSECURE_HTTP of the environment",
        ]
    );
    desk.write("protect = true\nengine-socket = 'none'\n");
    assert!(desk.config(&["agent"], &[]).contains(&"protect = true # ~".to_owned()));
}

#[test]
fn what_is_printed_serves_as_a_file_and_tells_no_secret() {
    let desk = Desk::new("database = 'postgres://ada:sesame@db/gk'\nallow-host = ['a', 'b']\ntls = 'auto'\n");
    let command = |desk: &Desk| stdout(&desk.command(&["config", "--retention", "7"]).output().unwrap());
    let printed = command(&desk);
    assert!(printed.contains("postgres://ada:***@db/gk") && !printed.contains("sesame"), "{printed}");
    desk.write(&printed);
    let values = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.split('#').next().unwrap().trim().to_owned()).collect()
    };
    assert_eq!(values(&command(&desk)), values(&printed));
}

#[test]
fn a_file_that_others_could_have_written_or_that_tells_them_a_secret_is_refused() {
    let desk = Desk::new("retention = 3\n");
    desk.set_mode(0o644);
    assert!(desk.config(&[], &[]).contains(&"retention = \"3\" # ~".to_owned()));
    for mode in [0o664, 0o646] {
        desk.set_mode(mode);
        assert!(desk.refusal().contains("others may write to it"), "{mode:o}");
    }
    desk.write("database = 'postgres://ada:sesame@db/gk'\n");
    desk.set_mode(0o604);
    assert!(desk.refusal().contains("a password is in it: run chmod go="));
    desk.set_mode(0o400);
    stdout(&desk.command(&["config"]).output().unwrap());
    if is_root() {
        chown(&desk.file, Some(12_345), None).unwrap();
        assert!(desk.refusal().contains("uid 12345, who is a stranger here"));
    }
}

#[test]
fn what_is_no_option_or_no_value_is_refused_wherever_it_stands() {
    let desk = Desk::new("");
    let table = [
        ("tls_name = 'a'", "server.toml: there is no option `tls_name`: did you mean `tls-name`?"),
        ("config = 'a'", "there is no option `config`"),
        ("max-batch = 3", "there is no option `max-batch`"),
        ("retention = 0", "server.toml: invalid value '0' for '--retention <DAYS>': a number of days"),
        ("listen = ['127.0.0.1:1', '127.0.0.1:2']", "`listen` is one value"),
        ("database = 'mysql://ada:sesame@db/gk'", "cannot use the database of "),
        ("tls = 'auto'\ntls-cert = 'a'\ntls-key = 'b'", "leave one of them out"),
        ("tls-key = 'b'", "--tls-key needs --tls-cert"),
        ("listen = '0.0.0.0:5000'", "refusing to serve plain HTTP on 0.0.0.0:5000"),
    ];
    for (text, words) in table {
        desk.write(text);
        let told = desk.refusal();
        assert!(told.contains(words), "{text}\n{told}");
    }
    fs::remove_file(&desk.file).unwrap();
    assert!(desk.refusal().contains("there is no such file"));
    let mut command = program("gatekeeper");
    let told = refusal(command.args(["config", "--database", "postgres://ada:sesame@db/gk"]));
    assert!(told.contains("no password on a command line"), "{told}");
}

#[test]
fn a_server_serves_what_its_file_says_and_a_backup_is_of_its_database() {
    let desk = Desk::new("");
    let data = desk.place.join("told");
    desk.write(&format!("data = '{}'\nlog = 'debug'\n", data.display()));
    let other = desk.place.join("other");
    // The harness names a directory on the command line, which goes before the file.
    let server = Server::start_with(&other, "127.0.0.1:0", |command| {
        command.env("GATEKEEPER_CONFIG", &desk.file);
    });
    assert!(server.process.log().contains("DEBUG") && !data.exists(), "{}", server.process.log());
    drop(server);
    fs::rename(&other, &data).unwrap();
    let verified = stdout(&desk.command(&["verify"]).output().unwrap());
    assert!(verified.contains("ok "), "{verified}");
    let backup = desk.place.join("backup");
    stdout(&desk.command(&["backup"]).arg(&backup).output().unwrap());
    assert!(Path::new(&backup).exists());
}
