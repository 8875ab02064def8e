//! Values on their way to PostgreSQL and back.

use tokio_postgres::Statement;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type};

use crate::driver::postgres::failure::failure;
use crate::error::StoreError;
use crate::value::{Row, Value};

/// Whether these are values that the statement takes.
pub(super) fn fits(statement: &Statement, values: &[Value]) -> bool {
    let is_right = |(wanted, value): (&Type, &Value)| match value {
        Value::Null => true,
        Value::Integer(_) => *wanted == Type::INT8,
        Value::Text(_) => *wanted == Type::TEXT,
    };
    statement.params().len() == values.len() && statement.params().iter().zip(values).all(is_right)
}

pub(super) fn read_row(row: &tokio_postgres::Row) -> Result<Row, StoreError> {
    let columns = (0..row.len()).map(|index| row.try_get::<_, Value>(index));
    columns.collect::<Result<_, _>>().map(Row::new).map_err(|error| failure(&error))
}

impl ToSql for Value {
    fn to_sql(
        &self,
        wanted: &Type,
        out: &mut bytes::BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Value::Null => Ok(IsNull::Yes),
            Value::Integer(number) if *wanted == Type::INT8 => number.to_sql(wanted, out),
            Value::Text(text) if *wanted == Type::TEXT => text.to_sql(wanted, out),
            other => Err(format!("{other:?} where PostgreSQL wants {wanted}").into()),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    tokio_postgres::types::to_sql_checked!();
}

impl<'a> FromSql<'a> for Value {
    fn from_sql(found: &Type, raw: &'a [u8]) -> Result<Value, Box<dyn std::error::Error + Sync + Send>> {
        match *found {
            Type::INT8 => i64::from_sql(found, raw).map(Value::Integer),
            Type::INT4 => i32::from_sql(found, raw).map(|number| Value::Integer(number.into())),
            _ => String::from_sql(found, raw).map(Value::Text),
        }
    }

    fn from_sql_null(_: &Type) -> Result<Value, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Value::Null)
    }

    fn accepts(found: &Type) -> bool {
        matches!(*found, Type::INT8 | Type::INT4) || <String as FromSql<'_>>::accepts(found)
    }
}
