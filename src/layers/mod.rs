//! Policy: one file, one threat, one table in `proxy.toml`. Layers do not import each other.
pub mod buffer;
pub mod canonical;
pub mod in_flight;
pub mod slots;
pub mod spill;
