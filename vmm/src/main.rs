//! `lazaret-vmm`: receive configuration and descriptors, enter the jail, run.

fn main() {}
