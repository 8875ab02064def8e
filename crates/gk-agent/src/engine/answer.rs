//! What a container engine answers to `GET /containers/json`. Pure.
//!
//! Source: Docker Engine API, "List containers", schemas `ContainerSummary` and `PortSummary`; Podman's compatible API
//! answers the same. They differ in this: Docker leaves `IP` out of a port that is exposed and not published, Podman has
//! told an empty `IP` for every address of the machine, and a Go program writes an empty list as `null`.
//!
//! An answer is taken as a whole or not at all. Half of one would close ports that are still published.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use gk_client::LocalAnswer;
use gk_model::engine::{Contained, Published, Told};
use gk_model::port::{Port, Protocol};
use gk_model::text::Observed;
use serde::Deserialize;

/// As many containers as an engine may have. No machine runs so many; a hostile answer may.
const MOST_CONTAINERS: usize = 16_384;

/// As many ports as may be published: each port of both protocols once, which is also what a contact has room for.
const MOST_PUBLISHED: usize = 131_072;

/// Why an answer is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerError {
    /// Not what the API answers.
    #[error("it is not a list of containers")]
    Shape(#[from] serde_json::Error),
    /// More than any machine has.
    #[error("it tells more than {MOST_CONTAINERS} containers or {MOST_PUBLISHED} published ports")]
    TooMany,
}

/// `ContainerSummary`, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Summary {
    id: String,
    names: Option<Vec<String>>,
    ports: Option<Vec<PortSummary>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PortSummary {
    #[serde(rename = "IP")]
    ip: Option<String>,
    public_port: Option<u16>,
    #[serde(rename = "Type")]
    protocol: String,
}

/// What the engine told.
pub(super) fn parse(answer: &LocalAnswer) -> Result<Told, AnswerError> {
    let summaries: Option<Vec<Summary>> = serde_json::from_slice(&answer.body)?;
    let summaries = summaries.unwrap_or_default();
    let ports: usize = summaries.iter().flat_map(|summary| &summary.ports).map(Vec::len).sum();
    if summaries.len() > MOST_CONTAINERS || ports > MOST_PUBLISHED {
        return Err(AnswerError::TooMany);
    }
    let mut containers: Vec<Contained> = summaries.iter().map(contained).collect();
    // Engines tell the newest first. In one order, an answer that tells the same is the same.
    containers.sort_unstable_by(|one, other| one.id.cmp(&other.id));
    Ok(Told { engine: engine(answer.server.as_deref()).into(), containers })
}

/// Podman calls itself `Libpod/5.2.0 (linux)`, and is asked by the path of Docker's socket on many machines.
fn engine(server: Option<&str>) -> &'static str {
    match server {
        Some(server) if server.starts_with("Libpod/") => "podman",
        _ => "docker",
    }
}

fn contained(summary: &Summary) -> Contained {
    let published: BTreeSet<Published> =
        summary.ports.iter().flatten().filter_map(published).flatten().collect();
    let name = summary.names.as_deref().and_then(name);
    Contained { id: Observed::new(&summary.id), name, published: published.into_iter().collect() }
}

/// The container's own name. Names of links follow the pattern `/other/alias`.
fn name(names: &[String]) -> Option<Observed> {
    let bare = names.iter().map(|name| name.strip_prefix('/').unwrap_or(name));
    let mut bare = bare.filter(|name| !name.is_empty());
    let first = bare.clone().next();
    bare.find(|name| !name.contains('/')).or(first).map(Observed::new)
}

/// Where a port is published, if it is, for a protocol that Gatekeeper knows: by Podman for several at once (`tcp,udp`).
fn published(port: &PortSummary) -> Option<Vec<Published>> {
    let number = Port::new(port.public_port?)?;
    let address: IpAddr = match port.ip.as_deref() {
        None | Some("") => Ipv4Addr::UNSPECIFIED.into(),
        Some(address) => address.parse().ok()?,
    };
    let protocols = port.protocol.split(',').filter_map(|protocol| protocol.parse::<Protocol>().ok());
    Some(protocols.map(|protocol| Published { protocol, address, port: number }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f2a91c05b7e4d6f8a1b2c3d4e5f60713f2a91c05b7e4d6f8a1b2c3d4e5f6071";

    fn told(server: &str, body: &str) -> Result<Told, AnswerError> {
        parse(&LocalAnswer { server: Some(server.to_owned()), body: body.as_bytes().to_vec() })
    }

    fn ports(ports: &str) -> Vec<String> {
        let body = format!(r#"[{{"Id":"{ID}","Names":["/web"],"Ports":{ports}}}]"#);
        let told = told("Docker/27.3.1 (linux)", &body).unwrap();
        let shown = |port: &Published| format!("{} {} {}", port.protocol, port.address, port.port);
        told.containers[0].published.iter().map(shown).collect()
    }

    #[test]
    fn dockers_answer_is_read() {
        let body = format!(
            r#"[{{"Id":"{ID}","Names":["/db/cache","/web"],"Image":"nginx:1.27","ImageID":"sha256:aa",
                "Command":"/docker-entrypoint.sh nginx","Created":1731000000,"State":"running","Status":"Up 2 hours",
                "Ports":[{{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}},
                         {{"IP":"::","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}},
                         {{"PrivatePort":443,"Type":"tcp"}}],
                "Labels":{{}},"HostConfig":{{"NetworkMode":"bridge"}},"NetworkSettings":{{"Networks":{{}}}},"Mounts":[]}},
               {{"Id":"1{}","Names":["/quiet"],"Ports":[]}}]"#,
            &ID[1..]
        );
        let told = told("Docker/27.3.1 (linux)", &body).unwrap();
        assert_eq!(told.engine.as_str(), "docker");
        let names: Vec<_> = told.containers.iter().map(|one| one.name.clone().unwrap()).collect();
        assert_eq!(names, ["quiet".into(), "web".into()], "in the order of ids; no name of a link");
        assert_eq!(told.containers[1].id.as_str(), ID);
        assert_eq!(told.containers[1].published.len(), 2);
    }

    #[test]
    fn podmans_answer_is_read() {
        let body = format!(
            r#"[{{"Id":"{ID}","Names":["/web"],"Image":"docker.io/library/nginx:latest","Created":1731000000,
                "Ports":[{{"PrivatePort":80,"PublicPort":8080,"Type":"tcp"}}],"State":"running",
                "NetworkSettings":{{"Networks":{{}}}},"Mounts":null,"Name":"","Config":null}},
               {{"Id":"f{}","Names":null,"Ports":null}}]"#,
            &ID[1..]
        );
        let told = told("Libpod/5.2.0 (linux)", &body).unwrap();
        assert_eq!(told.engine.as_str(), "podman");
        assert_eq!(told.containers[0].published[0].address, Ipv4Addr::UNSPECIFIED, "every address");
        assert_eq!((&told.containers[1].name, told.containers[1].published.len()), (&None, 0));
    }

    #[test]
    fn only_what_is_published_for_a_known_protocol_counts_and_each_place_once() {
        let table = [
            (r#"[{"IP":"127.0.0.1","PublicPort":80,"Type":"tcp"}]"#, &["tcp 127.0.0.1 80"][..]),
            (r#"[{"IP":"","PublicPort":53,"Type":"udp"}]"#, &["udp 0.0.0.0 53"]),
            (r#"[{"IP":"","PublicPort":53,"Type":"tcp,udp"}]"#, &["tcp 0.0.0.0 53", "udp 0.0.0.0 53"]),
            (r#"[{"IP":"fd00::1","PublicPort":80,"Type":"tcp"}]"#, &["tcp fd00::1 80"]),
            (
                r#"[{"PublicPort":80,"Type":"tcp"},{"IP":"0.0.0.0","PublicPort":80,"Type":"tcp"}]"#,
                &["tcp 0.0.0.0 80"],
            ),
            (r#"[{"PrivatePort":80,"Type":"tcp"}]"#, &[]),
            (r#"[{"IP":"0.0.0.0","PublicPort":0,"Type":"tcp"}]"#, &[]),
            (r#"[{"IP":"0.0.0.0","PublicPort":80,"Type":"sctp"}]"#, &[]),
            (r#"[{"IP":"fe80::1%eth0","PublicPort":80,"Type":"tcp"}]"#, &[]),
            ("[]", &[]),
            ("null", &[]),
        ];
        for (told, expected) in table {
            assert_eq!(ports(told), expected, "{told}");
        }
    }

    #[test]
    fn an_answer_is_taken_as_a_whole_or_not_at_all() {
        for empty in ["[]", "null", " [ ] "] {
            assert!(told("", empty).unwrap().containers.is_empty(), "{empty}");
        }
        for bad in [
            "",
            "{}",
            r#"{"message":"page not found"}"#,
            "[1]",
            r#"[{"Names":["/web"]}]"#,
            r#"[{"Id":"a","Ports":[{"PublicPort":70000,"Type":"tcp"}]}]"#,
            r#"[{"Id":"a","Ports":[{"PublicPort":80}]}]"#,
            r#"[{"Id":"a"},"#,
            "\u{0}",
        ] {
            assert!(told("", bad).is_err(), "{bad:?}");
        }
        let many = format!("[{}]", vec![r#"{"Id":"a"}"#; MOST_CONTAINERS + 1].join(","));
        assert!(matches!(told("", &many), Err(AnswerError::TooMany)));
        let deep = "[".repeat(100_000);
        assert!(told("", &deep).is_err(), "and nothing overflows");
    }

    #[test]
    fn what_an_engine_says_is_cleaned_as_all_that_is_observed() {
        let body = r#"[{"Id":"a\u0000","Names":["/\u001b[31mred"]}]"#;
        let told = told("", body).unwrap();
        assert_eq!(told.containers[0].id.as_str(), "a\\u{0}");
        assert_eq!(told.containers[0].name.as_ref().unwrap().as_str(), "\\u{1b}[31mred");
    }
}
