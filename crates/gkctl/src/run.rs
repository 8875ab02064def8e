//! Which verb is done where.

use anyhow::Result;

use crate::args::{IgnoreVerb, InstanceVerb, PoolVerb, PortVerb, ReservationVerb, TokenVerb, Verb};
use crate::context::Context;
use crate::{adopt, doctor, drift, event, ignore, instance, join, label, login, pool};
use crate::{port, reservation, status, token};

/// Does what was typed.
pub(crate) fn run(context: &Context, verb: &Verb) -> Result<()> {
    match verb {
        Verb::Status => status::status(context),
        Verb::Doctor => doctor::doctor(context),
        Verb::Login => login::login(context),
        Verb::Logout => login::logout(context),
        Verb::Whoami => login::whoami(context),
        Verb::Instance(verb) => of_instance(context, verb),
        Verb::Port(verb) => of_port(context, verb),
        Verb::Pool(verb) => of_pool(context, verb),
        Verb::Reservation(verb) => of_reservation(context, verb),
        Verb::Drift(wanted) => drift::list(context, wanted),
        Verb::Ignore(verb) => of_ignore(context, verb),
        Verb::Token(TokenVerb::Create(wanted)) => token::create(context, wanted),
        Verb::Token(TokenVerb::List(wanted)) => token::list(context, wanted),
        Verb::Token(TokenVerb::Revoke(wanted)) => token::revoke(context, wanted),
        Verb::Events(wanted) if wanted.follow => event::follow(context, wanted),
        Verb::Events(wanted) => event::list(context, wanted),
    }
}

fn of_instance(context: &Context, verb: &InstanceVerb) -> Result<()> {
    match verb {
        InstanceVerb::Join(wanted) => join::join(context, wanted),
        InstanceVerb::List(wanted) => instance::list(context, wanted),
        InstanceVerb::Show(wanted) => instance::show(context, wanted),
        InstanceVerb::Leave(wanted) => instance::leave(context, wanted),
        InstanceVerb::Label(wanted) => label::label(context, wanted),
        InstanceVerb::Rename(wanted) => instance::rename(context, wanted),
    }
}

fn of_pool(context: &Context, verb: &PoolVerb) -> Result<()> {
    match verb {
        PoolVerb::Set(wanted) => pool::set(context, wanted),
        PoolVerb::List => pool::list(context),
        PoolVerb::Show(wanted) => pool::show(context, wanted),
        PoolVerb::Delete(wanted) => pool::delete(context, wanted),
    }
}

fn of_port(context: &Context, verb: &PortVerb) -> Result<()> {
    match verb {
        PortVerb::Reserve(wanted) => port::reserve::reserve(context, wanted),
        PortVerb::Release(wanted) => port::release::release(context, wanted),
        PortVerb::Check(wanted) => port::check::check(context, wanted),
        PortVerb::Adopt(wanted) => adopt::adopt(context, wanted),
        PortVerb::List(wanted) => port::list(context, wanted),
        PortVerb::Show(wanted) => port::show(context, wanted),
        PortVerb::History(wanted) if wanted.follow => port::history::follow(context, wanted),
        PortVerb::History(wanted) => port::history::list(context, wanted),
        PortVerb::Watch(wanted) => port::watch::watch(context, wanted),
    }
}

fn of_reservation(context: &Context, verb: &ReservationVerb) -> Result<()> {
    match verb {
        ReservationVerb::List(wanted) => reservation::list(context, wanted),
        ReservationVerb::Show(wanted) => reservation::show(context, wanted),
        ReservationVerb::Renew(wanted) => reservation::renew(context, wanted),
        ReservationVerb::Edit(wanted) => reservation::edit(context, wanted),
    }
}

fn of_ignore(context: &Context, verb: &IgnoreVerb) -> Result<()> {
    match verb {
        IgnoreVerb::List => ignore::list(context),
        IgnoreVerb::Show(wanted) => ignore::show(context, wanted),
        IgnoreVerb::Set(wanted) => ignore::set(context, wanted),
        IgnoreVerb::Delete(wanted) => ignore::delete(context, wanted),
        IgnoreVerb::Defaults(wanted) => ignore::defaults(context, wanted),
    }
}
