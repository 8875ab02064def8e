//! What Gatekeeper talks about: words, rules and wire types.
//!
//! Everything here is a value or a pure function. This crate reads no file, opens no socket and knows no database, so
//! that every rule can be stated once and tested by tables and properties. The meaning of each word is fixed in
//! `docs/domain.md`.

pub mod contact;
pub mod facts;
pub mod listener;
pub mod port;
pub mod text;
mod text_form;
pub mod time;
