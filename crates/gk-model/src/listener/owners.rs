//! Who holds a listener, written down once for all listeners that the same processes hold.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Owner;

/// Owners of a listener. Copies share one list until one of them is changed: twenty processes with a thousand listeners are
/// twenty lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owners(Arc<Vec<Owner>>);

static NOBODY: LazyLock<Arc<Vec<Owner>>> = LazyLock::new(Arc::default);

impl Default for Owners {
    fn default() -> Owners {
        Owners(Arc::clone(&NOBODY))
    }
}

impl From<Vec<Owner>> for Owners {
    fn from(owners: Vec<Owner>) -> Owners {
        if owners.is_empty() { Owners::default() } else { Owners(Arc::new(owners)) }
    }
}

impl FromIterator<Owner> for Owners {
    fn from_iter<I: IntoIterator<Item = Owner>>(owners: I) -> Owners {
        Vec::from_iter(owners).into()
    }
}

impl Deref for Owners {
    type Target = Vec<Owner>;

    fn deref(&self) -> &Vec<Owner> {
        &self.0
    }
}

impl DerefMut for Owners {
    fn deref_mut(&mut self) -> &mut Vec<Owner> {
        Arc::make_mut(&mut self.0)
    }
}

impl<'a> IntoIterator for &'a Owners {
    type Item = &'a Owner;
    type IntoIter = std::slice::Iter<'a, Owner>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl Serialize for Owners {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Owners {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Owners, D::Error> {
        Vec::deserialize(deserializer).map(Owners::from)
    }
}
