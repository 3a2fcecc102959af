//! Palisade, the proxy that Puma deserves.
pub mod audit;
pub mod puma;
