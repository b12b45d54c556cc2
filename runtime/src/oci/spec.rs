//! `lazaret-oci spec`: a `config.json` to begin with, the one that runc writes.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::failure::{Failure, OciError};

/// Write a config.json to begin with into a bundle
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory of the bundle [default: the working directory]
    #[arg(
        short,
        long,
        value_name = "DIR",
        default_value = ".",
        hide_default_value = true
    )]
    bundle: PathBuf,
    /// For a user who is not root: refused, a microVM is root's to start
    #[arg(long)]
    rootless: bool,
}

impl Args {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        if self.rootless {
            return Err(OciError::Rootless.into());
        }
        let path = self.bundle.join("config.json");
        let mut text = serde_json::to_string_pretty(&example()).expect("all keys are strings");
        text.push('\n');
        let written = std::fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o666)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|source| OciError::Io {
            verb: "write, in place of what may be there,",
            path,
            source,
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

const CAPABILITIES: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

fn example() -> Value {
    json!({
        "ociVersion": super::SPEC_VERSION,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "lazaret",
        "mounts": mounts(),
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" },
                { "type": "network" },
                { "type": "ipc" },
                { "type": "uts" },
                { "type": "mount" },
                { "type": "cgroup" },
            ],
            "maskedPaths": [
                "/proc/acpi",
                "/proc/asound",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/proc/sched_debug",
                "/sys/firmware",
                "/proc/scsi",
            ],
            "readonlyPaths": [
                "/proc/bus",
                "/proc/fs",
                "/proc/irq",
                "/proc/sys",
                "/proc/sysrq-trigger",
            ],
        },
    })
}

fn mounts() -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| {
        let mut mount = json!({ "destination": destination, "type": kind, "source": source });
        if !options.is_empty() {
            mount["options"] = json!(options);
        }
        mount
    };
    let plain = ["nosuid", "noexec", "nodev"];
    let with = |more: &[&'static str]| [&plain[..], more].concat();
    json!([
        mount("/proc", "proc", "proc", &[]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"]
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5"
            ],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &with(&["mode=1777", "size=65536k"])
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &plain),
        mount("/sys", "sysfs", "sysfs", &with(&["ro"])),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &with(&["relatime", "ro"])
        ),
    ])
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Spec;

    use super::*;

    #[test]
    fn the_example_is_a_valid_bundle() {
        let dir = tempfile::tempdir().unwrap();
        let write = || Args {
            bundle: dir.path().to_owned(),
            rootless: false,
        };
        write().run().unwrap();
        let bundle = super::super::bundle::Bundle::load(dir.path()).unwrap();
        let spec: Spec = serde_json::from_value(bundle.spec).unwrap();
        assert_eq!(spec.hostname().as_deref(), Some("lazaret"));
        let again = write().run().unwrap_err().message();
        assert!(again.contains("config.json"), "{again}");
    }

    #[test]
    fn a_spec_for_who_is_not_root_is_refused() {
        let args = Args {
            bundle: "/nowhere".into(),
            rootless: true,
        };
        assert!(args.run().unwrap_err().message().contains("rootless"));
    }
}
