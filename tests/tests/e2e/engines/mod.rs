//! What people do with Docker, podman and buildah, on lazaret-oci. Both engines are held to the
//! same tests; `LAZARET_E2E_RUNTIME=runc` tells a fault of lazaret from one of the test.

mod build;
mod compose;
mod lifecycle;
mod network;
mod run;
mod services;
mod storage;

use lazaret_tests::{Engine, Kind, Lazaret};

/// Makes tests of these functions, one for Docker and one for podman each. What is in no list of
/// quick ones takes minutes on an emulated processor, and is left to `make test-full`.
macro_rules! for_both {
    (quick: [$($quick:ident),*], quick_on_docker: [$($docker:ident),*], full: [$($full:ident),*] $(,)?) => {
        mod docker {
            $(crate::engines::on!(Docker, "docker-", $quick);)*
            $(crate::engines::on!(Docker, "docker-", $docker);)*
            $(crate::engines::on!(#[ignore = "minutes long: make test-full"] Docker, "docker-", $full);)*
        }
        mod podman {
            $(crate::engines::on!(Podman, "podman-", $quick);)*
            $(crate::engines::on!(#[ignore = "minutes long: make test-full"] Podman, "podman-", $docker);)*
            $(crate::engines::on!(#[ignore = "minutes long: make test-full"] Podman, "podman-", $full);)*
        }
    };
}

/// One test.
macro_rules! on {
    ($(#[$meta:meta])* $kind:ident, $prefix:literal, $test:ident) => {
        #[test]
        $(#[$meta])*
        fn $test() {
            let name = concat!($prefix, stringify!($test));
            crate::engines::with(lazaret_tests::Kind::$kind, name, super::$test);
        }
    };
}
use {for_both, on};

/// Runs a test on an engine, where there is one.
fn with(kind: Kind, name: &'static str, test: fn(&Engine)) {
    let Some(lazaret) = Lazaret::start(name) else {
        return;
    };
    if let Some(engine) = Engine::start(&lazaret, kind) {
        test(&engine);
    }
}
