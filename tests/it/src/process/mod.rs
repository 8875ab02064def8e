//! Built programs as real processes: what only shows when something is killed, restarted or typed.

mod crash;
mod harness;
