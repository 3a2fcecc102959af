//! End-to-end tests: the built binary between real sockets, in front of a real Puma or a byte-exact recorder.
//!
//! By threat: [`exhaustion`], [`overload`], [`slowloris`], [`smuggling`], [`exposure`]. By user: [`rails`] (what an application and its
//! browsers rely on), [`puma`] (threads, queue) and [`restarts`], [`drain`], [`exec`] and [`config`] (operators), [`conformance`] (the
//! corpus), [`docs`] (nothing refuses without an explanation). [`harness`] starts and stops all of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test that cannot go on must end with the place and the reason"
)]

mod audit;
mod canary;
mod config;
mod conformance;
mod docs;
mod drain;
mod exec;
mod exhaustion;
mod explain;
mod exposure;
mod harness;
mod layout;
mod load;
mod overload;
mod properties;
mod puma;
mod rails;
mod restarts;
mod rules;
mod sandbox;
mod secrets;
mod slowloris;
mod smuggling;
