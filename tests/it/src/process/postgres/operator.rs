//! A database that is set up wrongly or oddly, and the commands that work on it as a whole, used in every wrong way.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use gk_model::history::Event;
use gk_model::problem::Code;
use gk_model::query::{EventQuery, InstanceQuery, Limit, Page};
use gk_model::reservation::{Reservation, ReserveRequest};

use crate::cluster::{self, Cluster};
use crate::process::crash::{join, kill};
use crate::process::harness::{
    Place, Process, Server, error_of, gatekeeper, refusal_of, reserve, stdout, wait_for,
};

/// What the server says when it is started on the address in its environment.
fn refused(data: &Path, url: &str) -> String {
    let error = refusal_of(gatekeeper("server", data, None).env("DATABASE_URL", url));
    assert!(!error.contains("sesame"), "{error}");
    error
}

fn schema_of(url: &str) -> &str {
    url.rsplit("%3D").next().unwrap()
}

/// A cluster of its own, which asks everybody but the administrator for a password.
fn strict() -> Cluster {
    let cluster = Cluster::prepare(cluster::in_memory(), &[]);
    let rules = "local all ada scram-sha-256\nlocal all all trust\n";
    std::fs::write(cluster.directory().join("data/pg_hba.conf"), rules).unwrap();
    cluster.serving()
}

#[test]
fn a_database_that_cannot_be_used_is_refused_with_what_to_do() {
    let (place, cluster) = (Place::new(), strict());
    cluster.ask("create role ada login password 'sesame'");
    cluster.ask("create role eve login");
    cluster.ask("create schema eve");
    cluster.ask("grant usage on schema eve to eve");
    cluster.ask("create database latin encoding 'LATIN1' template template0");
    let socket = cluster.directory().display().to_string();
    let at = |user: &str, name: &str, more: &str| format!("postgres://{user}@/{name}?host={socket}{more}");
    let path = "&options=-c%20search_path%3D";
    // (the address, what is said of it)
    let table = [
        (
            at("ada:sesame2", "postgres", ""),
            "authentication failed for user \"ada\" (28P01): put the whole address",
        ),
        (at("ada", "postgres", ""), "password missing: put the whole address with the right password"),
        (at("bob", "postgres", ""), "role \"bob\" does not exist (28000): name an account"),
        (
            at("eve", "nowhere", ""),
            "database \"nowhere\" does not exist (3D000): make it with CREATE DATABASE",
        ),
        (at("eve", "postgres", ""), "permission denied for schema eve (42501): let Gatekeeper's account own"),
        (at("eve", "postgres", &format!("{path}nowhere")), "(3F000): the search_path of this account"),
        (at("eve", "postgres", "&options=-c%20default_transaction_read_only%3Don"), "name the primary"),
        (at("eve", "latin", ""), "is for text in LATIN1, and names may hold other characters: make one with"),
        (at("eve", "postgres", "&sslmode=require"), "server does not support TLS: switch on ssl"),
        ("postgres://eve@/postgres?host=/nowhere".to_owned(), "is PostgreSQL running, and its socket"),
        ("postgres://eve@127.0.0.1:1/postgres".to_owned(), "is PostgreSQL running, and listening there?"),
        (
            at("eve", "postgres", "&schema=public"),
            "DATABASE_URL of the environment: the database's address cannot be read: unknown option `schema`",
        ),
    ];
    for (url, words) in table {
        let error = refused(&place.join("data"), &url);
        assert!(error.contains(words), "{url}\n{error}");
    }
    let word = "%C3%BC%20@%3A%2F%3F%23%25&%3D".replace('@', "%40").replace('&', "%26");
    cluster.ask("alter role ada password 'ü @:/?#%&='");
    cluster.ask("create schema ada authorization ada");
    let url = at(&format!("ada:{word}"), "postgres", "");
    let server = Server::start_with(&place.join("data"), "127.0.0.1:0", |command| {
        command.env("DATABASE_URL", &url);
    });
    join(&server.admin(), "web-1", 1);
    assert_eq!(cluster.ask("select count(*) from ada.instance"), "1");
    assert!(!server.process.log().contains("?#%"), "the password is in the log");
}

#[test]
fn a_schema_that_comes_before_ours_hides_nothing() {
    let (place, cluster) = (Place::new(), cluster::shared());
    let (url, front) = (cluster.create_url(), cluster.create_url());
    join(&Server::start_on(&url, &place.join("data")).admin(), "web-1", 1);
    let both = url.replace(schema_of(&url), &format!("{},{}", schema_of(&front), schema_of(&url)));
    let error = refused(&place.join("data"), &both);
    let told = format!("Gatekeeper's tables are in the schema {}, and the empty schema", schema_of(&url));
    assert!(error.contains(&told) && error.contains("search_path"), "{error}");
    let tables = format!("select count(*) from pg_tables where schemaname = '{}'", schema_of(&front));
    assert_eq!(cluster.ask(&tables), "0", "nothing was made");
    // Behind ours, anything may be.
    let behind = url.replace(schema_of(&url), &format!("{},{}", schema_of(&url), schema_of(&front)));
    Server::start_on(&behind, &place.join("data")).verify();
}

#[test]
fn tables_that_may_only_be_read_are_refused_at_the_start() {
    let (place, cluster) = (Place::new(), cluster::shared());
    let url = cluster.create_url();
    let (schema, mallory) = (schema_of(&url), format!("mallory_{}", schema_of(&url)));
    drop(Server::start_on(&url, &place.join("data")));
    cluster.ask(&format!("create role {mallory} login"));
    cluster.ask(&format!("grant usage on schema {schema} to {mallory}"));
    cluster.ask(&format!("grant select on all tables in schema {schema} to {mallory}"));
    cluster.ask(&format!("grant insert, update, delete on all tables in schema {schema} to {mallory}"));
    cluster.ask(&format!("revoke insert on {schema}.claim from {mallory}"));
    let theirs = url.replace("//gatekeeper@", &format!("//{mallory}@"));
    let error = refused(&place.join("data"), &theirs);
    assert!(error.contains("this account may not write to its table claim: let it own"), "{error}");
    cluster.ask(&format!("grant insert on {schema}.claim to {mallory}"));
    let server = Server::start_on(&theirs, &place.join("data"));
    join(&server.admin(), "web-1", 1);
    drop(server);
    cluster.ask(&format!("drop owned by {mallory}"));
    cluster.ask(&format!("drop role {mallory}"));
}

#[test]
fn what_an_administrator_set_for_everybody_does_not_hinder() {
    let place = Place::new();
    let settings = [
        "max_connections=8",
        "idle_session_timeout=300ms",
        "idle_in_transaction_session_timeout=1ms",
        "default_transaction_isolation=serializable",
        "standard_conforming_strings=off",
        "datestyle=german",
        "lock_timeout=1ms",
    ];
    let cluster = Cluster::start(cluster::in_memory(), &settings);
    let server = Server::start_on(&cluster.create_url(), &place.join("data"));
    let client = server.admin().with_patience(Duration::ZERO);
    let instance = join(&client, "web-1", 1);
    // More readers than connections: some are put off, and none disturbs the writer.
    let made: Vec<Reservation> = std::thread::scope(|scope| {
        let read = || {
            for _ in 0..20 {
                if let Err(error) = client.list_instances(&InstanceQuery::default()) {
                    assert_eq!(error.problem().unwrap().code, Code::Unavailable, "{error:?}");
                }
            }
        };
        let readers: Vec<_> = (0..16).map(|_| scope.spawn(read)).collect();
        let made = (0..20).map(|_| reserve(&client, &ReserveRequest::next_free(instance)).unwrap()).collect();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        made
    });
    let mine = "select count(*) from pg_stat_activity where application_name = 'gatekeeper'";
    wait_for("the idle sessions to be ended", || {
        // The administrator may find every connection taken.
        let output = cluster.psql(mine);
        (output.stdout == b"0\n").then_some(())
    });
    assert_eq!(server.live(), made);
    reserve(&client, &ReserveRequest::next_free(instance)).expect("the writer has a new session");
    server.verify();
}

/// Everything that can be asked for, and what it was.
fn content(server: &Server) -> (Vec<Event>, Vec<Reservation>, Vec<gk_model::instance::Instance>) {
    let client = server.admin();
    let query = EventQuery { limit: Some(Limit::MAX), ..Default::default() };
    let events = gk_client::all_pages(|cursor| {
        client.list_events(&EventQuery { cursor, ..query.clone() }).map(Page::from)
    });
    let instances = client.list_instances(&InstanceQuery::default()).unwrap().items;
    (events.collect::<Result<_, _>>().unwrap(), server.live(), instances)
}

fn run(verb: &str, data: &Path, database: Option<&str>, file: &Path) -> Output {
    gatekeeper(verb, data, database).arg(file).output().unwrap()
}

#[test]
fn a_database_goes_from_sqlite_to_postgres_and_back_and_is_the_same() {
    let (place, cluster) = (Place::new(), cluster::shared());
    let (url, data) = (cluster.create_url(), place.join("data"));
    let server = Server::start(&data);
    let instance = join(&server.admin(), "web-1", 1);
    for number in 0..120 {
        let made = server.reserve(&ReserveRequest::next_free(instance)).unwrap();
        if number % 3 == 0 {
            server.admin().release(made.id, false).unwrap();
        }
    }
    let (first, second) = (place.join("first"), place.join("second"));
    let at = |name: &str| place.join(name);
    stdout(&run("backup", &data, None, &first));
    restore_after_a_kill(cluster, &url, &at("there"), &first);
    let there = Server::start_on(&url, &at("there"));
    assert_eq!(content(&there), content(&server));
    there.verify();

    // While a server runs on it, beside it, and again: in the way each time.
    let error = error_of(&run("restore", &at("there"), Some(&url), &first));
    assert!(error.contains("another server is using the data directory"), "{error}");
    let error = error_of(&run("restore", &at("beside"), Some(&url), &first));
    assert!(
        error.contains("is not empty (it has rows in ") && error.contains("an empty database"),
        "{error}"
    );
    let error = error_of(&run("backup", &at("beside"), Some(&url), &first));
    assert!(error.contains("exists: name a file that does not"), "{error}");
    let error = error_of(&run("backup", &at("beside"), Some(&cluster.create_url()), &second));
    assert!(error.contains("there is no Gatekeeper database at postgres://"), "{error}");
    let error = error_of(&run("restore", &at("beside"), Some(&url), &data.join("gatekeeper.db")));
    assert!(error.contains("is no backup made by"), "{error}");
    assert_eq!(content(&there), content(&server), "and nothing of it did harm");

    stdout(&run("backup", &at("beside"), Some(&url), &second));
    stdout(&run("restore", &at("back"), None, &second));
    let back = Server::start(&at("back"));
    assert_eq!(content(&back), content(&server));
    back.verify();
}

/// Kills a restore while it waits for a lock in the middle, and does it again.
fn restore_after_a_kill(cluster: &Cluster, url: &str, data: &Path, file: &Path) {
    drop(Server::start_on(url, data));
    let schema = schema_of(url);
    let mut session = cluster.begin_session(&format!("begin; lock table {schema}.event in share mode;\n"));
    let waits = |mode: &str| {
        let sql =
            format!("select 1 from pg_locks where relation = '{schema}.event'::regclass and {mode} limit 1");
        cluster.ask(&sql) == "1"
    };
    wait_for("the lock", || waits("granted").then_some(()));
    let mut restore = gatekeeper("restore", data, Some(url));
    let mut restore = Process::start(restore.arg(file), data.with_extension("restore"));
    wait_for("the restore to come so far", || {
        restore.assert_running();
        waits("not granted").then_some(())
    });
    kill(restore.id());
    drop(session.stdin.take());
    session.wait().unwrap();
    let verdict = stdout(&gatekeeper("verify", data, Some(url)).output().unwrap());
    assert!(!verdict.contains("WRONG"), "{verdict}");
    stdout(&run("restore", data, Some(url), file));
}
