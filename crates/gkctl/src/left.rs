//! Instances that have left: a name means a joined one, and whoever only reads may mean one that is gone.

use gk_client::{Client, ClientError};
use gk_model::id::InstanceRef;
use gk_model::instance::{Instance, Presence};
use gk_model::problem::Code;
use gk_model::query::{InstanceQuery, Limit};
use gk_model::text::InstanceName;

use crate::context::{collect, note};
use crate::output::age;

/// Reads about `instance`; when no joined one has that name, about the one of that name that was the last to leave.
///
/// # Errors
/// Whatever `read` fails with, and of a name that no instance ever had that it does not exist.
pub(crate) fn or_left<T>(
    client: &Client,
    instance: &InstanceRef,
    read: impl Fn(&InstanceRef) -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let refused = match read(instance) {
        Err(error) if error.problem().is_some_and(|problem| problem.code == Code::NoSuchInstance) => error,
        result => return result,
    };
    let InstanceRef::Name(name) = instance else { return Err(refused) };
    let Some(left) = find_left(client, name)? else { return Err(refused) };
    let when = left.left_at.map(|at| format!(" at {}", age::moment(at))).unwrap_or_default();
    note(format_args!("note: {} left{when}; this is what is known of it (id {})", left.name, left.id));
    read(&left.id.into())
}

fn find_left(client: &Client, name: &InstanceName) -> Result<Option<Instance>, ClientError> {
    let left = collect(None, |cursor, _| {
        client.list_instances(&InstanceQuery {
            name: Some(name.to_string()),
            presence: Some(Presence::Left),
            q: None,
            label: None,
            cursor,
            limit: Some(Limit::MAX),
        })
    })?;
    Ok(left.into_iter().max_by_key(|instance| instance.left_at))
}
