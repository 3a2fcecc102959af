//! Puma's world, read without running it: its configuration file, its versions.
//!
//! Threat 4, exposure, and the capacity model. Nothing here executes Ruby, opens a socket or follows a path out of
//! what it is given.

pub mod evaluate;
mod methods;
mod settings;

pub mod bind;
pub mod puma_rb;
pub mod ruby;
pub mod value;
pub mod versions;

pub use bind::{Bind, Listener};
pub use puma_rb::{PumaRb, ReadError, read, read_file};
pub use value::Known;
