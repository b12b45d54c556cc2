//! `lazaret-oci` by hand: the rules of the runtime specification and runc's command line, in real
//! guests. `LAZARET_E2E_OCI=runc` tells a fault of lazaret from one of a test.

mod errors;
mod exec;
mod files;
mod hooks;
mod lifecycle;
mod process;
mod resources;
mod terminal;
mod validation;
mod verbs;
