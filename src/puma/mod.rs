//! Puma's world, read without running it.
