//! The device driven through real virtqueues against a temporary directory.
//! Needs root, as the device does.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "fields of messages are cut to what their place holds"
)]

mod driver;
mod hostile;
mod jailed;
mod lifecycle;
mod listings;
mod posix;
mod unnamed_files;
