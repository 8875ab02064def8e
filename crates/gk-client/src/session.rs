//! The session an agent holds, kept beside its credential, and the report that opens the next one.
//!
//! `session.json` is `{"session": N, "opening": null|UUID}`. The nonce of an opening is written *before* it is sent,
//! so that whoever repeats it after a crash or a lost answer repeats the same one and gets the same session; the
//! number that was answered replaces it. Only the holder of the [`crate::lock::AgentLock`] may open a session.

use std::io;
use std::path::Path;

use gk_model::contact::{Contact, ContactAnswer, ContactBody, Occupied, PIECE_BYTES, Part, Piece, Session};
use gk_model::id::InstanceId;
use gk_model::listener::{Digest, Listener};
use gk_model::paths::SESSION_FILE;
use gk_model::text::Observed;
use gk_model::time::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::client::Client;
use crate::error::ClientError;
use crate::files::{self, Readers};
use crate::identity::random_bytes;

/// The sequence number of the report that opens a session.
pub const OPENING_SEQUENCE: u64 = 1;

/// The contents of `session.json`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSession {
    /// The last session held; 0 before the first.
    pub session: Session,
    /// The nonce of an opening that was begun and not yet answered.
    pub opening: Option<Uuid>,
}

/// Everything a scan saw, as a report tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FullReport {
    /// The parts it is complete for.
    pub covered: Vec<Part>,
    /// Every listener in them.
    pub listeners: Vec<Listener>,
    /// Ports taken by something other than a listener.
    pub occupied: Vec<Occupied>,
}

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// `session.json` could not be read or written.
    #[error("cannot keep the agent's session")]
    Saved(#[from] io::Error),
    /// The server did not open one.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Reads the session last held; the one before the first when there is none.
///
/// # Errors
/// When the file is there and cannot be read or understood; the error names it.
pub fn load_session(state_dir: &Path) -> io::Result<SavedSession> {
    match files::read(state_dir, SESSION_FILE)? {
        Some(text) => {
            serde_json::from_str(&text).map_err(|why| files::malformed(state_dir, SESSION_FILE, &why))
        }
        None => Ok(SavedSession::default()),
    }
}

/// Writes the session, for its owner only.
///
/// # Errors
/// When the file cannot be written; the error names it.
pub fn save_session(state_dir: &Path, saved: SavedSession) -> io::Result<()> {
    files::ensure_dir(state_dir)?;
    files::write(state_dir, SESSION_FILE, &format!("{}\n", serde_json::to_string(&saved)?), Readers::Owner)
}

/// The session to open with: the saved one, with a nonce that is on disk when this returns.
///
/// # Errors
/// When `session.json` cannot be read or written.
pub fn begin_opening(state_dir: &Path) -> io::Result<(Session, Uuid)> {
    let saved = load_session(state_dir)?;
    if let Some(nonce) = saved.opening {
        return Ok((saved.session, nonce));
    }
    let nonce = uuid::Builder::from_random_bytes(random_bytes()).into_uuid();
    save_session(state_dir, SavedSession { opening: Some(nonce), ..saved })?;
    Ok((saved.session, nonce))
}

/// Opens a session with a full report, in pieces if it is large, and writes down the number that was answered.
///
/// When the opening repeats one whose answer was lost, the server has stored the report of that time and asks for a new
/// one; then the report is sent again, as the next in the session.
///
/// # Errors
/// When the file or the server fails. Asking again is harmless: it repeats the same opening.
pub fn open_session(
    client: &Client,
    instance: InstanceId,
    state_dir: &Path,
    report: FullReport,
    agent_version: Observed,
    now: Timestamp,
) -> Result<ContactAnswer, OpenError> {
    let (session, nonce) = begin_opening(state_dir)?;
    let FullReport { covered, listeners, occupied } = report;
    let pieces = Piece::cut(listeners, PIECE_BYTES);
    let told = |(piece, listeners): &(Piece, Vec<Listener>), acknowledged| ContactBody::Report {
        seen_at: Some(now),
        covered: covered.clone(),
        listeners: listeners.clone(),
        closed: Vec::new(),
        occupied: occupied.clone(),
        churned: Vec::new(),
        piece: Piece { base: piece.after.is_some().then_some(acknowledged), ..piece.clone() },
        namespaces: None,
    };
    let mut contact = Contact {
        session,
        opening: Some(nonce),
        sequence: OPENING_SEQUENCE,
        sent_at: now,
        digest: Digest::of(&pieces[0].1),
        agent_version,
        body: told(&pieces[0], 0),
    };
    let mut answer = client.contact(instance, &contact)?;
    save_session(state_dir, SavedSession { session: answer.session, opening: None })?;
    (contact.session, contact.opening) = (answer.session, None);
    let first = usize::from(!answer.want_report);
    for piece in &pieces[first..] {
        if piece.0.after.is_none() {
            contact.digest = Digest::default();
        }
        piece.1.iter().for_each(|listener| contact.digest.add(listener));
        contact.sequence = answer.acknowledged + 1;
        contact.body = told(piece, answer.acknowledged);
        answer = client.contact(instance, &contact)?;
    }
    Ok(answer)
}
