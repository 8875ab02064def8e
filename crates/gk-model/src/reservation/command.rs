//! A request as it is typed: what refusals offer to paste, wherever they are made.

use std::fmt::Write as _;

use super::{PortCount, Protocols, ReserveRequest, Scope};
use crate::port::Port;

impl ReserveRequest {
    /// This request on the command line, for the port given, or for what it asked for itself. All that it says is kept
    /// but `adopt`, which is about one certain port, and `busy`, which `gkctl` finds out anew. For whoever types it `here`,
    /// on its very instance, that need not be named.
    pub fn command(&self, port: Option<Port>, here: bool) -> String {
        let mut line = String::from("gkctl port reserve");
        let mut option = |name: &str, value: Option<String>| {
            let value = value.map(|value| format!(" --{name} {}", quoted(&value)));
            // Writing to a text does not fail.
            let _written = line.write_str(&value.unwrap_or_default());
        };
        let port = port.or(self.port);
        option("port", port.map(|port| port.to_string()));
        option("count", (self.count != PortCount::ONE).then(|| self.count.to_string()));
        option("protocol", (self.protocol != Protocols::Tcp).then(|| self.protocol.to_string()));
        option("pool", self.pool.as_ref().filter(|_| port.is_none()).map(ToString::to_string));
        option("service", self.service.as_ref().map(ToString::to_string));
        self.names().into_iter().flatten().for_each(|name| option("name", Some(name.to_string())));
        option("note", self.note.as_ref().map(ToString::to_string));
        self.labels.iter().for_each(|label| option("label", Some(label.to_string())));
        option("expect", self.expect.as_ref().filter(|it| !it.is_none()).map(ToString::to_string));
        option("ttl", self.ttl_seconds.map(|ttl| format!("{}s", i64::from(ttl))));
        option("on", self.on.as_ref().map(ToString::to_string));
        option("instance", self.instance.as_ref().filter(|_| !here).map(ToString::to_string));
        let flags = [
            (self.scope == Scope::Fleet, "fleet"),
            (self.scope == Scope::Fleet && self.is_for_all(), "all-instances"),
            (self.renew_while_listening, "renew-while-listening"),
            (self.ensure, "ensure"),
            (self.dry_run, "dry-run"),
        ];
        let flags = flags.into_iter().filter(|(set, _)| *set).map(|(_, flag)| format!(" --{flag}"));
        line + &flags.collect::<String>()
    }
}

/// As a shell reads it back.
pub fn quoted(text: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_.:/@+%,=".contains(character);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_keeps_what_was_asked_for() {
        let all: ReserveRequest = serde_json::from_str(
            r#"{"on":"env in (prod,test)","protocol":"both","names":["http","grpc"],"count":2,"service":"web",
            "note":"ada's","labels":{"team":"web"},"expect":{"process":"nginx"},"ttl_seconds":60,
            "renew_while_listening":true,"ensure":true}"#,
        )
        .unwrap();
        let mail = ReserveRequest { port: Port::new(25), adopt: true, ..ReserveRequest::next_free(web_1()) };
        let pool = ReserveRequest { pool: "web".parse().ok(), ..ReserveRequest::next_free(web_1()) };
        let for_all = ReserveRequest { scope: Scope::Fleet, ..ReserveRequest::default() };
        let table = [
            (
                &all,
                Port::new(8010),
                "gkctl port reserve --port 8010 --count 2 --protocol both --service web --name http --name grpc \
                 --note 'ada'\\''s' --label team=web --expect process=nginx --ttl 60s --on 'env in (prod,test)' \
                 --renew-while-listening --ensure",
            ),
            (&mail, None, "gkctl port reserve --port 25 --instance web-1"),
            (&pool, None, "gkctl port reserve --pool web --instance web-1"),
            (&pool, Port::new(1), "gkctl port reserve --port 1 --instance web-1"),
            (&for_all, None, "gkctl port reserve --fleet --all-instances"),
        ];
        for (request, port, expected) in table {
            assert_eq!(request.command(port, false), expected);
        }
    }

    #[test]
    fn whoever_is_there_need_not_say_where() {
        let request = ReserveRequest { scope: Scope::Fleet, ..ReserveRequest::next_free(web_1()) };
        assert_eq!(request.command(None, true), "gkctl port reserve --fleet");
    }

    fn web_1() -> crate::id::InstanceRef {
        "web-1".parse().unwrap()
    }
}
