//! Following the log: for `--follow` and `gkctl port watch`, until somebody has seen enough.

use anyhow::Result;
use gk_client::{Client, News};
use gk_model::history::Event;
use gk_model::watch::WatchQuery;

use crate::context::note;
use crate::output::check_reader;

/// Hands each event to `tell`, in order, over any number of interruptions.
///
/// # Errors
/// What cannot be mended by waiting; and a reader of stdout that has gone away, which is noticed within seconds also
/// when nothing happens.
pub(crate) fn follow(
    client: &Client,
    query: &WatchQuery,
    mut tell: impl FnMut(&Event) -> Result<()>,
) -> Result<()> {
    let mut is_lost = false;
    for news in client.watch(query) {
        let news = news?;
        if let News::Lost(error) = news {
            if !std::mem::replace(&mut is_lost, true) {
                note(format_args!("{error}; going on as soon as it answers"));
            }
            continue;
        }
        if std::mem::take(&mut is_lost) {
            note("connected again, and nothing is missed");
        }
        match news {
            News::Event(event) => tell(&event)?,
            News::Bookmark | News::Lost(_) => check_reader()?,
        }
    }
    Ok(())
}
