//! Changes to a reservation: to what it says, never to what it holds. Its ports, protocol, scope and instance stay as
//! they are; who wants others reserves those and releases these.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::Reservation;
use crate::expect::Expect;
use crate::labels::Labels;
use crate::text::{Note, PortName, ServiceName};

/// Changes to a reservation. What is left out stays; `null` takes it away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReservationPatch {
    /// What it is for.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<ServiceName>)]
    pub service: Option<Option<ServiceName>>,
    /// Which of the service's ports it is.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<PortName>)]
    pub name: Option<Option<PortName>>,
    /// A remark.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Note>)]
    pub note: Option<Option<Note>>,
    /// All its labels from now on.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Labels>)]
    pub labels: Option<Option<Labels>>,
    /// Who should be listening there, as a whole.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Expect>)]
    pub expect: Option<Option<Expect>>,
}

/// That a field is there, whatever it holds.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

impl ReservationPatch {
    /// Whether it changes nothing, whatever it is applied to.
    pub fn is_empty(&self) -> bool {
        *self == ReservationPatch::default()
    }

    /// The reservation with these changes.
    #[must_use]
    pub fn apply(&self, held: &Reservation) -> Reservation {
        let expect = self.expect.clone().unwrap_or_else(|| held.expect.clone());
        Reservation {
            service: self.service.clone().unwrap_or_else(|| held.service.clone()),
            name: self.name.clone().unwrap_or_else(|| held.name.clone()),
            note: self.note.clone().unwrap_or_else(|| held.note.clone()),
            labels: self.labels.clone().map_or_else(|| held.labels.clone(), Option::unwrap_or_default),
            expect: expect.filter(|expect| !expect.is_none()),
            ..held.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_takes_away_and_what_is_left_out_stays() {
        let read = |json| serde_json::from_str::<ReservationPatch>(json).unwrap();
        assert!(read("{}").is_empty());
        assert_eq!(read(r#"{"note":null}"#).note, Some(None));
        assert_eq!(read(r#"{"note":"n"}"#).note, Some("n".parse().ok()));
        assert_eq!(read(r#"{"labels":null,"service":"s"}"#).labels, Some(None));
        for json in ["{}", r#"{"note":null}"#, r#"{"expect":{"process":"nginx"},"name":"http"}"#] {
            let given: serde_json::Value = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_value(read(json)).unwrap(), given, "{json}");
        }
        assert!(serde_json::from_str::<ReservationPatch>(r#"{"port":1}"#).is_err());
    }
}
