//! One dump of a part's sockets, kept as the kernel told it, so that the next one is compared and not read.
//!
//! In nearly every scan nothing changed, and then the kernel tells it in the same bytes: a datagram with hundreds of
//! sockets takes one comparison. Where one differs, its sockets are compared one by one, because the queue of a busy
//! one is never the same; and from the first socket that is another one, everything is read.

use gk_model::port::Protocol;

use crate::parse::{Cookie, Socket, Told};

/// The sockets of the newest dump.
#[derive(Debug, Default)]
pub(crate) struct Dump {
    /// What was told, one after the other, as the kernel wrote it.
    told: Vec<u8>,
    /// So many of these bytes were told again by the dump that is going on.
    told_again: usize,
    sockets: Vec<Socket>,
    is_news: bool,
    /// Whether there are others among the sockets than those that were told.
    is_amended: bool,
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

    /// The next dump begins. After one that was amended it is news, whatever it tells.
    pub(crate) fn begin(&mut self) {
        self.is_news = std::mem::take(&mut self.is_amended);
        self.rewind();
    }

    /// The kernel begins it anew.
    pub(crate) fn rewind(&mut self) {
        self.told_again = 0;
    }

    /// Whether this datagram tells again what was told before, in the same bytes; if not, it is to be heard socket by
    /// socket.
    pub(crate) fn hear_again(&mut self, datagram: &[u8]) -> bool {
        let is_same = self.told[self.told_again..].starts_with(datagram);
        if is_same {
            // The last message of a datagram may lack its padding; that of what is kept does not.
            self.told_again = (self.told_again + datagram.len()).next_multiple_of(4);
        }
        is_same
    }

    /// The kernel tells of a socket.
    pub(crate) fn hear(&mut self, told: Told<'_>) {
        let kept = Told::kept(&self.told[self.told_again..]).filter(|(kept, _)| kept.is_same(told));
        if let Some((_, after)) = kept {
            let end = self.told.len() - after.len();
            told.keep_over(&mut self.told[self.told_again..end]);
            self.told_again = end;
        } else {
            self.forget_the_rest();
            told.keep(&mut self.told);
            self.told_again = self.told.len();
            self.is_news = true;
        }
    }

    /// The dump is complete.
    pub(crate) fn end(&mut self, protocol: Protocol) {
        self.forget_the_rest();
        if !self.is_news {
            return;
        }
        self.sockets.clear();
        self.sockets.reserve(self.told.len() / Told::USUAL_BYTES);
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

    /// Adds those of a second dump that this one missed. The next dump is asked again whether they are there.
    pub(crate) fn add(&mut self, again: Dump, is_missing: impl Fn(Cookie) -> bool) {
        let missed = again.sockets.into_iter().filter(|socket| is_missing(socket.cookie));
        let count_before = self.sockets.len();
        self.sockets.extend(missed);
        self.is_amended = self.sockets.len() > count_before;
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
    use crate::parse::{Message, messages};

    /// What the kernel tells of a socket with this port and cookie, with so many datagrams or connections waiting.
    fn told(port: u8, cookie: u8, waiting: u8) -> Vec<u8> {
        let mut message = vec![0; 16 + 72];
        (message[0], message[4]) = (96, 20);
        let payload = &mut message[16..];
        (payload[0], payload[1], payload[5], payload[44], payload[56]) = (2, 10, port, cookie, waiting);
        message.extend([5, 0, 8, 0, 0, 0, 0, 0]);
        message
    }

    /// In datagrams of two, as `Netlink` passes them on; how many of them were told again.
    fn hear(dump: &mut Dump, all: &[Vec<u8>]) -> usize {
        let datagrams = all.chunks(2).map(<[_]>::concat);
        datagrams.filter(|datagram| hear_one(dump, datagram)).count()
    }

    fn hear_one(dump: &mut Dump, datagram: &[u8]) -> bool {
        let is_same = dump.hear_again(datagram);
        if !is_same {
            sockets(datagram).for_each(|told| dump.hear(told));
        }
        is_same
    }

    fn sockets(datagram: &[u8]) -> impl Iterator<Item = Told<'_>> {
        messages(datagram).map(|envelope| match envelope.message {
            Message::Socket(told) => told,
            other => panic!("{other:?}"),
        })
    }

    fn read(all: &[Vec<u8>]) -> Vec<Socket> {
        all.iter().flat_map(|message| sockets(message)).filter_map(|told| told.read(Protocol::Tcp)).collect()
    }

    #[test]
    fn a_socket_whose_queue_fills_is_the_same_and_one_with_another_cookie_is_not() {
        let mut dump = Dump::default();
        let table = [(0, 1, true, 0), (0, 1, false, 2), (9, 1, false, 1), (9, 1, false, 2), (0, 2, true, 0)];
        for (waiting, cookie, is_news, told_again) in table {
            dump.begin();
            // The second datagram is the same each time.
            let all = [told(80, cookie, waiting), told(0, 3, waiting), told(81, 4, 0)];
            let heard_again = hear(&mut dump, &all);
            dump.end(Protocol::Tcp);
            assert_eq!((dump.sockets().len(), dump.is_news(), heard_again), (2, is_news, told_again));
        }
        dump.clear();
        assert_eq!((dump.sockets(), dump.is_news()), (&[][..], true));
        dump.clear();
        assert!(!dump.is_news());
    }

    #[test]
    fn a_datagram_without_its_last_padding_is_told_again() {
        // An attribute of five bytes, of which the kernel left the padding out.
        let cut = |cookie: u8| told(80, cookie, 0)[..93].to_vec();
        let mut dump = Dump::default();
        for is_again in [false, true] {
            dump.begin();
            let all = [cut(1), cut(2)].map(|mut message| {
                message[0] = 93;
                message
            });
            assert!(all.iter().all(|datagram| hear_one(&mut dump, datagram) == is_again));
            dump.end(Protocol::Tcp);
            assert_eq!(dump.sockets().len(), 2);
        }
    }

    /// Few, so that one often follows upon itself.
    fn tables() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
        let socket = (0u8..3, 0u8..3, 0u8..3).prop_map(|(port, cookie, waiting)| told(port, cookie, waiting));
        proptest::collection::vec(proptest::collection::vec(socket, 0..6), 3)
    }

    proptest! {
        #[test]
        fn a_dump_holds_what_was_told_last_whatever_was_told_or_added_before(
            tables in tables(),
            rounds in proptest::collection::vec((0usize..3, any::<bool>(), any::<bool>()), 1..8),
        ) {
            let (mut dump, mut before) = (Dump::default(), Vec::new());
            for (table, is_broken_off, is_amended) in rounds {
                dump.begin();
                if is_broken_off {
                    hear(&mut dump, &tables[0]);
                    dump.rewind();
                }
                hear(&mut dump, &tables[table]);
                dump.end(Protocol::Tcp);
                let now = read(&tables[table]);
                prop_assert_eq!(dump.sockets(), &now[..]);
                prop_assert!(dump.is_news() || now == before);
                if is_amended {
                    let mut again = Dump::default();
                    hear(&mut again, &tables[1]);
                    again.end(Protocol::Tcp);
                    dump.add(again, |_| true);
                }
                before = dump.sockets().to_vec();
            }
        }
    }
}
