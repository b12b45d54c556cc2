//! lazaret's virtual machine monitor, as a library: one microVM on KVM.
//!
//! [`builder::build`] makes it in the order in which a machine is put together;
//! [`vmm::Vmm::run`] serves it until it ends. [`config`] and [`control`] are what
//! the sandbox process shares with it.

pub mod arch;
pub mod backends;
pub mod builder;
pub mod bus;
pub mod check;
pub mod cmdline;
pub mod config;
pub mod control;
pub mod devices;
pub mod event_loop;
pub mod jail;
pub mod kernel;
pub mod kvm;
pub mod memory;
pub mod seccomp;
pub mod slot_thread;
pub mod vcpu;
pub mod vmm;
