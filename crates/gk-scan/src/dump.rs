//! One dump of a part's sockets, kept as the kernel told it, so that the next one is compared and not read.
//!
//! In nearly every scan nothing changed, and then the kernel tells it in the same bytes: a datagram with hundreds of
//! sockets takes one comparison. Where one differs, its sockets are compared one by one, because the queue of a busy
//! one is never the same; and from the first socket that is another one, everything is read.

use gk_model::port::{Port, Protocol};

use crate::parse::{Cookie, Socket, Told};

/// What the newest dump told.
#[derive(Debug, Default)]
pub(crate) struct Dump {
    /// One after the other, as the kernel wrote it.
    told: Vec<u8>,
    /// So many of these bytes were told again by the dump that is going on.
    told_again: usize,
    /// Whether it told anything but the one before.
    is_news: bool,
    /// The sockets that hold a port, from when they are news until somebody takes them.
    news: Option<Vec<Socket>>,
    /// Whether the next one is news whatever it tells, since who took the last news knows of others than were told.
    is_doubted: bool,
}

/// In which order sockets are handed over. A socket keeps its cookie as long as it is there.
pub(crate) fn order(socket: &Socket) -> (Port, Cookie) {
    (socket.port, socket.cookie)
}

impl Dump {
    /// Whether the newest dump told anything but the one before.
    pub(crate) fn is_news(&self) -> bool {
        self.is_news
    }

    /// The sockets that hold a port, in [`order`], when they are news that nobody has taken.
    pub(crate) fn news(&self) -> Option<&[Socket]> {
        self.news.as_deref()
    }

    /// Hands them over.
    pub(crate) fn take_news(&mut self) -> Option<Vec<Socket>> {
        self.news.take()
    }

    /// The next dump begins.
    pub(crate) fn begin(&mut self) {
        self.is_news = std::mem::take(&mut self.is_doubted);
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
        if self.is_news {
            self.news = Some(self.read(protocol));
        }
    }

    /// What the dump before told beyond this is not there any more.
    fn forget_the_rest(&mut self) {
        self.is_news |= self.told_again < self.told.len();
        self.told.truncate(self.told_again);
    }

    fn read(&self, protocol: Protocol) -> Vec<Socket> {
        let mut sockets = Vec::with_capacity(self.told.len() / Told::USUAL_BYTES);
        let mut rest = &self.told[..];
        while let Some((told, after)) = Told::kept(rest) {
            sockets.extend(told.read(protocol));
            rest = after;
        }
        in_order(sockets)
    }

    /// Adds those of a second dump that this one missed. The next dump is asked again whether they are there.
    pub(crate) fn add(&mut self, again: Dump, is_missing: impl Fn(Cookie) -> bool) {
        let missed = again.news.into_iter().flatten().filter(|socket| is_missing(socket.cookie));
        let mut sockets = self.news.take().unwrap_or_default();
        let count_before = sockets.len();
        sockets.extend(missed);
        self.is_doubted = sockets.len() > count_before;
        self.news = Some(in_order(sockets));
    }

    /// The part cannot be seen: whatever is told next is news, also when it is nothing.
    pub(crate) fn clear(&mut self) {
        *self = Dump { is_doubted: true, ..Dump::default() };
    }
}

#[cfg(test)]
impl Dump {
    /// One with this news.
    pub(crate) fn of(news: Option<Vec<Socket>>) -> Dump {
        Dump { news, ..Dump::default() }
    }

    /// How many sockets were told of last time.
    pub(crate) fn told_sockets(&self) -> usize {
        std::iter::successors(Told::kept(&self.told), |(_, rest)| Told::kept(rest)).count()
    }
}

/// Each once: a dump takes several system calls, and may tell twice of a socket whose neighbours change meanwhile.
fn in_order(mut sockets: Vec<Socket>) -> Vec<Socket> {
    sockets.sort_unstable_by_key(order);
    sockets.dedup_by_key(|socket| order(socket));
    sockets
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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

    fn read(all: &[Vec<u8>]) -> BTreeMap<(Port, Cookie), Socket> {
        let read =
            all.iter().flat_map(|message| sockets(message)).filter_map(|told| told.read(Protocol::Tcp));
        read.map(|socket| (order(&socket), socket)).collect()
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
            let news = dump.take_news().map(|sockets| sockets.len());
            assert_eq!((news, dump.is_news(), heard_again), (is_news.then_some(2), is_news, told_again));
        }
        // After it could not be seen, nothing at all is news, too; once.
        dump.clear();
        for news in [Some(vec![]), None] {
            dump.begin();
            dump.end(Protocol::Tcp);
            assert_eq!((dump.is_news(), dump.take_news()), (news.is_some(), news));
        }
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
            assert_eq!(dump.take_news().map_or(0, |sockets| sockets.len()), if is_again { 0 } else { 2 });
        }
    }

    /// Few, so that one often follows upon itself.
    fn tables() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
        let socket = (0u8..3, 0u8..3, 0u8..3).prop_map(|(port, cookie, waiting)| told(port, cookie, waiting));
        proptest::collection::vec(proptest::collection::vec(socket, 0..6), 3)
    }

    proptest! {
        #[test]
        fn whoever_takes_the_news_knows_what_was_told_last_whatever_was_told_or_added_before(
            tables in tables(),
            rounds in proptest::collection::vec((0usize..3, any::<bool>(), any::<bool>(), any::<bool>()), 1..8),
        ) {
            // What whoever takes the news knows.
            let (mut dump, mut known) = (Dump::default(), BTreeMap::new());
            for (table, is_broken_off, is_amended, is_taken) in rounds {
                dump.begin();
                if is_broken_off {
                    hear(&mut dump, &tables[0]);
                    dump.rewind();
                }
                hear(&mut dump, &tables[table]);
                dump.end(Protocol::Tcp);
                let mut now = read(&tables[table]);
                if is_amended && dump.is_news() {
                    let mut again = Dump::default();
                    hear(&mut again, &tables[1]);
                    again.end(Protocol::Tcp);
                    dump.add(again, |_| true);
                    now.extend(read(&tables[1]));
                }
                if is_taken {
                    let news = dump.take_news();
                    prop_assert!(news.iter().all(|news| news.is_sorted_by_key(order)));
                    let news = news.map(|news| news.iter().map(|socket| (order(socket), *socket)).collect());
                    known = news.unwrap_or(known);
                    prop_assert_eq!(&known, &now);
                }
            }
        }
    }
}
