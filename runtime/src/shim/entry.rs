//! The shim's actions: `start` prepares and lets go of a sandbox process, none
//! is to be that process, `delete` cleans up after one that died.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use nix::sched::{CloneFlags, unshare};
use protobuf::{Message, MessageField};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, setsid};
use serde_json::json;
use thiserror::Error;
use tokio::time::timeout;

use super::args::{Action, Args, ArgsError};
use super::handover::{bind_stdio, serve_stdio};
use super::serve::{ServeError, serve};
use super::signals::Signals;
use crate::config::{Config, ConfigError};
use crate::network::{self, Claim, NamespaceError};
use crate::sandbox::cgroup::CGROUP_DIR;
use crate::sandbox::config::OCI_NAMESPACE;
use crate::sandbox::id::{IdError, SandboxId};
use crate::sandbox::plan::has_network;
use crate::sandbox::shown_root::shown_root;
use crate::sandbox::state::DIED_STATUS;
use crate::sandbox::store::{self, SandboxDir, Store, StoreError};
use crate::sandbox::{Close, Ended, Sandbox, SandboxError, SandboxLog, Setup, read_spec};
use crate::stdio::handover;

const RUNTIME_NAME: &str = "io.containerd.lazaret.v2";

/// Names a program that is told, as `PROGRAM cleanup ID`, when a sandbox has
/// ended by itself and has left its state.
const EXIT_COMMAND_ENV: &str = "LAZARET_EXIT_COMMAND";

/// How long clients may take to fetch their last replies.
const FAREWELL: Duration = Duration::from_secs(1);

#[derive(Debug, Error)]
pub enum ShimError {
    #[error(transparent)]
    Args(#[from] ArgsError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Id(#[from] IdError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Spec(#[from] SandboxError),
    #[error(transparent)]
    Network(#[from] NamespaceError),
    #[error("cannot make a mount namespace for the sandbox; are you root?")]
    Namespace(#[source] io::Error),
    #[error("cannot listen on {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("cannot open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot start the sandbox process")]
    Spawn(#[source] io::Error),
    #[error("this is to be run by `start`, which hands over sockets and a lock")]
    Handover(#[source] io::Error),
    #[error("cannot set up the sandbox process")]
    Runtime(#[source] io::Error),
    #[error("the sandbox process has panicked")]
    Panicked,
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error("cannot write the answer")]
    Answer(#[source] io::Error),
    #[error("cannot encode the answer")]
    Encode(#[from] protobuf::Error),
}

/// The shim as a program.
pub fn main(args: impl Iterator<Item = OsString>) -> Result<ExitCode, ShimError> {
    let args = Args::parse(args)?;
    let done = match args.action {
        Action::Version => {
            let version = env!("CARGO_PKG_VERSION");
            answer(format!("containerd-shim-lazaret-v2 {version}\n").as_bytes())
        }
        Action::Info => answer(&info().write_to_bytes()?),
        Action::Start => start(&args),
        Action::Delete => delete(&args),
        Action::Serve => return be_sandbox(args),
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn answer(bytes: &[u8]) -> Result<(), ShimError> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(ShimError::Answer)
}

fn info() -> RuntimeInfo {
    RuntimeInfo {
        name: RUNTIME_NAME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..RuntimeVersion::default()
        }),
        ..RuntimeInfo::default()
    }
}

fn store_of(config: &Config) -> Store {
    Store::new(&config.run_dir, Path::new(CGROUP_DIR))
}

/// Prepares what can fail early, and lets the sandbox process go. Its socket
/// listens already: who connects at once waits in its queue.
fn start(args: &Args) -> Result<(), ShimError> {
    let id = SandboxId::new(args.id.as_str())?;
    let config = Config::load()?;
    let store = store_of(&config);
    let dir = match store.create(&id) {
        Err(StoreError::Exists(_)) => {
            match store.cleanup(&id) {
                Err(StoreError::Alive(id)) => return Err(StoreError::Exists(id).into()),
                result => drop(result?),
            }
            store.create(&id)?
        }
        result => result?,
    };
    match let_go(args, &dir) {
        Ok(()) => {}
        Err(err) => {
            // What failed first is what counts.
            let _ = store::remove_dir(&dir);
            return Err(err);
        }
    }
    let address = format!("unix://{}", dir.task_socket().display());
    let reply = json!({ "version": 3, "address": address, "protocol": "ttrpc" });
    answer(reply.to_string().as_bytes())
}

fn let_go(args: &Args, dir: &SandboxDir) -> Result<(), ShimError> {
    let lock = store::lock(dir).map_err(|source| ShimError::Open {
        path: dir.path().to_owned(),
        source,
    })?;
    let socket = dir.task_socket();
    let listener = UnixListener::bind(&socket).map_err(|source| ShimError::Listen {
        path: socket,
        source,
    })?;
    let stdio_socket = dir.stdio_socket();
    let stdio = bind_stdio(&stdio_socket).map_err(|source| ShimError::Listen {
        path: stdio_socket,
        source,
    })?;
    let claim = if has_network(&args.namespace) {
        // While paths are the caller's.
        let bundle = args.bundle.clone().unwrap_or_default();
        Some(network::enter(&read_spec(&bundle)?)?)
    } else {
        None
    };
    let sockets = [listener.as_fd(), stdio.as_fd()];
    let sockets: Vec<_> = sockets
        .into_iter()
        .chain(claim.as_ref().map(Claim::as_fd))
        .collect();
    let sockets = pack(&sockets).map_err(ShimError::Spawn)?;
    enter_mount_namespace().map_err(ShimError::Namespace)?;
    let log = open_log(dir)?;
    let program = std::env::current_exe().map_err(ShimError::Spawn)?;
    let mut command = Command::new(program);
    command
        .args(["-namespace", &args.namespace, "-id", &args.id])
        .args(["-address", &args.address])
        .arg("-publish-binary")
        .arg(&args.publish_binary);
    if let Some(bundle) = &args.bundle {
        command.arg("-bundle").arg(bundle);
    }
    if args.debug {
        command.arg("-debug");
    }
    command.stdin(sockets).stdout(lock).stderr(log);
    let mut child = command.spawn().map_err(ShimError::Spawn)?;
    if let Err(err) = dir.write_pid(child.id()) {
        // Nobody would find it again; an error here means that it is gone already.
        let _ = child.kill();
        return Err(err.into());
    }
    Ok(())
}

/// Packs up what is to be handed over. Descriptors in a packet are closed again
/// where nobody takes them out.
fn pack(fds: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    handover::send(ours.as_fd(), b"sockets", fds)?;
    Ok(theirs)
}

/// Two sockets that listen, and the claim to a network namespace where there is one.
fn unpack(packed: BorrowedFd<'_>) -> io::Result<([OwnedFd; 2], Option<Claim>)> {
    let (_, mut fds) = handover::receive(packed)?;
    let claim = (fds.len() > 2).then(|| fds.pop()).flatten();
    let sockets = fds.try_into();
    let sockets = sockets.map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((sockets, claim.map(Claim::from)))
}

/// What is mounted for the sandbox is seen by it alone, and gone with it; what
/// the host mounts and unmounts still gets through to it.
fn enter_mount_namespace() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(mount_change("/", slave)?)
}

fn open_log(dir: &SandboxDir) -> Result<File, ShimError> {
    let path = dir.log();
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| ShimError::Open { path, source })
}

/// containerd's last resort: whatever is left of the sandbox goes.
fn delete(args: &Args) -> Result<(), ShimError> {
    let id = SandboxId::new(args.id.as_str())?;
    let store = store_of(&Config::load()?);
    store.end(&id)?;
    let reply = DeleteResponse {
        exit_status: DIED_STATUS,
        exited_at: MessageField::some(SystemTime::now().into()),
        ..DeleteResponse::default()
    };
    answer(&reply.write_to_bytes()?)
}

/// A shell's limit of open files is that of a hundred or two processes in a container.
fn raise_open_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}

/// Is the sandbox process. `start` has packed its sockets into standard input and
/// given the lock on its directory as standard output.
fn be_sandbox(args: Args) -> Result<ExitCode, ShimError> {
    let ([listener, stdio], claim) = unpack(io::stdin().as_fd()).map_err(ShimError::Handover)?;
    let lock = io::stdout().as_fd().try_clone_to_owned();
    let lock = lock.map_err(ShimError::Handover)?;
    let listener = UnixListener::from(listener);
    // A terminal's signals are for the command, not for the sandbox, unless the
    // terminal becomes its own.
    setsid().map_err(|err| ShimError::Handover(err.into()))?;
    raise_open_files().map_err(ShimError::Runtime)?;

    let id = SandboxId::new(args.id)?;
    let config = Config::load()?;
    let store = store_of(&config);
    let dir = store.dir(&id);
    let log = SandboxLog::open(&dir.log()).map_err(|source| ShimError::Open {
        path: dir.log(),
        source,
    })?;
    init_tracing(&log, args.debug);
    let bundle = match args.bundle {
        Some(bundle) => fs::canonicalize(bundle),
        None => std::env::current_dir(),
    };
    let bundle = bundle.map_err(ShimError::Runtime)?;
    std::env::set_current_dir("/").map_err(ShimError::Runtime)?;

    let cgroup = store.cgroup(&id);
    let namespace = args.namespace.clone();
    let (shown_root, bystander) = shown_root();
    let setup = Setup {
        id: id.clone(),
        namespace: args.namespace,
        bundle,
        config,
        dir,
        cgroup,
        log,
        shown_root,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ShimError::Runtime)?;
    let sandbox = thread::Builder::new().name("sandbox".to_owned());
    let farewell = setup.shown_root.farewell();
    let sandbox = sandbox.spawn(move || {
        let _farewell = farewell;
        let ended = runtime.block_on(live(setup, listener, stdio));
        runtime.shutdown_background();
        ended
    });
    let sandbox = sandbox.map_err(ShimError::Runtime)?;
    bystander.stand();
    let ended = sandbox.join().map_err(|_| ShimError::Panicked)??;
    // Who finds the directory unlocked finds the namespace free.
    drop(claim);
    drop(lock);
    // Its engine hears of its end by the end of this process.
    let exit_command = std::env::var_os(EXIT_COMMAND_ENV).filter(|_| namespace != OCI_NAMESPACE);
    match exit_command {
        Some(command) if ended.close == Close::Quit => Err(ShimError::Spawn(
            Command::new(command)
                .args(["cleanup", id.as_str()])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .exec(),
        )),
        _ => Ok(ended.exit_code.into()),
    }
}

fn init_tracing(log: &Arc<SandboxLog>, debug: bool) {
    let level = if debug {
        tracing::Level::DEBUG
    } else {
        tracing::Level::INFO
    };
    let log = Arc::clone(log);
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_target(false)
        .with_writer(log)
        .init();
}

async fn live(setup: Setup, listener: UnixListener, stdio: OwnedFd) -> Result<Ended, ShimError> {
    let signals = Signals::catch(&setup.namespace).map_err(ShimError::Runtime)?;
    let sandbox = Sandbox::new(setup, Box::new(|event| tracing::debug!(?event)));
    let stdio = tokio::spawn(serve_stdio(stdio, sandbox.inherited().clone()));
    let mut server = serve(&sandbox, listener).await?;
    let signals = tokio::spawn(signals.heed(Arc::clone(&sandbox)));
    let ended = Arc::clone(&sandbox).run().await;
    signals.abort();
    stdio.abort();
    let farewell = async {
        // An error here means that there is nobody left to tell.
        let _ = server.shutdown().await;
        sandbox.deserted().await;
    };
    let _ = timeout(FAREWELL, farewell).await;
    Ok(ended)
}
