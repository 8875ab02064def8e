//! Tokens as people use them: made, typed, kept, limited, revoked, and shown nowhere.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

use super::doctor::ask_the_doctor;
use super::harness::{Place, Server, program, stdout, wait_for};

/// A server, and an account that has a home but no token, and no way to the server's socket unless it is named.
pub(super) struct Desk {
    pub(super) server: Server,
    pub(super) place: Place,
}

impl Desk {
    pub(super) fn new() -> Desk {
        let place = Place::new();
        let server = Server::start_with(&place.join("data"), "127.0.0.1:0", |command| {
            command.env("GATEKEEPER_LOG", "trace");
        });
        Desk { server, place }
    }

    pub(super) fn socket(&self) -> String {
        format!("unix:{}", self.server.data.join("gatekeeper.sock").display())
    }

    pub(super) fn http(&self) -> String {
        format!("http://{}", self.server.address)
    }

    fn login_file(&self) -> PathBuf {
        self.place.join("config/gatekeeper/login.json")
    }

    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = program("gkctl");
        command.args(words).env("GATEKEEPER_STATE", self.place.join("state"));
        command
            .env("GATEKEEPER_DATA", self.place.join("no-data"))
            .env("XDG_CONFIG_HOME", self.place.join("config"));
        command.stdin(Stdio::null());
        command
    }

    /// As admin, at the server's socket.
    pub(super) fn admin(&self, words: &[&str]) -> Output {
        self.command(words).env("GATEKEEPER_SERVER", self.socket()).output().unwrap()
    }

    /// Over TCP, with what is written to stdin.
    fn far(&self, words: &[&str], typed: &str) -> Output {
        type_into(self.command(words).env("GATEKEEPER_SERVER", self.http()), typed)
    }

    /// Over TCP, with a token in the environment.
    fn with(&self, token: &str, words: &[&str]) -> Output {
        self.command(words)
            .env("GATEKEEPER_SERVER", self.http())
            .env("GATEKEEPER_TOKEN", token)
            .output()
            .unwrap()
    }

    /// The secret of a new token.
    fn create(&self, words: &[&str]) -> String {
        let made = self.admin(&[&["token", "create"], words].concat());
        let secret = stdout(&made);
        assert_eq!(secret.lines().count(), 1, "only the secret: {secret}");
        let secret = secret.trim().to_owned();
        assert!(!told(&made).contains(&secret), "not on stderr too");
        secret
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn begin(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn type_into(command: &mut Command, typed: &str) -> Output {
    let mut child = begin(command);
    // A command that reads nothing may be over already.
    let _ = child.stdin.take().unwrap().write_all(typed.as_bytes());
    child.wait_with_output().unwrap()
}

/// A command that must fail with this code, saying all of this.
fn refused(output: &Output, code: i32, says: &[&str]) {
    let error = told(output);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(error.starts_with("error: ") && !error.contains("panicked"), "{error}");
    for said in says {
        assert!(error.contains(said), "it does not say {said:?}: {error}");
    }
}

#[test]
fn a_token_counts_until_it_is_revoked() {
    let desk = Desk::new();
    let secret = desk.create(&["--subject", "ci", "--role", "viewer", "--ttl", "90d", "--note", "builds"]);
    assert!(secret.starts_with("gkt_") && secret.len() == 68, "{secret}");
    stdout(&desk.with(&secret, &["instance", "list"]));
    assert_eq!(stdout(&desk.with(&secret, &["whoami", "-o", "name"])), "ci\n");
    refused(
        &desk.with(&secret, &["token", "list"]),
        5,
        &["sent: the token in GATEKEEPER_TOKEN", "gkctl whoami"],
    );
    refused(&desk.far(&["instance", "list"], ""), 5, &["none was sent", "gkctl login", "GATEKEEPER_TOKEN"]);

    let listed = stdout(&desk.admin(&["token", "list"]));
    for word in ["ID", "LAST USED", "subject", "ci", "viewer", "builds", "in 89d", "just now"] {
        assert!(listed.contains(word), "{listed}");
    }
    let id = stdout(&desk.admin(&["token", "list", "-o", "name"])).trim().to_owned();
    refused(
        &desk.admin(&["token", "revoke", "ffff"]),
        4,
        &["no token whose id begins with ffff", "gkctl token list"],
    );
    let revoked = desk.admin(&["token", "revoke", &id[..13]]);
    assert_eq!(stdout(&revoked), "");
    assert!(
        told(&revoked).contains(&format!("ended token {} of ci (viewer)", &id[..13])),
        "{}",
        told(&revoked)
    );
    let after = desk.with(&secret, &["instance", "list"]);
    refused(
        &after,
        5,
        &["unknown, expired or revoked", "sent: the token in GATEKEEPER_TOKEN", "gkctl login"],
    );
    refused(&desk.admin(&["token", "revoke", &id[..13]]), 4, &["has ended before"]);
    assert_eq!(stdout(&desk.admin(&["token", "list", "-o", "name"])), "");
    assert!(stdout(&desk.admin(&["token", "list", "--ended"])).contains("ENDED"));
}

#[test]
fn the_whole_of_a_new_token_is_for_programs() {
    let desk = Desk::new();
    let words = ["token", "create", "--subject", "ci", "--role", "user", "--limit-instances", "env=dev"];
    let made = desk.admin(&[&words[..], &["--limit-pool", "default", "-o", "json"]].concat());
    let json: Value = serde_json::from_str(&stdout(&made)).unwrap();
    assert_eq!(json["token"]["limits"], serde_json::json!({"instances": "env=dev", "pools": ["default"]}));
    let secret = json["secret"].as_str().unwrap();
    let who: Value = serde_json::from_str(&stdout(&desk.with(secret, &["whoami", "-o", "json"]))).unwrap();
    assert_eq!(
        (&who["subject"], &who["role"], &who["token"]),
        (&"ci".into(), &"user".into(), &json["token"]["id"])
    );
    assert_eq!(who["asked_with"], "the token in GATEKEEPER_TOKEN");

    stdout(&desk.admin(&["instance", "join", "--name", "web-1", "--label", "env=prod"]));
    let reserve = ["port", "reserve", "--instance", "web-1"];
    refused(&desk.with(secret, &reserve), 5, &["sent: the token in GATEKEEPER_TOKEN", "gkctl whoami"]);
    stdout(&desk.admin(&["instance", "label", "web-1", "env=dev"]));
    stdout(&desk.with(secret, &reserve));
}

#[test]
fn a_machine_joins_by_a_token_from_stdin_and_gets_the_tokens_labels() {
    let desk = Desk::new();
    let made = desk.admin(&["token", "create", "--join", "--label", "env=prod", "--label", "team=web"]);
    let secret = stdout(&made);
    let port = desk.server.address.rsplit(':').next().unwrap();
    let join = format!("gkctl instance join --server http://SERVER:{port} --insecure-http && systemctl");
    assert!(told(&made).contains(&join) && told(&made).contains("tar -C /usr/local"), "{}", told(&made));

    refused(&desk.far(&["instance", "join"], &secret), 5, &["none was sent", "--token-file FILE"]);
    let own = ["instance", "join", "--name", "web-1", "--label", "env=dev", "--token-file", "-"];
    refused(
        &desk.far(&own, &secret),
        5,
        &["label", "sent: the token of --token-file", "gkctl token create --join"],
    );
    stdout(&desk.far(&["instance", "join", "--name", "web-1", "--token-file", "-"], &secret));
    let list = || stdout(&desk.admin(&["instance", "list"]));
    assert!(list().contains("LABELS") && list().contains("env=prod,team=web"), "{}", list());
    fs::remove_dir_all(desk.place.join("state")).unwrap();
    refused(
        &desk.far(&["instance", "join", "--token-file", "-"], &secret),
        5,
        &["unknown, expired or revoked"],
    );

    stdout(&desk.admin(&["instance", "label", "web-1", "env=test", "zone=a", "team-"]));
    assert!(list().contains("env=test,zone=a"), "{}", list());
    assert!(stdout(&desk.admin(&["instance", "show", "web-1"])).contains("env=test,zone=a"));
    assert_eq!(stdout(&desk.admin(&["instance", "label", "web-1"])), "web-1 is labelled env=test,zone=a\n");
    refused(&desk.admin(&["instance", "label", "web-1", "env=a", "env-"]), 2, &["given twice"]);
}

#[test]
fn no_machine_labels_itself_and_an_operator_labels_any() {
    let desk = Desk::new();
    let secret = desk.create(&["--join"]);
    stdout(&desk.far(&["instance", "join", "--name", "web-1", "--token-file", "-"], &secret));
    refused(
        &desk.far(&["instance", "label", "env=prod"], ""),
        5,
        &["label", "sent: this machine's own credential"],
    );
    let operator = desk.create(&["--subject", "ada", "--role", "operator"]);
    let again = ["instance", "join", "--label", "env=prod"];
    let joined = desk.with(&operator, &again);
    assert!(stdout(&joined).contains("web-1 is labelled env=prod"), "{joined:?}");
    // The same once more needs nobody's authority, so that it can be typed by a script.
    stdout(&desk.far(&again, ""));
}

#[test]
fn labels_that_are_given_at_once_are_all_there() {
    let desk = Desk::new();
    stdout(&desk.admin(&["instance", "join", "--name", "web-1"]));
    let label = |number: u32| {
        let word = format!("k{number}=v");
        begin(desk.command(&["instance", "label", "web-1", &word]).env("GATEKEEPER_SERVER", desk.socket()))
    };
    for labelling in (0..8).map(label).collect::<Vec<_>>() {
        stdout(&labelling.wait_with_output().unwrap());
    }
    let shown = stdout(&desk.admin(&["instance", "show", "web-1"]));
    let all: Vec<String> = (0..8).map(|number| format!("k{number}=v")).collect();
    assert!(shown.contains(&all.join(",")), "{shown}");
}

#[test]
fn the_nearest_token_and_server_count() {
    let desk = Desk::new();
    let [ada, bob, eve] =
        ["ada", "bob", "eve"].map(|subject| desk.create(&["--subject", subject, "--role", "admin"]));
    let http = desk.http();
    let login = type_into(&mut desk.command(&["login", "--server", &http]), &ada);
    assert!(login.status.success() && told(&login).contains("logged in to http://127.0.0.1:"), "{login:?}");
    assert_eq!(fs::metadata(desk.login_file()).unwrap().permissions().mode() & 0o777, 0o600);

    let who = |command: &mut Command| {
        let json: Value =
            serde_json::from_str(&stdout(&command.args(["-o", "json"]).output().unwrap())).unwrap();
        ["subject", "found_as", "asked_with"].map(|field| json[field].as_str().unwrap().to_owned())
    };
    let data = desk.server.data.clone();
    let nearest = who(desk.command(&["whoami"]).env("GATEKEEPER_DATA", &data));
    let last = "the one of the last gkctl login";
    assert_eq!(nearest, ["ada", last, "the token that gkctl login stored"], "a login goes before the socket");
    let variable = who(desk.command(&["whoami"]).env("GATEKEEPER_TOKEN", &bob));
    assert_eq!(variable, ["bob", last, "the token in GATEKEEPER_TOKEN"]);
    let file = desk.place.join("token");
    fs::write(&file, &eve).unwrap();
    let words = ["whoami", "--token-file", file.to_str().unwrap()];
    let option = who(desk.command(&words).env("GATEKEEPER_TOKEN", &bob));
    assert_eq!(option, ["eve", last, "the token of --token-file"]);
    let chosen = who(desk.command(&["whoami"]).env("GATEKEEPER_SERVER", desk.socket()));
    assert_eq!((chosen[1].as_str(), chosen[2].as_str()), ("chosen by GATEKEEPER_SERVER", "no token"));

    // Another server is another matter, even on this machine.
    let other = Server::start(&desk.place.join("other"));
    let elsewhere = format!("http://{}", other.address);
    let output = desk.command(&["whoami", "--server", &elsewhere]).output().unwrap();
    refused(&output, 5, &["none was sent", "gkctl login"]);
    let output = type_into(&mut desk.command(&["login", "--server", &elsewhere]), &ada);
    refused(&output, 5, &["unknown, expired or revoked"]);
    let stored = fs::read_to_string(desk.login_file()).unwrap();
    assert!(!stored.contains(&elsewhere), "what does not work is not kept: {stored}");

    let logout = desk.command(&["logout"]).output().unwrap();
    assert!(logout.status.success() && told(&logout).contains("still counts"), "{logout:?}");
    assert!(!fs::read_to_string(desk.login_file()).unwrap().contains("gkt_"));
    let nobody = who(desk.command(&["whoami"]).env("GATEKEEPER_DATA", &data));
    assert_eq!(nobody[1], "the socket in the server's data directory");
    refused(
        &type_into(&mut desk.command(&["login"]), &ada),
        2,
        &["which server is meant?", "--server http://"],
    );
    let lone = desk.command(&["whoami"]).env("GATEKEEPER_TOKEN", &bob).output().unwrap();
    refused(&lone, 2, &["no server that it is meant for"]);
}

#[test]
fn a_file_of_tokens_that_others_can_read_is_refused() {
    let desk = Desk::new();
    let secret = desk.create(&["--subject", "ada", "--role", "admin"]);
    let http = desk.http();
    stdout(&type_into(&mut desk.command(&["login", "--server", &http]), &secret));
    fs::set_permissions(desk.login_file(), Permissions::from_mode(0o644)).unwrap();
    let file = desk.login_file().display().to_string();
    let says = [file.as_str(), "mode 0644", "chmod 600", "gkctl token revoke"];
    refused(&desk.command(&["whoami"]).output().unwrap(), 5, &says);
    refused(&desk.command(&["whoami", "--server", &http]).output().unwrap(), 5, &says);
    refused(&type_into(&mut desk.command(&["login", "--server", &http]), &secret), 5, &says);
    let (checks, code) = ask_the_doctor(&mut desk.command(&[]));
    assert!(checks.contains(&("login".into(), "bad".into())), "{checks:?}");
    assert_eq!(code, Some(1));
    // Who names both server and token needs no file.
    stdout(&desk.with(&secret, &["whoami"]));
    fs::set_permissions(desk.login_file(), Permissions::from_mode(0o600)).unwrap();
    stdout(&desk.command(&["whoami"]).output().unwrap());
}

#[test]
fn a_secret_is_in_no_argument_no_output_no_log_and_no_file_but_its_own() {
    let desk = Desk::new();
    let secret = desk.create(&["--subject", "ada", "--role", "admin"]);
    let join = desk.create(&["--join"]);
    let mut shown = String::new();
    let mut show = |output: Output| shown += &(told(&output) + &String::from_utf8_lossy(&output.stdout));

    // While the command holds the secret and waits for more, everybody may look at its arguments.
    for (words, typed) in
        [(&["login"][..], &secret), (&["instance", "join", "--name", "web-1", "--token-file", "-"], &join)]
    {
        let mut child = begin(desk.command(words).env("GATEKEEPER_SERVER", desk.http()));
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(typed.as_bytes()).unwrap();
        let seen = wait_for("the command to run", || {
            let arguments = fs::read(format!("/proc/{}/cmdline", child.id())).unwrap();
            let arguments = String::from_utf8_lossy(&arguments).into_owned();
            arguments.contains(words[0]).then_some(arguments)
        });
        assert!(!seen.contains(typed.as_str()), "{seen}");
        drop(stdin);
        show(child.wait_with_output().unwrap());
    }
    for words in [
        &["whoami"][..],
        &["whoami", "-o", "json"],
        &["token", "list", "--ended", "-o", "json"],
        &["events", "-o", "json"],
        &["events", "-o", "csv"],
        &["doctor"],
        &["doctor", "-o", "json"],
        &["logout"],
        // A mistake that must not be repeated to the terminal.
        &["login", &secret],
        &["whoami", &format!("--token={secret}")],
    ] {
        show(desk.command(words).output().unwrap());
    }
    for bad in ["gkt_wrong", &secret[..60]] {
        show(desk.far(&["login"], bad));
        show(desk.with(bad, &["whoami"]));
    }
    assert!(shown.contains("given as an argument"), "{shown}");
    shown += &desk.server.process.log();
    for file in files_below(&desk.server.data).into_iter().chain(files_below(&desk.place.join("state"))) {
        shown += &String::from_utf8_lossy(&fs::read(file).unwrap());
    }
    for secret in [&secret, &join] {
        // Neither it nor the part that matters.
        assert!(!shown.contains(&secret[4..60]), "a secret is shown");
    }
}

fn files_below(dir: &std::path::Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.metadata().unwrap().is_file()).collect()
}

/// A terminal: our end of it, and the one for a program.
pub(super) fn terminal() -> (File, File) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
    (File::from(ours), File::options().read(true).write(true).open(name).unwrap())
}

/// Types at a terminal once it is asked; answers the exit code and what the terminal showed.
fn type_at_a_terminal(command: &mut Command, prompt: &str, typed: &str) -> (Option<i32>, String) {
    let (mut ours, theirs) = terminal();
    command.stdin(theirs.try_clone().unwrap()).stderr(theirs.try_clone().unwrap()).stdout(theirs);
    let mut child = command.spawn().unwrap();
    // The program's end is to be closed when the program ends.
    *command = Command::new("true");
    let (mut shown, mut typed) = (String::new(), Some(typed));
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = ours.read(&mut buffer) {
        shown += &String::from_utf8_lossy(&buffer[..count]);
        if shown.contains(prompt)
            && let Some(typed) = typed.take()
        {
            ours.write_all(typed.as_bytes()).unwrap();
        }
    }
    (child.wait().unwrap().code(), shown)
}

#[test]
fn a_secret_is_typed_unseen() {
    let desk = Desk::new();
    let http = desk.http();
    let secret = desk.create(&["--subject", "ada", "--role", "admin"]);
    let prompt = format!("token for {http}: ");
    let login = || desk.command(&["login", "--server", &http]);
    let (code, shown) = type_at_a_terminal(&mut login(), &prompt, &format!("{secret}\r"));
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("logged in to") && !shown.contains(&secret[4..20]), "{shown}");
    let (code, shown) = type_at_a_terminal(&mut login(), &prompt, &format!("{secret}\u{3}"));
    assert_eq!(code, Some(1), "{shown}");
    assert!(shown.contains("nothing was typed") && !shown.contains(&secret[4..20]), "{shown}");

    // Whoever brings a machine in and has nothing else to show is asked.
    stdout(&desk.command(&["logout"]).output().unwrap());
    let join = desk.create(&["--join"]);
    let mut command = desk.command(&["instance", "join", "--name", "web-1", "--server", &http]);
    let (code, shown) =
        type_at_a_terminal(&mut command, &format!("join token for {http}: "), &format!("{join}\r"));
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("joined as web-1") && !shown.contains(&join[4..20]), "{shown}");
}

#[test]
fn who_did_what_and_from_where() {
    let desk = Desk::new();
    stdout(&desk.admin(&["instance", "join", "--name", "web-1"]));
    let secret = desk.create(&["--subject", "ci", "--role", "user"]);
    stdout(&desk.with(&secret, &["port", "reserve"]));
    let id = stdout(&desk.admin(&["token", "list", "-o", "name"])).trim().to_owned();
    let of_ci = stdout(&desk.admin(&["events", "--actor", "ci"]));
    let line = of_ci.lines().nth(1).unwrap();
    assert!(
        line.contains("reserved") && line.contains(&format!("127.0.0.1 with token {}", &id[..13])),
        "{of_ci}"
    );
    assert!(!stdout(&desk.admin(&["events"])).contains("FROM"));
    assert!(stdout(&desk.admin(&["events", "--origin", "--kind", "joined"])).contains("  socket\n"));
    let json: Value =
        serde_json::from_str(&stdout(&desk.admin(&["events", "--actor", "ci", "-o", "json"]))).unwrap();
    assert_eq!(
        (&json[0]["origin"]["token"], &json[0]["origin"]["address"]),
        (&id.as_str().into(), &"127.0.0.1".into())
    );
    let csv = stdout(&desk.admin(&["events", "-o", "csv"]));
    assert!(csv.starts_with("seq,at,kind,instance,port,actor,message,address,token,request\r\n"), "{csv}");
}
