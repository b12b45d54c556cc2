//! The `lazaret` command: one file for each verb, with its arguments and what
//! it does. Names, texts, columns and exit codes are Docker's.

pub mod attend;
mod check;
mod cleanup;
mod exec;
pub mod failure;
pub mod format;
mod images;
mod import;
mod inspect;
mod kill;
mod lifecycle;
mod load;
mod logs;
mod prepare;
mod ps;
mod rm;
mod rmi;
mod run;
pub mod signals;
pub mod spec;
pub mod stdio;
mod stop;
pub mod terminal;
mod version;
mod wait;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::{EXIT_OWN_ERROR, Failure};

use crate::config::Config;
use crate::image::store::ImageStore;
use crate::storage::containers::Containers;

/// Run containers, each in a microVM of its own.
#[derive(Debug, Parser)]
#[command(name = "lazaret", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Args),
    Exec(exec::Args),
    Images(images::Args),
    Import(import::Args),
    Inspect(inspect::Args),
    Kill(kill::Args),
    Load(load::Args),
    Logs(logs::Args),
    Ps(ps::Args),
    Rm(rm::Args),
    Rmi(rmi::Args),
    Run(run::Args),
    Stop(stop::Args),
    Version(version::Args),
    Wait(wait::Args),
    #[command(hide = true)]
    Cleanup(cleanup::Args),
}

/// What the verbs work on: the host's configuration and what lies on its disk.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) config: Config,
}

impl Host {
    fn open() -> Result<Self, Failure> {
        Ok(Self {
            config: Config::load()?,
        })
    }

    pub(crate) fn images(&self) -> Result<ImageStore, Failure> {
        Ok(ImageStore::open(&self.config.data_dir, self.config.image)?)
    }

    pub(crate) fn containers(&self) -> Result<Containers, Failure> {
        Ok(Containers::open(&self.config.data_dir)?)
    }
}

/// Runs the command line and says how it went.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A reader that went away has seen what it wanted.
            let _ = error.print();
            let code = if error.use_stderr() {
                EXIT_OWN_ERROR
            } else {
                0
            };
            return ExitCode::from(code);
        }
    };
    match cli.command.run() {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

impl Command {
    fn run(self) -> Result<ExitCode, Failure> {
        let host = Host::open().map_err(|failure| match self {
            // What keeps a container from running is told apart from its own exit codes.
            Self::Run(_) => failure.with_code(EXIT_OWN_ERROR),
            _ => failure,
        })?;
        match self {
            Self::Check(args) => args.run(&host),
            Self::Exec(args) => args.run(&host),
            Self::Images(args) => args.run(&host),
            Self::Import(args) => args.run(&host),
            Self::Inspect(args) => args.run(&host),
            Self::Kill(args) => args.run(&host),
            Self::Load(args) => args.run(&host),
            Self::Logs(args) => args.run(&host),
            Self::Ps(args) => args.run(&host),
            Self::Rm(args) => args.run(&host),
            Self::Rmi(args) => args.run(&host),
            Self::Run(args) => args.run(&host),
            Self::Stop(args) => args.run(&host),
            Self::Version(args) => args.run(),
            Self::Wait(args) => args.run(&host),
            Self::Cleanup(args) => args.run(&host),
        }
    }
}
