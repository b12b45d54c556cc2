//! What `lazaret` keeps on disk for containers: their records, their root
//! file systems, their volumes.

pub mod atomic;
