//! `gkctl token create`, `list` and `revoke`.
//!
//! A secret is made here, and only its hash is sent: so the request may be sent again when its answer is lost, and
//! nothing between here and the database ever holds the secret. It goes to stdout alone, once.

use anyhow::Result;
use gk_client::identity::generate_secret;
use gk_client::{Client, ClientError};
use gk_model::id::TokenId;
use gk_model::query::TokenQuery;
use gk_model::text::PoolName;
use gk_model::time::{Timestamp, span_in_words};
use gk_model::token::{CreatedToken, JoinTerms, Limits, Token, TokenKind, TokenRequest};

use crate::args::{CreateToken, Format, RevokeTokens, TokenFilters};
use crate::context::{Context, collect, note};
use crate::error::{Exit, Failure};
use crate::invitation;
use crate::output::{Column, List, Tint, age, exact, or_dash, print, print_json};

/// So much of an id is its time to the millisecond: enough to tell tokens apart, and to be typed.
const SHORT_ID: usize = 13;

/// Whether it ended comes last, so that it can be left out.
const COLUMNS: [Column<Token>; 9] = [
    Column::new("ID", |token: &Token| token.id.to_string()).shown_as(|token, _| short(token.id)),
    Column::new("KIND", |token: &Token| token.kind.to_string()),
    Column::new("SUBJECT", |token: &Token| token.subject.to_string()),
    Column::new("ROLE", |token: &Token| exact(token.role)).shown_as(|token, _| or_dash(token.role)),
    Column::new("LIMITS", |token: &Token| exact(limits(token))).shown_as(|token, _| or_dash(limits(token))),
    Column::new("NOTE", |token: &Token| exact(token.note.as_ref()))
        .shown_as(|token, _| or_dash(token.note.as_ref())),
    Column::new("EXPIRES", |token: &Token| exact(token.expires_at)).shown_as(|token, context| {
        token.expires_at.map_or_else(|| "never".to_owned(), |end| age::around(end, context.now))
    }),
    Column::new("LAST USED", |token: &Token| exact(token.last_used_at)).shown_as(|token, context| {
        token.last_used_at.map_or_else(|| "never".to_owned(), |used| age::ago(used, context.now))
    }),
    Column::new("ENDED", |token: &Token| exact(token.revoked_at)).shown_as(ended).tinted(tint),
];

/// Makes a token and prints its secret.
pub(crate) fn create(context: &Context, wanted: &CreateToken) -> Result<()> {
    let request = request(wanted)?;
    let secret = generate_secret(request.kind.into());
    let client = context.client()?;
    let CreatedToken { token, .. } =
        client.create_token(&TokenRequest { hash: Some(secret.hash()), ..request })?;
    for line in explain(&token, &client, context.now) {
        note(line);
    }
    if context.format() == Format::Json {
        return Ok(print_json(&CreatedToken { token, secret: Some(secret.reveal().to_owned()) })?);
    }
    Ok(print(&format!("{}\n", secret.reveal()))?)
}

fn request(wanted: &CreateToken) -> Result<TokenRequest, Failure> {
    let usage = |error: &dyn ToString| Failure::new(Exit::Usage, error.to_string());
    let labels = wanted.labels.clone().try_into().map_err(|error| usage(&error))?;
    let terms = JoinTerms { reusable: wanted.reusable, labels, forget_after_seconds: wanted.forget_after };
    let limits = Limits {
        instances: wanted.limit_instances.clone(),
        pools: wanted.limit_pools.iter().cloned().collect(),
    };
    let request = TokenRequest {
        kind: if wanted.join { TokenKind::Join } else { TokenKind::Subject },
        subject: wanted.subject.clone(),
        role: wanted.role,
        limits,
        join: wanted.join.then_some(terms),
        note: wanted.note.clone(),
        ttl_seconds: wanted.ttl,
        hash: None,
    };
    request.check().map_err(|contradiction| usage(&contradiction.what))?;
    Ok(request)
}

/// What it is and how to use it, for stderr.
fn explain(token: &Token, client: &Client, now: Timestamp) -> Vec<String> {
    let mut lines = vec![made(token, now)];
    match token.kind {
        TokenKind::Join => lines.extend(invitation::commands(client)),
        TokenKind::Subject => lines.extend([
            "The secret is shown this once. Whoever uses it:".to_owned(),
            format!("  gkctl login --server {}", invitation::address(client)),
            "or, for one command, puts it into GATEKEEPER_TOKEN or into a file for --token-file.".to_owned(),
        ]),
    }
    lines
}

/// `made token 0190163d-8694 of ci (user), limited to instances env=dev; it ends in 90d`.
fn made(token: &Token, now: Timestamp) -> String {
    let ends = match token.expires_at {
        Some(end) => format!("ends {}", age::around(end, now)),
        None => "lasts until it is revoked".to_owned(),
    };
    format!("made {}; it {ends}", named(token))
}

/// `token 0190163d-8694 of ci (user), limited to instances env=dev`.
fn named(token: &Token) -> String {
    let who = match token.role {
        Some(role) => format!("token {} of {} ({role})", short(token.id), token.subject),
        None => format!("join token {}", short(token.id)),
    };
    match (token.kind, limits(token)) {
        (_, None) => who,
        (TokenKind::Subject, Some(limits)) => format!("{who}, limited to {limits}"),
        (TokenKind::Join, Some(terms)) => format!("{who} for {terms}"),
    }
}

/// What it may not, or how machines join with it.
fn limits(token: &Token) -> Option<String> {
    match &token.join {
        Some(terms) => Some(describe_terms(terms)),
        None => (!token.limits.is_none()).then(|| describe_limits(&token.limits)),
    }
}

/// `instances env=dev, pools a b`.
pub(crate) fn describe_limits(limits: &Limits) -> String {
    let instances = limits.instances.as_ref().map(|selector| format!("instances {selector}"));
    let pools: Vec<&str> = limits.pools.iter().map(PoolName::as_str).collect();
    let what = if pools.len() == 1 { "pool" } else { "pools" };
    let pools = (!pools.is_empty()).then(|| format!("{what} {}", pools.join(" ")));
    [instances, pools].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// `any number of machines, labelled env=prod, forgotten after 7d`.
fn describe_terms(terms: &JoinTerms) -> String {
    let how_many = if terms.reusable { "any number of machines" } else { "one machine" };
    let labels = (!terms.labels.is_empty()).then(|| format!(", labelled {}", terms.labels));
    let forgotten = terms
        .forget_after_seconds
        .map(|span| format!(", forgotten after {}", span_in_words(span.duration())));
    format!("{how_many}{}{}", labels.unwrap_or_default(), forgotten.unwrap_or_default())
}

/// Lists tokens.
pub(crate) fn list(context: &Context, wanted: &TokenFilters) -> Result<()> {
    let client = context.client()?;
    let tokens = collect(None, |cursor, limit| {
        client.list_tokens(&TokenQuery {
            kind: wanted.kind,
            subject: wanted.subject.clone(),
            ended: Some(wanted.ended),
            cursor,
            limit,
        })
    })?;
    let list = List {
        columns: if wanted.ended { &COLUMNS } else { &COLUMNS[..COLUMNS.len() - 1] },
        name: |token| token.id.to_string(),
        when_empty: "No token matches. Make one with `gkctl token create`.",
    };
    Ok(list.print(context, &tokens)?)
}

/// What a table shows of an id, and what is enough to type.
pub(crate) fn short(id: TokenId) -> String {
    id.to_string().chars().take(SHORT_ID).collect()
}

fn ended(token: &Token, context: &Context) -> String {
    match token.revoked_at {
        Some(at) => age::ago(at, context.now),
        None if token.is_live(context.now) => "-".to_owned(),
        None => "expired".to_owned(),
    }
}

fn tint(token: &Token) -> Tint {
    if token.revoked_at.is_some() { Tint::Odd } else { Tint::Plain }
}

/// Ends tokens. Which ones is settled before the first of them ends.
pub(crate) fn revoke(context: &Context, wanted: &RevokeTokens) -> Result<()> {
    let client = context.client()?;
    let mut found = Vec::new();
    for id in &wanted.ids {
        let id = find(&client, id.as_str())?;
        if !found.contains(&id) {
            found.push(id);
        }
    }
    let mut ended = Vec::new();
    for id in found {
        let token = client.revoke_token(id)?;
        note(format_args!("ended {}", named(&token)));
        ended.push(token);
    }
    match context.format() {
        Format::Json => Ok(print_json(&ended)?),
        Format::Table | Format::Csv | Format::Name => Ok(()),
    }
}

/// The token whose id begins so. A whole id need not be looked up.
fn find(client: &Client, prefix: &str) -> Result<TokenId> {
    if let Ok(id) = prefix.parse() {
        return Ok(id);
    }
    let (live, all) = (all(client, false)?, || all(client, true));
    match pick(prefix, &live)? {
        Some(token) => Ok(token.id),
        None => match pick(prefix, &all()?)? {
            Some(token) => {
                Err(Failure::new(Exit::NotFound, format!("{} has ended before", named(token))).into())
            }
            None => {
                Err(Failure::new(Exit::NotFound, format!("there is no token whose id begins with {prefix}"))
                    .hint("see which there are with: gkctl token list")
                    .into())
            }
        },
    }
}

fn all(client: &Client, ended: bool) -> Result<Vec<Token>, ClientError> {
    collect(None, |cursor, limit| {
        client.list_tokens(&TokenQuery { ended: Some(ended), cursor, limit, ..TokenQuery::default() })
    })
}

fn pick<'a>(prefix: &str, tokens: &'a [Token]) -> Result<Option<&'a Token>, Failure> {
    let matching: Vec<&Token> =
        tokens.iter().filter(|token| token.id.to_string().starts_with(prefix)).collect();
    match matching.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        several => {
            let ids: Vec<String> = several.iter().take(5).map(|token| token.id.to_string()).collect();
            Err(Failure::new(
                Exit::Conflict,
                format!("the ids of {} tokens begin with {prefix}", several.len()),
            )
            .hint(format!("write more of it: {}", ids.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000_000;

    fn token(id: &str, json: &str) -> Token {
        let rest: serde_json::Value = serde_json::from_str(json).unwrap();
        let mut token = serde_json::json!({
            "id": id, "kind": "subject", "subject": "ci", "role": "user", "limits": {}, "created_by": "ada",
            "created_at": Timestamp::from_micros(NOW),
        });
        token.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        serde_json::from_value(token).unwrap()
    }

    const ONE: &str = "018bcfe5-6800-7000-8000-000000000001";
    const OTHER: &str = "018bcfe5-6801-7000-8000-000000000002";

    #[test]
    fn what_was_made_is_told_in_a_line() {
        let now = Timestamp::from_micros(NOW);
        let table = [
            ("{}", "made token 018bcfe5-6800 of ci (user); it lasts until it is revoked"),
            (
                r#"{"limits":{"instances":"env=dev","pools":["a"]},"expires_at":"2024-02-12T22:13:20Z"}"#,
                "made token 018bcfe5-6800 of ci (user), limited to instances env=dev, pool a; it ends in 90d",
            ),
            (
                r#"{"kind":"join","role":null,"join":{},"expires_at":"2023-11-14T23:13:20Z"}"#,
                "made join token 018bcfe5-6800 for one machine; it ends in 1h",
            ),
            (
                r#"{"kind":"join","role":null,"join":{"reusable":true,"labels":{"env":"prod"},
                    "forget_after_seconds":604800}}"#,
                "made join token 018bcfe5-6800 for any number of machines, labelled env=prod, forgotten after 7d; it \
                 lasts until it is revoked",
            ),
        ];
        for (json, said) in table {
            assert_eq!(made(&token(ONE, json), now), said);
        }
    }

    #[test]
    fn an_id_is_found_by_its_beginning_when_no_other_begins_so() {
        let tokens = [token(ONE, "{}"), token(OTHER, "{}")];
        let found = |prefix| pick(prefix, &tokens).map(|token| token.map(|token| token.id.to_string()));
        assert_eq!(found("018bcfe5-6800").unwrap().as_deref(), Some(ONE));
        assert_eq!(found(OTHER).unwrap().as_deref(), Some(OTHER));
        assert_eq!(found("018c").unwrap(), None);
        let several = found("018bcfe5").unwrap_err();
        assert_eq!(several.exit, Exit::Conflict);
        assert!(several.hint.unwrap().contains(ONE));
    }
}
