//! Once per key: a request that is sent again gets the answer it got before, and takes no second effect.
//!
//! The row with the answer is written in the transaction of the effect, so that neither exists without the other,
//! whatever is lost on the way: the answer, the connection, or the server. Who comes second under the same key waits
//! for the writer and finds the row, also when another server wrote it.
//!
//! Only effects are kept. A refusal has changed nothing, so asking again is harmless, and by then the answer may be a
//! better one.

use gk_model::access::Actor;
use gk_model::idempotency::{Fingerprint, KEPT_FOR};
use gk_model::text::IdempotencyKey;
use gk_model::time::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Refusal};
use crate::tx::Tx;
use crate::value::{Json, values};

/// A request that its client may send again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyed {
    /// What the client calls it; scoped to the subject.
    pub key: IdempotencyKey,
    /// What it asks for.
    pub fingerprint: Fingerprint,
}

/// The answer to a request that takes effect once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Once<T> {
    /// What was answered the first time.
    pub answer: T,
    /// Whether that was before.
    pub replayed: bool,
}

impl Tx<'_> {
    /// Does `work` unless it was done under this key within [`KEPT_FOR`]; then answers what was answered then.
    ///
    /// Without a key this is `work` and nothing else. An answer is kept as JSON, so fields that are added to `T` later
    /// need a default.
    ///
    /// # Errors
    /// [`Refusal::IdempotencyKeyReused`] when the key was used for another request, [`Refusal::CredentialReplaced`], and
    /// what `work` answers.
    pub fn once<T, W>(
        &mut self,
        actor: &Actor,
        request: Option<&Keyed>,
        now: Timestamp,
        work: W,
    ) -> Result<Once<T>, Error>
    where
        T: Serialize + DeserializeOwned,
        W: FnOnce(&mut Self) -> Result<T, Error>,
    {
        let Some(request) = request else { return Ok(Once { answer: work(self)?, replayed: false }) };
        // A replay shows what the caller may have lost the right to see.
        self.check_credential(actor)?;
        if let Some(answer) = self.find_answer(actor, request, now)? {
            return Ok(Once { answer, replayed: true });
        }
        let answer = work(self)?;
        // Where there is a row, it is too old to count.
        self.later(
            "insert into idempotency (subject, key, fingerprint, answer, created_at) values ($1, $2, $3, $4, $5) \
             on conflict (subject, key) do update set fingerprint = excluded.fingerprint, \
             answer = excluded.answer, created_at = excluded.created_at",
            values![
                &actor.subject,
                request.key.as_str(),
                request.fingerprint.to_string(),
                Json(&answer),
                now
            ],
        )?;
        Ok(Once { answer, replayed: false })
    }

    fn find_answer<T: DeserializeOwned>(
        &mut self,
        actor: &Actor,
        request: &Keyed,
        now: Timestamp,
    ) -> Result<Option<T>, Error> {
        let sql =
            "select fingerprint, answer from idempotency where subject = $1 and key = $2 and created_at > $3";
        let found =
            self.query_one(sql, values![&actor.subject, request.key.as_str(), now.minus(KEPT_FOR)])?;
        let Some(mut row) = found else { return Ok(None) };
        if row.take::<String>()? != request.fingerprint.to_string() {
            return Err(Refusal::IdempotencyKeyReused(request.key.clone()).into());
        }
        let Json(answer) = row.take()?;
        Ok(Some(answer))
    }
}
