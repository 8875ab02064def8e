//! `gatekeeper dev`: server and agent of this machine in one process, joined to each other, and told how to be used.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use gk_agent::{AgentConfig, Stopper};
use gk_client::identity::{generate_secret, load_credential, load_identity, save_identity};
use gk_client::{Client, ClientError, ServerAddress};
use gk_model::health::Health;
use gk_model::identity::Identity;
use gk_model::instance::JoinRequest;
use gk_model::paths;
use gk_model::problem::Code;
use gk_model::query::{InstanceQuery, Limit};
use gk_model::secret::{Secret, SecretKind};

use gatekeeper_agent::EngineArgs;
use gk_program::{env, is_root};

use crate::args::ServerArgs;
use crate::server::{Server, runtime, stop_requested};

/// Runs both until SIGINT or SIGTERM; the agent ends first, so that its last words are heard.
pub(crate) fn run(args: &ServerArgs) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let stop = stop_requested()?;
        let server = Server::start(args).await?;
        let place = Place {
            health: server.health(),
            socket: server.socket.clone(),
            state_dir: paths::state_dir(is_root(), env),
        };
        let (end_server, server_ends) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(server.serve(async {
            // An end that is dropped is an end as well.
            let _ended = server_ends.await;
        }));
        let (stopper, signal) = gk_agent::stop_channel();
        let config = AgentConfig {
            engine_sockets: EngineArgs::of_environment().sockets(),
            ..AgentConfig::new(place.state_dir.clone(), env!("CARGO_PKG_VERSION").into())
        };
        let mut agent = tokio::task::spawn_blocking(move || {
            greet(&join_this_machine(&place)?, &place);
            Ok::<(), anyhow::Error>(gk_agent::run(&config, &signal, &|| {})?)
        });
        let ended = tokio::select! {
            ended = &mut agent => ended,
            () = stop => end_agent(&stopper, agent).await,
        };
        drop(end_server);
        serving.await.context("the server failed")??;
        ended.context("the agent failed")?
    })
}

async fn end_agent<T>(
    stopper: &Stopper,
    agent: tokio::task::JoinHandle<T>,
) -> Result<T, tokio::task::JoinError> {
    stopper.stop();
    agent.await
}

/// Where the server and the agent of this process live.
struct Place {
    health: Health,
    socket: PathBuf,
    state_dir: PathBuf,
}

impl Place {
    fn client(&self, credential: Option<Secret>) -> Client {
        Client::new(ServerAddress::Unix(self.socket.clone()), credential)
    }

    fn identity(&self, joined: gk_model::instance::Instance) -> Identity {
        let (server, pins) = (self.url(), self.health.pins.clone());
        Identity { id: joined.id, name: joined.name, server, socket: Some(self.socket.clone()), pins }
    }

    fn url(&self) -> String {
        self.health.local_url().unwrap_or_else(|| ServerAddress::Unix(self.socket.clone()).to_string())
    }
}

/// Joins this machine to the server of this process, or comes back to it.
fn join_this_machine(place: &Place) -> anyhow::Result<Identity> {
    let known = load_identity(&place.state_dir).context("cannot read the identity of this machine")?;
    if let Some(known) = &known
        && known.socket.as_ref() != Some(&place.socket)
    {
        bail!(
            "this machine has joined {} as {}, and that identity in {} is not overwritten: leave first (`gkctl instance \
             leave`), or keep this try apart with GATEKEEPER_STATE=DIR",
            known.server,
            known.name,
            place.state_dir.display()
        );
    }
    let credential =
        load_credential(&place.state_dir).context("cannot read the credential of this machine")?;
    let credential = credential.unwrap_or_else(|| generate_secret(SecretKind::Instance));
    let request = JoinRequest {
        name: None,
        credential_hash: credential.hash(),
        facts: gk_scan::facts(env!("CARGO_PKG_VERSION")),
        labels: gk_model::labels::Labels::default(),
        replace: None,
    };
    let joined = match place.client(Some(credential.clone())).join(&request) {
        Err(ClientError::Refused(problem)) if problem.code == Code::Unauthenticated => {
            join_anew(place, request)
        }
        answer => answer.map(|joined| joined.instance),
    };
    let identity = place.identity(joined.context("cannot join this machine to its own server")?);
    save_identity(&place.state_dir, &identity, &credential)
        .context("cannot keep the identity of this machine")?;
    Ok(identity)
}

/// Joins as the server's own account; an identity of this machine whose credential was lost is taken over.
fn join_anew(place: &Place, request: JoinRequest) -> Result<gk_model::instance::Instance, ClientError> {
    let admin = place.client(None);
    let known =
        admin.list_instances(&InstanceQuery { limit: Some(Limit::MAX), ..InstanceQuery::default() })?.items;
    let same = known.into_iter().find(|known| known.facts.same_network_stack(&request.facts));
    let request = JoinRequest {
        labels: gk_model::labels::Labels::default(),
        replace: same.map(|same| same.id.into()),
        ..request
    };
    Ok(admin.join(&request)?.instance)
}

/// Says what runs, and commands that work when pasted.
fn greet(identity: &Identity, place: &Place) {
    let here = std::env::current_exe().unwrap_or_default();
    let programs = here.parent().unwrap_or(Path::new("."));
    let state = env("GATEKEEPER_STATE").map(|dir| format!("\n  export GATEKEEPER_STATE={}", dir.display()));
    let pin = place.health.pins.first().map(|pin| format!("Other machines join with --ca-pin {pin}\n"));
    let (bold, plain) = if std::io::stdout().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    let text = format!(
        "\n{bold}Gatekeeper serves {} and watches this machine as {}.{plain}\n\nIn a second terminal:\n\n  \
         export PATH=\"{}:$PATH\"{}\n  gkctl port list\n  gkctl port reserve --service demo\n  gkctl status\n\n\
         {}Ctrl-C ends both; everything is kept in {}.\n",
        place.url(),
        identity.name,
        programs.display(),
        state.unwrap_or_default(),
        pin.unwrap_or_default(),
        place.socket.parent().unwrap_or(Path::new("/")).display(),
    );
    // A closed standard output takes nothing from the server.
    let _unheard = std::io::stdout().write_all(text.as_bytes());
}
