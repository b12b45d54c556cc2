//! From `process.args` to execve: finding the program as a shell would, and the
//! texts that runc's users know when there is none.
#![expect(unsafe_code, reason = "execve and resetting the signal state")]

use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{mem, ptr};

use oci_spec::runtime::Process;
use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};
use rustix::io::Errno;
use rustix::process::{chdir, getcwd};

use super::environment::Environment;
use crate::failure::{Code, Failure, OrFail, Result, errno_text};

/// A program with its arguments and environment, ready for execve.
#[derive(Debug)]
pub(crate) struct Program {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// Looks the program up with the rights of the user that will run it.
    pub(crate) fn find(process: &Process, environment: &Environment) -> Result<Self> {
        let arguments = process.args().as_deref().unwrap_or_default();
        let name = arguments
            .first()
            .ok_or_else(|| Failure::invalid("process.args is empty"))?;
        let path = look_up(name, environment.get("PATH").unwrap_or_default())?;
        Ok(Self {
            path: c_string(path.as_os_str())?,
            arguments: c_strings(arguments)?,
            environment: c_strings(environment.entries())?,
        })
    }

    /// Replaces this process; returns only with the reason why it could not. Nothing
    /// but execve follows the last step: it may be what forbids most system calls.
    pub(crate) fn exec(&self, last: impl FnOnce() -> Result<()>) -> Failure {
        let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
            let all = strings.iter().map(|string| string.as_ptr());
            all.chain([ptr::null()]).collect()
        };
        let (arguments, environment) = (pointers(&self.arguments), pointers(&self.environment));
        reset_signals();
        if let Err(failure) = last() {
            return failure;
        }
        // SAFETY: all three are C strings or null-terminated arrays of them, owned by
        // `self` and the two vectors, which outlive the call.
        unsafe { libc::execve(self.path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
        let errno = Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO);
        Failure::new(
            code(errno),
            format!(
                "exec {}: {}",
                self.path.to_string_lossy(),
                errno_text(errno)
            ),
        )
    }
}

/// Go into `process.cwd` and prove that it is inside the container's root.
pub(crate) fn change_directory(cwd: &Path) -> Result<()> {
    chdir(cwd).map_err(|error| {
        Failure::new(
            code(error),
            format!(
                "chdir to cwd ({:?}) set in config.json failed: {}",
                cwd.display().to_string(),
                errno_text(error)
            ),
        )
    })?;
    let reached = getcwd(Vec::new()).or_fail(|| "read the working directory")?;
    if reached.as_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(Failure::new(
            Code::PermissionDenied,
            format!("cwd {} is outside of the container", cwd.display()),
        ))
    }
}

/// The Rust runtime ignores SIGPIPE, and ignored signals stay ignored over execve.
fn reset_signals() {
    // SAFETY: SIG_DFL is a valid disposition for SIGPIPE; no handler is involved.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: an all-zero sigset_t is the empty set on Linux.
    let empty: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: `empty` outlives the call; the old mask is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, ptr::null_mut()) };
}

fn look_up(name: &str, path: &str) -> Result<PathBuf> {
    let refuse = |code: Code, why: &str| Failure::new(code, format!("exec: {name:?}: {why}"));
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(name.into()),
            Err(Errno::NOENT) => Err(refuse(
                Code::NotFound,
                &format!("stat {name}: no such file or directory"),
            )),
            Err(Errno::NOTDIR) => Err(refuse(
                Code::NotFound,
                &format!("stat {name}: not a directory"),
            )),
            Err(error) => Err(refuse(Code::PermissionDenied, &errno_text(error))),
        };
    }
    let found = path
        .split(':')
        // An empty list has no directory; an empty entry of one is the working directory.
        .filter(|_| !path.is_empty() && !name.is_empty())
        .map(|directory| Path::new(directory).join(name))
        .find(|candidate| executable(candidate).is_ok())
        .ok_or_else(|| refuse(Code::NotFound, "executable file not found in $PATH"))?;
    if found.is_absolute() {
        Ok(found)
    } else {
        // Whoever fills that directory would choose the program.
        Err(refuse(
            Code::PermissionDenied,
            "cannot run executable found relative to current directory",
        ))
    }
}

fn executable(path: &Path) -> rustix::io::Result<()> {
    if FileType::from_raw_mode(stat(path)?.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

/// What a shell would say: 127 where the program is not there, 126 where it is.
fn code(errno: Errno) -> Code {
    match errno {
        Errno::NOENT | Errno::NOTDIR => Code::NotFound,
        _ => Code::PermissionDenied,
    }
}

fn c_strings(strings: &[String]) -> Result<Vec<CString>> {
    strings
        .iter()
        .map(|string| c_string(OsStr::new(string)))
        .collect()
}

fn c_string(string: &OsStr) -> Result<CString> {
    CString::new(string.as_bytes()).map_err(|_| {
        Failure::invalid(format!(
            "{} of the process contains a null byte",
            string.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str, path: &str) -> (Code, String) {
        let failure = look_up(name, path).expect_err("the look-up fails");
        (failure.code, failure.message)
    }

    #[test]
    fn missing_command_reads_as_in_runc() {
        assert_eq!(
            refused("no-such-command", "/bin:/usr/bin"),
            (
                Code::NotFound,
                r#"exec: "no-such-command": executable file not found in $PATH"#.to_owned()
            )
        );
        assert_eq!(
            refused("/no/such", ""),
            (
                Code::NotFound,
                r#"exec: "/no/such": stat /no/such: no such file or directory"#.to_owned()
            )
        );
    }

    #[test]
    fn what_cannot_be_executed_is_denied() {
        assert_eq!(
            refused("/etc", ""),
            (
                Code::PermissionDenied,
                r#"exec: "/etc": is a directory"#.to_owned()
            )
        );
        assert_eq!(
            refused("/etc/passwd", ""),
            (
                Code::PermissionDenied,
                r#"exec: "/etc/passwd": permission denied"#.to_owned()
            )
        );
    }

    #[test]
    fn working_directory_is_not_searched() {
        // Tests run in the package's own, where this is.
        let name = "a-program-of-the-tests";
        let file = tempfile::Builder::new().prefix(name).tempfile_in(".");
        let file = file.expect("a file");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(file.path(), mode).expect("executable");
        let name = file.path().file_name().and_then(|name| name.to_str());
        let name = name.expect("a name");
        let missing = format!("exec: {name:?}: executable file not found in $PATH");
        let relative =
            format!("exec: {name:?}: cannot run executable found relative to current directory");
        assert_eq!(refused(name, ""), (Code::NotFound, missing.clone()));
        assert_eq!(refused(name, "/nowhere"), (Code::NotFound, missing));
        for path in [":", "/nowhere::/bin", ".", "/nowhere:../agent"] {
            let expected = (Code::PermissionDenied, relative.clone());
            assert_eq!(refused(name, path), expected, "{path}");
        }
        let named = format!("./{name}");
        assert_eq!(look_up(&named, "").expect("named"), Path::new(&named));
        // What comes before is taken.
        look_up("sh", "/bin::").expect("there is a shell");
    }

    #[test]
    fn first_executable_of_the_path_is_taken() {
        assert_eq!(
            look_up("sh", "/nowhere:/bin:/usr/bin").expect("there is a shell"),
            Path::new("/bin/sh")
        );
    }
}
