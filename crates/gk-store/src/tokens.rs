//! Tokens: who a secret stands for. Only hashes are here.

use gk_model::access::{Actor, Authority, Role};
use gk_model::id::InstanceId;
use gk_model::secret::{SecretHash, SecretKind};
use gk_model::text::Subject;
use gk_model::time::Timestamp;

use crate::error::{Error, Refusal, StoreError};
use crate::tx::{Reader, Tx};
use crate::value::values;

impl Reader<'_> {
    /// Who comes with the secret of this hash: an instance that has not left, or a token that is neither revoked nor
    /// expired at `now`.
    ///
    /// # Errors
    /// Only when the database fails.
    pub fn find_actor(&mut self, hash: SecretHash, now: Timestamp) -> Result<Option<Actor>, Error> {
        let instance = "select id, subject from instance where credential = $1 and left_at is null";
        if let Some(mut row) = self.query_one(instance, values![hash])? {
            let own: InstanceId = row.take()?;
            return Ok(Some(Actor { subject: row.take()?, authority: Authority::Instance(own, hash) }));
        }
        let token = "select kind, subject, role from token where hash = $1 and revoked_at is null \
                     and (expires_at is null or expires_at > $2)";
        let Some(mut row) = self.query_one(token, values![hash, now])? else { return Ok(None) };
        let (kind, subject, role): (String, Subject, String) = (row.take()?, row.take()?, row.take()?);
        let authority = if kind == SecretKind::Join.prefix() {
            Authority::Join(hash)
        } else {
            Authority::Role(role.parse::<Role>().map_err(|error| StoreError::Corrupt(error.to_string()))?)
        };
        Ok(Some(Actor { subject, authority }))
    }
}

impl Tx<'_> {
    /// Checks a join token again, under the writer's lock: another machine may have used it since it was looked up.
    pub(crate) fn check_join_token(&mut self, hash: SecretHash) -> Result<(), Error> {
        let sql = "select kind from token where hash = $1 and revoked_at is null";
        match self.query_one(sql, values![hash])? {
            Some(_) => Ok(()),
            None => Err(Refusal::JoinTokenUsed.into()),
        }
    }

    /// A join token is good for one machine.
    pub(crate) fn use_join_token(&mut self, hash: SecretHash, now: Timestamp) -> Result<(), StoreError> {
        self.later("update token set revoked_at = $2 where hash = $1", values![hash, now])
    }

    /// Lets the secret of this hash stand for a subject.
    ///
    /// # Errors
    /// Only when the database fails.
    pub fn create_token(
        &mut self,
        hash: SecretHash,
        kind: SecretKind,
        subject: &Subject,
        role: Role,
        expires_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<(), Error> {
        self.later(
            "insert into token (hash, kind, subject, role, created_at, expires_at) values ($1, $2, $3, $4, $5, $6)",
            values![hash, kind.prefix(), subject, role.as_str(), now, expires_at],
        )?;
        Ok(())
    }
}
