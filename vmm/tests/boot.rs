//! Guests that boot, and every way in which they end. Needs KVM.
#![allow(clippy::cast_possible_truncation, reason = "sizes in tests are small")]

mod harness;

use std::fs;

use harness::{Running, config, kernel};
use lazaret_vmm::config::VmConfig;
use lazaret_vmm::control::{ExitReason, VmmEvent, VmmRequest};

/// A guest that is up, says so in the shared directory, and waits.
const UP: &str = "mount -t virtiofs shared /mnt; echo up > /mnt/up; sleep 1000000";

/// Boots `init` on a machine to its end.
fn boot_on(config: &VmConfig, init: &str) -> Option<(ExitReason, String)> {
    Some(Running::start(&kernel()?, config, init).end())
}

fn boot(init: &str) -> Option<(ExitReason, String)> {
    boot_on(&config(), init)
}

/// A machine whose guest is up.
fn up() -> Option<Running> {
    let running = Running::start(&kernel()?, &config(), UP);
    running.expect_started();
    running.wait_for_file("up");
    Some(running)
}

#[test]
fn guest_that_powers_off_ends_orderly() {
    let Some((reason, console)) = boot("uname -r; off") else {
        return;
    };
    assert_eq!(reason, ExitReason::Shutdown, "{console}");
    assert!(console.contains("6.12."), "{console}");
}

#[test]
fn guest_that_resets_is_told_from_one_that_panics() {
    let Some((reason, console)) = boot("reboot -f") else {
        return;
    };
    assert_eq!(reason, ExitReason::Reset, "{console}");
    let Some((reason, console)) = boot("exit 3") else {
        return;
    };
    assert_eq!(reason, ExitReason::Panic, "{console}");
    assert!(console.contains("Attempted to kill init"), "{console}");
}

#[test]
fn triple_fault_is_an_end_of_its_own() {
    let mut config = config();
    config.kernel_args = "reboot=t".into();
    let Some((reason, console)) = boot_on(&config, "reboot -f") else {
        return;
    };
    assert_eq!(reason, ExitReason::TripleFault, "{console}");
}

#[test]
fn processors_and_memory_are_what_was_asked_for() {
    for (vcpus, memory_mib) in [(1, 64), (2, 512), (4, 5120)] {
        let mut config = config();
        (config.vcpus, config.memory_mib) = (vcpus, memory_mib);
        let init = "grep -c ^processor /proc/cpuinfo; grep MemTotal /proc/meminfo; off";
        let Some((reason, console)) = boot_on(&config, init) else {
            return;
        };
        assert_eq!(reason, ExitReason::Shutdown, "{console}");
        let mut lines = console.lines();
        assert_eq!(lines.next(), Some(vcpus.to_string().as_str()), "{console}");
        let total = lines
            .next()
            .and_then(|line| line.split_whitespace().nth(1))
            .and_then(|kib| kib.parse::<u32>().ok())
            .unwrap_or_else(|| panic!("{console}"));
        // The kernel keeps some for itself.
        let mib = total / 1024;
        assert!(mib <= memory_mib && mib > memory_mib / 2, "{console}");
    }
}

#[test]
fn shared_directory_is_read_and_written_by_both_sides() {
    let Some(kernel) = kernel() else { return };
    let init = "mount -t virtiofs shared /mnt; cat /mnt/hello; echo back > /mnt/reply; off";
    let running = Running::prepare(&kernel, &config(), init, |shared| {
        fs::write(shared.join("hello"), "from the host\n").unwrap();
    });
    let shared = running.shared_path();
    let (reason, console) = running.end();
    assert_eq!(reason, ExitReason::Shutdown, "{console}");
    assert!(console.contains("from the host"), "{console}");
    assert_eq!(
        fs::read_to_string(shared.path().join("reply")).unwrap(),
        "back\n"
    );
}

#[test]
fn corrupt_kernel_is_refused_with_a_reason() {
    if kernel().is_none() {
        return;
    }
    let bad = tempfile::NamedTempFile::new().unwrap();
    fs::write(bad.path(), b"not a kernel").unwrap();
    let (reason, _) = Running::start(bad.path(), &config(), "off").end();
    let ExitReason::Start(why) = reason else {
        panic!("{reason}");
    };
    assert!(why.contains("not a usable ELF vmlinux"), "{why}");
}

#[test]
fn truncated_kernel_is_refused_with_a_reason() {
    let Some(kernel) = kernel() else { return };
    let whole = fs::read(kernel).unwrap();
    let cut = tempfile::NamedTempFile::new().unwrap();
    fs::write(cut.path(), &whole[..whole.len() / 4]).unwrap();
    let (reason, _) = Running::start(cut.path(), &config(), "off").end();
    assert!(matches!(reason, ExitReason::Start(_)), "{reason}");
    eprintln!("{reason}");
}

#[test]
fn crash_of_the_kernel_is_a_panic() {
    let Some((reason, console)) =
        boot("echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger")
    else {
        return;
    };
    assert_eq!(reason, ExitReason::Panic, "{console}");
}

#[test]
fn most_processors_come_up() {
    let mut config = config();
    (config.vcpus, config.memory_mib) = (32, 512);
    let Some((reason, console)) = boot_on(&config, "grep -c ^processor /proc/cpuinfo; off") else {
        return;
    };
    assert_eq!(reason, ExitReason::Shutdown, "{console}");
    assert!(console.starts_with("32"), "{console}");
}

#[test]
fn late_mounts_reach_the_guest() {
    use nix::mount::{MsFlags, mount};
    let Some(kernel) = kernel() else { return };
    let init = "mount -t virtiofs shared /mnt; echo up > /mnt/up; \
                until [ -e /mnt/late/there ]; do usleep 100000; done; cat /mnt/late/there; off";
    let none = None::<&str>;
    let running = Running::prepare(&kernel, &config(), init, |shared| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none).unwrap();
        mount(Some(shared), shared, none, MsFlags::MS_BIND, none).unwrap();
        mount(none, shared, none, MsFlags::MS_SHARED, none).unwrap();
        fs::create_dir(shared.join("late")).unwrap();
    });
    running.expect_started();
    running.wait_for_file("up");
    let shared = running.shared_path();
    let late = shared.path().join("late");
    mount(Some("late"), &late, Some("tmpfs"), MsFlags::empty(), none).unwrap();
    fs::write(late.join("new"), "mounted later\n").unwrap();
    fs::rename(late.join("new"), late.join("there")).unwrap();
    let (reason, console) = running.end();
    nix::mount::umount2(&late, nix::mount::MntFlags::MNT_DETACH).unwrap();
    nix::mount::umount2(shared.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(reason, ExitReason::Shutdown, "{console}");
    assert!(console.contains("mounted later"), "{console}");
}

#[test]
fn stop_ends_a_running_guest() {
    let Some(running) = up() else { return };
    running.request(&VmmRequest::Stop);
    assert_eq!(running.end().0, ExitReason::Stopped);
}

#[test]
fn paused_guest_goes_on_when_resumed() {
    let Some(running) = up() else { return };
    running.request(&VmmRequest::Pause);
    assert_eq!(running.event(), Some(VmmEvent::Paused));
    for _ in 0..20 {
        running.request(&VmmRequest::Resume);
        running.request(&VmmRequest::Pause);
        assert_eq!(running.event(), Some(VmmEvent::Resumed));
        assert_eq!(running.event(), Some(VmmEvent::Paused));
    }
    running.request(&VmmRequest::Resume);
    assert_eq!(running.event(), Some(VmmEvent::Resumed));
    running.request(&VmmRequest::Stop);
    assert_eq!(running.end().0, ExitReason::Stopped);
}

#[test]
fn vmm_ends_when_its_sandbox_process_is_gone() {
    let Some(running) = up() else { return };
    assert!(running.wait().success());
}

#[test]
fn running_vmm_is_in_its_jail() {
    let Some(running) = up() else { return };
    let proc = format!("/proc/{}", running.pid);
    for thread in fs::read_dir(format!("{proc}/task")).unwrap() {
        let thread = thread.unwrap().path();
        let status = fs::read_to_string(thread.join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_whitespace().nth(1))
                .unwrap()
                .to_owned()
        };
        assert_eq!(field("Seccomp:"), "2", "{status}");
        assert_eq!(field("NoNewPrivs:"), "1", "{status}");
        assert_eq!(field("CapBnd:"), "0000000000000000", "{status}");
        let expected = if field("Name:").starts_with("fs") {
            "00000000880000db"
        } else {
            "0000000000000000"
        };
        assert_eq!(field("CapEff:"), expected, "{status}");
        assert_eq!(field("CapPrm:"), expected, "{status}");
    }
    for namespace in ["user", "mnt", "net", "ipc", "uts", "pid", "cgroup"] {
        let of = |process: &str| fs::read_link(format!("{process}/ns/{namespace}")).unwrap();
        assert_ne!(of(&proc), of("/proc/self"), "{namespace}");
    }
    for fd in fs::read_dir(format!("{proc}/fd")).unwrap() {
        let above = fd.unwrap().path().join("../../..");
        assert!(!above.join("etc").exists(), "{} leads out", above.display());
        assert!(!above.join("sys").exists(), "{} leads out", above.display());
    }
    let entries = fs::read_dir(format!("{proc}/root")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["up", "vsock.sock"]);
    running.request(&VmmRequest::Stop);
    assert_eq!(running.end().0, ExitReason::Stopped);
}
