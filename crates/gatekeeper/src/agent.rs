//! `gatekeeper agent`: watches this machine until told to stop.

use std::path::Path;

use anyhow::{Context as _, bail};
use gk_agent::{AgentConfig, AgentError, JoinBy, Stopper};
use gk_model::secret::Secret;
use gk_model::time::Timestamp;

use crate::args::AgentArgs;
use crate::server::stop_requested;
use crate::service::{self, Pulse};

/// Runs the agent until SIGINT or SIGTERM; with `--once` until its report is delivered.
pub(crate) fn run(args: &AgentArgs) -> anyhow::Result<()> {
    if args.explain {
        println!("{}", gk_agent::explain(&args.engines.sockets(), Timestamp::from_clock()));
        return Ok(());
    }
    let config = config(args)?;
    if args.once {
        return ended(gk_agent::once(&config));
    }
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

/// On a thread of its own, which does nothing else. A runtime with a thread for each processor, as the server has, would
/// only take memory.
fn wait_for_signals(stopper: Stopper) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let requested = runtime.block_on(async { stop_requested() })?;
    let wait = move || {
        runtime.block_on(requested);
        service::stopping();
        stopper.stop();
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).context("cannot start a thread")?;
    Ok(())
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
