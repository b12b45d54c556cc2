//! The sandbox and its fronts.
