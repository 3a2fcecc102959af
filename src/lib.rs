//! Palisade, the proxy that Puma deserves.
pub mod accept;
pub mod admin;
pub mod audit;
pub mod cli;
pub mod config;
pub mod drain;
pub mod guard;
pub mod http;
pub mod layers;
pub mod log;
pub mod metrics;
pub mod overload;
pub mod puma;
pub mod refusal;
pub mod run;
pub mod units;
pub mod upstream;
