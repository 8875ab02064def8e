//! Expectations: who should be listening on a reserved port, and whether somebody observed there is the one.
//!
//! What the agent could not see is never held against anybody: it is [`Fit::Unknown`].

use std::fmt;
use std::net::IpAddr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

use crate::listener::{Container, Listener, Netns, Owner};
use crate::text::{Expected, Observed};
use crate::text_form::words;

words! {
    /// Whether those who listen on a port are the ones expected there.
    Fit, "a fit" {
        /// All of them are.
        Fits = "fits",
        /// None is known not to be, but of some the agent may not see enough.
        Unknown = "unknown",
        /// Some known owner is not.
        Differs = "differs",
    }
}

/// Who should be listening on a reserved port. Everything given must hold; nothing given, anybody may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Expect {
    /// The process: its command name, or its executable by path or by file name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Expected>,
    /// The account it runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<Expected>,
    /// The systemd unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Expected>,
    /// The container: its name, or its id or how that begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Expected>,
    /// The address it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "127.0.0.1")]
    pub address: Option<IpAddr>,
}

impl Serialize for Expect {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Expect::serialize(self, serializer)
    }
}

/// From an object only: what is derived would take a list of its fields, too, by their order.
impl<'de> Deserialize<'de> for Expect {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Expect, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Expect;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object that says who is expected")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Expect, A::Error> {
                Expect::deserialize(MapAccessDeserializer::new(fields))
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

impl Expect {
    /// Whether nothing is expected.
    pub fn is_none(&self) -> bool {
        *self == Expect::default()
    }

    /// How those who listen in the home namespace fit; none where nobody does.
    pub fn fit(&self, listeners: &[Listener]) -> Option<Fit> {
        let home = listeners.iter().filter(|listener| listener.key.netns == Netns::Home);
        home.map(|listener| self.fit_one(listener)).max()
    }

    /// How one listener fits: the worst of everything that is expected of it.
    fn fit_one(&self, listener: &Listener) -> Fit {
        let aspects = [
            self.address.map(|address| known(address == listener.key.address)),
            self.process.as_ref().map(|name| of_owners(listener, |owner| is_process(owner, name))),
            self.account.as_ref().map(|account| of_account(listener, account)),
            self.unit.as_ref().map(|unit| of_group(listener, listener.unit.as_ref(), |it| is(unit, it))),
            self.container.as_ref().map(|container| {
                of_group(listener, listener.container.as_ref(), |it| is_container(it, container))
            }),
        ];
        aspects.into_iter().flatten().max().unwrap_or(Fit::Fits)
    }
}

fn known(fits: bool) -> Fit {
    if fits { Fit::Fits } else { Fit::Differs }
}

fn is(expected: &Expected, observed: &Observed) -> bool {
    expected.as_str() == observed.as_str()
}

/// Every process that holds the socket must be the one; whoever sees none, or not one of each kind, cannot tell.
fn of_owners(listener: &Listener, fits: impl Fn(&Owner) -> bool) -> Fit {
    match listener.owners.as_slice() {
        [] => Fit::Unknown,
        owners if !owners.iter().all(fits) => Fit::Differs,
        _ if listener.tells_every_kind() => Fit::Fits,
        _ => Fit::Unknown,
    }
}

/// The account of the processes, or without them the one that opened the socket, which needs no privilege to see.
fn of_account(listener: &Listener, expected: &Expected) -> Fit {
    match (&listener.account, listener.owners.is_empty()) {
        (_, false) => of_owners(listener, |owner| is(expected, &owner.account)),
        (Some(account), true) => known(is(expected, account)),
        (None, true) => Fit::Unknown,
    }
}

/// A unit or a container. That a socket has none is known only of one whose owners were seen.
fn of_group<T>(listener: &Listener, group: Option<&T>, fits: impl FnOnce(&T) -> bool) -> Fit {
    match group {
        Some(group) => known(fits(group)),
        None if listener.owners.is_empty() => Fit::Unknown,
        None => Fit::Differs,
    }
}

fn is_process(owner: &Owner, expected: &Expected) -> bool {
    let program = owner.program();
    let file_name = program.rsplit('/').next().unwrap_or(program);
    is(expected, &owner.name) || [program, file_name].contains(&expected.as_str())
}

fn is_container(container: &Container, expected: &Expected) -> bool {
    container.name.as_ref().is_some_and(|name| is(expected, name))
        || container.id.as_str().starts_with(expected.as_str())
}

impl fmt::Display for Expect {
    /// As it is written on the command line: `process=nginx,account=www-data`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |key, value: &Option<Expected>| value.as_ref().map(|value| format!("{key}={value}"));
        let all = [
            text("process", &self.process),
            text("account", &self.account),
            text("unit", &self.unit),
            text("container", &self.container),
            self.address.map(|address| format!("address={address}")),
        ];
        f.write_str(&all.into_iter().flatten().collect::<Vec<_>>().join(","))
    }
}

/// A text that is no expectation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpectError {
    /// Not `key=value`, or an unknown key.
    #[error("`{0}` is not expected of anybody: use process=, account=, unit=, container= or address=")]
    Key(String),
    /// A key that was given before.
    #[error("`{0}` is given twice")]
    Twice(String),
    /// A value that the key cannot have.
    #[error("`{0}` cannot be expected: {1}")]
    Value(String, String),
}

impl std::str::FromStr for Expect {
    type Err = ExpectError;

    fn from_str(text: &str) -> Result<Expect, ExpectError> {
        let mut expect = Expect::default();
        for part in text.split(',') {
            let unknown = || ExpectError::Key(part.to_owned());
            let (key, value) = part.split_once('=').ok_or_else(unknown)?;
            let bad = |error: &dyn fmt::Display| ExpectError::Value(part.to_owned(), error.to_string());
            let read = || value.parse::<Expected>().map(Some).map_err(|error| bad(&error));
            let (slot, read) = match key {
                "process" => (&mut expect.process, read()?),
                "account" => (&mut expect.account, read()?),
                "unit" => (&mut expect.unit, read()?),
                "container" => (&mut expect.container, read()?),
                "address" if expect.address.is_some() => return Err(ExpectError::Twice(key.to_owned())),
                "address" => {
                    expect.address = Some(value.parse().map_err(|error| bad(&error))?);
                    continue;
                }
                _ => return Err(unknown()),
            };
            if slot.is_some() {
                return Err(ExpectError::Twice(key.to_owned()));
            }
            *slot = read;
        }
        Ok(expect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::tests::listener;
    use crate::port::Protocol;

    fn nginx() -> Listener {
        let mut seen = listener(Protocol::Tcp, "127.0.0.1", 80, 7);
        seen.owners[0].name = "nginx".into();
        seen.owners[0].exe = Some("/usr/sbin/nginx".into());
        seen.owners[0].account = "www-data".into();
        seen.account = Some("root".into());
        seen.unit = Some("nginx.service".into());
        seen.container = None;
        seen
    }

    fn expect(text: &str) -> Expect {
        text.parse().unwrap()
    }

    #[test]
    fn everything_that_is_expected_must_hold() {
        let seen = [nginx()];
        let table = [
            ("process=nginx", Fit::Fits),
            ("process=/usr/sbin/nginx", Fit::Fits),
            ("process=/usr/bin/nginx", Fit::Differs),
            ("process=ngin", Fit::Differs),
            ("account=www-data", Fit::Fits),
            ("account=root", Fit::Differs),
            ("unit=nginx.service", Fit::Fits),
            ("unit=nginx", Fit::Differs),
            ("container=web", Fit::Differs),
            ("address=127.0.0.1", Fit::Fits),
            ("address=0.0.0.0", Fit::Differs),
            ("process=nginx,account=www-data,unit=nginx.service,address=127.0.0.1", Fit::Fits),
            ("process=nginx,account=ada", Fit::Differs),
        ];
        for (text, fit) in table {
            assert_eq!(expect(text).fit(&seen), Some(fit), "{text}");
            assert_eq!(expect(text).to_string(), text);
        }
        assert_eq!(Expect::default().fit(&seen), Some(Fit::Fits));
        assert_eq!(expect("process=nginx").fit(&[]), None);
    }

    #[test]
    fn whoever_runs_on_while_its_program_is_upgraded_still_fits() {
        let mut seen = nginx();
        seen.owners[0].name = "systemd-resolve".into();
        seen.owners[0].exe = Some("/usr/lib/systemd/systemd-resolved (deleted)".into());
        for text in ["process=systemd-resolved", "process=/usr/lib/systemd/systemd-resolved"] {
            assert_eq!(expect(text).fit(&[seen.clone()]), Some(Fit::Fits), "{text}");
        }
    }

    #[test]
    fn what_the_agent_may_not_see_is_unknown_and_one_known_stranger_is_enough() {
        let mut hidden = nginx();
        hidden.owners.clear();
        hidden.unit = None;
        let table = [
            ("process=nginx", Fit::Unknown),
            ("account=root", Fit::Fits),
            ("account=www-data", Fit::Differs),
            ("unit=nginx.service", Fit::Unknown),
            ("container=web", Fit::Unknown),
            ("process=nginx,address=::1", Fit::Differs),
        ];
        for (text, fit) in table {
            assert_eq!(expect(text).fit(&[hidden.clone()]), Some(fit), "{text}");
        }
        let nginx_only = expect("process=nginx");
        assert_eq!(nginx_only.fit(&[nginx(), hidden.clone()]), Some(Fit::Unknown));
        let mut squatter = nginx();
        squatter.owners[0] = Owner { name: "nc".into(), exe: None, ..squatter.owners[0].clone() };
        assert_eq!(nginx_only.fit(&[nginx(), hidden, squatter.clone()]), Some(Fit::Differs));
        let mut forked = nginx();
        forked.owners.push(squatter.owners[0].clone());
        assert_eq!(nginx_only.fit(&[forked]), Some(Fit::Differs), "every owner counts");
        let [worker] = &nginx().owners[..] else { unreachable!() };
        let crowd = |kinds: usize| {
            let worker = |pid: usize| Owner {
                pid: pid as u32,
                account: format!("tenant-{}", pid % kinds).as_str().into(),
                ..worker.clone()
            };
            Listener { owners: (1..=1000).map(worker).collect(), ..nginx() }.bounded()
        };
        assert_eq!(nginx_only.fit(&[crowd(3)]), Some(Fit::Fits), "who is not told is like one who is");
        assert_eq!(nginx_only.fit(&[crowd(100)]), Some(Fit::Unknown), "who is not told may be anybody");
        squatter.key.netns = Netns::Other(1);
        assert_eq!(nginx_only.fit(&[squatter]), None, "another namespace's listener does not count");
    }

    #[test]
    fn on_the_wire_it_is_an_object_and_nothing_else() {
        let read = |json| serde_json::from_str::<Expect>(json);
        assert_eq!(read(r#"{"process":"nginx"}"#).unwrap(), expect("process=nginx"));
        assert_eq!(
            serde_json::to_string(&expect("unit=a,address=::1")).unwrap(),
            r#"{"unit":"a","address":"::1"}"#
        );
        for bad in ["[null,null]", "[]", "7", r#""process=nginx""#, r#"{"port":80}"#] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn containers_are_known_by_name_or_by_how_their_id_begins() {
        let mut seen = nginx();
        let (name, engine) = (Some("web".into()), "docker".into());
        seen.container = Some(Box::new(Container { id: "3f2a9c".into(), name, engine, pod: None }));
        for (text, fit) in
            [("web", Fit::Fits), ("3f2", Fit::Fits), ("we", Fit::Differs), ("2a9c", Fit::Differs)]
        {
            assert_eq!(expect(&format!("container={text}")).fit(&[seen.clone()]), Some(fit), "{text}");
        }
    }

    #[test]
    fn what_is_no_expectation_is_refused_with_the_reason() {
        let table = [
            ("", "is not expected of anybody"),
            ("nginx", "is not expected of anybody"),
            ("port=80", "is not expected of anybody"),
            ("process=", "is empty"),
            ("process=a,process=b", "given twice"),
            ("address=::1,address=::1", "given twice"),
            ("address=here", "invalid IP address"),
            ("unit=a\nb", "may not contain"),
        ];
        for (text, reason) in table {
            let error = text.parse::<Expect>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
    }
}
