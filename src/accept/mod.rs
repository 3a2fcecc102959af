//! Connections: sockets become decrypted bytes of a known client, within limits and deadlines.
pub mod client;
pub mod pace;
