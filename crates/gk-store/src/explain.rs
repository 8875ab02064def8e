//! Explaining refusals, off the writer's thread.
//!
//! That a port is taken the writer knows from its maps; who holds it, it would have to ask the database, once for each
//! refusal and while everybody waits, across a network too. So it only says what is to be found out, and a reader finds
//! it out once the batch is committed. What it finds is as true as what the writer would have said: it was so at some
//! moment between the question and the answer. When nobody holds the port any more, there is no reason left to refuse,
//! and the request is made again.

use gk_model::id::InstanceId;
use gk_model::listener::Netns;
use gk_model::port::{Port, Protocol};

use crate::Store;
use crate::error::{Error, Refusal, StoreError};
use crate::space::Space;
use crate::tx::{Reader, Tx};

/// How often a port may turn out to be free again before the map of ports must be wrong.
const TRIES: usize = 8;

/// A port that is reserved, before anybody looked by whom.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{port}/{protocol} is reserved")]
pub struct Unexplained {
    /// Where it would have been claimed.
    pub(crate) space: Space,
    pub(crate) protocol: Protocol,
    pub(crate) port: Port,
    /// The instance where it is listened on too.
    pub(crate) observed_on: Option<InstanceId>,
    /// How many contiguous ports were wanted in all.
    pub(crate) wanted: u16,
    /// Where as many are free instead.
    pub(crate) alternatives: Vec<Port>,
}

impl From<Unexplained> for Error {
    fn from(unexplained: Unexplained) -> Error {
        Error::Unexplained(Box::new(unexplained))
    }
}

impl Reader<'_> {
    /// The whole refusal; none when nobody holds the port any more.
    fn explain(&mut self, unexplained: &Unexplained) -> Result<Option<Refusal>, StoreError> {
        let Unexplained { space, protocol, port, observed_on, wanted, ref alternatives } = *unexplained;
        let Some(holder) = self.find_claimant(space, protocol, port)? else { return Ok(None) };
        let mut listeners = match observed_on {
            Some(instance) => self.list_listeners_on(instance, protocol, port.into())?,
            None => Vec::new(),
        };
        listeners.retain(|listener| listener.key.netns == Netns::Home);
        let (holder, alternatives) = (Box::new(holder), alternatives.clone());
        Ok(Some(Refusal::PortReserved { port, protocol, holder, listeners, wanted, alternatives }))
    }
}

impl Store {
    /// Writes, and explains the refusal if there is one.
    pub(crate) async fn write_explained<T, W>(&self, mut work: W) -> Result<T, Error>
    where
        T: Send + 'static,
        W: FnMut(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
    {
        let mut tries = 0;
        loop {
            let (outcome, again) = self.0.writer.run(work).await?;
            let Err(Error::Unexplained(unexplained)) = outcome else { return outcome };
            let gone = format!("the claim on {}/{} is gone", unexplained.port, unexplained.protocol);
            let explained = self.read(move |reader| Ok(reader.explain(&unexplained)?)).await?;
            tries += 1;
            match explained {
                Some(refusal) => return Err(refusal.into()),
                None if tries == TRIES => return Err(StoreError::Corrupt(gone).into()),
                None => work = again,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::StoreConfig;
    use crate::samples::at;

    /// Refuses so often, and then answers how often it was asked.
    async fn ask(store: &Store, refusals: usize) -> Result<usize, Error> {
        let mut asked = 0;
        let refuse = move |_: &mut Tx<'_>| {
            asked += 1;
            let port = Port::new(8000).unwrap();
            let (protocol, space) = (Protocol::Tcp, Space::Fleet);
            let refusal =
                Unexplained { space, protocol, port, observed_on: None, wanted: 1, alternatives: vec![] };
            if asked > refusals { Ok(asked) } else { Err(refusal.into()) }
        };
        store.write(refuse).await
    }

    #[tokio::test]
    async fn a_port_that_nobody_holds_any_more_is_asked_for_again() {
        let directory = TempDir::new().unwrap();
        let store = Store::open(StoreConfig::embedded(directory.path()), at(0)).await.unwrap();
        assert_eq!(ask(&store, 1).await.unwrap(), 2);
        assert_eq!(ask(&store, TRIES - 1).await.unwrap(), TRIES);
        let refused_for_ever = ask(&store, usize::MAX).await;
        assert!(
            matches!(refused_for_ever, Err(Error::Failed(StoreError::Corrupt(_)))),
            "{refused_for_ever:?}"
        );
    }
}
