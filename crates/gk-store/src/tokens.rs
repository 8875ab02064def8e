//! Tokens: who a secret stands for. Only hashes are here.

use gk_model::access::{Actor, Authority, Role};
use gk_model::history::EventKind;
use gk_model::id::{InstanceId, TokenId};
use gk_model::labels::Labels;
use gk_model::query::{Page, TokenQuery};
use gk_model::secret::SecretHash;
use gk_model::text::Subject;
use gk_model::time::Timestamp;
use gk_model::token::{JoinTerms, Limits, Token, TokenKind, TokenLife, TokenRequest};

use crate::beats::BeatChange;
use crate::error::{Error, Refusal, StoreError};
use crate::limits::check_unlimited;
use crate::page::{self, Filters};
use crate::rows::Row;
use crate::tx::{Reader, Tx};
use crate::value::{Json, values};

const SELECT: &str = "select id, kind, subject, role, limits, reusable, labels, forget_after, note, created_at, \
                      created_by, expires_at, last_used_at, revoked_at from token";

/// Who comes with a secret, and until when.
pub(crate) struct Known {
    pub(crate) actor: Actor,
    pub(crate) expires_at: Option<Timestamp>,
}

impl Reader<'_> {
    /// Who comes with the secret of this hash: an instance that has not left, or a token that is neither revoked nor
    /// expired at `now`.
    pub(crate) fn find_known(
        &mut self,
        hash: SecretHash,
        now: Timestamp,
    ) -> Result<Option<Known>, StoreError> {
        let instance = "select id, subject, null from instance where credential = $1 and left_at is null";
        let previous = "select id, subject, previous_until from instance \
                        where previous_credential = $1 and previous_until > $2 and left_at is null";
        let found = match self.query_one(instance, values![hash])? {
            Some(row) => Some(row),
            None => self.query_one(previous, values![hash, now])?,
        };
        if let Some(mut row) = found {
            let own: InstanceId = row.take()?;
            let actor = Actor::new(row.take()?, Authority::Instance(own, hash));
            return Ok(Some(Known { actor, expires_at: row.take()? }));
        }
        let token = "select id, kind, subject, role, limits, expires_at from token \
                     where hash = $1 and revoked_at is null and (expires_at is null or expires_at > $2)";
        let Some(mut row) = self.query_one(token, values![hash, now])? else { return Ok(None) };
        let (id, kind): (TokenId, TokenKind) = (row.take()?, row.take()?);
        let (subject, role): (Subject, Role) = (row.take()?, row.take()?);
        let limits = read_limits(&mut row)?;
        let authority = match kind {
            TokenKind::Join => Authority::Join(hash),
            TokenKind::Subject => Authority::Role(role),
        };
        let limits = (!limits.is_none()).then(|| limits.into());
        let actor = Actor { limits, token: Some(id), ..Actor::new(subject, authority) };
        Ok(Some(Known { actor, expires_at: row.take()? }))
    }

    /// Tokens, newest first; those that have ended only when asked for. Without `all`, join tokens only.
    ///
    /// # Errors
    /// [`Refusal::BadCursor`].
    pub fn list_tokens(
        &mut self,
        query: &TokenQuery,
        all: bool,
        now: Timestamp,
    ) -> Result<Page<Token>, Error> {
        let before = query.cursor.as_deref().map(page::part::<TokenId>).transpose()?;
        let is_live = "revoked_at is null and (expires_at is null or expires_at > $?)";
        let filters = Filters::new("id is not null", &[])
            .and("id < $?", before)
            .and("kind = $?", query.kind)
            .and("kind = $?", (!all).then_some(TokenKind::Join))
            .and("subject = $?", query.subject.as_ref())
            .and(is_live, (query.ended != Some(true)).then_some(now));
        let (sql, values) = filters.finish(SELECT, "id desc", query.limit());
        let rows = self.query(&sql, &values)?;
        page::page(rows, query.limit(), |row| self.read_token(row), |last| page::cursor(&[&last.id]))
    }

    /// One token, ended or not.
    ///
    /// # Errors
    /// [`Refusal::NoSuchToken`].
    pub fn get_token(&mut self, id: TokenId) -> Result<Token, Error> {
        let row = self.query_one(&format!("{SELECT} where id = $1"), values![id])?;
        let row = row.ok_or(Refusal::NoSuchToken(id))?;
        Ok(self.read_token(row)?)
    }

    fn read_token(&self, mut row: Row) -> Result<Token, StoreError> {
        let (id, kind): (TokenId, TokenKind) = (row.take()?, row.take()?);
        let (subject, role): (Subject, Role) = (row.take()?, row.take()?);
        let limits = read_limits(&mut row)?;
        let terms = read_terms(&mut row)?;
        let (note, created_at) = (row.take()?, row.take()?);
        let (created_by, expires_at) = (row.take()?, row.take()?);
        let last_used_at = row.take::<Option<Timestamp>>()?.max(self.shared.door.last_use(id));
        Ok(Token {
            id,
            kind,
            subject,
            role: (kind == TokenKind::Subject).then_some(role),
            limits,
            join: (kind == TokenKind::Join).then_some(terms),
            note,
            created_at,
            created_by,
            expires_at,
            last_used_at,
            revoked_at: row.take()?,
        })
    }
}

fn read_limits(row: &mut Row) -> Result<Limits, StoreError> {
    Ok(row.take::<Option<Json<Limits>>>()?.map_or_else(Limits::default, |Json(limits)| limits))
}

fn read_terms(row: &mut Row) -> Result<JoinTerms, StoreError> {
    let reusable = row.take()?;
    let labels = row.take::<Option<Json<Labels>>>()?.map_or_else(Labels::default, |Json(labels)| labels);
    Ok(JoinTerms { reusable, labels, forget_after_seconds: row.take()? })
}

impl Tx<'_> {
    /// Checks a join token again, under the writer's lock: another machine may have used it since it was looked up.
    /// Answers how it lets machines join.
    pub(crate) fn get_join_terms(&mut self, hash: SecretHash) -> Result<JoinTerms, Error> {
        let sql = "select reusable, labels, forget_after from token where hash = $1 and revoked_at is null";
        let mut row = self.query_one(sql, values![hash])?.ok_or(Refusal::JoinTokenUsed)?;
        Ok(read_terms(&mut row)?)
    }

    /// A join token is good for one machine, unless it is reusable.
    pub(crate) fn use_join_token(&mut self, hash: SecretHash, now: Timestamp) -> Result<(), StoreError> {
        let sql = "update token set revoked_at = $2 where hash = $1 and reusable = 0 returning id";
        if let Some(mut row) = self.query_one(sql, values![hash, now])? {
            self.beats.push(BeatChange::Revoked(row.take()?));
        }
        Ok(())
    }

    /// Lets the secret of this hash stand for what the request says.
    ///
    /// # Errors
    /// [`Refusal::Contradiction`]; [`Refusal::BeyondLimits`] when the actor itself is limited. That the secret is new is
    /// for [`Tx::check_new_secret`] to say.
    pub fn create_token(
        &mut self,
        actor: &Actor,
        hash: SecretHash,
        request: &TokenRequest,
        now: Timestamp,
    ) -> Result<Token, Error> {
        request.check().map_err(Refusal::Contradiction)?;
        check_unlimited(actor, "makes no tokens")?;
        let token = new_token(actor, request, now);
        self.insert_token(hash, &token)?;
        let message = format!("{} made by {}", token.describe(), actor.subject);
        self.record_change(EventKind::TokenCreated, actor, message, now)?;
        Ok(token)
    }

    /// Refuses the secret of a client that stands for something already.
    ///
    /// # Errors
    /// [`Refusal::SecretTaken`].
    pub fn check_new_secret(&mut self, hash: SecretHash) -> Result<(), Error> {
        let token = self.query_one("select id from token where hash = $1", values![hash])?;
        match token.is_some() || self.find_by_credential(hash)?.is_some() {
            true => Err(Refusal::SecretTaken.into()),
            false => Ok(()),
        }
    }

    fn insert_token(&mut self, hash: SecretHash, token: &Token) -> Result<(), StoreError> {
        let terms = token.join.clone().unwrap_or_default();
        self.later(
            "insert into token (hash, id, kind, subject, role, limits, reusable, labels, forget_after, note, \
             created_at, created_by, expires_at) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
            values![
                hash,
                token.id,
                token.kind,
                &token.subject,
                // That of a join token counts for nothing.
                token.role.unwrap_or(Role::Viewer),
                Json(&token.limits),
                terms.reusable,
                Json(&terms.labels),
                terms.forget_after_seconds,
                token.note.as_ref(),
                token.created_at,
                &token.created_by,
                token.expires_at,
            ],
        )
    }

    /// Ends a token. Whoever uses it is refused from the next request on.
    ///
    /// # Errors
    /// [`Refusal::NoSuchToken`], also for what the actor may not see: an operator sees join tokens only;
    /// [`Refusal::TokenEnded`]; [`Refusal::BeyondLimits`] when the actor itself is limited: whom a token would let in,
    /// no limit of the actor says.
    pub fn revoke_token(&mut self, actor: &Actor, id: TokenId, now: Timestamp) -> Result<Token, Error> {
        let token = self.get_token(id)?;
        if !may_see(actor, token.kind) {
            return Err(Refusal::NoSuchToken(id).into());
        }
        check_unlimited(actor, "ends no tokens")?;
        if !token.is_live(now) {
            return Err(Refusal::TokenEnded(id).into());
        }
        self.later("update token set revoked_at = $2 where id = $1", values![id, now])?;
        self.beats.push(BeatChange::Revoked(id));
        let message = format!("{} revoked by {}", token.describe(), actor.subject);
        self.record_change(EventKind::TokenRevoked, actor, message, now)?;
        Ok(Token { revoked_at: Some(now), ..token })
    }

    /// Writes down when tokens were last used.
    pub(crate) fn update_last_uses(&mut self, uses: &[(TokenId, Timestamp)]) -> Result<(), Error> {
        for (id, at) in uses {
            self.later(
                "update token set last_used_at = $2 where id = $1 and coalesce(last_used_at, 0) < $2",
                values![*id, *at],
            )?;
        }
        Ok(())
    }
}

/// Whether an actor that may deal with tokens may with those of this kind.
pub fn may_see(actor: &Actor, kind: TokenKind) -> bool {
    kind == TokenKind::Join || matches!(actor.authority, Authority::Role(Role::Admin))
}

fn new_token(actor: &Actor, request: &TokenRequest, now: Timestamp) -> Token {
    let default_life = (request.kind == TokenKind::Join).then_some(TokenRequest::JOIN_LASTS);
    let life = request.ttl_seconds.map(TokenLife::duration).or(default_life);
    Token {
        id: TokenId::generate(now),
        kind: request.kind,
        subject: request.subject.clone().unwrap_or_else(|| actor.subject.clone()),
        role: request.role,
        limits: request.limits.clone(),
        join: (request.kind == TokenKind::Join).then(|| request.join.clone().unwrap_or_default()),
        note: request.note.clone(),
        created_at: now,
        created_by: actor.subject.clone(),
        expires_at: life.map(|life| now.plus(life)),
        last_used_at: None,
        revoked_at: None,
    }
}
