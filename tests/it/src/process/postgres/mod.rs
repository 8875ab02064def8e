//! Servers as processes on a PostgreSQL database: what they survive, and what they say to a clumsy operator.

mod crash;
mod faults;
mod operator;
mod tls;
