//! What whoever brings a machine in has to type there. The join token itself is not among it: it is asked for.

use gk_client::{Client, ServerAddress};
use gk_model::facts::Facts;
use gk_model::health::Health;

use crate::machine;

/// The lines that follow a new join token, for stderr.
pub(crate) fn commands(client: &Client) -> Vec<String> {
    let health = client.ready().ok();
    let (reach, remark) = reachable(client, health.as_ref());
    let ca_pin = health.and_then(|health| health.pins.first().map(ToString::to_string));
    let mut lines = vec!["On the new machine, as root:".to_owned()];
    lines.extend(compose(&reach, ca_pin.as_deref(), &machine::facts()).map(|command| format!("  {command}")));
    lines.push(
        "The second asks for the token. In a script, give it by --token-file FILE, where - is stdin."
            .to_owned(),
    );
    lines.extend(remark);
    lines
}

/// The two commands: install, and join.
fn compose(server: &str, ca_pin: Option<&str>, facts: &Facts) -> [String; 2] {
    let machine = facts.architecture.as_ref().map_or("x86_64", |architecture| architecture.as_str());
    let pin = ca_pin.map(|pin| format!(" --ca-pin {pin}")).unwrap_or_default();
    let in_clear = match server.parse::<ServerAddress>() {
        Ok(address) if address.is_local() => false,
        _ => server.starts_with("http://"),
    };
    let clear = if in_clear { " --insecure-http" } else { "" };
    [
        format!("tar -C /usr/local -xzf gatekeeper-{}-{machine}-linux.tar.gz", machine::VERSION),
        format!(
            "gkctl instance join --server {server}{pin}{clear} && systemctl enable --now gatekeeper-agent"
        ),
    ]
}

/// The server's address as programs on this machine use it; that of its socket is for the server's own account.
pub(crate) fn address(client: &Client) -> String {
    local_address(client, client.ready().ok().as_ref())
}

fn local_address(client: &Client, health: Option<&Health>) -> String {
    let told = match client.server() {
        ServerAddress::Unix(_) => health.and_then(Health::local_url),
        ServerAddress::Http(_) | ServerAddress::Https(_) => None,
    };
    told.unwrap_or_else(|| client.server().to_string())
}

/// Where another machine finds this server, as far as can be told from here, and what is to be said of that.
fn reachable(client: &Client, health: Option<&Health>) -> (String, Option<String>) {
    let here = local_address(client, health);
    let told = health.and_then(|health| health.url.clone()).unwrap_or_else(|| here.clone());
    let is_for_others = |url: &str| url.parse::<ServerAddress>().is_ok_and(|server| !server.is_local());
    match [&here, &told].into_iter().find(|url| is_for_others(url)) {
        Some(url) => (url.clone(), None),
        None => {
            let there = elsewhere(&here);
            let remark = format!(
                "SERVER stands for this machine's name or address as the new one knows it: {here} is reached from here \
                 only."
            );
            (there, Some(remark))
        }
    }
}

/// The same scheme and port at a host that has to be filled in.
fn elsewhere(local: &str) -> String {
    let Some((scheme, rest)) = local.split_once("://") else { return "http://SERVER:5000".to_owned() };
    let port = rest
        .rsplit_once(':')
        .map(|(_, port)| port)
        .filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    format!("{scheme}://SERVER{}", port.map(|port| format!(":{port}")).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_hold_what_the_new_machine_needs() {
        let facts = Facts { architecture: Some("aarch64".into()), ..Facts::default() };
        let [install, join] = compose("https://gk.example:5000", Some("sha256:ab"), &facts);
        assert!(install.ends_with("-aarch64-linux.tar.gz"), "{install}");
        assert!(
            join.starts_with("gkctl instance join --server https://gk.example:5000 --ca-pin sha256:ab && "),
            "{join}"
        );
        let insecure = |server: &str| compose(server, None, &facts)[1].contains("--insecure-http");
        assert!(insecure("http://web-1:5000") && insecure("http://SERVER:5000"));
        assert!(!insecure("http://127.0.0.1:5000") && !insecure("https://web-1:5000"));
    }

    #[test]
    fn a_loopback_address_is_none_for_others() {
        let table = [
            ("http://127.0.0.1:5000", "http://SERVER:5000"),
            ("http://[::1]:5001", "http://SERVER:5001"),
            ("https://localhost", "https://SERVER"),
            ("http://[::1]", "http://SERVER"),
            ("unix:/x", "http://SERVER:5000"),
        ];
        for (here, there) in table {
            assert_eq!(elsewhere(here), there);
        }
        assert!("http://SERVER:5000".parse::<ServerAddress>().is_ok());
    }
}
