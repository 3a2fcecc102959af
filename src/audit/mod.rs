//! `palisade audit`: the set-up of an application, checked without running it.
