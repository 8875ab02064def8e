//! Values on their way into and out of the database.

use std::str::FromStr;

use gk_model::contact::Session;
use gk_model::history::{EventKind, IntervalKind};
use gk_model::id::{GroupId, InstanceId, LogId, ReservationId};
use gk_model::listener::{Digest, Netns};
use gk_model::port::{Port, Protocol};
use gk_model::reservation::Scope;
use gk_model::secret::SecretHash;
use gk_model::text::{InstanceName, Note, PoolName, PortName, ServiceName, Subject};
use gk_model::time::Timestamp;

use crate::error::StoreError;
use crate::space::Space;

/// All that a column can hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Null,
    Integer(i64),
    Text(String),
}

/// Builds the values of a statement: `values![id, port, now]`.
macro_rules! values {
    ($($value:expr),* $(,)?) => { &[$($crate::value::Value::from($value)),*] };
}
pub(crate) use values;

/// One row of an answer, taken column by column in the order of the `select`.
pub(crate) struct Row(std::vec::IntoIter<Value>);

impl Row {
    pub(crate) fn new(columns: Vec<Value>) -> Row {
        Row(columns.into_iter())
    }

    /// The next column. A value that is not what the schema promises means a damaged database.
    pub(crate) fn take<T: Column>(&mut self) -> Result<T, StoreError> {
        let value =
            self.0.next().ok_or_else(|| StoreError::Corrupt("a row has too few columns".to_owned()))?;
        T::from_value(value)
    }
}

/// A type that a column can be read as.
pub(crate) trait Column: Sized {
    fn from_value(value: Value) -> Result<Self, StoreError>;
}

fn unexpected<T>(value: &Value) -> StoreError {
    let mut shown = format!("{value:?}");
    shown.truncate(shown.floor_char_boundary(80));
    StoreError::Corrupt(format!("a column holds {shown}, which is no {}", std::any::type_name::<T>()))
}

impl Column for i64 {
    fn from_value(value: Value) -> Result<i64, StoreError> {
        match value {
            Value::Integer(number) => Ok(number),
            other => Err(unexpected::<i64>(&other)),
        }
    }
}

impl Column for String {
    fn from_value(value: Value) -> Result<String, StoreError> {
        match value {
            Value::Text(text) => Ok(text),
            other => Err(unexpected::<String>(&other)),
        }
    }
}

impl<T: Column> Column for Option<T> {
    fn from_value(value: Value) -> Result<Option<T>, StoreError> {
        match value {
            Value::Null => Ok(None),
            other => T::from_value(other).map(Some),
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
    fn from_value(value: Value) -> Result<bool, StoreError> {
        i64::from_value(value).map(|flag| flag != 0)
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
    fn from_value(value: Value) -> Result<u64, StoreError> {
        let number = i64::from_value(value)?;
        u64::try_from(number).map_err(|_| unexpected::<u64>(&Value::Integer(number)))
    }
}

impl From<Session> for Value {
    fn from(session: Session) -> Value {
        Value::from(session.0)
    }
}

impl Column for Session {
    fn from_value(value: Value) -> Result<Session, StoreError> {
        u64::from_value(value).map(Session)
    }
}

impl From<Timestamp> for Value {
    fn from(time: Timestamp) -> Value {
        Value::Integer(time.as_micros())
    }
}

impl Column for Timestamp {
    fn from_value(value: Value) -> Result<Timestamp, StoreError> {
        i64::from_value(value).map(Timestamp::from_micros)
    }
}

impl From<Port> for Value {
    fn from(port: Port) -> Value {
        Value::Integer(i64::from(port.get()))
    }
}

impl Column for Port {
    fn from_value(value: Value) -> Result<Port, StoreError> {
        let number = i64::from_value(value)?;
        Port::try_from(number).map_err(|_| unexpected::<Port>(&Value::Integer(number)))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

fn parse<T: FromStr>(value: Value) -> Result<T, StoreError> {
    let text = String::from_value(value)?;
    text.parse().map_err(|_| unexpected::<T>(&Value::Text(text)))
}

/// Types whose text form is what the column holds.
macro_rules! by_text {
    ($($type:ty),+ $(,)?) => {
        $(
            impl From<&$type> for Value {
                fn from(value: &$type) -> Value {
                    Value::Text(value.to_string())
                }
            }

            impl From<$type> for Value {
                fn from(value: $type) -> Value {
                    Value::Text(value.to_string())
                }
            }

            impl Column for $type {
                fn from_value(value: Value) -> Result<$type, StoreError> {
                    parse(value)
                }
            }
        )+
    };
}

by_text!(
    Digest,
    EventKind,
    GroupId,
    InstanceId,
    InstanceName,
    IntervalKind,
    LogId,
    Netns,
    Note,
    PoolName,
    PortName,
    Protocol,
    ReservationId,
    Scope,
    SecretHash,
    ServiceName,
    Space,
    Subject,
    uuid::Uuid,
);

/// A structured value, kept as JSON.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: serde::Serialize> From<Json<&T>> for Value {
    fn from(value: Json<&T>) -> Value {
        Value::Text(
            serde_json::to_string(value.0)
                .expect("wire types have no maps with odd keys and no failing impls"),
        )
    }
}

impl<T: serde::de::DeserializeOwned> Column for Json<T> {
    fn from_value(value: Value) -> Result<Json<T>, StoreError> {
        let text = String::from_value(value)?;
        serde_json::from_str(&text).map(Json).map_err(|_| unexpected::<T>(&Value::Text(text)))
    }
}
