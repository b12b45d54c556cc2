//! Stands in for conmon and containerd's shim: reaps what a runtime leaves behind.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use rustix::process::{Pid, WaitOptions, set_child_subreaper, waitpid};

/// Runs a command that leaves a process behind and its number in a file; waits for that process and
/// writes how it ended.
pub(crate) fn wait_for(pid_file: &Path, command: &[&str]) -> anyhow::Result<()> {
    let (program, arguments) = command.split_first().context("no command")?;
    set_child_subreaper(Pid::from_raw(1))?;
    let status = Command::new(program).args(arguments).status()?;
    ensure!(status.success(), "{program}: {status}");
    let text = fs::read_to_string(pid_file).with_context(|| pid_file.display().to_string())?;
    let pid = Pid::from_raw(text.trim().parse()?).context("0 is no process")?;
    let (_, status) = waitpid(Some(pid), WaitOptions::empty())?.context("it has ended")?;
    let mut stdout = std::io::stdout();
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => writeln!(stdout, "exit {code}")?,
        (None, signal) => writeln!(stdout, "signal {signal:?}")?,
    }
    Ok(())
}
