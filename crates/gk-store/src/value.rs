//! Values on their way into the database, and what a column is read as on its way out.

use std::borrow::Cow;

use gk_model::access::Role;
use gk_model::contact::Session;
use gk_model::drift::DriftKind;
use gk_model::history::{EventKind, IntervalKind};
use gk_model::id::{FLEET, GroupId, InstanceId, LogId, ReservationId, TokenId};
use gk_model::labels::Selector;
use gk_model::lease::LeaseTime;
use gk_model::listener::{Digest, Netns};
use gk_model::pool::{Pick, Quarantine};
use gk_model::port::{Port, Protocol};
use gk_model::reservation::Scope;
use gk_model::secret::SecretHash;
use gk_model::text::{IgnoreName, InstanceName, Note, PoolName, PortName, ServiceName, Subject};
use gk_model::time::Timestamp;
use gk_model::token::{ForgetAfter, TokenKind};

use crate::error::StoreError;
use crate::rows::Cell;
use crate::space::Space;

/// What a statement is given for a `$1…`. Words that are always the same are borrowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Null,
    Integer(i64),
    Text(Cow<'static, str>),
}

/// Builds the values of a statement: `values![id, port, now]`.
macro_rules! values {
    ($($value:expr),* $(,)?) => { &[$($crate::value::Value::from($value)),*] };
}
pub(crate) use values;

/// A type that a column can be read as.
pub(crate) trait Column: Sized {
    fn from_cell(cell: Cell<'_>) -> Result<Self, StoreError>;
}

fn unexpected<T>(cell: Cell<'_>) -> StoreError {
    let mut shown = format!("{cell:?}");
    shown.truncate(shown.floor_char_boundary(80));
    StoreError::Corrupt(format!("a column holds {shown}, which is no {}", std::any::type_name::<T>()))
}

/// What is kept is copied by whoever keeps it.
fn text<T>(cell: Cell<'_>) -> Result<&str, StoreError> {
    match cell {
        Cell::Text(text) => Ok(text),
        other => Err(unexpected::<T>(other)),
    }
}

impl Column for i64 {
    fn from_cell(cell: Cell<'_>) -> Result<i64, StoreError> {
        match cell {
            Cell::Integer(number) => Ok(number),
            other => Err(unexpected::<i64>(other)),
        }
    }
}

impl Column for String {
    fn from_cell(cell: Cell<'_>) -> Result<String, StoreError> {
        text::<String>(cell).map(str::to_owned)
    }
}

impl<T: Column> Column for Option<T> {
    fn from_cell(cell: Cell<'_>) -> Result<Option<T>, StoreError> {
        match cell {
            Cell::Null => Ok(None),
            other => T::from_cell(other).map(Some),
        }
    }
}

impl<T> From<Option<T>> for Value
where
    Value: From<T>,
{
    fn from(value: Option<T>) -> Value {
        value.map_or(Value::Null, Value::from)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Value {
        Value::Integer(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Value {
        Value::Integer(i64::from(flag))
    }
}

impl Column for bool {
    fn from_cell(cell: Cell<'_>) -> Result<bool, StoreError> {
        i64::from_cell(cell).map(|flag| flag != 0)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Value {
        Value::Integer(i64::from(number))
    }
}

/// Counters and numbers stay far below 2^63; one that does not is stored as the largest number there is.
impl From<u64> for Value {
    fn from(number: u64) -> Value {
        Value::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl Column for u64 {
    fn from_cell(cell: Cell<'_>) -> Result<u64, StoreError> {
        let number = i64::from_cell(cell)?;
        u64::try_from(number).map_err(|_| unexpected::<u64>(cell))
    }
}

/// Spans of whole seconds within bounds.
macro_rules! spans {
    ($($type:ty),+ $(,)?) => {
        $(
            impl From<$type> for Value {
                fn from(time: $type) -> Value {
                    Value::from(time.duration().as_secs())
                }
            }

            impl Column for $type {
                fn from_cell(cell: Cell<'_>) -> Result<$type, StoreError> {
                    i64::from_cell(cell)?.try_into().map_err(|_| unexpected::<$type>(cell))
                }
            }
        )+
    };
}

spans!(ForgetAfter, Quarantine);

impl From<LeaseTime> for Value {
    fn from(time: LeaseTime) -> Value {
        Value::Integer(time.into())
    }
}

impl Column for LeaseTime {
    fn from_cell(cell: Cell<'_>) -> Result<LeaseTime, StoreError> {
        i64::from_cell(cell)?.try_into().map_err(|_| unexpected::<LeaseTime>(cell))
    }
}

impl From<Session> for Value {
    fn from(session: Session) -> Value {
        Value::from(session.0)
    }
}

impl Column for Session {
    fn from_cell(cell: Cell<'_>) -> Result<Session, StoreError> {
        u64::from_cell(cell).map(Session)
    }
}

impl From<Timestamp> for Value {
    fn from(time: Timestamp) -> Value {
        Value::Integer(time.as_micros())
    }
}

impl Column for Timestamp {
    fn from_cell(cell: Cell<'_>) -> Result<Timestamp, StoreError> {
        i64::from_cell(cell).map(Timestamp::from_micros)
    }
}

impl From<Port> for Value {
    fn from(port: Port) -> Value {
        Value::Integer(i64::from(port.get()))
    }
}

impl Column for Port {
    fn from_cell(cell: Cell<'_>) -> Result<Port, StoreError> {
        let number = i64::from_cell(cell)?;
        Port::try_from(number).map_err(|_| unexpected::<Port>(cell))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::from(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(Cow::Owned(text))
    }
}

impl From<uuid::Uuid> for Value {
    fn from(id: uuid::Uuid) -> Value {
        Value::from(&*id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()))
    }
}

impl From<Space> for Value {
    fn from(space: Space) -> Value {
        match space {
            Space::Instance(id) => id.into(),
            Space::Fleet => Value::Text(Cow::Borrowed(FLEET)),
        }
    }
}

impl From<Netns> for Value {
    fn from(netns: Netns) -> Value {
        match netns {
            Netns::Home => Value::Text(Cow::Borrowed("home")),
            Netns::Other(_) => netns.to_string().into(),
        }
    }
}

/// Types whose text form is what the column holds, by how the text is come by.
macro_rules! by_text {
    ($(|$value:ident: $type:ty| $text:expr),+ $(,)?) => {
        $(
            impl From<$type> for Value {
                fn from($value: $type) -> Value {
                    $text
                }
            }
        )+
    };
}

macro_rules! words {
    ($($type:ty),+ $(,)?) => { by_text!($(|word: $type| Value::Text(Cow::Borrowed(word.as_str()))),+); };
}

macro_rules! ids {
    ($($type:ty),+ $(,)?) => { by_text!($(|id: $type| Value::from(uuid::Uuid::from(id))),+); };
}

macro_rules! names {
    ($($type:ty),+ $(,)?) => { by_text!($(|name: &$type| Value::from(name.as_str())),+); };
}

words!(DriftKind, EventKind, IntervalKind, Pick, Protocol, Role, Scope, TokenKind);
ids!(GroupId, InstanceId, LogId, ReservationId, TokenId);
names!(IgnoreName, InstanceName, Note, PoolName, PortName, ServiceName, Subject);
by_text!(
    |digest: Digest| digest.to_string().into(),
    |hash: SecretHash| hash.to_string().into(),
    |selector: &Selector| selector.to_string().into(),
);

/// Types that are parsed from the text of a column, where it lies.
macro_rules! parsed {
    ($($type:ty),+ $(,)?) => {
        $(
            impl Column for $type {
                fn from_cell(cell: Cell<'_>) -> Result<$type, StoreError> {
                    text::<$type>(cell)?.parse().map_err(|_| unexpected::<$type>(cell))
                }
            }
        )+
    };
}

parsed!(
    Digest,
    DriftKind,
    EventKind,
    GroupId,
    IgnoreName,
    InstanceId,
    InstanceName,
    IntervalKind,
    LogId,
    Netns,
    Note,
    Pick,
    PoolName,
    PortName,
    Protocol,
    ReservationId,
    Role,
    Scope,
    SecretHash,
    Selector,
    ServiceName,
    Space,
    Subject,
    TokenId,
    TokenKind,
    uuid::Uuid,
);

/// A structured value, kept as JSON.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: serde::Serialize> From<Json<&T>> for Value {
    fn from(value: Json<&T>) -> Value {
        let text = serde_json::to_string(value.0);
        text.expect("wire types have no maps with odd keys and no failing impls").into()
    }
}

impl<T: serde::de::DeserializeOwned> Column for Json<T> {
    fn from_cell(cell: Cell<'_>) -> Result<Json<T>, StoreError> {
        serde_json::from_str(text::<T>(cell)?).map(Json).map_err(|_| unexpected::<T>(cell))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comes_back<T: Column + Into<Value>>(stored: &str) {
        let value: Value = T::from_cell(Cell::Text(stored)).unwrap().into();
        assert_eq!(value, Value::Text(stored.to_owned().into()));
    }

    #[test]
    fn what_was_stored_is_stored_again_as_it_was() {
        let id = "0190163d-8694-739b-aea5-966c26f8ad91";
        comes_back::<InstanceId>(id);
        comes_back::<uuid::Uuid>(id);
        comes_back::<Space>(id);
        comes_back::<Space>("fleet");
        comes_back::<Netns>("home");
        comes_back::<Netns>("4026531840");
        comes_back::<EventKind>("owner_changed");
        comes_back::<IntervalKind>("held");
        comes_back::<Protocol>("udp");
        comes_back::<Scope>("fleet");
        comes_back::<Digest>(&"0f".repeat(16));
        comes_back::<SecretHash>(&"0f".repeat(32));
        comes_back::<String>("Grüße");
        let subject = Subject::from_cell(Cell::Text("local:root")).unwrap();
        assert_eq!(Value::from(&subject), Value::from("local:root"));
        let Json(ports) = Json::<Vec<Port>>::from_cell(Cell::Text("[80,443]")).unwrap();
        assert_eq!(Value::from(Json(&ports)), Value::from("[80,443]"));
    }

    fn refuses<T: Column>(cells: &[Cell<'_>]) {
        for cell in cells {
            let Err(error) = T::from_cell(*cell) else {
                panic!("{cell:?} was taken for a {}", std::any::type_name::<T>());
            };
            assert!(matches!(&error, StoreError::Corrupt(text) if text.len() < 250), "{error}");
        }
    }

    #[test]
    fn garbage_in_a_column_is_a_damaged_database() {
        let (long, garbage) = ("ü".repeat(100_000), "\0\u{202e}\u{fffd} \n");
        let texts = [Cell::Null, Cell::Text(""), Cell::Text(garbage), Cell::Text(&long), Cell::Integer(7)];
        let numbers = [Cell::Null, Cell::Text("7"), Cell::Integer(-1), Cell::Integer(i64::MIN)];
        refuses::<InstanceId>(&texts);
        refuses::<Space>(&texts);
        refuses::<uuid::Uuid>(&texts);
        refuses::<EventKind>(&texts);
        refuses::<Netns>(&texts);
        refuses::<Digest>(&texts);
        refuses::<SecretHash>(&texts);
        refuses::<Subject>(&texts);
        refuses::<InstanceName>(&texts);
        refuses::<Note>(&texts);
        refuses::<Json<Vec<u16>>>(&texts);
        refuses::<Option<Subject>>(&texts[1..]);
        refuses::<u64>(&numbers);
        refuses::<Port>(&numbers);
        refuses::<Option<Port>>(&numbers[1..]);
        refuses::<Timestamp>(&numbers[..2]);
    }
}
