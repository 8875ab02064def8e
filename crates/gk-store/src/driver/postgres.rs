//! PostgreSQL: a database across a network, shared with other servers.
//!
//! The client is asynchronous and the store is not, so each connection brings a runtime of its own, which runs only
//! while somebody waits for an answer. What is only *said* (see [`crate::driver`]) is kept back and sent in one flight with
//! the next question or the commit, because a round trip costs more than most statements; plain inserts into the same
//! table travel as one statement, with an array for each column.
//!
//! Promises: the server that is written to does not lose what it acknowledged (`fsync` and `synchronous_commit` are
//! looked at on every connection); a session that hangs with the writer's lock in its hands loses it within seconds;
//! a lost connection before the commit is [`StoreError::Away`], one during it [`StoreError::Unknown`].

mod failure;
mod said;
mod values;

use std::borrow::Cow;
use std::collections::HashMap;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use gk_model::time::Timestamp;
use tokio::runtime::Runtime;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Statement};

use crate::database_url::DatabaseUrl;
use crate::driver::postgres::failure::{describe, ends_connection, failure, out_of_reach};
use crate::driver::postgres::said::{Inserts, Said, of_arrays};
use crate::driver::postgres::values::{Column, check, read_rows, text_bytes};
use crate::driver::{Access, tls};
use crate::error::StoreError;
use crate::rows::Rows;
use crate::value::Value;

/// How long an answer may take before the connection counts as lost. Longer than what the server allows a statement.
const ANSWERING: Duration = Duration::from_secs(35);

/// For how long the server certainly keeps a session that says nothing: well below what [`settings`] allow it.
const IDLE: Duration = Duration::from_secs(1);

/// How long getting a connection may take altogether.
const CONNECTING: Duration = Duration::from_secs(10);

/// The first version with `client_connection_check_interval`.
const OLDEST_VERSION: i64 = 140_000;

/// Texts of statements kept prepared; lists with other filters are other texts.
const MOST_PREPARED: usize = 512;

/// What may wait for the next flight, in rows and statements.
const MOST_UNSENT: usize = 4096;

/// The same in bytes of text: a value of PostgreSQL, and so an array, has at most 1 GiB.
const MOST_UNSENT_BYTES: usize = 16 << 20;

/// One connection.
pub(super) struct Postgres {
    client: Client,
    /// Taken only when dropped: a runtime that is simply dropped would block, which an asynchronous caller may not.
    runtime: Option<Runtime>,
    prepared: HashMap<String, Prepared>,
    said: Vec<Said>,
    /// How many times something was said since the last flight, and how many bytes of text with it.
    unsent: usize,
    unsent_bytes: usize,
    /// How long an answer may take.
    answering: Duration,
    /// When the latest one came.
    answered_at: Instant,
    /// Whether there is something to roll back.
    begun: bool,
    /// An answer never came: nothing that arrives from now on can be told apart from it.
    lost: bool,
}

/// What a text has become at the server.
struct Prepared {
    statement: Statement,
    /// The same insert for any number of rows, once there were several at a time.
    of_arrays: Option<Statement>,
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<Vec<tokio_postgres::Row>, tokio_postgres::Error>> + 'a>>;

/// Statements in the order in which they are sent.
type Flight<'a> = Vec<(Statement, Parameters<'a>)>;

/// What stands for `$1`, `$2`, ….
enum Parameters<'a> {
    Values(Cow<'a, [Value]>),
    Columns(Vec<Column>),
}

/// Which statement of a flight failed, and how; without an error no answer came in time.
struct Failed {
    index: usize,
    error: Option<tokio_postgres::Error>,
}

impl Postgres {
    pub(super) fn open(url: &DatabaseUrl, access: Access) -> Result<Postgres, StoreError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| StoreError::Away(format!("no runtime: {error}")))?;
        // The client library bounds the dialling only, not what a listener without a server behind it leaves out.
        let connecting = async { tokio::time::timeout(CONNECTING, connect(url)).await };
        let client = runtime.block_on(connecting).map_err(|_| StoreError::Away(describe(None)))??;
        let mut opened = Postgres {
            client,
            runtime: Some(runtime),
            prepared: HashMap::new(),
            said: Vec::new(),
            unsent: 0,
            unsent_bytes: 0,
            answering: ANSWERING,
            answered_at: Instant::now(),
            begun: false,
            lost: false,
        };
        opened.check_server()?;
        opened.wait(async |client| client.batch_execute(settings(access)).await)?;
        Ok(opened)
    }

    /// Refuses a server that may lose what it acknowledged, or that is too old.
    fn check_server(&mut self) -> Result<(), StoreError> {
        let sql = "select cast(current_setting('server_version_num') as bigint), current_setting('server_version'), \
                   current_setting('fsync'), current_setting('synchronous_commit'), current_setting('full_page_writes'), \
                   current_setting('server_encoding')";
        let row = self.query(sql, &[])?.first();
        let mut row = row.ok_or_else(|| StoreError::Away("it tells nothing of itself".to_owned()))?;
        let (number, version): (i64, String) = (row.take()?, row.take()?);
        if number < OLDEST_VERSION {
            return Err(StoreError::Unsuitable(format!(
                "PostgreSQL {version} is too old, it must be 14 or newer"
            )));
        }
        for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
            if row.take::<String>()? == "off" {
                return Err(StoreError::Unsuitable(format!(
                    "PostgreSQL has {setting} = off, and would lose acknowledged changes in a crash: switch it on"
                )));
            }
        }
        match row.take::<String>()?.as_str() {
            "UTF8" => Ok(()),
            other => Err(StoreError::Unsuitable(format!(
                "the database is for text in {other}, and names may hold other characters: make one with CREATE \
                 DATABASE … ENCODING 'UTF8' TEMPLATE template0"
            ))),
        }
    }

    /// For work on whole tables, beside which nobody waits for an answer.
    pub(super) fn take_all_time(&mut self) -> Result<(), StoreError> {
        self.answering = Duration::from_secs(7 * 86_400);
        let sql = "set statement_timeout = 0; set idle_in_transaction_session_timeout = 0";
        self.wait(async |client| client.batch_execute(sql).await)
    }

    /// Sent along with the first statement.
    pub(super) fn begin(&mut self, access: Access) -> Result<(), StoreError> {
        self.begun = true;
        let sql = match access {
            Access::Read => "begin isolation level repeatable read read only",
            Access::Write => "begin isolation level read committed",
        };
        self.later(sql, &[])
    }

    /// A statement that was refused has aborted the transaction, and `commit` then only ends it, without an error of its
    /// own; so what came before it is looked at first. A connection that breaks while `commit` is under way leaves open
    /// what became of it; a server that says that it ends the connection before that does not.
    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
        if self.answered_at.elapsed() > IDLE {
            // The server may have ended the session meanwhile. A commit would find that out too late to be certain.
            self.wait(async |client| client.batch_execute("").await)?;
        }
        // Not by `later`, which may send it at once: only here it is known what its failure means.
        self.say("commit", &[])?;
        let flight = self.load_flight()?;
        let last = flight.len() - 1;
        match self.send(&flight) {
            Ok(_) => {
                self.begun = false;
                Ok(())
            }
            Err(Failed { index, error: Some(error) })
                if error.as_db_error().is_some() && (index < last || !ends_connection(&error)) =>
            {
                Err(failure(&error))
            }
            Err(failed) => Err(StoreError::Unknown(describe(failed.error.as_ref()))),
        }
    }

    pub(super) fn rollback(&mut self) -> Result<(), StoreError> {
        self.forget_said();
        match std::mem::take(&mut self.begun) {
            true => self.wait(async |client| client.batch_execute("rollback").await),
            false => Ok(()),
        }
    }

    /// At once and in plain words: while a transaction is aborted, nothing else can even be prepared.
    pub(super) fn undo_to_savepoint(&mut self) -> Result<(), StoreError> {
        self.forget_said();
        let undo = "rollback to savepoint closure; release savepoint closure";
        self.wait(async |client| client.batch_execute(undo).await)
    }

    /// Everything that was said, and the question, in one flight.
    pub(super) fn query(&mut self, sql: &str, values: &[Value]) -> Result<Rows, StoreError> {
        let statement = self.prepare_for(sql, values)?;
        let mut flight = self.load_flight()?;
        flight.push((statement, Parameters::Values(Cow::Borrowed(values))));
        let rows = self.send(&flight).map_err(|failed| refused(&failed))?;
        read_rows(&rows)
    }

    pub(super) fn later(&mut self, sql: &str, values: &[Value]) -> Result<(), StoreError> {
        self.say(sql, values)?;
        // A copy of a whole database says much and asks nothing.
        if self.unsent >= MOST_UNSENT || self.unsent_bytes >= MOST_UNSENT_BYTES {
            self.settle()
        } else {
            Ok(())
        }
    }

    fn say(&mut self, sql: &str, values: &[Value]) -> Result<(), StoreError> {
        match self.find_rows(sql) {
            Some(rows) => {
                check(&rows.statement, values)?;
                rows.push(values);
            }
            None => {
                let statement = self.prepare_for(sql, values)?;
                self.said.push(Said::new(sql, statement, values));
            }
        }
        self.unsent += 1;
        self.unsent_bytes += text_bytes(values);
        Ok(())
    }

    /// The rows that another one for the same table may join. Inserts may change places among themselves (there are no
    /// foreign keys), and with nothing else.
    fn find_rows(&mut self, sql: &str) -> Option<&mut Inserts> {
        let latest = self.said.iter_mut().rev();
        let mut inserts = latest.map_while(|said| match said {
            Said::Inserts(rows) => Some(rows),
            Said::Statement(..) => None,
        });
        inserts.find(|rows| rows.sql == sql)
    }

    fn forget_said(&mut self) {
        self.said.clear();
        (self.unsent, self.unsent_bytes) = (0, 0);
    }

    pub(super) fn settle(&mut self) -> Result<(), StoreError> {
        let flight = self.load_flight()?;
        self.send(&flight).map(drop).map_err(|failed| refused(&failed))
    }

    /// A migration. Text is compared byte by byte, as in SQLite, whatever language the database was made for.
    pub(super) fn script(&mut self, sql: &str) -> Result<(), StoreError> {
        self.settle()?;
        let sql = sql.replace(" text", " text collate \"C\"");
        self.wait(async |client| client.batch_execute(&sql).await)
    }

    /// Refuses a database of ours that this account may not write to: each change would fail later.
    pub(super) fn adopt(&mut self) -> Result<(), StoreError> {
        let sql = "select cast(tablename as text) from pg_tables where schemaname = current_schema() \
                   and not (has_table_privilege(quote_ident(schemaname) || '.' || quote_ident(tablename), 'select') \
                   and has_table_privilege(quote_ident(schemaname) || '.' || quote_ident(tablename), 'insert') \
                   and has_table_privilege(quote_ident(schemaname) || '.' || quote_ident(tablename), 'update') \
                   and has_table_privilege(quote_ident(schemaname) || '.' || quote_ident(tablename), 'delete')) \
                   order by tablename limit 1";
        let Some(mut row) = self.query(sql, &[])?.first() else { return Ok(()) };
        let table: String = row.take()?;
        Err(StoreError::Unsuitable(format!(
            "this account may not write to its table {table}: let it own every table"
        )))
    }

    /// Those of the first schema of the search path, where new ones are made. If it has none, and a later one has ours,
    /// somebody has put a schema in front of it: what is there would seem lost.
    pub(super) fn list_tables(&mut self) -> Result<Vec<String>, StoreError> {
        let sql = "select cast(tablename as text) from pg_tables where schemaname = current_schema()";
        let tables: Vec<String> =
            self.query(sql, &[])?.into_iter().map(|mut row| row.take()).collect::<Result<_, _>>()?;
        if tables.is_empty() {
            self.check_search_path()?;
        }
        Ok(tables)
    }

    fn check_search_path(&mut self) -> Result<(), StoreError> {
        let sql = "select cast(schemaname as text), cast(current_schema() as text) from pg_tables \
                   where tablename = 'event_seq' and schemaname = any (current_schemas(false)) \
                   and schemaname <> current_schema() limit 1";
        let Some(mut row) = self.query(sql, &[])?.first() else { return Ok(()) };
        let (ours, first): (String, String) = (row.take()?, row.take()?);
        Err(StoreError::Unsuitable(format!(
            "Gatekeeper's tables are in the schema {ours}, and the empty schema {first} comes before it in the \
             search_path: drop {first}, or say which one with ?options=-c%20search_path%3D{ours}"
        )))
    }

    pub(super) fn clock(&mut self) -> Result<Timestamp, StoreError> {
        let sql = "select cast(extract(epoch from clock_timestamp()) * 1000000 as bigint)";
        let row = self.query(sql, &[])?.first();
        row.ok_or_else(|| StoreError::Away("it does not tell the time".to_owned()))?.take()
    }

    /// Turns what was said into prepared statements in the same order.
    fn load_flight<'a>(&mut self) -> Result<Flight<'a>, StoreError> {
        self.check_connection()?;
        (self.unsent, self.unsent_bytes) = (0, 0);
        let said = std::mem::take(&mut self.said).into_iter();
        said.map(|said| match said {
            Said::Statement(statement, values) => Ok((statement, Parameters::Values(Cow::Owned(values)))),
            Said::Inserts(rows) => Ok((self.prepare_rows(&rows)?, Parameters::Columns(rows.columns))),
        })
        .collect()
    }

    /// For values that are looked at before anything is sent: a flight never arrives without one of its statements.
    fn prepare_for(&mut self, sql: &str, values: &[Value]) -> Result<Statement, StoreError> {
        let statement = self.prepare(sql)?;
        check(&statement, values)?;
        Ok(statement)
    }

    fn prepare(&mut self, sql: &str) -> Result<Statement, StoreError> {
        if let Some(known) = self.prepared.get(sql) {
            return Ok(known.statement.clone());
        }
        let statement = self.wait(async |client| client.prepare(sql).await)?;
        if self.prepared.len() >= MOST_PREPARED {
            self.prepared.clear();
        }
        self.prepared.insert(sql.to_owned(), Prepared { statement: statement.clone(), of_arrays: None });
        Ok(statement)
    }

    fn prepare_rows(&mut self, rows: &Inserts) -> Result<Statement, StoreError> {
        if rows.is_single() {
            return Ok(rows.statement.clone());
        }
        if let Some(known) = self.prepared.get(&rows.sql).and_then(|known| known.of_arrays.as_ref()) {
            return Ok(known.clone());
        }
        let text = of_arrays(&rows.sql, rows.statement.params());
        let statement = self.wait(async |client| client.prepare(&text).await)?;
        // Kept as long as the insert that it was made of.
        if let Some(known) = self.prepared.get_mut(&rows.sql) {
            known.of_arrays = Some(statement.clone());
        }
        Ok(statement)
    }

    /// Sends a flight and waits for every answer; the rows are those of the last statement.
    fn send(&mut self, flight: &Flight<'_>) -> Result<Vec<tokio_postgres::Row>, Failed> {
        let client = &self.client;
        let answers = async {
            // Sent in this order, because each is polled for the first time in this order.
            let asked = flight.iter().map(|(statement, parameters)| ask(client, statement, parameters));
            let mut answers: FuturesOrdered<Answer<'_>> = asked.collect();
            let (mut index, mut rows) = (0, Vec::new());
            while let Some(answer) = answers.next().await {
                rows = answer.map_err(|error| Failed { index, error: Some(error) })?;
                index += 1;
            }
            Ok(rows)
        };
        let ended = self.runtime().block_on(async { tokio::time::timeout(self.answering, answers).await });
        self.answered_at = Instant::now();
        ended.unwrap_or_else(|_| {
            self.lost = true;
            Err(Failed { index: flight.len(), error: None })
        })
    }

    /// One exchange that is no flight.
    fn wait<T>(
        &mut self,
        work: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, StoreError> {
        self.check_connection()?;
        let client = &self.client;
        let ended =
            self.runtime().block_on(async { tokio::time::timeout(self.answering, work(client)).await });
        self.answered_at = Instant::now();
        match ended {
            Ok(answer) => answer.map_err(|error| failure(&error)),
            Err(_) => {
                self.lost = true;
                Err(StoreError::Away(describe(None)))
            }
        }
    }

    fn check_connection(&self) -> Result<(), StoreError> {
        match self.lost || self.client.is_closed() {
            true => Err(StoreError::Away(describe(None))),
            false => Ok(()),
        }
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("taken only when dropped")
    }
}

fn ask<'a>(client: &'a Client, statement: &'a Statement, parameters: &'a Parameters<'_>) -> Answer<'a> {
    let parameters: Vec<&(dyn ToSql + Sync)> = match parameters {
        Parameters::Values(values) => values.iter().map(|value| value as _).collect(),
        Parameters::Columns(columns) => columns.iter().map(|column| column as _).collect(),
    };
    Box::pin(async move { client.query(statement, &parameters).await })
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn connect(url: &DatabaseUrl) -> Result<Client, StoreError> {
    if url.needs_tls() {
        let (client, connection) = url
            .config()
            .connect(tls::connector(url.root_certificates())?)
            .await
            .map_err(|error| out_of_reach(&error))?;
        drive(connection);
        Ok(client)
    } else {
        let (client, connection) = url.config().connect(NoTls).await.map_err(|error| out_of_reach(&error))?;
        drive(connection);
        Ok(client)
    }
}

/// Lets a connection run beside its client. How it ended is told by the statement that noticed.
fn drive(connection: impl Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static) {
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = describe(Some(&error)), "a connection to PostgreSQL ended");
        }
    });
}

/// A server of ours that hangs between two statements keeps the writer's lock for no longer than the first of these; the
/// others wait for it a little longer than that. One that is gone is noticed even while a statement of its runs.
fn settings(access: Access) -> &'static str {
    match access {
        Access::Write => {
            "set idle_in_transaction_session_timeout = '5s'; set lock_timeout = '10s'; set statement_timeout = '30s'; \
             set client_connection_check_interval = '2s'; set client_min_messages = warning"
        }
        Access::Read => {
            "set idle_in_transaction_session_timeout = '60s'; set statement_timeout = '30s'; \
             set client_connection_check_interval = '2s'; set client_min_messages = warning"
        }
    }
}

fn refused(failed: &Failed) -> StoreError {
    match &failed.error {
        Some(error) => failure(error),
        None => StoreError::Away(describe(None)),
    }
}
