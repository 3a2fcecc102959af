//! Policy: one file, one threat, one table in `proxy.toml`. Layers do not import each other.
pub mod authority;
pub mod backtrace;
pub mod ban;
pub mod ban_rule;
pub mod buffer;
pub mod byte_ranges;
pub mod canonical;
#[cfg(test)]
mod chain;
pub mod client_address;
pub mod conceal;
pub mod content_type;
pub mod field_policy;
#[cfg(test)]
mod fixture;
pub mod forwarded;
pub mod handshake;
pub mod host;
pub mod multipart;
pub mod normalize;
pub mod outcome;
pub mod parameters;
pub mod path_policy;
pub mod percent;
pub mod rate;
pub mod rate_rule;
pub mod rate_table;
pub mod request_id;
pub mod request_start;
pub mod sensitive;
pub mod shield;
pub mod shield_body;
pub mod shield_config;
pub mod slots;
pub mod spill;
pub mod target_view;
