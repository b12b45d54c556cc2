//! Lifecycle under abuse: `lazaret-oci` and its engines made to end where nobody expects it, again
//! and again and all at once. Each time the container is stopped, can be deleted, and leaves nothing.

mod bundle;
mod engines;
mod footprint;
mod force;
mod hangup;
mod killed;
mod races;
mod rounds;
