//! TLS between processes: who is believed, what is sent to whom, and certificates that change meanwhile.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use gk_client::identity::{generate_secret, load_identity};
use gk_model::access::{Actor, Authority, Role};
use gk_model::pin::Pin;
use gk_model::secret::{Secret, SecretKind};
use gk_model::time::Timestamp;
use gk_model::token::TokenRequest;
use gk_store::{Store, StoreConfig};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PublicKeyData as _};

use super::harness::{Place, Process, Server, error_of, gkctl_at, program, refusal_of, stdout, wait_for};

/// A data directory whose server will know this token of an admin.
fn data_with_token(place: &Place, name: &str) -> (PathBuf, PathBuf) {
    let (data, file) = (place.join(name), place.join("token"));
    let token = match std::fs::read_to_string(&file) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => generate_secret(SecretKind::Subject),
    };
    std::fs::write(&file, token.reveal()).unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(admit(&data, &token));
    (data, file)
}

async fn admit(data: &Path, token: &Secret) {
    let now = Timestamp::from_clock();
    let store = Store::open(StoreConfig::embedded(data), now).await.unwrap();
    let root = Actor::new("root".parse().unwrap(), Authority::Role(Role::Admin));
    let (hash, wanted) = (token.hash(), TokenRequest::for_subject("ada".parse().unwrap(), Role::Admin));
    store.write(move |tx| tx.create_token(&root, hash, &wanted, now)).await.unwrap();
    tokio::task::spawn_blocking(move || store.close()).await.unwrap();
}

/// A server that serves HTTPS by an authority of its own, and somebody who may do everything there.
struct House {
    place: Place,
    server: Server,
    token: PathBuf,
    url: String,
}

impl House {
    fn new() -> House {
        let place = Place::new();
        let (data, token) = data_with_token(&place, "data");
        let server = start(&data, "127.0.0.1:0", &["--tls", "auto"]);
        let url = format!("https://{}", server.address);
        House { place, server, token, url }
    }

    /// `gkctl` on a machine of its own, which knows nothing of this one's sockets.
    fn gkctl(&self, words: &[&str]) -> Output {
        self.gkctl_to(&self.url, words)
    }

    fn gkctl_to(&self, url: &str, words: &[&str]) -> Output {
        let token = self.token.display().to_string();
        gkctl_at(url, &self.state(), &[words, &["--token-file", &token]].concat())
    }

    fn state(&self) -> PathBuf {
        self.place.join("state")
    }

    fn joined() -> House {
        let house = House::new();
        let pin = pin_of(&house.server).to_string();
        stdout(&house.gkctl(&["instance", "join", "--name", "here", "--ca-pin", &pin]));
        house
    }

    fn pins_kept(&self) -> Vec<Pin> {
        load_identity(&self.state()).unwrap().map(|identity| identity.pins).unwrap_or_default()
    }

    fn agent(&self) -> Process {
        let mut agent = program("gatekeeper-agent");
        agent.args(["--log", "debug"]).env("GATEKEEPER_STATE", self.state());
        Process::start(&mut agent, self.place.join("agent.log"))
    }

    /// The same server, after whatever has happened to its files.
    fn start_again(&mut self) {
        self.server = start(&self.server.data, &self.server.address, &["--tls", "auto"]);
    }
}

fn start(data: &Path, listen: &str, words: &[&str]) -> Server {
    Server::start_with(data, listen, |command| {
        command.args(words).args(["--log", "debug"]);
    })
}

/// What the server said when it began to serve, the last time.
fn pin_of(server: &Server) -> Pin {
    let log = server.process.log();
    let said = log.lines().rev().find_map(|line| line.split_once(r#""server.ca_pin":""#));
    said.expect("it tells its pin").1.split('"').next().unwrap().parse().unwrap()
}

/// How many requests came by TCP, whatever became of them.
fn requests(server: &Server) -> usize {
    server.process.log().matches(r#""http.peer":"127.0.0.1:"#).count()
}

fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_machine_joins_by_the_pin_and_sends_nothing_to_anybody_else() {
    let house = House::new();
    let pin = pin_of(&house.server).to_string();
    let join = ["instance", "join", "--name", "here", "--ca-pin"];
    let error = refused(&house.gkctl(&join[..4]));
    assert!(error.contains("--ca-pin") && error.contains("prints at start"), "{error}");
    let wrong = Pin::of_public_key(b"another").to_string();
    let error = refused(&house.gkctl(&[&join[..], &[&wrong]].concat()));
    assert!(error.contains(&wrong) && error.contains(&pin), "both are named: {error}");
    assert_eq!((requests(&house.server), house.pins_kept()), (0, vec![]), "nothing was asked, nothing kept");

    stdout(&house.gkctl(&[&join[..], &[&pin]].concat()));
    assert!(requests(&house.server) > 0, "requests are seen where there are some");
    let kept = house.pins_kept();
    assert_eq!((kept.len(), kept[0].to_string()), (2, pin), "the next one is known from the first day on");
    let list = house.gkctl(&["instance", "list", "-o", "name"]);
    assert_eq!(stdout(&list), "here\n", "from now on by the pins that are kept");
    let told = stdout(&super::harness::gkctl(&house.server, &house.place.join("nobody"), &["status"]));
    assert!(told.contains(&kept[0].to_string()), "an admin is told the pin: {told}");
}

#[test]
fn an_impostor_at_the_same_address_gets_no_credential_from_the_agent() {
    let mut house = House::joined();
    let agent = house.agent();
    wait_for("the agent to be in contact", || agent.log().contains("in contact").then_some(()));
    house.server.process.kill();

    let impostor =
        start(&data_with_token(&house.place, "theirs").0, &house.server.address, &["--tls", "auto"]);
    wait_for("the agent to meet the impostor", || {
        agent.log().contains("none of the pinned keys").then_some(())
    });
    assert_eq!(requests(&impostor), 0, "{}", impostor.process.log());
    drop(impostor);

    let credential = std::fs::read_to_string(house.state().join("credential")).unwrap();
    let listener = TcpListener::bind(&house.server.address).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut heard = vec![0; 16 << 10];
    let length = stream.read(&mut heard).unwrap();
    assert_eq!(heard[0], 22, "a handshake is all that is said in clear");
    assert!(!heard[..length].windows(8).any(|part| part == &credential.as_bytes()[..8]));
    drop((stream, listener));

    let before = agent.log().matches("in contact").count();
    house.start_again();
    wait_for("the agent to come back", || {
        (agent.log().matches("in contact").count() > before || requests(&house.server) > 0).then_some(())
    });
}

#[test]
fn the_announced_authority_takes_over_and_nobody_joins_again() {
    let mut house = House::joined();
    let before = house.pins_kept();
    let mut agent = house.agent();
    assert_eq!(house.server.process.terminate(), Some(0));
    std::fs::remove_file(house.server.data.join("tls/ca.pem")).unwrap();
    house.start_again();
    assert_eq!(pin_of(&house.server), before[1]);
    wait_for("the agent to go on", || (requests(&house.server) > 0).then_some(()));
    agent.kill();
    let _agent = house.agent();
    wait_for("the agent to learn the next pin", || (house.pins_kept() != before).then_some(()));
    let after = house.pins_kept();
    assert_eq!((after.len(), after[0]), (2, before[1]));
    assert!(!before.contains(&after[1]));
    assert_eq!(stdout(&house.gkctl(&["instance", "list", "-o", "name"])), "here\n");
}

type Signer = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Signer {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a chain and its key, as an operator's tools do.
fn issue(authority: &Signer, place: &Place, name: &str, last_year: i32) {
    issue_until(authority, place, name, 1975, (last_year, 12, 31));
}

fn issue_until(authority: &Signer, place: &Place, name: &str, first_year: i32, last: (i32, u8, u8)) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(first_year, 1, 1);
    params.not_after = rcgen::date_time_ymd(last.0, last.1, last.2);
    let leaf = params.signed_by(&key, authority).unwrap();
    private(&place.join("key.pem"), &key.serialize_pem());
    private(&place.join("cert.pem"), &format!("{}{}", leaf.pem(), authority.pem()));
}

fn private(file: &Path, text: &str) {
    let beside = file.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::set_permissions(&beside, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::rename(&beside, file).unwrap();
}

/// A server with the certificate in the place's files.
fn start_with_files(place: &Place, data: &Path) -> Server {
    let file = |name: &str| place.join(name).display().to_string();
    start(data, "127.0.0.1:0", &["--tls-cert", &file("cert.pem"), "--tls-key", &file("key.pem")])
}

#[test]
fn certificates_in_files_are_renewed_without_a_restart_and_broken_ones_are_not_taken() {
    let place = Place::new();
    let ours = authority();
    issue(&ours, &place, "127.0.0.1", 2999);
    let (data, token) = data_with_token(&place, "data");
    let server = start_with_files(&place, &data);
    let url = format!("https://{}", server.address);
    let by_name = url.replace("127.0.0.1", "localhost");
    let house = House { place, server, token, url };
    let pin = Pin::of_public_key(&ours.key().subject_public_key_info());
    assert_eq!(pin_of(&house.server), pin);
    let pin = pin.to_string();
    let list = ["instance", "list", "--ca-pin", &pin];
    stdout(&house.gkctl(&list));
    let error = refused(&house.gkctl_to(&by_name, &list));
    assert!(error.contains("it is for 127.0.0.1, and not for localhost"), "{error}");

    issue(&ours, &house.place, "localhost", 2999);
    wait_for("the renewed certificate", || house.gkctl_to(&by_name, &list).status.success().then_some(()));
    let error = refused(&house.gkctl(&list));
    assert!(error.contains("it is for localhost, and not for 127.0.0.1"), "{error}");

    private(&house.place.join("cert.pem"), "half a certifi");
    let complaints = || house.server.process.log().matches("stays in use").count();
    wait_for("the complaint", || (complaints() == 1).then_some(()));
    stdout(&house.gkctl_to(&by_name, &list));
    let hangup = format!("kill -HUP {}", house.server.process.id());
    assert!(Command::new("sh").args(["-c", &hangup]).status().unwrap().success());
    wait_for("SIGHUP to be heard", || (complaints() == 2).then_some(()));

    issue(&ours, &house.place, "localhost", 1999);
    let expired = wait_for("the expired certificate", || {
        let output = house.gkctl_to(&by_name, &list);
        (!output.status.success()).then_some(output)
    });
    let error = refused(&expired);
    assert!(error.contains("has expired (it ended at 1999-12-31"), "{error}");
}

#[test]
fn without_a_pin_the_systems_authorities_decide() {
    let place = Place::new();
    let (ours, theirs) = (authority(), authority());
    issue(&ours, &place, "127.0.0.1", 2999);
    let (data, token) = data_with_token(&place, "data");
    let server = start_with_files(&place, &data);
    let ask = |authority: &Signer| {
        let roots = place.join("roots.pem");
        std::fs::write(&roots, authority.pem()).unwrap();
        let mut gkctl = program("gkctl");
        gkctl.args(["instance", "list", "--token-file"]).arg(&token).env("SSL_CERT_FILE", &roots);
        gkctl.env("GATEKEEPER_SERVER", format!("https://{}", server.address));
        gkctl.env("GATEKEEPER_STATE", place.join("state")).output().unwrap()
    };
    assert!(refused(&ask(&theirs)).contains("not signed by anybody whom this machine trusts"));
    stdout(&ask(&ours));
}

#[test]
fn http_spoken_to_https_is_told_so_and_stalled_handshakes_stop_nobody() {
    let house = House::joined();
    let stalled: Vec<TcpStream> = (0..20)
        .map(|silent| {
            let mut stream = TcpStream::connect(&house.server.address).unwrap();
            // A record of a handshake that says it is longer than it is.
            stream.write_all(&[22, 3, 1, 2, 0][..silent % 6]).unwrap();
            stream
        })
        .collect();
    stdout(&house.gkctl(&["instance", "list"]));
    let mut plain = TcpStream::connect(&house.server.address).unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("speaks HTTPS"), "{answer}");
    let mistaken = house.gkctl_to(&house.url.replace("https", "http"), &["instance", "list"]);
    assert!(error_of(&mistaken).contains("https://"), "{mistaken:?}");
    drop(stalled);
}

#[test]
fn a_server_refuses_what_would_prove_nothing_and_serves_the_world_with_what_does() {
    let place = Place::new();
    issue(&authority(), &place, "127.0.0.1", 2999);
    let (data, key, certificate) = (place.join("data"), place.join("key.pem"), place.join("cert.pem"));
    let refusal = |key: &Path| {
        let mut server = program("gatekeeper");
        server.args(["server", "--data"]).arg(&data);
        refusal_of(server.arg("--tls-cert").arg(&certificate).arg("--tls-key").arg(key))
    };
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let error = refusal(&key);
    assert!(
        error.contains("can be read by other accounts (mode 0644)") && error.contains("chmod 600"),
        "{error}"
    );
    let other = place.join("other.pem");
    private(&other, &KeyPair::generate().unwrap().serialize_pem());
    assert!(refusal(&other).contains("are no pair of certificate and key"), "{}", refusal(&other));
    assert!(refusal(&place.join("none.pem")).contains("none.pem"));
    private(&other, "");
    assert!(refusal(&other).contains("no private key in"), "{}", refusal(&other));
    let server = start(&data, "0.0.0.0:0", &["--tls", "auto"]);
    assert!(pin_of(&server).to_string().starts_with("sha256:"));
}

#[test]
fn clients_behind_a_trusted_proxy_are_named_and_nobody_else_names_himself() {
    let place = Place::new();
    let named = |data: &str, words: &[&str]| {
        let server = start(&place.join(data), "127.0.0.1:0", words);
        let mut stream = TcpStream::connect(&server.address).unwrap();
        let request = "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                       x-forwarded-for: 192.0.2.66, 203.0.113.9\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        stream.read_to_string(&mut String::new()).unwrap();
        let log = server.process.log();
        (log.contains(r#""http.peer":"203.0.113.9""#), log.contains(r#""http.peer":"127.0.0.1:"#))
    };
    assert_eq!(named("trusting", &["--trusted-proxy", "127.0.0.0/8"]), (true, false));
    assert_eq!(named("distrusting", &["--trusted-proxy", "10.0.0.0/8"]), (false, true));
}

#[test]
fn a_machine_that_joined_in_clear_goes_over_to_tls_with_its_identity() {
    let place = Place::new();
    let (data, token) = data_with_token(&place, "data");
    let server = start(&data, "127.0.0.1:0", &[]);
    let url = format!("http://{}", server.address);
    let mut house = House { place, server, token, url };
    stdout(&house.gkctl(&["instance", "join", "--name", "here"]));
    let before = load_identity(&house.state()).unwrap().unwrap();
    assert_eq!(house.server.process.terminate(), Some(0));
    house.start_again();
    let (https, pin) = (house.url.replace("http", "https"), pin_of(&house.server).to_string());
    refused(&house.gkctl_to(&https, &["instance", "join"]));
    stdout(&house.gkctl_to(&https, &["instance", "join", "--ca-pin", &pin]));
    let after = load_identity(&house.state()).unwrap().unwrap();
    assert_eq!((after.id, after.server, after.pins.len()), (before.id, https, 2));
}

#[test]
fn a_login_keeps_who_vouches_for_its_server_and_an_invitation_tells_it() {
    let house = House::new();
    let pin = pin_of(&house.server).to_string();
    let gkctl = |words: &[&str]| {
        let mut gkctl = program("gkctl");
        gkctl.args(words).env("GATEKEEPER_STATE", house.state());
        gkctl.env("XDG_CONFIG_HOME", house.place.join("config")).output().unwrap()
    };
    let token = house.token.display().to_string();
    let log_in = ["login", "--server", &house.url, "--token-file", &token];
    let untrusted = gkctl(&log_in);
    assert_eq!(untrusted.status.code(), Some(5), "nobody vouches for it yet: {untrusted:?}");
    let logged_in = gkctl(&[&log_in[..], &["--ca-pin", &pin]].concat());
    assert!(logged_in.status.success(), "{logged_in:?}");
    let whoami = stdout(&gkctl(&["whoami"]));
    assert!(whoami.contains("ada") && whoami.contains(&house.url), "{whoami}");
    let invited = gkctl(&["token", "create", "--join"]);
    let told = String::from_utf8(invited.stderr).unwrap();
    assert!(told.contains(&format!("--ca-pin {pin}")) && !told.contains("--insecure-http"), "{told}");
}

/// What the doctor finds of the server, and what to do about it.
fn diagnosis(house: &House, url: &str, pin: &str) -> String {
    let output = house.gkctl_to(url, &["doctor", "-o", "json", "--ca-pin", pin]);
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let check = checks.as_array().unwrap().iter().find(|check| check["check"] == "server").unwrap();
    let text = |field: &str| check[field].as_str().unwrap_or_default().to_owned();
    format!("{}: {} -> {}", text("verdict"), text("found"), text("remedy"))
}

fn expect(told: &str, found: &str, remedy: &str) {
    assert!(told.starts_with("bad: ") && told.contains(found), "{told}");
    assert!(told.rsplit(" -> ").next().unwrap().contains(remedy), "{told}");
}

#[test]
fn the_doctor_tells_failures_of_tls_apart() {
    let place = Place::new();
    let ours = authority();
    let (data, token) = data_with_token(&place, "data");
    issue(&ours, &place, "127.0.0.1", 2999);
    let mut house = House { server: start_with_files(&place, &data), place, token, url: String::new() };
    let (pin, other) = (pin_of(&house.server).to_string(), Pin::of_public_key(b"another").to_string());
    let https = |house: &House| format!("https://{}", house.server.address);
    assert_eq!(diagnosis(&house, &https(&house), &pin).split(':').next(), Some("ok"), "as it should be");
    let told = diagnosis(&house, &https(&house), &other);
    expect(
        &told,
        "it has none of the pinned keys; pinned is",
        "join again with `gkctl instance join --ca-pin",
    );
    let told = diagnosis(&house, &format!("http://{}", house.server.address), &pin);
    expect(&told, "this port speaks HTTPS", "name it so: https://127.0.0.1:");
    let (soon, never, ever) = ((1975, 2001), (2998, 2999), (1975, 2999));
    for (name, years, found, remedy) in [
        ("127.0.0.1", soon, "has expired (it ended at 2001-12-31T", "renew it on the server, or set this"),
        ("127.0.0.1", never, "it is not valid yet (it begins at 2998-01-01T", "set this machine's clock"),
        ("gk.example", ever, "it is for gk.example, and not for 127.0.0.1", "use one of these names in the"),
    ] {
        issue_until(&ours, &house.place, name, years.0, (years.1, 12, 31));
        house.server.process.kill();
        house.server = start_with_files(&house.place, &data);
        expect(&diagnosis(&house, &https(&house), &pin), found, remedy);
    }
    // Nobody vouches for it: neither a pin, nor an authority of the system.
    std::fs::write(house.place.join("ca.pem"), authority().pem()).unwrap();
    let mut gkctl = program("gkctl");
    gkctl.args(["doctor", "--server", &https(&house)]).env("GATEKEEPER_STATE", house.state());
    let told = gkctl.env("SSL_CERT_FILE", house.place.join("ca.pem")).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    let (found, remedy) = told.split_once('→').unwrap();
    assert!(found.contains("not signed by anybody") && remedy.contains("--ca-pin"), "{told}");
    house.server.process.kill();
    house.server = start(&data, "127.0.0.1:0", &[]);
    let told = diagnosis(&house, &https(&house), &pin);
    assert!(told.contains("does not speak TLS") && told.contains("start it with --tls auto"), "{told}");
}

#[test]
fn a_certificate_that_ends_soon_is_told_in_the_log_the_metrics_and_by_the_doctor() {
    let place = Place::new();
    let (data, token) = data_with_token(&place, "data");
    let end = Timestamp::from_clock().plus(Duration::from_hours(10 * 24)).to_string();
    let date: Vec<i32> = end[..10].split('-').map(|part| part.parse().unwrap()).collect();
    let ours = authority();
    issue_until(&ours, &place, "127.0.0.1", 1975, (date[0], date[1] as u8, date[2] as u8));
    let server = start_with_files(&place, &data);
    let url = format!("https://{}", server.address);
    let house = House { place, server, token, url };
    let told = "the certificate ends soon";
    wait_for("the warning", || house.server.process.log().contains(told).then_some(()));
    let pin = pin_of(&house.server).to_string();
    let certificate = |verdict: &str| {
        let output = house.gkctl(&["doctor", "-o", "json", "--ca-pin", &pin]);
        let checks: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let check =
            checks.as_array().unwrap().iter().find(|check| check["check"] == "certificate").unwrap().clone();
        (check["verdict"] == verdict).then_some(check)
    };
    assert!(certificate("warn").unwrap()["remedy"].as_str().unwrap().contains("--tls-cert"));
    issue(&ours, &house.place, "127.0.0.1", 2999);
    wait_for("the doctor to be content", || certificate("ok"));
    assert_eq!(house.server.process.log().matches(told).count(), 1, "once a day, and not of the new one");
    let mut socket = UnixStream::connect(house.server.data.join("gatekeeper.sock")).unwrap();
    socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut metrics = String::new();
    socket.read_to_string(&mut metrics).unwrap();
    assert!(metrics.contains("gatekeeper_tls_certificate_end_timestamp_seconds 32503593600\n"), "{metrics}");
}

#[test]
fn an_address_is_kept_that_the_certificate_is_for() {
    let place = Place::new();
    let (data, token) = data_with_token(&place, "data");
    issue(&authority(), &place, "localhost", 2999);
    let mut house = House { server: start_with_files(&place, &data), place, token, url: String::new() };
    let kept = |house: &House| {
        let socket = format!("unix:{}", house.server.data.join("gatekeeper.sock").display());
        stdout(&house.gkctl_to(&socket, &["instance", "join"]));
        load_identity(&house.state()).unwrap().unwrap().server
    };
    let port = house.server.address.rsplit(':').next().unwrap().to_owned();
    let by_name = format!("https://localhost:{port}");
    assert_eq!(kept(&house), by_name);
    // Another account of the machine has nothing but this address and the pin.
    stdout(&house.gkctl_to(&by_name, &["instance", "list"]));
    issue(&authority(), &house.place, "127.0.0.1", 2999);
    house.server.process.kill();
    house.server = start_with_files(&house.place, &data);
    assert_eq!(kept(&house), format!("https://{}", house.server.address));
}
