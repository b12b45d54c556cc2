//! Engines made ready on the machine: settings, daemon, images.

use std::sync::OnceLock;

use crate::engine::Kind;
use crate::machine::Machine;

/// Settings that a lab without systemd needs, the runtime, and images for both engines' stores.
const SETTINGS: &str = r#"
set -e
mkdir -p /etc/docker /etc/containers/containers.conf.d
cat >/etc/docker/daemon.json <<'JSON'
{
  "exec-opts": ["native.cgroupdriver=cgroupfs"],
  "storage-driver": "overlay2",
  "shutdown-timeout": 60,
  "runtimes": {
    "lazaret": { "path": "/usr/bin/lazaret-oci" },
    "runsc": { "path": "/usr/bin/runsc", "runtimeArgs": ["--platform=kvm", "--network=none"] }
  }
}
JSON
cat >/etc/containers/containers.conf.d/lazaret.conf <<'TOML'
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
[engine.runtimes]
lazaret = ["/usr/bin/lazaret-oci"]
TOML
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
"#;

/// Starts dockerd (which starts containerd) where none answers, and waits until it does.
const START_DOCKER: &str = r"
if ! docker version >/dev/null 2>&1; then
    setsid dockerd >>/var/log/dockerd.log 2>&1 </dev/null &
    daemon=$!
    until docker version >/dev/null 2>&1; do
        kill -0 $daemon || { tail -n 20 /var/log/dockerd.log >&2; exit 1; }
        sleep 0.5
    done
fi
";

/// Gives an engine its settings where the machine is a lab, starts it where it is a daemon, and
/// loads the image `busybox`. Done once for each engine in a run.
pub fn ready(machine: &Machine, kind: Kind) -> anyhow::Result<()> {
    static DOCKER: OnceLock<()> = OnceLock::new();
    static PODMAN: OnceLock<()> = OnceLock::new();
    let (once, start) = match kind {
        Kind::Docker => (&DOCKER, START_DOCKER),
        Kind::Podman => (&PODMAN, ""),
    };
    if once.get().is_some() {
        return Ok(());
    }
    let engine = kind.name();
    let settings = match machine {
        Machine::Host => "set -e",
        Machine::Lab(_) => SETTINGS,
    };
    let image = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/busybox-image");
    machine.shell(&format!(
        "{settings}\n{start}\n{engine} image inspect busybox >/dev/null 2>&1 || {{
            file=$(mktemp); {image} $file; {engine} load -q -i $file; rm $file; }}"
    ))?;
    // Tests take turns: nobody else has done it meanwhile.
    once.get_or_init(|| ());
    Ok(())
}

/// Loads the image `debian` that the lab has: services, their load generators, apt with a
/// repository.
pub fn debian(machine: &Machine, kind: Kind) -> anyhow::Result<()> {
    let engine = kind.name();
    machine.shell(&format!(
        "{engine} image inspect debian >/dev/null 2>&1 || \
         zstd -dc /usr/share/lab/debian.tar.zst | {engine} import - debian:latest >/dev/null"
    ))?;
    Ok(())
}
