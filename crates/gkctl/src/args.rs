//! What can be typed. The texts here are the manual that people read first, so each verb says in one sentence what it
//! does and shows one command that works.

mod adopt;
mod drift;
mod instance;
mod or_none;
mod pool;
mod reservation;
mod reserve;
mod token;
mod watch;

use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use gk_client::ServerAddress;
use gk_model::history::IntervalKind;
use gk_model::id::InstanceRef;
use gk_model::labels::Selector;
use gk_model::pin::Pin;
use gk_model::port::{Port, PortRange, Protocol};
use gk_model::port_state::State;
use gk_model::text::{ServiceName, Subject};
use gk_model::time::{Timestamp, TimestampError};
use gk_model::watch::EventKinds;

pub(crate) use self::adopt::Adopt;
pub(crate) use self::drift::{DefaultIgnores, DeleteIgnores, DriftFilters, IgnoreVerb, OneIgnore, SetIgnore};
pub(crate) use self::instance::{
    InstanceFilters, InstanceVerb, Join, LabelWord, Leave, OneInstance, Relabel, Rename,
};
pub(crate) use self::or_none::OrNone;
pub(crate) use self::pool::{OnePool, PoolVerb, SetPool};
pub(crate) use self::reservation::{Edit, OneReservation, Renew, ReservationFilters, ReservationVerb, Which};
pub(crate) use self::reserve::{Check, RELEASE_EXAMPLES, RESERVE_EXAMPLES, Release, Reserve};
pub(crate) use self::token::{CreateToken, RevokeTokens, TokenFilters, TokenVerb};
pub(crate) use self::watch::WatchPorts;
use crate::output::age;

const LOGIN_EXAMPLE: &str = "\
Example: gkctl login --server http://127.0.0.1:5000

It asks for the token. In a script: gkctl login --token-file FILE, where - is stdin.";

const FIRST_COMMANDS: &str = "\
The first five commands:
  gkctl instance join        bring this machine in
  gkctl port reserve         get a free port, printed as a number
  gkctl port list            who may use which port here, and who does
  gkctl port release 8000    give a port back
  gkctl status               is everything running?

Exit codes: 0 ok, 1 error, 2 usage, 3 conflict, exhausted or drift, 4 not found, 5 not allowed, \
6 server unreachable.";

/// What the options of a time take; the example comes first, as everywhere.
macro_rules! with_times {
    ($example:literal) => {
        concat!(
            $example,
            "\n\nTIME is an age (30m, 2h, 7d), or in the time zone of this machine 2026-11-21 or \
             '2026-11-21 12:00', or RFC 3339 (2026-11-21T12:00:00Z)."
        )
    };
}

/// Who may use this port, and who is using it?
#[derive(Debug, Parser)]
#[command(name = "gkctl", version, after_help = FIRST_COMMANDS, max_term_width = 100)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// Options of every verb.
#[derive(Debug, Default, ClapArgs)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Another instance than this machine, by name or id.
    #[arg(long, global = true, value_name = "INSTANCE")]
    pub(crate) instance: Option<InstanceRef>,
    /// The server: https://HOST:PORT, http://HOST:PORT or unix:PATH [env: GATEKEEPER_SERVER]
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub(crate) server: Option<ServerAddress>,
    /// The pin of its authority, as the server prints it at start: sha256:… [env: GATEKEEPER_CA_PIN]
    #[arg(long, global = true, value_name = "PIN")]
    pub(crate) ca_pin: Vec<Pin>,
    /// A file that holds a token; `-` for stdin, or to be asked [env: GATEKEEPER_TOKEN holds the
    /// token itself]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// How to print: table, json, csv or name.
    // The values explain themselves; listing them would turn every help into the long form.
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "table",
        hide_possible_values = true
    )]
    pub(crate) output: Format,
    /// Send tokens in clear over a network.
    #[arg(
        long,
        global = true,
        env = "GATEKEEPER_INSECURE_HTTP",
        hide_env_values = true,
        value_parser = switch
    )]
    pub(crate) insecure_http: bool,
    /// Where the identity of this machine is kept [env: GATEKEEPER_STATE]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people, as wide as the terminal.
    #[default]
    Table,
    /// Everything there is, for programs.
    Json,
    /// The table with exact times, for spreadsheets (RFC 4180).
    Csv,
    /// Only what names each item, one to a line.
    Name,
}

// Deferred, here and below: the options of a verb are made when it is called. Those of all others took some sixty pages of
// memory of every call, and the time to fill them.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Verb {
    /// Tell on one screen how server, fleet and this machine are.
    #[command(after_help = "Example: gkctl status")]
    Status,
    /// Find out what is wrong between here, agent and server, and how to mend it.
    #[command(after_help = "Example: gkctl doctor\n\nIt ends with 0 when all is well, else with 1.")]
    Doctor,
    /// Keep a token for a server, so that later commands need none.
    #[command(after_help = LOGIN_EXAMPLE)]
    Login,
    /// Forget the token that is kept for a server.
    #[command(after_help = "Example: gkctl logout")]
    Logout,
    /// Tell who the server takes you for, and what you may do.
    #[command(after_help = "Example: gkctl whoami")]
    Whoami,
    /// Machines that have joined.
    #[command(subcommand)]
    Instance(InstanceVerb),
    /// Ports: who may use them, and who does.
    #[command(subcommand)]
    Port(PortVerb),
    /// Sets of ports that reservations are drawn from.
    #[command(subcommand)]
    Pool(PoolVerb),
    /// Reservations: what is held, and until when.
    #[command(subcommand)]
    Reservation(ReservationVerb),
    /// List what differs from the plan: who listens where nobody should, or nobody where somebody should.
    #[command(after_help = drift::DRIFT_EXAMPLE)]
    Drift(DriftFilters),
    /// Rules for what differs from the plan and need not be told.
    #[command(subcommand)]
    Ignore(IgnoreVerb),
    /// Secrets that let people, programs and machines in.
    #[command(subcommand)]
    Token(TokenVerb),
    /// List what happened in the fleet, oldest first.
    #[command(after_help = with_times!(
        "Example: gkctl events --since 2h --kind reserved\n\nAs it happens: gkctl events --follow --kind opened,closed"
    ))]
    Events(EventFilters),
}

#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum PortVerb {
    /// Reserve ports and print their numbers.
    #[command(after_help = RESERVE_EXAMPLES)]
    Reserve(Box<Reserve>),
    /// Give reserved ports back.
    #[command(after_help = RELEASE_EXAMPLES)]
    Release(Release),
    /// Tell whether you may use a port, and if not why.
    #[command(after_help = "Example: gkctl port check 8080 && ./server --port 8080\n\n\
                            It ends with 0 when you may, and with 3 when you may not.")]
    Check(Check),
    /// Reserve a port for whoever listens there now, or every port of a machine.
    #[command(after_help = adopt::ADOPT_EXAMPLES)]
    Adopt(Adopt),
    /// List ports that are reserved or in use.
    #[command(after_help = "Example: gkctl port list --state unreserved\n\
                            Where is web? gkctl port list --service web\n\n\
                            SINCE tells since when the port is listened on, or else reserved. Asked by --service or \
                            --label, it answers for the whole fleet, unless --instance names one.")]
    List(PortFilters),
    /// Show who may use a port, and who does.
    #[command(after_help = "Example: gkctl port show 8080")]
    Show(OnePort),
    /// List who listened on ports and who held them, from when to when, newest first.
    #[command(after_help = with_times!(
        "Example: gkctl port history 8080 --at '2026-11-17 14:00'\n\n\
         Who has used a port since when:       gkctl port history 8080 --summary\n\
         What a service used, fleet-wide:      gkctl port history -A --service billing-api\n\
         Where a process listened this week:   gkctl port history -A --process nginx --since 7d\n\n\
         Nobody knows who listened while an agent was away; such times are shown as lines of \
         their own, in -o json also those of less than 90 s."
    ))]
    History(HistoryFilters),
    /// Show ports as they change.
    #[command(after_help = "Example: gkctl port watch 8000-8099\n\n\
                            In a pipe, or with -o json, it prints what happens as JSON lines.")]
    Watch(WatchPorts),
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct PortFilters {
    /// Of the whole fleet.
    #[arg(short = 'A', long)]
    pub(crate) all_instances: bool,
    /// Only this port or range; up to 256 ports also show the free ones.
    #[arg(long, value_name = "RANGE", allow_negative_numbers = true)]
    pub(crate) port: Option<PortRange>,
    /// Only tcp or udp.
    #[arg(long)]
    pub(crate) protocol: Option<Protocol>,
    /// Only this state: free, reserved, in_use, conflict or unreserved.
    #[arg(long)]
    pub(crate) state: Option<State>,
    /// Only ports reserved for this service; of the whole fleet unless --instance names one.
    #[arg(long)]
    pub(crate) service: Option<ServiceName>,
    /// Only on instances with these labels, as in 'env=prod,team in (web,api)'.
    #[arg(long, alias = "on", value_name = "SELECTOR")]
    pub(crate) label: Option<Selector>,
    /// Only ports reserved by this subject.
    #[arg(long, value_name = "SUBJECT")]
    pub(crate) holder: Option<Subject>,
    /// Only ports listened on by a process with this text in its name.
    #[arg(long, value_name = "TEXT")]
    pub(crate) process: Option<String>,
    /// Only ports listened on by this systemd unit.
    #[arg(long)]
    pub(crate) unit: Option<String>,
    /// Only ports listened on by this container, by name or beginning of its id.
    #[arg(long)]
    pub(crate) container: Option<String>,
    /// Only ports with this text in service, note, process, unit or container.
    #[arg(short = 'q', long, value_name = "TEXT")]
    pub(crate) search: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "COUNT", value_parser = at_least_one)]
    pub(crate) limit: Option<NonZeroU32>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct OnePort {
    /// The port.
    #[arg(value_name = "PORT", allow_negative_numbers = true)]
    pub(crate) number: Port,
    /// Only tcp or udp.
    #[arg(long)]
    pub(crate) protocol: Option<Protocol>,
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct HistoryFilters {
    /// Only this port or range.
    #[arg(value_name = "PORT|RANGE", allow_negative_numbers = true, conflicts_with = "port")]
    pub(crate) number: Option<PortRange>,
    /// Of the whole fleet.
    #[arg(short = 'A', long)]
    pub(crate) all_instances: bool,
    /// The port or range, as an option.
    #[arg(long, value_name = "RANGE", allow_negative_numbers = true)]
    pub(crate) port: Option<PortRange>,
    /// Only tcp or udp.
    #[arg(long)]
    pub(crate) protocol: Option<Protocol>,
    /// Only held, or only listened.
    #[arg(long)]
    pub(crate) kind: Option<IntervalKind>,
    /// Only what was held for this service.
    #[arg(long)]
    pub(crate) service: Option<ServiceName>,
    /// Only what was held by this subject.
    #[arg(long, value_name = "SUBJECT")]
    pub(crate) holder: Option<Subject>,
    /// Only what a process of this name listened on.
    #[arg(long, value_name = "NAME")]
    pub(crate) process: Option<String>,
    /// Only what this systemd unit listened on.
    #[arg(long)]
    pub(crate) unit: Option<String>,
    /// Only what this container listened on, by name or 12 characters of its id.
    #[arg(long)]
    pub(crate) container: Option<String>,
    /// Only what this account listened on.
    #[arg(long)]
    pub(crate) account: Option<String>,
    /// Only on instances with these labels, as env=prod,team in (web,api).
    #[arg(long, value_name = "SELECTOR")]
    pub(crate) label: Option<Selector>,
    /// Only what lasted beyond this time.
    #[arg(long, value_name = "TIME", value_parser = time, allow_hyphen_values = true)]
    pub(crate) since: Option<Timestamp>,
    /// Only what began before this time.
    #[arg(long, value_name = "TIME", value_parser = time, allow_hyphen_values = true)]
    pub(crate) until: Option<Timestamp>,
    /// Only what lasted at this time.
    #[arg(long, value_name = "TIME", value_parser = time, allow_hyphen_values = true)]
    pub(crate) at: Option<Timestamp>,
    /// Only tell when it was first used and when last, and by whom.
    #[arg(long, conflicts_with_all = ["at", "limit"])]
    pub(crate) summary: bool,
    /// At most so many.
    #[arg(long, value_name = "COUNT", value_parser = at_least_one)]
    pub(crate) limit: Option<NonZeroU32>,
    /// Go on with what begins and ends from now, oldest first.
    #[arg(short, long, conflicts_with_all = ["until", "at", "limit", "summary"])]
    pub(crate) follow: bool,
}

#[derive(Debug, Default, ClapArgs)]
pub(crate) struct EventFilters {
    /// Only what this subject did; also shows from where.
    #[arg(long, value_name = "SUBJECT")]
    pub(crate) actor: Option<Subject>,
    /// Only what touches this port or range.
    #[arg(long, value_name = "RANGE", allow_negative_numbers = true)]
    pub(crate) port: Option<PortRange>,
    /// Only tcp or udp.
    #[arg(long)]
    pub(crate) protocol: Option<Protocol>,
    /// Only on instances with these labels, as in env=prod.
    #[arg(long, value_name = "SELECTOR")]
    pub(crate) label: Option<Selector>,
    /// Only this kind, or these, as in opened,closed.
    #[arg(long)]
    pub(crate) kind: Option<EventKinds>,
    /// Show from where each was asked for: address and token.
    #[arg(long)]
    pub(crate) origin: bool,
    /// Only what happened at this time or later.
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) since: Option<Timestamp>,
    /// At most so many: the newest, or the first since a time [default: 100 without --since].
    #[arg(long, value_name = "COUNT", value_parser = at_least_one, conflicts_with = "follow")]
    pub(crate) limit: Option<NonZeroU32>,
    /// Go on with what happens from now; with --since, after what has happened since then.
    #[arg(short, long)]
    pub(crate) follow: bool,
}

/// What a switch may be in the environment; empty is as good as unset, as for every other variable.
fn switch(text: &str) -> Result<bool, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "" | "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("write 1 or 0"),
    }
}

/// An age counts back from the moment it was typed.
fn time(text: &str) -> Result<Timestamp, TimestampError> {
    Timestamp::parse_from_people(text, Timestamp::from_clock(), age::zone())
}

fn at_least_one(text: &str) -> Result<NonZeroU32, String> {
    text.parse().map_err(|_| "write a whole number, 1 or more".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_verb_has_an_example() {
        fn check(command: &clap::Command) {
            for verb in command.get_subcommands().filter(|verb| !verb.has_subcommands()) {
                let example = verb.get_after_help().unwrap_or_default().to_string();
                assert!(example.starts_with("Example: "), "{} has no example", verb.get_name());
                // Terminals differ: clap wraps, and what was wrapped by hand is wrapped twice.
                let begins =
                    |line: &str| line.starts_with(|first: char| first.is_uppercase() || first == ' ');
                let wrapped = example.lines().find(|line| !line.is_empty() && !begins(line));
                assert_eq!(wrapped, None, "a line of {} begins in the middle", verb.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Args::command());
    }

    const UNDERSTOOD: &[&str] = &[
        "gkctl instance join",
        "gkctl instance join --name web-1 --replace web-0",
        "gkctl instance list",
        "gkctl instance show",
        "gkctl instance leave web-1 --release",
        "gkctl instance rename web-2",
        "gkctl instance rename web-1 web-2",
        "gkctl port reserve",
        "gkctl port reserve --port 8080 --protocol udp --service s --name http --note n --adopt",
        "gkctl port release --port 8080",
        "gkctl port release 8080 --protocol tcp --force",
        "gkctl port reserve --count 10 --name http --name grpc --on env=prod --protocol both --ttl 2h",
        "gkctl port reserve --ttl 2h --renew-while-listening",
        "gkctl port reserve --port 8000-8009 --service s --ensure --expect process=nginx --label team=web",
        "gkctl port reserve --fleet -A --dry-run",
        "gkctl port release 8000:8004",
        "gkctl port release --service billing --yes",
        "gkctl port release --id 0190163d-8694-739b-aea5-966c26f8ad91",
        "gkctl port release --idle 30d -A -y --force",
        "gkctl port check 8080 --protocol udp --instance web-1",
        "gkctl reservation list -A --idle 30d --on env=prod --expires-within 2h",
        "gkctl reservation show 8080",
        "gkctl reservation renew 0190163d-8694-739b-aea5-966c26f8ad91 --ttl 2h",
        "gkctl reservation edit 8080 --service web --label team=web --label old- --force",
        "gkctl port list -A -o json",
        "gkctl port show 8080 --instance web-1",
        "gkctl port history --port 8000:8009 --since 2h --limit 5",
        "gkctl port history 8080 --at -2h --process nginx --unit nginx.service --container web --account www-data",
        "gkctl port history -A 8000-8009 --service s --holder ada --label env=prod,team --until 2026-11-21",
        "gkctl port history 8080 --summary",
        "gkctl events --actor local:root --kind reserved",
        "gkctl events --origin",
        "gkctl events --follow --since 2h --kind opened,closed --label env=prod --protocol udp",
        "gkctl port watch",
        "gkctl port watch 8000-8099 --instance web-1 -o json",
        "gkctl port watch -A --label env=prod",
        "gkctl port history --follow --port 8080",
        "gkctl doctor -o json",
        "gkctl login --server http://web-1:5000 --token-file -",
        "gkctl logout",
        "gkctl whoami",
        "gkctl instance join --label env=prod --label team=web",
        "gkctl instance label web-1 env=prod team=web old-",
        "gkctl instance label env=prod",
        "gkctl instance label web-1",
        "gkctl instance label",
        "gkctl pool set web --ports 8000-8999,9100 --exclude 8080 --scope fleet --pick random --quarantine 15m",
        "gkctl pool set web --for env=prod --ephemeral --note n",
        "gkctl pool list -o name",
        "gkctl pool show web",
        "gkctl pool delete web",
        "gkctl token create --subject ci --role user --limit-instances env=dev --limit-pool a --limit-pool b",
        "gkctl token create --subject ci --role viewer --ttl 90d --note builds",
        "gkctl token create --join --reusable --label env=dev --forget-after 7d --ttl 1h",
        "gkctl token list --ended --kind join --subject ci",
        "gkctl token revoke 0190163d-8694 0190163d-8694-739b-aea5-966c26f8ad91",
        "gkctl --server unix:/run/gk.sock status",
        "gkctl instance list --label env=prod",
        "gkctl port list --service web --on env=prod",
        "gkctl port adopt 8080 --service web --protocol udp --note x --no-expect --instance web-1",
        "gkctl port adopt --all --yes --protocol tcp",
        "gkctl port adopt --all --dry-run --no-expect",
        "gkctl drift",
        "gkctl drift --instance web-1 --label env=prod --port 1-1023 --kind idle --idle 30d --ignored -o name",
        "gkctl ignore list",
        "gkctl ignore show sshd",
        "gkctl ignore set ci --account ci --ports 22,8000-8010 --protocol tcp --instances env=dev --loopback",
        "gkctl ignore delete a b",
        "gkctl ignore defaults --set",
    ];

    #[test]
    fn the_commands_of_the_contract_are_understood() {
        for line in UNDERSTOOD {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn what_is_no_port_is_refused_with_what_would_be_one() {
        for bad in ["0", "65536", "-1", "abc", "99999999999"] {
            for line in [
                format!("gkctl port release {bad}"),
                format!("gkctl port reserve --port {bad}"),
                format!("gkctl port list --port {bad}"),
            ] {
                let error = parse(&line).expect_err(&line);
                assert_eq!((error.kind(), error.exit_code()), (ErrorKind::ValueValidation, 2), "{line}");
                let wanted = format!("`{bad}` is not a port: a port is a number from 1 to 65535");
                assert!(error.to_string().contains(&wanted), "{error}");
            }
        }
        let error = parse("gkctl port list --port 8000-7000").unwrap_err().to_string();
        assert!(error.contains("write the lower port first, as in 7000-8000"), "{error}");
    }

    #[test]
    fn help_says_what_a_time_is_wherever_one_is_taken() {
        fn check(command: &mut clap::Command) {
            let help = command.render_long_help().to_string();
            let takes_times = help.contains("<TIME>");
            assert_eq!(takes_times, help.contains("TIME is an age (30m"), "{}", command.get_name());
            command.get_subcommands_mut().for_each(check);
        }
        let mut command = Args::command();
        command.build();
        check(&mut command);
    }

    #[test]
    fn a_switch_in_the_environment_is_read_as_people_write_it() {
        let table =
            [("1", Ok(true)), ("TRUE", Ok(true)), ("on", Ok(true)), ("", Ok(false)), ("0", Ok(false))];
        for (text, read) in table {
            assert_eq!(switch(text), read, "{text:?}");
        }
        assert!(switch("nope").is_err());
    }

    const CONTRADICTIONS: &[&str] = &[
        "gkctl",
        "gkctl port release",
        "gkctl port release 80 --port 80",
        "gkctl port reserve --adopt",
        "gkctl port reserve --pool p --port 80",
        "gkctl port reserve --ensure",
        "gkctl port reserve --all-instances",
        "gkctl port reserve --on env=prod --fleet -A",
        "gkctl port reserve --count 0",
        "gkctl port reserve --count 4097",
        "gkctl port reserve --ttl 60",
        "gkctl port reserve --renew-while-listening",
        "gkctl port reserve --expect nginx",
        "gkctl port reserve --label team",
        "gkctl port release --service a --idle 30d",
        "gkctl port release 80 -A",
        "gkctl port release --id 80",
        "gkctl reservation renew 8080",
        "gkctl reservation edit 8080 --label a=b=c",
        "gkctl reservation show web",
        "gkctl instance rename",
        "gkctl instance rename a b c",
        "gkctl port list --limit 0",
        "gkctl port list -o yaml",
        "gkctl port history --since yesterday",
        "gkctl port history 80 --port 80",
        "gkctl port history 80 --summary --at 2h",
        "gkctl port history --follow --at 2h",
        "gkctl port history --follow --summary",
        "gkctl events --follow --limit 5",
        "gkctl port watch --label env=prod",
        "gkctl pool set",
        "gkctl pool set web --ports",
        "gkctl pool set web --ports 9-2",
        "gkctl pool set web --quarantine 15",
        "gkctl pool set web --quarantine 31d",
        "gkctl pool set web --pick highest",
        "gkctl pool set web --for =x",
        "gkctl pool set web --scope host",
        "gkctl pool show",
        "gkctl pool delete a b",
        "gkctl token create",
        "gkctl token create --subject ci",
        "gkctl token create --role user",
        "gkctl token create --join --role user",
        "gkctl token create --join --subject ci --role user",
        "gkctl token create --join --limit-pool a",
        "gkctl token create --subject ci --role user --reusable",
        "gkctl token create --subject ci --role user --ttl 90",
        "gkctl token create --subject ci --role user --ttl 1s",
        "gkctl token create --subject ci --role root",
        "gkctl token create --join --forget-after 1m",
        "gkctl token create --join --label env",
        "gkctl token revoke",
        "gkctl token revoke 12",
        "gkctl token revoke web-1",
        "gkctl instance join --label env",
        "gkctl status --server web-1:5000",
        "gkctl port adopt",
        "gkctl port adopt 80 --all",
        "gkctl port adopt 80 --yes",
        "gkctl port adopt --all --service web",
        "gkctl port adopt --all --yes --dry-run",
        "gkctl drift --idle forever",
        "gkctl drift --kind free",
        "gkctl ignore set",
        "gkctl ignore set sshd --ports 0",
        "gkctl ignore delete",
    ];

    #[test]
    fn contradictions_are_usage_errors() {
        for line in CONTRADICTIONS {
            assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
        }
    }
}
