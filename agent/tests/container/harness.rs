//! One agent for all tests of this program, as its reaper collects all children of the
//! process, and a builder for specs.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, mpsc};
use std::thread::{self, JoinHandle};

use lazaret_agent::sandbox::{Config, Sandbox};
use lazaret_agent::server;
use lazaret_agent::streams::Streams;
use lazaret_protocol::agent::{
    CreateContainerRequest, CreateProcessRequest, ProcessRequest, Stdio, WaitProcessReply,
};
use lazaret_protocol::agent_ttrpc::AgentClient;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::{Value, json};
use tempfile::TempDir;
use ttrpc::r#async::Client;
use ttrpc::context::{Context, with_timeout};

const CALL_TIMEOUT_NS: i64 = 60_000_000_000;
pub(crate) const BUNDLE: &str = "/bundles/of/the/host";
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 33] = [
    "cat", "chmod", "cut", "date", "dd", "echo", "env", "grep", "head", "hostname", "id", "kill",
    "ln", "ls", "mkdir", "mount", "nsenter", "ps", "pwd", "readlink", "sh", "sleep", "stat",
    "stty", "tail", "taskset", "test", "touch", "true", "tty", "uname", "unshare", "wc",
];

/// Leaves the calling test, loudly, when namespaces cannot be made.
macro_rules! require_root {
    () => {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: {} needs root", module_path!());
            return;
        }
    };
}
pub(crate) use require_root;

struct Served {
    streams: Arc<Streams>,
    socket: PathBuf,
    _directory: TempDir,
}

static AGENT: LazyLock<Served> = LazyLock::new(serve);
static NEXT: AtomicU32 = AtomicU32::new(1);

fn serve() -> Served {
    let directory = tempfile::tempdir().expect("temporary directory");
    let socket = directory.path().join("agent.sock");
    let streams = Arc::new(Streams::default());
    let (ready, is_ready) = mpsc::channel();
    let config = Config {
        program: env!("CARGO_BIN_EXE_lazaret-agent").into(),
        cgroup_mount: cgroup_mount(),
    };
    let (path, shared) = (socket.clone(), Arc::clone(&streams));
    thread::spawn(move || {
        own_network();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("event loop");
        runtime.block_on(async move {
            let sandbox = Sandbox::new(&config, shared).expect("sandbox");
            let mut server = ttrpc::r#async::Server::new()
                .bind(&format!("unix://{}", path.display()))
                .expect("listener")
                .register_service(server::service(Arc::new(sandbox)));
            server.start().await.expect("server");
            ready.send(()).expect("tests wait");
            std::future::pending::<()>().await;
        });
    });
    is_ready.recv().expect("the agent serves");
    Served {
        streams,
        socket,
        _directory: directory,
    }
}

/// The guest's network, as containers are in the agent's.
#[expect(
    unsafe_code,
    reason = "unshare is unsafe to call with CLONE_FILES only"
)]
fn own_network() {
    // SAFETY: the flag is not CLONE_FILES.
    let made = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
    made.expect("a network namespace");
}

/// The version 2 hierarchy, wherever this machine has it.
pub(crate) fn cgroup_mount() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
    let mount = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .expect("a cgroup2 mount");
    PathBuf::from(mount[1])
}

pub(crate) fn client() -> AgentClient {
    let address = format!("unix://{}", AGENT.socket.display());
    let runtime = tokio::runtime::Handle::current();
    let client = tokio::task::block_in_place(|| runtime.block_on(Client::connect(&address)));
    AgentClient::new(client.expect("the agent listens"))
}

pub(crate) fn context() -> Context {
    with_timeout(CALL_TIMEOUT_NS)
}

/// The host's side of one stream.
pub(crate) fn stream() -> (u32, UnixStream) {
    let (host, guest) = UnixStream::pair().expect("socket pair");
    let port = NEXT.fetch_add(1, Ordering::Relaxed);
    AGENT.streams.park(port, guest.into());
    (port, host)
}

pub(crate) fn read_in_background(mut stream: UnixStream) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("stream reads");
        all
    })
}

/// A container under test, with a root of its own.
pub(crate) struct Box {
    pub(crate) id: String,
    /// What hooks are told that it is called, if not by its id.
    pub(crate) name: String,
    pub(crate) spec: Value,
    pub(crate) client: AgentClient,
    /// Once it is started.
    pub(crate) pid: u32,
    root: TempDir,
    stdin: Vec<u8>,
}

pub(crate) struct Outcome {
    pub(crate) status: u32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Box {
    /// A container that runs this command line of the shell.
    pub(crate) fn sh(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    pub(crate) fn new(args: &[&str]) -> Self {
        let root = tempfile::tempdir().expect("temporary directory");
        make_root(root.path());
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self {
            id: format!("test-{}-{number}", std::process::id()),
            name: String::new(),
            spec: spec(root.path(), args),
            client: client(),
            pid: 0,
            root,
            stdin: Vec::new(),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// Replaces or adds what the JSON pointer names.
    pub(crate) fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let parent = self.spec.pointer_mut(parent).expect("the parent is there");
        parent
            .as_object_mut()
            .expect("an object")
            .insert(key.to_owned(), value);
        self
    }

    pub(crate) fn mount(mut self, mount: Value) -> Self {
        let mounts = self.spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(mount);
        self
    }

    pub(crate) fn stdin(mut self, bytes: &[u8]) -> Self {
        bytes.clone_into(&mut self.stdin);
        self
    }

    pub(crate) fn request(&self, exec_id: &str) -> ProcessRequest {
        let mut request = ProcessRequest::new();
        request.container_id.clone_from(&self.id);
        exec_id.clone_into(&mut request.exec_id);
        request
    }

    pub(crate) async fn create(&self, stdio: Stdio) -> ttrpc::Result<u32> {
        let mut request = CreateContainerRequest::new();
        request.container_id.clone_from(&self.id);
        request.name.clone_from(&self.name);
        BUNDLE.clone_into(&mut request.bundle);
        request.spec_json = serde_json::to_vec(&self.spec).expect("JSON");
        request.stdio = Some(stdio).into();
        let reply = self.client.create_container(context(), &request).await?;
        Ok(reply.guest_pid)
    }

    pub(crate) async fn start(&self, exec_id: &str) -> ttrpc::Result<()> {
        let request = self.request(exec_id);
        self.client.start_process(context(), &request).await?;
        Ok(())
    }

    /// Creates and starts without stdio.
    pub(crate) async fn started(mut self) -> Self {
        self.pid = self.create(Stdio::new()).await.expect("create");
        self.start("").await.expect("start");
        self
    }

    pub(crate) async fn wait(&self, exec_id: &str) -> WaitProcessReply {
        let request = self.request(exec_id);
        let reply = self.client.wait_process(context(), &request).await;
        reply.expect("wait")
    }

    pub(crate) async fn delete(&self) {
        let request = self.request("");
        self.client
            .delete(context(), &request)
            .await
            .expect("delete");
    }

    /// From create to delete, with all three streams.
    pub(crate) async fn run(self) -> Outcome {
        self.try_run().await.expect("the container runs")
    }

    pub(crate) async fn try_run(self) -> ttrpc::Result<Outcome> {
        let (stdio, streams) = Streams3::new(&self.stdin);
        self.create(stdio).await?;
        let started = self.start("").await;
        if let Err(error) = started {
            self.delete().await;
            return Err(error);
        }
        let status = self.wait("").await.exit_status;
        let outcome = streams.outcome(status);
        self.delete().await;
        Ok(outcome)
    }

    pub(crate) async fn create_process(&self, exec_id: &str, process: Value, stdio: Stdio) {
        self.try_create_process(exec_id, process, stdio)
            .await
            .expect("create process");
    }

    pub(crate) async fn try_create_process(
        &self,
        exec_id: &str,
        process: Value,
        stdio: Stdio,
    ) -> ttrpc::Result<()> {
        let mut request = CreateProcessRequest::new();
        request.container_id.clone_from(&self.id);
        exec_id.clone_into(&mut request.exec_id);
        request.process_json = serde_json::to_vec(&process).expect("JSON");
        request.stdio = Some(stdio).into();
        self.client.create_process(context(), &request).await?;
        Ok(())
    }

    pub(crate) async fn exec(&self, exec_id: &str, process: Value) -> ttrpc::Result<Outcome> {
        let (stdio, streams) = Streams3::new(b"");
        self.create_process(exec_id, process, stdio).await;
        self.start(exec_id).await?;
        let status = self.wait(exec_id).await.exit_status;
        Ok(streams.outcome(status))
    }
}

/// All three streams of a process, fed and read in the background.
pub(crate) struct Streams3 {
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
}

impl Streams3 {
    pub(crate) fn new(input: &[u8]) -> (Stdio, Self) {
        let (stdin_port, mut host_input) = stream();
        let (stdout_port, output) = stream();
        let (stderr_port, errors) = stream();
        let text = input.to_vec();
        // A container that ends without reading its input is no error here.
        thread::spawn(move || host_input.write_all(&text));
        let mut stdio = Stdio::new();
        stdio.stdin_port = stdin_port;
        stdio.stdout_port = stdout_port;
        stdio.stderr_port = stderr_port;
        let stdout = read_in_background(output);
        let stderr = read_in_background(errors);
        (stdio, Self { stdout, stderr })
    }

    pub(crate) fn outcome(self, status: u32) -> Outcome {
        let text = |reader: JoinHandle<Vec<u8>>| {
            String::from_utf8_lossy(&reader.join().expect("reader lives")).into_owned()
        };
        Outcome {
            status,
            stdout: text(self.stdout),
            stderr: text(self.stderr),
        }
    }
}

pub(crate) fn process(args: &[&str]) -> Value {
    json!({
        "user": { "uid": 0, "gid": 0 },
        "args": args,
        "env": ["PATH=/bin"],
        "cwd": "/",
    })
}

fn make_root(root: &Path) {
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir(root.join(directory)).expect("directory");
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).expect("busybox-static is installed");
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet)).expect("link");
    }
    let users = "root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n";
    fs::write(root.join("etc/passwd"), users).expect("file");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(root, open).expect("mode");
}

fn spec(root: &Path, args: &[&str]) -> Value {
    let namespace = |kind: &str| json!({ "type": kind });
    let kinds = ["pid", "mount", "uts", "ipc", "network", "cgroup"];
    json!({
        "ociVersion": "1.2.0",
        "root": { "path": root },
        "hostname": "box",
        "process": process(args),
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620",
                          "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs",
              "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] },
        ],
        "linux": {
            "namespaces": kinds.map(namespace),
            "maskedPaths": ["/proc/version", "/proc/acpi", "/sys/firmware", "/no/such/path"],
            "readonlyPaths": ["/proc/sys", "/proc/bus"],
        },
    })
}

/// Code and text of a refused call.
pub(crate) fn refused<T>(result: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match result.err().expect("the call is refused") {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("not a status: {other}"),
    }
}
