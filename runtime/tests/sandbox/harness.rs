//! A sandbox process in a directory of its own, and a client of its Task API.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    CreateTaskRequest, DeleteRequest, ExecProcessRequest, KillRequest, ShutdownRequest,
    StartRequest, WaitRequest,
};
use containerd_shim_protos::shim_async::{Client, TaskClient};
use lazaret_runtime::sandbox::id::SandboxId;
use lazaret_runtime::sandbox::state::{SandboxState, process_start_time};
use lazaret_runtime::sandbox::store::Store;
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};
use ttrpc::context::with_duration;
use ttrpc::{Code, Error};

pub const ID: &str = "box";
const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-lazaret-v2");
const DEADLINE: Duration = Duration::from_secs(30);

pub struct Box_ {
    dir: tempfile::TempDir,
    namespace: &'static str,
    pub store: Store,
    /// Noted for `nothing_is_left`.
    pids: Vec<u32>,
}

pub fn context() -> ttrpc::context::Context {
    with_duration(DEADLINE)
}

impl Box_ {
    /// A sandbox whose VMM plays the named scenario.
    pub fn new(scenario: &str, namespace: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["kernel", "initramfs"] {
            fs::write(path(name), "").unwrap();
        }
        let program = std::env::current_exe().unwrap();
        // The control socket comes as descriptor 3; safe code reads it as stdin.
        let script = format!(
            "#!/bin/sh\nLAZARET_FAKE_VMM={scenario} LAZARET_FAKE_DIR={} \
             exec {} --exact fake_vmm::play --nocapture <&3\n",
            dir.path().display(),
            program.display()
        );
        fs::write(path("vmm"), script).unwrap();
        fs::set_permissions(path("vmm"), fs::Permissions::from_mode(0o755)).unwrap();
        let config = format!(
            "kernel = '{}'\ninitramfs = '{}'\nvmm = '{}'\nrun_dir = '{}'\nshim = '{SHIM}'\n\
             host_cgroup = false\nboot_timeout_s = 2\n",
            path("kernel").display(),
            path("initramfs").display(),
            path("vmm").display(),
            path("run").display(),
        );
        fs::write(path("config.toml"), config).unwrap();
        fs::create_dir_all(path("bundle/rootfs")).unwrap();
        fs::create_dir(path("volume")).unwrap();
        fs::write(path("volume/file"), "precious").unwrap();
        let store = Store::new(&path("run"), &path("cgroup"));
        Self {
            dir,
            namespace,
            store,
            pids: Vec::new(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn sandbox_dir(&self) -> PathBuf {
        self.path("run/sandboxes").join(ID)
    }

    /// Writes the bundle's `config.json` for a program of the fake agent.
    pub fn spec(&self, args: &[&str], change: impl FnOnce(&mut Value)) {
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "process": { "args": args, "cwd": "/" },
            "root": { "path": "rootfs" },
            "mounts": [{
                "type": "bind", "source": self.path("volume"), "destination": "/volume",
                "options": ["rbind", "ro"],
            }],
            "annotations": { "dev.lazaret.memory-mib": "128" },
            "linux": {},
        });
        change(&mut spec);
        fs::write(self.path("bundle/config.json"), spec.to_string()).unwrap();
    }

    pub fn change_spec(&self, change: impl FnOnce(&mut Value)) {
        let path = self.path("bundle/config.json");
        let mut spec = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut spec);
        fs::write(path, spec.to_string()).unwrap();
    }

    /// As started from a shell whose processes may open few files.
    pub fn shim(&self, action: &str) -> Output {
        Command::new("sh")
            .args(["-c", "ulimit -Sn 64; exec \"$0\" \"$@\"", SHIM])
            .args(["-namespace", self.namespace, "-id", ID, "-address", ""])
            .args(["-bundle", self.path("bundle").to_str().unwrap(), action])
            .env("LAZARET_CONFIG", self.path("config.toml"))
            .env("LAZARET_EXIT_COMMAND", self.path("exit-command"))
            .output()
            .unwrap()
    }

    pub fn start_shim(&mut self) {
        let output = self.shim("start");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        let reply: Value = serde_json::from_str(&text).unwrap();
        let socket = self.sandbox_dir().join("task.sock");
        assert_eq!(reply["address"], format!("unix://{}", socket.display()));
    }

    /// Starts the sandbox process and connects with it.
    pub async fn client(&mut self) -> TaskClient {
        self.start_shim();
        self.connect().await
    }

    /// With a container that is made, but does not run.
    pub async fn created(&mut self) -> TaskClient {
        let client = self.client().await;
        let request = create_request(&self.path("bundle"));
        client.create(context(), &request).await.unwrap();
        self.note_pids();
        client
    }

    /// With a container that runs.
    pub async fn running(&mut self) -> TaskClient {
        let client = self.created().await;
        client.start(context(), &start_request("")).await.unwrap();
        client
    }

    /// Removes a container that has ended, and its sandbox with it.
    pub async fn take_down(&self, client: &TaskClient) {
        let request = delete_request("");
        client.delete(context(), &request).await.unwrap();
        shut_down(client).await;
        self.nothing_is_left().await;
    }

    pub async fn connect(&self) -> TaskClient {
        let socket = self.sandbox_dir().join("task.sock");
        let address = format!("unix://{}", socket.display());
        TaskClient::new(Client::connect(&address).await.unwrap())
    }

    pub fn state(&self) -> Option<SandboxState> {
        self.store.load(&SandboxId::new(ID).unwrap()).unwrap()
    }

    pub fn note_pids(&mut self) {
        let state = self.state().unwrap();
        self.pids.push(state.pid);
        self.pids.extend(state.vmm_pid);
    }

    pub fn sandbox_log(&self) -> String {
        fs::read_to_string(self.sandbox_dir().join("sandbox.log")).unwrap_or_default()
    }

    pub async fn processes_end(&self) {
        self.wait_for("processes to end", || {
            self.pids
                .iter()
                .all(|pid| process_start_time(*pid).is_none())
        })
        .await;
    }

    /// The processes are gone, the directory too, and volumes are untouched.
    pub async fn nothing_is_left(&self) {
        self.processes_end().await;
        self.wait_for("the directory to go", || !self.sandbox_dir().exists())
            .await;
        self.volume_is_untouched();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let own = self.dir.path().to_str().unwrap();
        assert!(!mounts.contains(own), "mounts left: {mounts}");
    }

    pub fn volume_is_untouched(&self) {
        let file = fs::read_to_string(self.path("volume/file")).unwrap();
        assert_eq!(file, "precious");
    }

    pub async fn wait_for(&self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(
                start.elapsed() < DEADLINE,
                "waited in vain for {what}; log:\n{}",
                self.sandbox_log()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Box_ {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("sandbox log:\n{}", self.sandbox_log());
        }
        // A failed test must not leave its processes behind.
        let _ = self.shim("delete");
    }
}

pub fn create_request(bundle: &Path) -> CreateTaskRequest {
    CreateTaskRequest {
        id: ID.to_owned(),
        bundle: bundle.display().to_string(),
        ..CreateTaskRequest::default()
    }
}

pub fn start_request(exec: &str) -> StartRequest {
    StartRequest {
        id: ID.to_owned(),
        exec_id: exec.to_owned(),
        ..StartRequest::default()
    }
}

pub fn exec_request(exec: &str, args: &[&str]) -> ExecProcessRequest {
    ExecProcessRequest {
        id: ID.to_owned(),
        exec_id: exec.to_owned(),
        spec: MessageField::some(Any {
            value: json!({ "args": args }).to_string().into_bytes(),
            ..Any::default()
        }),
        ..ExecProcessRequest::default()
    }
}

pub fn wait_request(exec: &str) -> WaitRequest {
    WaitRequest {
        id: ID.to_owned(),
        exec_id: exec.to_owned(),
        ..WaitRequest::default()
    }
}

pub fn kill_request(signal: u32) -> KillRequest {
    KillRequest {
        id: ID.to_owned(),
        signal,
        ..KillRequest::default()
    }
}

pub fn delete_request(exec: &str) -> DeleteRequest {
    DeleteRequest {
        id: ID.to_owned(),
        exec_id: exec.to_owned(),
        ..DeleteRequest::default()
    }
}

pub fn shutdown_request() -> ShutdownRequest {
    ShutdownRequest {
        id: ID.to_owned(),
        ..ShutdownRequest::default()
    }
}

pub async fn shut_down(client: &TaskClient) {
    let request = shutdown_request();
    client.shutdown(context(), &request).await.unwrap();
}

/// Code and text of a refused request.
pub fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> (Code, String) {
    match result {
        Err(Error::RpcStatus(status)) => (status.code(), status.message().to_owned()),
        other => panic!("not refused: {other:?}"),
    }
}
