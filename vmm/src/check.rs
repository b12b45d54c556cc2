//! Whether this host can run microVMs: found out by trying, since a `/dev/kvm`
//! that opens and answers proves nothing.

use std::fs;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use serde::Serialize;
use vm_memory::{Bytes, GuestAddress};

use crate::arch::x86_64::{cpuid, regs};
use crate::kvm::Machine;
use crate::memory;

/// Where the trial's code is, and how much memory it has.
const CODE: GuestAddress = GuestAddress(0x10_0000);
const TRIAL_MEMORY_MIB: u32 = 4;

/// The trial takes microseconds with hardware virtualisation.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the trial says when it has come to its end.
const DONE_PORT: u16 = 0x80;
const DONE: u8 = 0x2a;

/// 64-bit code with instructions that interpreters of guest code lack:
/// `cmpxchg16b [rsp-32]; popcnt rax, rbx; mov al, 0x2a; out 0x80, al; hlt`.
const TRIAL: [u8; 18] = [
    0x48, 0x0f, 0xc7, 0x4c, 0x24, 0xe0, // cmpxchg16b
    0xf3, 0x48, 0x0f, 0xb8, 0xc3, // popcnt
    0xb0, DONE, // mov
    0xe6, 0x80, // out
    0xf4, 0xeb, 0xfd, // hlt, and again
];

/// What was found out.
#[derive(Debug, Serialize)]
pub struct Report {
    pub usable: bool,
    pub findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
pub struct Finding {
    pub name: &'static str,
    pub ok: bool,
    pub detail: String,
    /// What to do; empty where all is well.
    pub hint: &'static str,
}

/// Looks, then tries. Ends within the deadline whatever the host does.
pub fn check() -> Report {
    let mut findings = vec![processor()];
    match Kvm::new() {
        Ok(kvm) => {
            findings.push(ok("device", "/dev/kvm opens".into()));
            findings.push(capabilities(&kvm));
            // A host that has said no could only waste the deadline.
            if findings.iter().all(|finding| finding.ok) {
                findings.push(trial());
            }
        }
        Err(error) => findings.push(device_missing(error)),
    }
    Report {
        usable: findings.iter().all(|finding| finding.ok),
        findings,
    }
}

fn ok(name: &'static str, detail: String) -> Finding {
    Finding {
        name,
        ok: true,
        detail,
        hint: "",
    }
}

fn processor() -> Finding {
    let name = "processor";
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flag = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .and_then(|line| {
            line.split_whitespace()
                .find(|flag| matches!(*flag, "vmx" | "svm"))
        });
    match flag {
        Some(flag) => ok(name, format!("has hardware virtualisation ({flag})")),
        None => Finding {
            name,
            ok: false,
            detail: "has no hardware virtualisation (neither vmx nor svm in /proc/cpuinfo)".into(),
            hint: "enable virtualisation in the firmware, or nested virtualisation for this \
                   virtual machine",
        },
    }
}

fn device_missing(error: kvm_ioctls::Error) -> Finding {
    let hint = match error.errno() {
        libc::ENOENT | libc::ENODEV => "load the module: modprobe kvm_intel or kvm_amd",
        libc::EACCES | libc::EPERM => "run as root, or add the user to group kvm",
        _ => "see the kernel log for messages of kvm",
    };
    Finding {
        name: "device",
        ok: false,
        detail: format!("/dev/kvm does not open: {error}"),
        hint,
    }
}

fn capabilities(kvm: &Kvm) -> Finding {
    let name = "capabilities";
    match crate::kvm::check(kvm) {
        Ok(()) => ok(
            name,
            format!("KVM API {}, all that is needed", kvm.get_api_version()),
        ),
        Err(error) => Finding {
            name,
            ok: false,
            detail: error.to_string(),
            hint: "use Linux 5.10 or later with the in-kernel KVM",
        },
    }
}

fn trial() -> Finding {
    let name = "trial";
    let failed = |detail| Finding {
        name,
        ok: false,
        detail,
        hint: "this KVM does not run guest code as hardware does; use a host with hardware \
               virtualisation",
    };
    let (done, outcome) = channel();
    // Left behind where KVM does not come back: the process ends without it.
    let spawned = std::thread::Builder::new()
        .name("trial".into())
        .spawn(move || drop(done.send(try_guest_code())));
    if let Err(error) = spawned {
        return failed(format!("no thread to try with: {error}"));
    }
    match outcome.recv_timeout(DEADLINE) {
        Ok(Ok(())) => ok(name, "64-bit guest code runs".into()),
        Ok(Err(why)) => failed(format!("64-bit guest code does not run: {why}")),
        Err(RecvTimeoutError::Timeout) => failed(format!(
            "64-bit guest code did not end within {} s",
            DEADLINE.as_secs()
        )),
        Err(RecvTimeoutError::Disconnected) => failed("the trial crashed".into()),
    }
}

fn try_guest_code() -> Result<(), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let kvm = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|error: io::Error| text(&error))?;
    let machine = Machine::new(kvm.into()).map_err(|error| text(&error))?;
    let memory = memory::map(TRIAL_MEMORY_MIB).map_err(|error| text(&error))?;
    memory::register(&machine.vm, &memory).map_err(|error| text(&error))?;
    memory
        .write_slice(&TRIAL, CODE)
        .map_err(|error| text(&error))?;
    regs::write_tables(&memory).map_err(|error| text(&error))?;
    let mut vcpu = machine.vm.create_vcpu(0).map_err(|error| text(&error))?;
    let cpuid = cpuid::for_vcpu(&machine.cpuid, 0, 1).map_err(|error| text(&error))?;
    vcpu.set_cpuid2(&cpuid).map_err(|error| text(&error))?;
    regs::set_boot_state(&vcpu, CODE).map_err(|error| text(&error))?;
    run(&mut vcpu)
}

fn run(vcpu: &mut VcpuFd) -> Result<(), String> {
    match vcpu.run() {
        Ok(VcpuExit::IoOut(DONE_PORT, [DONE])) => Ok(()),
        Ok(other) => Err(format!("unexpected exit {other:?}")),
        Err(error) => Err(format!("KVM_RUN: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_is_usable_only_if_every_finding_is() {
        let report = check();
        assert_eq!(
            report.usable,
            report.findings.iter().all(|finding| finding.ok)
        );
        for finding in report.findings {
            assert_eq!(finding.ok, finding.hint.is_empty(), "{finding:?}");
        }
    }
}
