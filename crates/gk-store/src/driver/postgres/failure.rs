//! What the failures of PostgreSQL and of its client library mean, and what can be done about them.

use tokio_postgres::error::SqlState;

use crate::error::StoreError;

/// Whether the server ended the connection along with saying so.
pub(super) fn ends_connection(error: &tokio_postgres::Error) -> bool {
    let code = error.code().map_or("", SqlState::code);
    code.starts_with("08")
        || code.starts_with("57P")
        // Timeouts of a session; the client library does not know all of them by name yet.
        || code.starts_with("25P0") && code != SqlState::IN_FAILED_SQL_TRANSACTION.code()
}

/// What a failure before or instead of a commit means: nothing was stored, and either it can be tried again or not.
pub(super) fn failure(error: &tokio_postgres::Error) -> StoreError {
    let text = advised(describe(Some(error)), error.code());
    match error.code() {
        Some(code) if *code == SqlState::DISK_FULL => StoreError::DiskFull,
        Some(code) if ends_connection(error) || may_be_tried_again(code) => StoreError::Away(text),
        None if error.is_closed() || is_io(error) => StoreError::Away(text),
        // Also what our own side refused to send or could not read: that is a fault of a statement.
        _ => StoreError::Database(text),
    }
}

/// Another server held what we needed, there are too many connections, nobody is let in, or this is a standby.
fn may_be_tried_again(code: &SqlState) -> bool {
    let tried_again = [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::QUERY_CANCELED,
        SqlState::READ_ONLY_SQL_TRANSACTION,
        SqlState::UNDEFINED_DATABASE,
    ];
    tried_again.contains(code) || code.code().starts_with("53") || code.code().starts_with("28")
}

/// A connection that could not be made: nothing happened, whatever the reason.
pub(super) fn out_of_reach(error: &tokio_postgres::Error) -> StoreError {
    StoreError::Away(advised(describe(Some(error)), error.code()))
}

/// The text, and what whoever reads it can do about it.
fn advised(text: String, code: Option<&SqlState>) -> String {
    let by_text = || BY_TEXT.iter().find(|(part, _)| text.contains(part)).map(|(_, advice)| *advice);
    let by_code =
        |code: &SqlState| BY_CODE.iter().find(|(known, _)| known == code).map(|(_, advice)| *advice);
    match code.map_or_else(by_text, by_code) {
        Some(advice) => format!("{text}: {advice}"),
        None => text,
    }
}

const BY_CODE: &[(SqlState, &str)] = &[
    (SqlState::INVALID_PASSWORD, PASSWORD),
    (
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        "name an account that exists and that pg_hba.conf lets in, as postgres://USER@HOST/NAME",
    ),
    (SqlState::UNDEFINED_DATABASE, "make it with CREATE DATABASE, or name another one"),
    (
        SqlState::INSUFFICIENT_PRIVILEGE,
        "let Gatekeeper's account own the database, or a schema in its search_path and every table in it",
    ),
    (
        SqlState::INVALID_SCHEMA_NAME,
        "the search_path of this account names no schema that it may use: make one, or change the path",
    ),
    (
        SqlState::TOO_MANY_CONNECTIONS,
        "raise max_connections, or the limit of this account or database; a server uses up to 17",
    ),
    (SqlState::READ_ONLY_SQL_TRANSACTION, READ_ONLY),
];

const BY_TEXT: &[(&str, &str)] = &[
    ("password missing", PASSWORD),
    ("does not allow writes", READ_ONLY),
    ("server does not support TLS", "switch on ssl in postgresql.conf"),
    ("UnknownIssuer", "name the file with the certificate of its issuer as ?sslrootcert=FILE"),
    ("NotValidForName", "the host in the address must be one that the certificate is for"),
    ("not valid for name", "the host in the address must be one that the certificate is for"),
    ("os error 2)", "is PostgreSQL running, and its socket in that directory?"),
    ("onnection refused", "is PostgreSQL running, and listening there?"),
];

const PASSWORD: &str = "put the whole address with the right password into DATABASE_URL";

const READ_ONLY: &str = "it is a standby, or set to read-only: name the primary";

fn is_io(error: &tokio_postgres::Error) -> bool {
    let source = std::error::Error::source(error);
    error.to_string().contains("connect") || source.is_some_and(<dyn std::error::Error>::is::<std::io::Error>)
}

/// The whole chain in one line. Never a password: the client library keeps it out of its errors.
pub(super) fn describe(error: Option<&tokio_postgres::Error>) -> String {
    let Some(error) = error else { return "no answer came".to_owned() };
    if let Some(said) = error.as_db_error() {
        return format!("{} ({})", said.message(), said.code().code());
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(deeper) = source {
        text = format!("{text}: {deeper}");
        source = deeper.source();
    }
    text
}
