//! Values on their way to PostgreSQL and back.

use bytes::{BufMut as _, BytesMut};
use tokio_postgres::Statement;
use tokio_postgres::types::{FromSql, IsNull, Kind, ToSql, Type};

use crate::driver::postgres::failure::failure;
use crate::error::StoreError;
use crate::rows::{Cell, Rows};
use crate::value::Value;

/// Refuses values that the statement does not take.
pub(super) fn check(statement: &Statement, values: &[Value]) -> Result<(), StoreError> {
    let is_right = |(wanted, value): (&Type, &Value)| match value {
        Value::Null => true,
        Value::Integer(_) => *wanted == Type::INT8,
        Value::Text(text) => *wanted == Type::TEXT && i32::try_from(text.len()).is_ok(),
    };
    let wanted = statement.params();
    match wanted.len() == values.len() && wanted.iter().zip(values).all(is_right) {
        true => Ok(()),
        false => Err(StoreError::Database("a value is of another type than its column".to_owned())),
    }
}

/// How much text these hold.
pub(super) fn text_bytes(values: &[Value]) -> usize {
    let texts = values.iter().map(|value| match value {
        Value::Text(text) => text.len(),
        Value::Null | Value::Integer(_) => 0,
    });
    texts.sum()
}

pub(super) fn read_rows(rows: &[tokio_postgres::Row]) -> Result<Rows, StoreError> {
    let mut found = Rows::new(rows.first().map_or(0, tokio_postgres::Row::len));
    for row in rows {
        for index in 0..row.len() {
            found.push(row.try_get(index).map_err(|error| failure(&error))?);
        }
    }
    Ok(found)
}

impl ToSql for Value {
    fn to_sql(
        &self,
        wanted: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Value::Null => Ok(IsNull::Yes),
            Value::Integer(number) if *wanted == Type::INT8 => number.to_sql(wanted, out),
            Value::Text(text) if *wanted == Type::TEXT => text.as_ref().to_sql(wanted, out),
            other => Err(format!("{other:?} where PostgreSQL wants {wanted}").into()),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    tokio_postgres::types::to_sql_checked!();
}

/// The values of one column, written at once as they travel: as elements of an array in its binary form.
#[derive(Debug, Default)]
pub(super) struct Column {
    elements: Vec<u8>,
    count: i32,
    has_null: bool,
}

/// Where a value begins, after its length.
const LENGTH_BYTES: usize = 4;

impl Column {
    /// The value has to have passed [`check`].
    pub(super) fn push(&mut self, value: &Value) {
        self.count += 1;
        match value {
            Value::Null => {
                self.has_null = true;
                self.elements.put_i32(-1);
            }
            Value::Integer(number) => {
                self.elements.put_i32(8);
                self.elements.put_i64(*number);
            }
            Value::Text(text) => {
                self.elements.put_i32(text.len() as i32);
                self.elements.put_slice(text.as_bytes());
            }
        }
    }

    pub(super) fn is_single(&self) -> bool {
        self.count == 1
    }
}

/// As an array where one is wanted, and else as the only value.
impl ToSql for Column {
    fn to_sql(
        &self,
        wanted: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match wanted.kind() {
            Kind::Array(element) => {
                let (dimensions, first) = (1, 1);
                out.put_i32(dimensions);
                out.put_i32(i32::from(self.has_null));
                out.put_u32(element.oid());
                out.put_i32(self.count);
                out.put_i32(first);
                out.put_slice(&self.elements);
            }
            _ if self.has_null => return Ok(IsNull::Yes),
            _ => out.put_slice(&self.elements[LENGTH_BYTES..]),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    tokio_postgres::types::to_sql_checked!();
}

impl<'a> FromSql<'a> for Cell<'a> {
    fn from_sql(found: &Type, raw: &'a [u8]) -> Result<Cell<'a>, Box<dyn std::error::Error + Sync + Send>> {
        match *found {
            Type::INT8 => i64::from_sql(found, raw).map(Cell::Integer),
            Type::INT4 => i32::from_sql(found, raw).map(|number| Cell::Integer(number.into())),
            _ => <&str>::from_sql(found, raw).map(Cell::Text),
        }
    }

    fn from_sql_null(_: &Type) -> Result<Cell<'a>, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Cell::Null)
    }

    fn accepts(found: &Type) -> bool {
        matches!(*found, Type::INT8 | Type::INT4) || <&str as FromSql<'_>>::accepts(found)
    }
}
