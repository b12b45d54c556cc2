//! The `lazaret-oci` command: runc's verbs, flags, texts and exit codes, one
//! file for each verb. A container is a sandbox process and its microVM; what
//! the verbs know of it lies in `<root>/<id>/` (`record.rs`), and what they ask
//! of it goes over the Task API.

mod attend;
mod bundle;
mod checkpoint;
mod console;
mod container;
mod create;
mod delete;
mod events;
mod exec;
mod failure;
mod features;
mod inherited;
mod kill;
mod list;
mod log;
mod names;
mod pause;
mod pid_file;
mod ps;
mod record;
mod run;
mod signals;
mod spec;
mod start;
mod state;
mod update;

use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use failure::Failure;
use log::{Log, LogFormat};
use record::Root;

use crate::config::Config;
use crate::sandbox::cgroup::CGROUP_DIR;
use crate::sandbox::store::Store;

/// The runtime specification that is implemented.
const SPEC_VERSION: &str = "1.2.0";

/// In three lines that go-runc, Docker and podman read.
const VERSION: &str = concat!(
    "version ",
    env!("CARGO_PKG_VERSION"),
    "\ncommit: v",
    env!("CARGO_PKG_VERSION"),
    "\nspec: 1.2.0"
);

/// Run containers of OCI bundles, each in a microVM of its own.
///
/// Called as runc is, by Docker, podman, buildah, containerd, or by hand.
#[derive(Debug, Parser)]
#[command(name = "lazaret-oci", version = VERSION, max_term_width = 100, disable_version_flag = true,
    args_override_self = true)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct Globals {
    /// Directory of the containers' state [default: /run/lazaret/oci]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Append messages to this file, and errors to standard error as well
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Format of messages
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
    /// Say more in the log
    #[arg(long)]
    debug: bool,
    /// The spec's cgroupsPath is systemd's slice:prefix:name; told by the path itself
    #[arg(long)]
    systemd_cgroup: bool,
    /// Whether cgroup errors are ignored for want of privileges; a microVM needs root
    #[arg(long, value_name = "BOOL", value_enum, default_value = "auto")]
    rootless: Rootless,
    /// Path of criu; there are no checkpoints, so it has no use
    #[arg(long, value_name = "PATH", hide = true)]
    criu: Option<PathBuf>,
    /// Print the version
    #[arg(short, long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Rootless {
    True,
    False,
    Auto,
}

#[derive(Debug, Subcommand)]
enum Command {
    Checkpoint(checkpoint::CheckpointArgs),
    Create(create::Args),
    Delete(delete::Args),
    Events(events::Args),
    Exec(exec::Args),
    Features(features::Args),
    Kill(kill::Args),
    List(list::Args),
    Pause(pause::PauseArgs),
    Ps(ps::Args),
    Restore(checkpoint::RestoreArgs),
    Resume(pause::ResumeArgs),
    Run(run::Args),
    Spec(spec::Args),
    Start(start::Args),
    State(state::Args),
    Update(update::Args),
    #[command(hide = true)]
    Attend(attend::Args),
}

/// What the verbs work on.
#[derive(Debug)]
struct Host {
    config: Config,
    log: Log,
    root: Root,
    sandboxes: Store,
}

impl Host {
    fn open(globals: &Globals) -> Result<Self, Failure> {
        let log = Log::open(globals.log.as_deref(), globals.log_format, globals.debug)?;
        let open = || {
            if globals.rootless == Rootless::True {
                return Err(failure::OciError::Rootless.into());
            }
            let config = Config::load()?;
            let default_root = config.run_dir.join("oci");
            let root = match &globals.root {
                Some(root) => Root::new(clean(root)?, &default_root),
                None => Root::new(default_root.clone(), &default_root),
            };
            let sandboxes = Store::new(&config.run_dir, Path::new(CGROUP_DIR));
            Ok((config, root, sandboxes))
        };
        match open() {
            Ok((config, root, sandboxes)) => Ok(Self {
                config,
                log,
                root,
                sandboxes,
            }),
            Err(failure) => {
                log.failure(&failure);
                Err(failure)
            }
        }
    }
}

fn absolute(path: &Path) -> Result<PathBuf, failure::OciError> {
    std::path::absolute(path).map_err(|source| failure::OciError::Io {
        verb: "find",
        path: path.to_owned(),
        source,
    })
}

/// The root's path as runc has it: absolute, and without `.` and `..`.
fn clean(root: &Path) -> Result<PathBuf, failure::OciError> {
    let mut clean = PathBuf::new();
    for component in absolute(root)?.components() {
        if component == Component::ParentDir {
            clean.pop();
        } else {
            clean.push(component);
        }
    }
    // An unset variable before a slash, and `delete` of an id would be of a directory
    // of the host's.
    if clean == Path::new("/") {
        return Err(failure::OciError::RootOfHost);
    }
    Ok(clean)
}

/// Runs the command line and says how it went.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A reader that went away has seen what it wanted.
            let _ = error.print();
            if error.use_stderr() {
                log_misuse(&error);
            }
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    let Ok(host) = Host::open(&cli.globals) else {
        return ExitCode::FAILURE;
    };
    match cli.command.run(&host) {
        Ok(code) => code,
        Err(failure) => {
            host.log.failure(&failure);
            failure.code()
        }
    }
}

/// Engines show what is in the log, as far as the command line tells where it is.
fn log_misuse(error: &clap::Error) {
    let lenient = Cli::command().ignore_errors(true).try_get_matches();
    let globals = lenient.and_then(|matches| Globals::from_arg_matches(&matches));
    if let Ok(globals) = globals
        && globals.log.is_some()
        && let Ok(log) = Log::open(globals.log.as_deref(), globals.log_format, false)
    {
        log.misuse(&error.to_string());
    }
}

impl Command {
    fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        match self {
            Self::Checkpoint(args) => args.run(host),
            Self::Create(args) => args.run(host),
            Self::Delete(args) => args.run(host),
            Self::Events(args) => args.run(host),
            Self::Exec(args) => args.run(host),
            Self::Features(args) => args.run(),
            Self::Kill(args) => args.run(host),
            Self::List(args) => args.run(host),
            Self::Pause(args) => args.run(host),
            Self::Ps(args) => args.run(host),
            Self::Restore(args) => args.run(host),
            Self::Resume(args) => args.run(host),
            Self::Run(args) => args.run(host),
            Self::Spec(args) => args.run(),
            Self::Start(args) => args.run(host),
            Self::State(args) => args.run(host),
            Self::Update(args) => args.run(host),
            Self::Attend(args) => Ok(args.run()),
        }
    }
}

/// A runtime for one command, on its own thread.
fn runtime() -> Result<tokio::runtime::Runtime, failure::OciError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.map_err(failure::OciError::Runtime)
}

#[cfg(test)]
mod tests;
