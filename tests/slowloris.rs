//! slowloris
