//! One dump of a part's sockets, kept as the kernel told it, so that the next one is compared and not read.
//!
//! In nearly every scan nothing changed. To read a socket and to compare what was read takes three times as long as to
//! compare its bytes with those told before; that is what a poll consists of. What differs is read, and all after it.

use gk_model::port::Protocol;

use crate::parse::{Cookie, Socket, Told};

/// The sockets of the newest dump.
#[derive(Debug, Default)]
pub(crate) struct Dump {
    /// What was told, one after the other, as [`Told::keep`] writes it.
    told: Vec<u8>,
    /// So many of these bytes were told again by the dump that is going on.
    told_again: usize,
    sockets: Vec<Socket>,
    is_news: bool,
}

impl Dump {
    /// Those that hold a port, as the kernel ordered them.
    pub(crate) fn sockets(&self) -> &[Socket] {
        &self.sockets
    }

    /// Those that hold a port, for whoever does not compare.
    pub(crate) fn into_sockets(self) -> Vec<Socket> {
        self.sockets
    }

    /// Whether the newest dump told anything but the one before.
    pub(crate) fn is_news(&self) -> bool {
        self.is_news
    }

    /// The next dump begins.
    pub(crate) fn begin(&mut self) {
        self.is_news = false;
        self.rewind();
    }

    /// The kernel begins it anew.
    pub(crate) fn rewind(&mut self) {
        self.told_again = 0;
    }

    /// The kernel tells of a socket.
    pub(crate) fn hear(&mut self, told: Told<'_>) {
        let (_, before) = self.told.split_at(self.told_again);
        match Told::kept(before) {
            Some((kept, after)) if kept.is_same(told) => self.told_again = self.told.len() - after.len(),
            _ => {
                self.forget_the_rest();
                told.keep(&mut self.told);
                self.told_again = self.told.len();
                self.is_news = true;
            }
        }
    }

    /// The dump is complete.
    pub(crate) fn end(&mut self, protocol: Protocol) {
        self.forget_the_rest();
        if !self.is_news {
            return;
        }
        self.sockets.clear();
        let mut rest = &self.told[..];
        while let Some((told, after)) = Told::kept(rest) {
            self.sockets.extend(told.read(protocol));
            rest = after;
        }
    }

    /// What the dump before told beyond this is not there any more.
    fn forget_the_rest(&mut self) {
        self.is_news |= self.told_again < self.told.len();
        self.told.truncate(self.told_again);
    }

    /// Adds those of a second dump that this one missed. The next one will differ, whatever it tells, so that it is
    /// asked again whether they are there.
    pub(crate) fn add(&mut self, again: Dump, is_missing: impl Fn(Cookie) -> bool) {
        self.sockets.extend(again.sockets.into_iter().filter(|socket| is_missing(socket.cookie)));
        self.told.clear();
    }

    /// The part cannot be seen.
    pub(crate) fn clear(&mut self) {
        *self = Dump { is_news: !self.sockets.is_empty(), ..Dump::default() };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the kernel tells of a socket with this port and cookie, with so many datagrams or connections waiting.
    fn told(port: u8, cookie: u8, waiting: u8) -> Vec<u8> {
        let mut payload = vec![0; 72];
        (payload[0], payload[1], payload[5], payload[44], payload[56]) = (2, 10, port, cookie, waiting);
        payload.extend([5, 0, 8, 0, 0, 0, 0, 0]);
        [&u16::try_from(payload.len()).unwrap().to_ne_bytes()[..], &payload].concat()
    }

    fn hear(dump: &mut Dump, all: &[Vec<u8>]) {
        all.iter().for_each(|kept| dump.hear(Told::kept(kept).unwrap().0));
    }

    fn read(all: &[Vec<u8>]) -> Vec<Socket> {
        all.iter().filter_map(|kept| Told::kept(kept).unwrap().0.read(Protocol::Tcp)).collect()
    }

    #[test]
    fn a_socket_whose_queue_fills_is_the_same_and_one_with_another_cookie_is_not() {
        let mut dump = Dump::default();
        for (waiting, cookie, is_news) in [(0, 1, true), (0, 1, false), (9, 1, false), (0, 2, true)] {
            dump.begin();
            hear(&mut dump, &[told(80, cookie, waiting), told(0, 3, waiting)]);
            dump.end(Protocol::Tcp);
            assert_eq!((dump.sockets().len(), dump.is_news()), (1, is_news));
        }
        dump.clear();
        assert_eq!((dump.sockets(), dump.is_news()), (&[][..], true));
        dump.clear();
        assert!(!dump.is_news());
    }

    proptest! {
        #[test]
        fn a_dump_holds_what_was_told_last_whatever_was_told_before(
            dumps in proptest::collection::vec(proptest::collection::vec((0u8..3, 0u8..3, 0u8..3), 0..6), 1..6),
            broken_off in proptest::collection::vec((0u8..3, 0u8..3, 0u8..3), 0..6),
        ) {
            let (mut dump, mut before) = (Dump::default(), Vec::new());
            for (round, sockets) in dumps.iter().enumerate() {
                let bytes = |sockets: &[(u8, u8, u8)]| -> Vec<Vec<u8>> {
                    sockets.iter().map(|(port, cookie, waiting)| told(*port, *cookie, *waiting)).collect()
                };
                dump.begin();
                if round % 2 == 1 {
                    hear(&mut dump, &bytes(&broken_off));
                    dump.rewind();
                }
                hear(&mut dump, &bytes(sockets));
                dump.end(Protocol::Tcp);
                let now = read(&bytes(sockets));
                prop_assert_eq!(dump.sockets(), &now[..]);
                prop_assert!(dump.is_news() || now == before);
                before = now;
            }
        }
    }
}
