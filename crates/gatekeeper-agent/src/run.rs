//! The role: watches this machine until told to stop.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, bail};
use gk_agent::{AgentConfig, AgentError, JoinBy, Stopper};
use gk_model::secret::Secret;
use gk_model::time::Timestamp;

use gk_program::service::{self, Pulse};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::args::AgentArgs;

/// Runs the agent until SIGINT or SIGTERM; with `--once` until its report is delivered.
///
/// # Errors
/// When it cannot start, and when the server ends it.
pub fn run(args: &AgentArgs) -> anyhow::Result<()> {
    if args.explain {
        println!("{}", gk_agent::explain(&args.engines.sockets(), Timestamp::from_clock()));
        return Ok(());
    }
    let config = config(args)?;
    if args.once {
        return ended(gk_agent::once(&config));
    }
    gk_agent::share_one_heap();
    let (stopper, stop) = gk_agent::stop_channel();
    wait_for_signals(stopper)?;
    let pulse = Pulse::default();
    ended(gk_agent::run(&config, &stop, &|| pulse.beat()))
}

fn ended(result: Result<(), AgentError>) -> anyhow::Result<()> {
    result.map_err(|error| match error {
        AgentError::AlreadyRuns(_) => anyhow::anyhow!("{error}; `gkctl status` tells whether it is well"),
        error => error.into(),
    })
}

/// On a thread of its own, which does nothing else. The handlers are in place when this returns, so no signal is missed.
fn wait_for_signals(stopper: Stopper) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot handle SIGINT and SIGTERM")?;
    let wait = move || {
        for _ in &mut signals {
            service::stopping();
            stopper.stop();
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).context("cannot start a thread")?;
    Ok(())
}

/// Whether a start would end as this one did, until somebody has looked: an agent without an identity, or files that others
/// could have changed.
pub fn needs_people(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(AgentError::NotJoined | AgentError::Ended(_) | AgentError::Address(_)) => true,
        // Not to be believed, or damaged; what the system refuses is of another kind.
        Some(AgentError::State(error)) => error.kind() == ErrorKind::InvalidData,
        _ => false,
    }
}

fn config(args: &AgentArgs) -> anyhow::Result<AgentConfig> {
    let join = match &args.join_token_file {
        Some(file) => Some(JoinBy { token: read_token(file)?, name: args.name.clone() }),
        None => None,
    };
    Ok(AgentConfig {
        server: args.server.clone(),
        pins: args.ca_pin.clone(),
        join,
        report_interval: args.report_interval,
        insecure_http: args.insecure_http,
        protect: args.protect,
        engine_sockets: args.engines.sockets(),
        ..AgentConfig::new(args.state_dir.clone(), env!("CARGO_PKG_VERSION").into())
    })
}

fn read_token(file: &Path) -> anyhow::Result<Secret> {
    if Secret::is_begun_by(&file.to_string_lossy()) {
        bail!(
            "--join-token-file names a file, and this looks like the token itself, which every account can read now: put \
             a new token into a file of mode 0600, and revoke this one"
        );
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    text.parse().with_context(|| format!("{} holds no token", file.display()))
}
