//! `gkctl instance join`: brings this machine in, or refreshes what is known of it.
//!
//! The credential is made here; the server gets its hash, and the credential itself only when it may know it already. The state directory is tried
//! before the server hears anything, so that a machine does not join without being able to remember it. Nothing is
//! started; when no agent runs, this program sends one full report in its place, holding the agent's lock meanwhile.

use std::io;
use std::path::Path;

use anyhow::{Context as _, Error, Result};
use gk_client::identity::{prepare_state_dir, save_identity};
use gk_client::join::{JoinError, begin_join, finish_join};
use gk_client::lock::{self, AgentLock};
use gk_client::session::{FullReport, SavedSession, open_session, save_session};
use gk_client::{Client, ClientError, Joined, ServerAddress};
use gk_model::facts::Facts;
use gk_model::id::InstanceId;
use gk_model::identity::Identity;
use gk_model::instance::{Instance, JoinRequest};
use gk_model::labels::{Label, LabelError, Labels};
use gk_model::paths::IDENTITY_FILE;
use gk_model::problem::Code;
use gk_model::secret::{Secret, SecretHash};

use crate::args::{Format, Join};
use crate::connect::{Connection, How};
use crate::context::{Context, note};
use crate::error::{Exit, Failure};
use crate::label::{Change, relabel, told};
use crate::machine;
use crate::output::{print, print_json};
use crate::status::describe_agent;

/// What a join came to.
struct Outcome {
    instance: Instance,
    headline: String,
    /// Speaks as the instance.
    client: Client,
}

/// Joins or refreshes, reports when no agent does, and tells how things stand.
pub(crate) fn join(context: &Context, wanted: &Join) -> Result<()> {
    let refreshed = match (&context.machine.identity, &wanted.replace) {
        (Some(identity), None) => refresh(context, wanted, identity)?,
        _ => None,
    };
    let (outcome, state_dir) = match refreshed {
        Some(outcome) => (outcome, &context.machine.state_dir),
        None => (join_anew(context, wanted)?, &context.machine.own_dir),
    };
    let Outcome { instance, headline, client } = outcome;
    tell(context, &headline)?;
    let instance = add_labels(context, wanted, instance)?;
    if context.format() == Format::Json {
        print_json(&instance)?;
    }
    let running = report(context, &client, instance.id, state_dir)?;
    tell(context, &format!("agent: {}", describe_agent(Some(running), true)))?;
    if context.format() == Format::Name {
        print(&format!("{}\n", instance.name))?;
    }
    Ok(())
}

/// An instance that was there before keeps its labels, and gets those that were asked for. No machine labels itself, so
/// this takes the authority of whoever types, and none where nothing is missing.
fn add_labels(context: &Context, wanted: &Join, instance: Instance) -> Result<Instance> {
    let is_there = |label: &Label| instance.labels.get(&label.key) == Some(&label.value);
    if wanted.labels.iter().all(is_there) {
        return Ok(instance);
    }
    let change = Change::to(wanted.labels.clone());
    let labelled = relabel(&context.client()?, &instance.id.into(), &change);
    let labelled = labelled.context("joined, and not labelled")?;
    tell(context, &told(&labelled))?;
    Ok(labelled)
}

/// The story goes to stdout for people, and out of the way of whoever reads stdout with a program.
fn tell(context: &Context, line: &str) -> Result<()> {
    match context.format() {
        Format::Table => Ok(print(&format!("{line}\n"))?),
        Format::Json | Format::Csv | Format::Name => {
            note(line);
            Ok(())
        }
    }
}

/// Sends the facts again with the credential of this machine; none when the server does not know it any more, as after
/// it was taken out by somebody else, or when the server began from nothing.
fn refresh(context: &Context, wanted: &Join, identity: &Identity) -> Result<Option<Outcome>> {
    refuse_another_server(context, identity)?;
    let credential = own_credential(context, identity)?;
    let client = context.client_as_instance(credential.clone())?;
    let mut request = request(wanted, credential.hash());
    keep_what_the_agent_told(context, &client, identity.id, &mut request.facts);
    match client.join(&request) {
        Ok(Joined { instance, .. }) => {
            let known = learn(&instance, &client, Some(identity));
            save_identity(&context.machine.state_dir, &known, &credential)?;
            // A join that was interrupted at its very end is over all the same.
            finish_join(&context.machine.state_dir)?;
            let headline = if wanted.name.is_some() && identity.name != instance.name {
                format!("renamed from {} to {}; facts refreshed", identity.name, instance.name)
            } else {
                format!("already joined as {}; facts refreshed", instance.name)
            };
            Ok(Some(Outcome { instance, headline, client }))
        }
        Err(ClientError::Refused(problem)) if is_unknown(problem.code) => {
            note(format_args!("the server does not know {} any more; joining anew", identity.name));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn is_unknown(code: Code) -> bool {
    matches!(code, Code::Unauthenticated | Code::NoSuchInstance)
}

/// What it may see, and how far the kernel keeps off reserved ports: only a running agent knows, and it has told.
fn keep_what_the_agent_told(context: &Context, client: &Client, id: InstanceId, facts: &mut Facts) {
    if lock::is_held(&context.machine.state_dir).unwrap_or(false)
        && let Ok(known) = client.get_instance(&id.into())
    {
        (facts.protection, facts.sight) = (known.facts.protection, known.facts.sight);
    }
}

/// A credential that was made for one server is not shown to another, and a machine is not moved by accident.
fn refuse_another_server(context: &Context, identity: &Identity) -> Result<()> {
    let Connection { client, how, .. } = context.connect()?;
    let socket = identity.socket.clone().map(ServerAddress::Unix);
    let joined = identity.server.parse::<ServerAddress>();
    let is_same =
        joined.as_ref().is_ok_and(|joined| client.server() == joined || client.server().secures(joined))
            || socket.as_ref() == Some(client.server());
    if is_same || !matches!(how, How::Option | How::Environment) {
        return Ok(());
    }
    let file = context.machine.state_dir.join(IDENTITY_FILE);
    let message = format!("this machine has joined {} as {}", identity.server, identity.name);
    Err(Failure::new(Exit::Conflict, message)
        .hint(format!(
            "take it out there first with `gkctl instance leave`; if that server is gone, remove {}",
            file.display()
        ))
        .into())
}

fn own_credential(context: &Context, identity: &Identity) -> Result<Secret> {
    let place = context.machine.state_dir.display();
    match context.credential() {
        Ok(Some(credential)) => Ok(credential),
        Ok(None) => Err(Failure::new(
            Exit::Error,
            format!("already joined as {}, but the credential in {place} is gone", identity.name),
        )
        .hint(format!("take its place with: gkctl instance join --replace {}", identity.name))
        .into()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(Failure::new(
            Exit::NotAllowed,
            format!(
                "already joined as {}, and only the owner of {place} may refresh its facts",
                identity.name
            ),
        )
        .hint("join as that account, as in: sudo gkctl instance join")
        .into()),
        Err(error) => Err(error.into()),
    }
}

fn request(wanted: &Join, credential_hash: SecretHash) -> JoinRequest {
    JoinRequest {
        name: wanted.name.clone(),
        credential_hash,
        facts: machine::facts(),
        labels: Labels::default(),
        replace: wanted.replace.clone(),
    }
}

/// The labels that a new instance begins with. One that is taken over has some.
fn first_labels(wanted: &Join) -> Result<Labels, Failure> {
    let labels = if wanted.replace.is_some() { Vec::new() } else { wanted.labels.clone() };
    labels.try_into().map_err(|error: LabelError| Failure::new(Exit::Usage, error.to_string()))
}

fn join_anew(context: &Context, wanted: &Join) -> Result<Outcome> {
    let labels = first_labels(wanted)?;
    let client = context.client_or_ask("join token")?;
    let state_dir = &context.machine.own_dir;
    prepare_state_dir(state_dir).context("cannot keep the identity of this machine")?;
    // A machine that the server has forgotten keeps its name, unless told.
    let known_as = context.machine.identity.as_ref().map(|identity| identity.name.clone());
    let ask = |hash| {
        let request = request(wanted, hash);
        let name = request.name.clone().or_else(|| known_as.clone());
        JoinRequest { name, labels: labels.clone(), ..request }
    };
    let begun = begin_join(&client, state_dir, ask).map_err(|error| match error {
        JoinError::State(error) => Error::from(error).context("cannot keep the credential of this machine"),
        // The exit code goes by this type.
        JoinError::Server(error) => Error::from(error),
    });
    let (Joined { instance, .. }, credential) = begun?;
    let identity = learn(&instance, &client, None);
    save_identity(state_dir, &identity, &credential)
        .and_then(|()| save_session(state_dir, SavedSession::default()))
        .and_then(|()| finish_join(state_dir))
        .context("joined, but the identity of this machine was not kept")?;
    let client = client.with_token(credential);
    let place = if wanted.replace.is_some() { ", in place of its lost identity" } else { "" };
    let headline = format!("joined as {}{place}", instance.name);
    Ok(Outcome { instance, headline, client })
}

/// What this machine is to remember: who it is, where the server is, and who vouches for that from now on. Through the
/// socket of a server, the address for others is learned too: other accounts of this machine can only use that. What
/// the server does not say stays as it was `known`.
fn learn(instance: &Instance, client: &Client, known: Option<&Identity>) -> Identity {
    let (socket, server, pins) = match client.server() {
        ServerAddress::Unix(path) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            let by_socket = || ServerAddress::Unix(path.clone()).to_string();
            let told = client.ready().ok().and_then(|health| Some((health.local_url()?, health.pins)));
            let kept = || known.map(|known| (known.server.clone(), known.pins.clone()));
            let (server, pins) = told.or_else(kept).unwrap_or_else(|| (by_socket(), Vec::new()));
            (Some(path), server, pins)
        }
        elsewhere => {
            if let Err(error) = client.renew_pins() {
                note(format_args!("the server did not say which key will follow its own: {error}"));
            }
            (None, elsewhere.to_string(), client.pins())
        }
    };
    Identity { id: instance.id, name: instance.name.clone(), server, socket, pins }
}

/// Reports in the agent's place unless one runs; answers whether one does.
fn report(context: &Context, client: &Client, id: InstanceId, state_dir: &Path) -> Result<bool> {
    let Some(_lock) = AgentLock::acquire(state_dir)? else { return Ok(true) };
    let report = machine::full_report(state_dir, context.now)?;
    let told = format!("reported {}", count(&report));
    open_session(client, id, state_dir, report, machine::VERSION.into(), context.now)
        .context("joined, but the first report failed")?;
    tell(context, &told)?;
    Ok(false)
}

fn count(report: &FullReport) -> String {
    match report.listeners.len() {
        1 => "1 listener".to_owned(),
        count => format!("{count} listeners"),
    }
}
