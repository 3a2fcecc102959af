//! Messages: connections become requests and answers.
pub mod arrival;
