//! Which verb is done where.

use anyhow::Result;

use crate::args::{InstanceVerb, PortVerb, TokenVerb, Verb};
use crate::context::Context;
use crate::{
    doctor, event, history, instance, join, label, login, port, port_watch, release, reserve, status, token,
};

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

fn of_port(context: &Context, verb: &PortVerb) -> Result<()> {
    match verb {
        PortVerb::Reserve(wanted) => reserve::reserve(context, wanted),
        PortVerb::Release(wanted) => release::release(context, wanted),
        PortVerb::List(wanted) => port::list(context, wanted),
        PortVerb::Show(wanted) => port::show(context, wanted),
        PortVerb::History(wanted) if wanted.follow => history::follow(context, wanted),
        PortVerb::History(wanted) => history::list(context, wanted),
        PortVerb::Watch(wanted) => port_watch::watch(context, wanted),
    }
}
