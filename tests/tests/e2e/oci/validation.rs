//! The OCI runtime-tools' validation programs, and what becomes of each. One that changes its
//! outcome, for better or worse, fails the test.

use std::fmt::Write;

use lazaret_tests::{Oci, Suite, Verdict, start};

/// What a program is to find wrong, and why that is right.
struct Fault {
    program: &'static str,
    /// Each of these is in one fault, and there are no others.
    told: &'static [&'static str],
    /// For whoever reads the table.
    #[expect(dead_code, reason = "the reason is the table's, not the test's")]
    why: &'static str,
}

const fn fault(program: &'static str, told: &'static [&'static str], why: &'static str) -> Fault {
    Fault { program, told, why }
}

const VERSION_1: &str = "knows cgroup version 1 only";
const NO_VERSION_1: &str = "asks for what only cgroup version 1 has, and it is refused by name";
const OF_THE_HOST: &str = "asks for a thing of the host, which is refused by name";

/// Every program that is not here passes.
const FAULTS: &[Fault] = &[
    fault(
        "delete",
        &[
            "attempting to `delete` a container that is not `stopped` MUST generate an error",
            "attempting to `delete` a container that is not `stopped` MUST have no effect",
        ],
        "a created container is deleted, as runc does and engines rely on; a running one is not",
    ),
    fault(
        "delete_only_create_resources",
        &["cgroup/pids/cgrouptest/tasks"],
        VERSION_1,
    ),
    fault("delete_resources", &["find pids cgroup"], VERSION_1),
    fault(
        "hooks",
        &["Hooks MUST be called in the listed order"],
        "expects lines that its own hooks do not write",
    ),
    fault(
        "hooks_stdin",
        &["the state of the container MUST be passed to \"prestart\" hook over stdin"],
        "expects the status `created`; prestart runs within create, when it is `creating`",
    ),
    fault("linux_cgroups_blkio", &["io.weight"], OF_THE_HOST),
    fault("linux_cgroups_devices", &["find devices"], VERSION_1),
    fault(
        "linux_cgroups_hugetlb",
        &["cgroupv2 is not supported yet"],
        VERSION_1,
    ),
    fault("linux_cgroups_memory", &["exit status 1"], NO_VERSION_1),
    fault(
        "linux_cgroups_network",
        &["resources.network.classID is not supported"],
        NO_VERSION_1,
    ),
    fault("linux_cgroups_pids", &["find pids cgroup"], VERSION_1),
    fault(
        "linux_cgroups_relative_blkio",
        &["exit status 1"],
        OF_THE_HOST,
    ),
    fault(
        "linux_cgroups_relative_devices",
        &["find devices"],
        VERSION_1,
    ),
    fault(
        "linux_cgroups_relative_hugetlb",
        &["find hugetlb cgroup"],
        VERSION_1,
    ),
    fault(
        "linux_cgroups_relative_memory",
        &["exit status 1"],
        NO_VERSION_1,
    ),
    fault(
        "linux_cgroups_relative_network",
        &["exit status 1"],
        NO_VERSION_1,
    ),
    fault(
        "linux_cgroups_relative_pids",
        &["find pids cgroup"],
        VERSION_1,
    ),
    fault(
        "linux_devices",
        &["/dev/test1 is character device 10:666 of the host"],
        OF_THE_HOST,
    ),
    fault(
        "linux_mount_label",
        &["linux.mountLabel"],
        "the guest has no security modules",
    ),
    fault(
        "linux_ns_itype",
        &["cannot run validation tests"],
        "asks for the host's network, which is refused by name",
    ),
    fault(
        "linux_ns_nopath",
        &[
            "create namespace cgroup without path",
            "create namespace ipc without path",
            "create namespace pid without path",
            "create namespace user without path",
            "create namespace uts without path",
        ],
        "looks at the sandbox process, on the host: these namespaces are in the guest",
    ),
    fault(
        "linux_ns_path",
        &[
            "set ipc namespace by path",
            "set mnt namespace by path",
            "set pid namespace by path",
            "set uts namespace by path",
        ],
        OF_THE_HOST,
    ),
    fault(
        "linux_process_apparmor_profile",
        &["process.apparmorProfile"],
        "the guest has no security modules",
    ),
    fault(
        "misc_props",
        &["MUST NOT generate an error if they encounter an unknown annotation key"],
        "its container's program is not in its bundle, and that is the error",
    ),
    fault(
        "mounts",
        &["of the mount at /mnt/etc-shared cannot be honoured by a microVM"],
        "mounts made in a guest cannot appear on the host: refused by name",
    ),
    fault(
        "poststart_fail",
        &["if any poststart hook fails, the runtime MUST log a warning"],
        "the container is stopped, as runc does and the specification says since 1.2.1",
    ),
    fault(
        "prestart",
        &["Pre-start hooks MUST be called after the `start` operation is called"],
        "the specification calls them within create since 1.0.2",
    ),
    fault(
        "process_rlimits",
        &["has expected soft RLIMIT_NOFILE"],
        "looks from within Go, whose start raises this limit",
    ),
    fault(
        "start",
        &["exit status 1"],
        "a container without `process` is refused by create already, as by runc",
    ),
];

/// What this one finds depends on whether the hook or the program is quicker: no runtime waits for
/// what a program writes before it calls the poststart hooks.
const RACES: &str = "poststart";

/// Not run: many microVMs, most with a fraction of a processor, to learn that they know cgroup
/// version 1 only.
const LEFT_OUT: [&str; 2] = ["linux_cgroups_cpus", "linux_cgroups_relative_cpus"];

#[test]
#[ignore = "makes a hundred containers: make test-full"]
fn validation_programs_find_what_is_to_be_found() {
    let lazaret = start!("oci-validation");
    let oci = Oci::new(&lazaret);
    let suite = Suite::new(&oci);
    let mut programs = suite.programs();
    programs.retain(|program| !LEFT_OUT.contains(&program.as_str()));
    for fault in FAULTS {
        let known = programs.iter().any(|program| program == fault.program);
        assert!(known, "there is no program {}", fault.program);
    }
    let mut surprises = String::new();
    for program in &programs {
        let verdict = suite.run(program);
        let (passed, faults) = (verdict.passed, verdict.faults.len());
        println!("{program}: {passed} checks passed, {faults} faults");
        if program != RACES && !as_expected(program, &verdict) {
            let Verdict {
                faults, outcome, ..
            } = &verdict;
            write!(surprises, "{program} found {faults:#?}: {outcome}").expect("memory");
        }
    }
    assert!(surprises.is_empty(), "{surprises}");
}

fn as_expected(program: &str, verdict: &Verdict) -> bool {
    let known = FAULTS.iter().find(|fault| fault.program == program);
    let told = known.map_or(&[][..], |fault| fault.told);
    let each = |(fault, told): (&String, &&str)| fault.contains(told);
    verdict.faults.len() == told.len() && verdict.faults.iter().zip(told).all(each)
}
