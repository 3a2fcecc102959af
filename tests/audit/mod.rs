//! `palisade audit`
