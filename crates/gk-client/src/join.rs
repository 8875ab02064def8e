//! Joining so that it can be repeated: a lost answer strands nobody.
//!
//! The new credential is on disk before the server hears of it. Whoever joins again finds it there, and shows it first:
//! when the earlier request had arrived, it is good already, whatever happened to the answer (and to the join token,
//! which admits one machine only).

use std::io;
use std::path::Path;

use gk_model::instance::JoinRequest;
use gk_model::labels::Labels;
use gk_model::paths::PENDING_CREDENTIAL_FILE;
use gk_model::problem::Code;
use gk_model::secret::{Secret, SecretHash, SecretKind};

use crate::address::ServerAddress;
use crate::client::Client;
use crate::error::ClientError;
use crate::files::{self, Readers};
use crate::identity::generate_secret;
use crate::routes::Joined;

/// Why a join did not come about.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The state directory cannot be used.
    #[error("cannot keep the credential of this machine")]
    State(#[from] io::Error),
    /// The server refused, or did not answer; after the latter, joining again finishes what was begun.
    #[error(transparent)]
    Server(#[from] ClientError),
}

/// Joins with a credential made here, on the authority of `client`. The credential stays pending in `state_dir` until
/// [`finish_join`] is called, once identity and credential are kept.
///
/// # Errors
/// [`JoinError`].
pub fn begin_join(
    client: &Client,
    state_dir: &Path,
    request: impl Fn(SecretHash) -> JoinRequest,
) -> Result<(Joined, Secret), JoinError> {
    let request = |credential: &Secret| request(credential.hash());
    if let Some(pending) =
        load_pending(state_dir, client)?.filter(|pending| is_worth_showing(client, &request(pending)))
    {
        match client.clone().with_token(pending.clone()).join(&by_itself(request(&pending))) {
            Err(ClientError::Refused(problem)) if problem.code == Code::Unauthenticated => {}
            answer => return Ok((answer?, pending)),
        }
        return Ok((client.join(&request(&pending))?, pending));
    }
    let credential = generate_secret(SecretKind::Instance);
    let text = format!("{}\n{}\n", credential.reveal(), client.server());
    files::ensure_dir(state_dir)?;
    files::write(state_dir, PENDING_CREDENTIAL_FILE, &text, Readers::Owner)?;
    let joined = join_and_make_sure(client, &request(&credential), &credential)?;
    Ok((joined, credential))
}

/// Joins; and where that used up what the client had shown (a join token, the credential before) and only the answer
/// was lost, so that its repetition is a stranger's, shows the new credential, which is good by then.
fn join_and_make_sure(
    client: &Client,
    request: &JoinRequest,
    credential: &Secret,
) -> Result<Joined, ClientError> {
    client.join(request).or_else(|error| match error.problem() {
        Some(problem) if problem.code == Code::Unauthenticated && is_worth_showing(client, request) => {
            let own = client.clone().with_token(credential.clone());
            own.join(&by_itself(request.clone())).map_err(|_| error)
        }
        _ => Err(error),
    })
}

/// Ends what [`begin_join`] began.
///
/// # Errors
/// When the pending credential cannot be removed.
pub fn finish_join(state_dir: &Path) -> io::Result<()> {
    files::remove(state_dir, PENDING_CREDENTIAL_FILE)
}

/// Whether the credential that [`begin_join`] keeps pending is another one than this; none when nothing is pending.
///
/// # Errors
/// When the file is there and cannot be read.
pub fn is_pending(state_dir: &Path, credential: &Secret) -> io::Result<Option<bool>> {
    let text = files::read(state_dir, PENDING_CREDENTIAL_FILE)?;
    Ok(text.map(|text| text.lines().next() != Some(credential.reveal())))
}

/// No machine labels itself; where the earlier request had arrived, its labels did too.
fn by_itself(request: JoinRequest) -> JoinRequest {
    JoinRequest { labels: Labels::default(), ..request }
}

/// A take-over is an operator's, who may repeat it, and is there to change the credential. And where nobody is known to
/// be trusted with a token, none is shown.
fn is_worth_showing(client: &Client, request: &JoinRequest) -> bool {
    let is_trusted = client.has_token() || matches!(client.server(), ServerAddress::Unix(_));
    is_trusted && request.replace.is_none()
}

/// The pending credential, if it was made for this server; no other one is to see it.
fn load_pending(state_dir: &Path, client: &Client) -> io::Result<Option<Secret>> {
    let Some(text) = files::read(state_dir, PENDING_CREDENTIAL_FILE)? else { return Ok(None) };
    match text.lines().collect::<Vec<_>>()[..] {
        [credential, server] if server == client.server().to_string() => Ok(credential.parse().ok()),
        _ => Ok(None),
    }
}
