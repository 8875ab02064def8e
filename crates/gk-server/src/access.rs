//! What a permission alone cannot decide: whether this caller may act on *this* instance.
//!
//! An instance's own credential is limited to that instance. A name must first be resolved for that, and the handlers
//! go on with the id found here, so that a rename in between cannot swap the instance under the check.

use gk_model::access::{Actor, Authority};
use gk_model::id::{InstanceId, InstanceRef};
use gk_model::secret::SecretHash;

use crate::app::App;
use crate::error::ApiError;

/// For reserving: roles may act on every instance, an instance on itself.
pub(crate) async fn may_act_on(
    app: &App,
    actor: &Actor,
    target: InstanceRef,
) -> Result<InstanceRef, ApiError> {
    match actor.authority {
        Authority::Role(_) => Ok(target),
        Authority::Instance(..) | Authority::Join(_) => own(app, actor, target).await.map(InstanceRef::Id),
    }
}

/// For renaming and leaving: operators on every instance, an instance on itself, users on none.
pub(crate) async fn may_manage(
    app: &App,
    actor: &Actor,
    target: InstanceRef,
) -> Result<InstanceRef, ApiError> {
    match actor.authority {
        Authority::Role(_) if actor.is_operator() => Ok(target),
        Authority::Role(_) => Err(ApiError::NeedsOperator),
        Authority::Instance(..) | Authority::Join(_) => own(app, actor, target).await.map(InstanceRef::Id),
    }
}

/// For contacts: the instance's own credential and nobody else, because whoever speaks for an instance decides what is
/// observed there. Answers the credential too, for the writer to look at it again.
pub(crate) async fn speaks_for(
    app: &App,
    actor: &Actor,
    target: InstanceRef,
) -> Result<(InstanceId, SecretHash), ApiError> {
    let id = own(app, actor, target).await?;
    match actor.authority {
        Authority::Instance(_, credential) => Ok((id, credential)),
        Authority::Role(_) | Authority::Join(_) => Err(ApiError::NotThisInstance),
    }
}

async fn own(app: &App, actor: &Actor, target: InstanceRef) -> Result<InstanceId, ApiError> {
    let Authority::Instance(own, _) = actor.authority else { return Err(ApiError::NotThisInstance) };
    let id = match target {
        InstanceRef::Id(id) => id,
        InstanceRef::Name(_) => {
            let now = app.now();
            app.store.read(move |reader| reader.get_instance(&target, now)).await?.id
        }
    };
    if id == own { Ok(id) } else { Err(ApiError::NotThisInstance) }
}
