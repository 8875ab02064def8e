//! `Idempotency-Key`: any POST may be sent again, and takes effect once.
//!
//! What makes that true is the store, which keeps the answer in the transaction of the effect. Here the header is read,
//! and a repetition that comes while the first request is still under way is told so (409), rather than kept waiting
//! with it. That is a courtesy of this process alone: through another server, or after the first caller hung up, the
//! second request waits for the writer and gets the first one's answer.
//!
//! Whether the caller may do it is decided before, each time: a replay passes the same doors as the request did.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::response::{IntoResponseParts, ResponseParts};
use gk_model::access::Actor;
use gk_model::idempotency::{Fingerprint, KEY_HEADER, REPLAYED_HEADER};
use gk_model::text::{IdempotencyKey, Subject};
use gk_model::time::Timestamp;
use gk_store::{Keyed, Once, Tx};
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::PartialSchema as _;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};

use crate::app::App;
use crate::auth::Guarded;
use crate::error::ApiError;

/// How the header is written in refusals and in the document.
const KEY: &str = "Idempotency-Key";

/// What the client calls this request, if it does.
#[derive(Clone, Debug)]
pub(crate) struct Key(Option<IdempotencyKey>);

impl Key {
    /// Reads the header, for the door of every guarded route, so that no route overlooks it.
    ///
    /// A read needs no key, and a PATCH or DELETE has `If-Match` and a state that tells whether it happened. Taking the
    /// header there and not keeping it would promise a safe retry that nobody keeps, so it is refused.
    pub(crate) fn read(method: &Method, headers: &HeaderMap) -> Result<Key, ApiError> {
        let mut values = headers.get_all(KEY_HEADER).iter();
        let Some(value) = values.next() else { return Ok(Key(None)) };
        if method != Method::POST {
            let what = "only POST takes an idempotency key: leave the header out";
            return Err(ApiError::Impossible { field: KEY, what });
        }
        if values.next().is_some() {
            return Err(malformed("there are several Idempotency-Key headers: send one".to_owned()));
        }
        let text = value.to_str().map_err(|_| {
            malformed("an idempotency key has 1 to 200 visible ASCII characters: a UUID will do".to_owned())
        })?;
        text.parse().map(|key| Key(Some(key))).map_err(|error| malformed(format!("`{KEY}`: {error}")))
    }

    /// The request under this key. Of the request as it came: what its names stand for may change in between.
    pub(crate) fn of(self, route: &str, request: &impl Serialize) -> Option<Keyed> {
        let fingerprint = || Fingerprint::of("POST", route, request);
        self.0.map(|key| Keyed { key, fingerprint: fingerprint() })
    }
}

fn malformed(what: String) -> ApiError {
    ApiError::malformed(Some(KEY.to_owned()), what)
}

impl FromRequestParts<Guarded> for Key {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Guarded) -> Result<Key, Infallible> {
        let key = parts.extensions.get::<Key>();
        Ok(key.cloned().expect("a route has `Guarded` state only behind `guard`, which reads the key"))
    }
}

/// Does `work` in the writer's next batch, once per key.
pub(crate) async fn write_once<T, W>(
    app: &App,
    actor: Actor,
    request: Option<Keyed>,
    now: Timestamp,
    mut work: W,
) -> Result<Once<T>, ApiError>
where
    T: Serialize + DeserializeOwned + Send + 'static,
    W: FnMut(&mut Tx<'_>, &Actor) -> Result<T, gk_store::Error> + Send + 'static,
{
    let _under_way = request.as_ref().map(|request| app.in_flight.begin(&actor, request)).transpose()?;
    let write = app.store.write(move |tx| tx.once(&actor, request.as_ref(), now, |tx| work(tx, &actor)));
    Ok(write.await?)
}

/// The requests with a key that this process works on just now. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight(Arc<Mutex<HashSet<(Subject, IdempotencyKey)>>>);

impl InFlight {
    fn begin(&self, actor: &Actor, request: &Keyed) -> Result<UnderWay, ApiError> {
        let which = (actor.subject.clone(), request.key.clone());
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(which.clone()) {
            Ok(UnderWay { all: self.clone(), which })
        } else {
            Err(ApiError::InFlight)
        }
    }
}

/// Ends with the request, however that ends.
#[derive(Debug)]
struct UnderWay {
    all: InFlight,
    which: (Subject, IdempotencyKey),
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.which);
    }
}

/// The header of an answer that was given before; nothing on a first answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replayed(pub(crate) bool);

impl IntoResponseParts for Replayed {
    type Error = Infallible;

    fn into_response_parts(self, mut response: ResponseParts) -> Result<ResponseParts, Infallible> {
        if self.0 {
            let name = HeaderName::from_static(REPLAYED_HEADER);
            response.headers_mut().insert(name, HeaderValue::from_static("true"));
        }
        Ok(response)
    }
}

/// The header as the document describes it, the same on every POST.
pub(crate) fn parameter() -> Parameter {
    ParameterBuilder::new()
        .name(KEY)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(
            "Any text of 1 to 200 visible ASCII characters that names this request, such as a UUID. The same request \
             again with the same key, within 24 hours and by the same subject, takes no second effect: it gets the \
             first answer, with `idempotency-replayed: true`. Another request under the key is refused (422 \
             `idempotency_key_reused`), and so is one that comes while the first is under way (409 \
             `idempotency_in_flight`). Refusals are not kept. Contacts are told from their repetition by session and \
             sequence number, so that for them the key is read and not kept.",
        ))
        .schema(Some(IdempotencyKey::schema()))
        .build()
}

#[cfg(test)]
mod tests {
    use gk_model::access::{Authority, Role};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_is_under_way_until_its_request_ends() {
        let all = InFlight::default();
        let actor = |subject: &str| Actor::new(subject.parse().unwrap(), Authority::Role(Role::User));
        let request = |key: &str| Key(key.parse().ok()).of("/v1/reservations", &json!({})).unwrap();
        let first = all.begin(&actor("ada"), &request("k")).unwrap();
        assert!(matches!(all.begin(&actor("ada"), &request("k")), Err(ApiError::InFlight)));
        let others = (all.begin(&actor("bob"), &request("k")), all.begin(&actor("ada"), &request("l")));
        assert!(others.0.is_ok() && others.1.is_ok(), "other subjects and other keys are independent");
        drop(first);
        assert!(all.begin(&actor("ada"), &request("k")).is_ok());
    }
}
