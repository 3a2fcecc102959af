//! Bytes: one reading or a refusal. Sans-IO.
pub mod rule;
