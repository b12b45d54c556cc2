//! Real containers on the machine that runs the tests: the agent's service on a unix
//! socket, its stages from the built program, and a root made of a static busybox.
//! Namespaces need root; without it every test says that it was skipped.

mod harness;

mod exec;
mod exits;
mod filters;
mod hooks;
mod identity;
mod isolation;
mod life;
mod mounts;
mod namespaces;
mod resources;
mod scheduling;
mod stdio;
mod user_namespace;
