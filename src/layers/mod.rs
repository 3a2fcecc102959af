//! Policy: one file, one threat, one table in `proxy.toml`. Layers do not import each other.
pub mod answer;
pub mod authority;
pub mod backlog;
pub mod budget;
pub mod buffer;
pub mod canonical;
pub mod client_address;
pub mod field_policy;
#[cfg(test)]
mod fixture;
pub mod forwarded;
pub mod handshake;
pub mod host;
pub mod in_flight;
pub mod normalize;
pub mod outcome;
pub mod path_policy;
pub mod percent;
pub mod record;
pub mod relay;
pub mod request_id;
pub mod request_start;
pub mod slots;
pub mod spill;
pub mod target_view;
