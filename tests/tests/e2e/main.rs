//! End to end: what a person does with `lazaret`, on a machine with KVM or in the lab.
//! One binary, for tests take turns across all subjects.

mod abuse;
mod archive;
mod bad_input;
mod cli;
mod docker;
mod engines;
mod exec;
mod exit_codes;
mod failures;
mod images;
mod initramfs;
mod isolation;
mod lifecycle;
mod limits;
mod logs;
mod network;
mod oci;
mod stdio;
mod terminal;
mod volumes;
