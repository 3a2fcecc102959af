//! Policy: one file, one threat, one table in `proxy.toml`. Layers do not import each other.
pub mod answer;
pub mod buffer;
pub mod canonical;
pub mod record;
pub mod slots;
pub mod spill;
