//! Container images on disk: content-addressed, layers unpacked once and
//! shared, archives taken as hostile.

pub mod archive;
pub mod attributes;
pub mod budget;
pub mod compression;
pub mod digest;
pub mod entry_path;
pub mod import;
pub mod index;
pub mod layer;
pub mod load;
pub mod merged;
pub mod pax;
pub mod reference;
pub mod removal;
pub mod store;
pub mod tar_reader;
pub mod unpack;
pub mod workspace;

#[cfg(test)]
mod tests;
