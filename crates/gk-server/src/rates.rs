//! How often one client may ask.
//!
//! A token that was seen to be good has an allowance of its own, so that nobody can use up another's. Whatever is not
//! known to be good counts for the address that it comes from. A look-up of a token that turns out to be bad counts
//! once more, strictly: that is the only work a stranger can make the database do, and what a guesser would do.
//!
//! Why the good ones are remembered: an address may be a whole building's. A guesser in it stops those tokens only
//! that the server has not seen since it started.
//!
//! An allowance is one moment: until when all that was asked for is paid for (known as GCRA). It needs no timer, and
//! what is charged beyond the allowance is a debt that time pays off. Nothing here is an exact account: at the bound of
//! the tables the longest unseen are forgotten, and a restart forgets everything.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use gk_model::access::Authority;
use gk_model::secret::SecretHash;
use gk_model::time::Timestamp;

/// How many requests a second one token may make, and one address without a good token; ten times as many at once.
/// An instance's credential, which does for one machine what it does by itself, may make four times as many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimit {
    /// As many as they like.
    Off,
    /// This many, in the long run.
    PerSecond(NonZeroU32),
}

impl Default for RateLimit {
    fn default() -> RateLimit {
        RateLimit::PerSecond(NonZeroU32::new(100).expect("a hundred is not zero"))
    }
}

impl std::fmt::Display for RateLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RateLimit::Off => f.write_str("off"),
            RateLimit::PerSecond(count) => count.fmt(f),
        }
    }
}

/// What is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a number of requests per second from 1 to 1000000, or `off`")]
pub struct RateLimitError;

impl FromStr for RateLimit {
    type Err = RateLimitError;

    fn from_str(text: &str) -> Result<RateLimit, RateLimitError> {
        match (text, text.parse::<NonZeroU32>()) {
            ("off", _) => Ok(RateLimit::Off),
            (_, Ok(count)) if count.get() <= 1_000_000 => Ok(RateLimit::PerSecond(count)),
            _ => Err(RateLimitError),
        }
    }
}

/// Bad tokens from one address: one a second, sixty at once.
const FAILURES: Quota = Quota { every: Duration::from_secs(1), burst: 60 };

/// How many tokens, and how many addresses, are kept in mind; the table holds up to twice as many.
const MOST_KEPT: usize = 32_768;

/// An allowance that fills up again.
#[derive(Clone, Copy, Debug)]
struct Quota {
    /// What one request costs.
    every: Duration,
    /// How many may come at once.
    burst: u32,
}

impl Quota {
    fn per_second(count: u32) -> Quota {
        Quota { every: Duration::from_secs(1) / count, burst: count.saturating_mul(10) }
    }

    fn span(self) -> Duration {
        self.every.saturating_mul(self.burst)
    }
}

/// Until when everything that was asked for is paid for. In the past when the allowance is full.
#[derive(Clone, Copy, Debug)]
struct Paid(Timestamp);

impl Paid {
    /// How long to wait before the next one; none when there is no need to.
    fn wait(self, quota: Quota, now: Timestamp) -> Option<Duration> {
        let ahead = self.within(quota, now).0.since(now);
        let wait = (ahead + quota.every).saturating_sub(quota.span());
        (!wait.is_zero()).then_some(wait)
    }

    fn charge(&mut self, quota: Quota, now: Timestamp) {
        *self = Paid(self.within(quota, now).0.max(now).plus(quota.every));
    }

    /// Debts end, and so does what a clock that steps back makes of them: at twice the allowance.
    fn within(self, quota: Quota, now: Timestamp) -> Paid {
        Paid(self.0.min(now.plus(quota.span().saturating_mul(2))))
    }
}

/// A table that forgets: when its young half is full, the old half goes, and the young one grows old.
#[derive(Debug)]
struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    most: usize,
}

impl<K: Eq + Hash, V> Recent<K, V> {
    fn new(most: usize) -> Recent<K, V> {
        Recent { young: HashMap::new(), old: HashMap::new(), most }
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    fn put(&mut self, key: K, value: V) {
        self.old.remove(&key);
        if self.young.len() >= self.most && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    fn forget(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

/// Who asks, as far as the head of a request tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) address: IpAddr,
    pub(crate) token: Option<SecretHash>,
}

impl Client {
    pub(crate) fn new(address: IpAddr, token: Option<SecretHash>) -> Client {
        Client { address: network(address), token }
    }
}

/// The address by which somebody is counted: of IPv6 the network, because one machine has all of it.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) >> 64 << 64).into(),
        v4 => v4,
    }
}

/// What everybody has asked for lately.
#[derive(Debug)]
pub(crate) struct Rates {
    per_second: Option<u32>,
    tables: Mutex<Tables>,
}

#[derive(Debug)]
struct Tables {
    /// Good tokens, each with its quota.
    tokens: Recent<SecretHash, (Quota, Paid)>,
    addresses: Recent<IpAddr, Paid>,
    failures: Recent<IpAddr, Paid>,
}

impl Rates {
    pub(crate) fn new(limit: RateLimit) -> Rates {
        let per_second = match limit {
            RateLimit::Off => None,
            RateLimit::PerSecond(count) => Some(count.get()),
        };
        let (tokens, addresses) = (Recent::new(MOST_KEPT), Recent::new(MOST_KEPT));
        Rates {
            per_second,
            tables: Mutex::new(Tables { tokens, addresses, failures: Recent::new(MOST_KEPT) }),
        }
    }

    /// Before anything is done for `client`.
    ///
    /// # Errors
    /// How long it should wait.
    pub(crate) fn enter(&self, client: Client, now: Timestamp) -> Result<(), Duration> {
        let Some(per_second) = self.per_second else { return Ok(()) };
        let mut tables = self.tables();
        if let Some(token) = client.token
            && let Some((quota, mut paid)) = tables.tokens.get(&token).copied()
        {
            refuse(paid.wait(quota, now))?;
            paid.charge(quota, now);
            tables.tokens.put(token, (quota, paid));
            return Ok(());
        }
        let quota = Quota::per_second(per_second);
        refuse(wait(&tables.addresses, client, quota, now))?;
        match client.token {
            // It is charged when it turns out not to be a good one.
            Some(_) => refuse(wait(&tables.failures, client, FAILURES, now)),
            None => {
                charge(&mut tables.addresses, client, quota, now);
                Ok(())
            }
        }
    }

    /// A token has passed the door.
    pub(crate) fn is_good(&self, token: SecretHash, authority: Authority, now: Timestamp) {
        let Some(per_second) = self.per_second else { return };
        let mut tables = self.tables();
        if tables.tokens.get(&token).is_none() {
            let count = match authority {
                Authority::Instance(..) => per_second.saturating_mul(4),
                Authority::Role(_) | Authority::Join(_) => per_second,
            };
            tables.tokens.put(token, (Quota::per_second(count), Paid(now)));
        }
    }

    /// The answer is decided.
    pub(crate) fn leave(&self, client: Client, status: StatusCode, now: Timestamp) {
        let (Some(per_second), Some(token)) = (self.per_second, client.token) else { return };
        let mut tables = self.tables();
        let failed = status == StatusCode::UNAUTHORIZED;
        if failed {
            tables.tokens.forget(&token);
            charge(&mut tables.failures, client, FAILURES, now);
        }
        // Not looked at, as on open routes, or bad: either way it was a stranger's request.
        if failed || tables.tokens.get(&token).is_none() {
            charge(&mut tables.addresses, client, Quota::per_second(per_second), now);
        }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refuse(wait: Option<Duration>) -> Result<(), Duration> {
    wait.map_or(Ok(()), Err)
}

fn wait(table: &Recent<IpAddr, Paid>, client: Client, quota: Quota, now: Timestamp) -> Option<Duration> {
    table.get(&client.address).and_then(|paid| paid.wait(quota, now))
}

fn charge(table: &mut Recent<IpAddr, Paid>, client: Client, quota: Quota, now: Timestamp) {
    let mut paid = table.get(&client.address).copied().unwrap_or(Paid(now));
    paid.charge(quota, now);
    table.put(client.address, paid);
}

#[cfg(test)]
mod tests {
    use gk_model::access::Role;
    use gk_model::id::InstanceId;
    use gk_model::secret::{Secret, SecretKind};

    use super::*;

    const NOW: i64 = 1_800_000_000_000_000;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_micros(NOW + ms * 1000)
    }

    fn rates(per_second: &str) -> Rates {
        Rates::new(per_second.parse().unwrap())
    }

    fn client(last: u8, token: Option<u8>) -> Client {
        Client::new(IpAddr::from([192, 0, 2, last]), token.map(hash))
    }

    fn hash(number: u8) -> SecretHash {
        Secret::from_random(SecretKind::Subject, &[number; 32]).hash()
    }

    /// How many of so many requests at once are let in.
    fn let_in(rates: &Rates, client: Client, now: Timestamp, times: usize) -> usize {
        (0..times).filter(|_| rates.enter(client, now).is_ok()).count()
    }

    const USER: Authority = Authority::Role(Role::User);

    #[test]
    fn a_token_gets_its_burst_and_then_its_rate() {
        let rates = rates("10");
        rates.is_good(hash(1), USER, at(0));
        let ada = client(1, Some(1));
        assert_eq!(let_in(&rates, ada, at(0), 500), 100);
        assert_eq!(
            rates.enter(ada, at(0)),
            Err(Duration::from_millis(100)),
            "and it is told how long to wait"
        );
        assert_eq!(let_in(&rates, ada, at(99), 5), 0);
        assert_eq!(let_in(&rates, ada, at(100), 5), 1);
        assert_eq!(let_in(&rates, ada, at(1100), 50), 10);
        assert_eq!(
            let_in(&rates, ada, at(3_600_000), 500),
            100,
            "an allowance does not grow beyond its burst"
        );
    }

    #[test]
    fn nobody_uses_up_anothers_allowance() {
        let rates = rates("10");
        rates.is_good(hash(1), USER, at(0));
        rates.is_good(hash(2), USER, at(0));
        assert_eq!(let_in(&rates, client(1, Some(1)), at(0), 500), 100);
        assert_eq!(let_in(&rates, client(1, Some(2)), at(0), 500), 100, "the same address, another token");
        assert_eq!(let_in(&rates, client(1, None), at(0), 500), 100, "nor do tokens use up the address");
        assert_eq!(let_in(&rates, client(2, None), at(0), 500), 100);
    }

    #[test]
    fn an_instance_may_ask_four_times_as_often() {
        let rates = rates("10");
        let id = InstanceId::generate(at(0));
        rates.is_good(hash(1), Authority::Instance(id, hash(1)), at(0));
        assert_eq!(let_in(&rates, client(1, Some(1)), at(0), 5000), 400);
    }

    #[test]
    fn a_guesser_is_stopped_and_good_tokens_of_its_address_are_not() {
        let rates = rates("1000");
        rates.is_good(hash(1), USER, at(0));
        let guess = |now| {
            let guesser = client(1, Some(200));
            rates.enter(guesser, now).map(|()| rates.leave(guesser, StatusCode::UNAUTHORIZED, now))
        };
        assert_eq!((0..500).filter(|_| guess(at(0)).is_ok()).count(), 60);
        assert_eq!(guess(at(0)), Err(Duration::from_secs(1)));
        assert_eq!((0..500).filter(|_| guess(at(5000)).is_ok()).count(), 5);
        assert!(rates.enter(client(1, Some(1)), at(5000)).is_ok());
        assert!(rates.enter(client(1, None), at(5000)).is_ok(), "who has no token guesses nothing");
        assert!(rates.enter(client(2, Some(3)), at(5000)).is_ok(), "another address");
    }

    #[test]
    fn guesses_that_come_at_once_are_a_debt() {
        let rates = rates("1000");
        let guesser = client(1, Some(200));
        for _ in 0..80 {
            rates.enter(guesser, at(0)).unwrap();
        }
        for _ in 0..80 {
            rates.leave(guesser, StatusCode::UNAUTHORIZED, at(0));
        }
        assert_eq!(rates.enter(guesser, at(0)), Err(Duration::from_secs(21)));
    }

    #[test]
    fn a_token_that_ended_is_a_strangers() {
        let rates = rates("1000");
        rates.is_good(hash(1), USER, at(0));
        let ended = client(1, Some(1));
        let mut refused = 0;
        for _ in 0..100 {
            match rates.enter(ended, at(0)) {
                Ok(()) => rates.leave(ended, StatusCode::UNAUTHORIZED, at(0)),
                Err(_) => refused += 1,
            }
        }
        assert_eq!(refused, 40);
    }

    #[test]
    fn a_made_up_token_on_an_open_route_counts_for_the_address() {
        let rates = rates("10");
        let passed = |number| {
            let client = client(1, Some(number));
            rates.enter(client, at(0)).map(|()| rates.leave(client, StatusCode::OK, at(0)))
        };
        assert_eq!((0..=255).filter(|number| passed(*number).is_ok()).count(), 100);
    }

    #[test]
    fn a_clock_that_steps_back_locks_nobody_out_for_long() {
        let rates = rates("10");
        let eve = client(1, None);
        assert_eq!(let_in(&rates, eve, at(0), 500), 100);
        let wait = rates.enter(eve, at(-86_400_000)).unwrap_err();
        assert!(wait <= Duration::from_secs(11), "{wait:?}");
    }

    #[test]
    fn one_network_of_ipv6_is_one_client() {
        let rates = rates("10");
        let of = |text: &str| Client::new(text.parse().unwrap(), None);
        assert_eq!(let_in(&rates, of("2001:db8::1"), at(0), 500), 100);
        assert_eq!(let_in(&rates, of("2001:db8::2:1"), at(0), 500), 0);
        assert_eq!(let_in(&rates, of("2001:db8:0:1::1"), at(0), 500), 100);
        assert_eq!(of("::ffff:192.0.2.1"), client(1, None), "IPv4 in the clothes of IPv6");
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_latest_stay() {
        let mut table = Recent::new(10);
        for number in 0..1000 {
            table.put(number, ());
            table.put(-1, ());
            assert!(table.young.len() + table.old.len() <= 20);
        }
        assert!((991..1000).chain([-1]).all(|number| table.get(&number).is_some()));
    }

    #[test]
    fn a_limit_is_written_as_a_number_or_off() {
        assert_eq!("off".parse(), Ok(RateLimit::Off));
        for text in ["1", "100", "1000000"] {
            assert_eq!(text.parse::<RateLimit>().unwrap().to_string(), text);
        }
        for bad in ["0", "-1", "", "ten", "1000001", "1.5"] {
            assert_eq!(bad.parse::<RateLimit>(), Err(RateLimitError), "{bad}");
        }
        let off = rates("off");
        assert_eq!(let_in(&off, client(1, None), at(0), 100_000), 100_000);
    }
}
