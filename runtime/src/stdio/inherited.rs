//! Descriptors that have been handed over and wait for the request that names them.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::StdioError;
use super::descriptor::Direction;
use super::handover::{FD_SCHEME, FDS_MAX};
use crate::sandbox::id::ExecId;

/// Most processes whose descriptors wait at a time. Their requests follow at once.
const WAITING_MAX: usize = 64;

/// How long they wait: hooks may run between the two.
const WAITING_TIME: Duration = Duration::from_secs(600);

/// What has been handed over to a sandbox.
#[derive(Clone, Debug, Default)]
pub struct Inherited {
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    sets: BTreeMap<String, Set>,
    /// Tells a set from a later one with its name.
    serial: u64,
}

#[derive(Debug)]
struct Set {
    serial: u64,
    fds: Vec<OwnedFd>,
}

/// Which of a process's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
}

impl Stream {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    pub(super) fn direction(self) -> Direction {
        match self {
            Self::Stdin => Direction::Input,
            Self::Stdout | Self::Stderr => Direction::Output,
        }
    }
}

impl Inherited {
    /// Takes a process's descriptors in. Those of an earlier attempt are closed.
    pub fn put(&self, token: &str, fds: Vec<OwnedFd>) -> Result<(), String> {
        let token = ExecId::new(token).map_err(|err| err.to_string())?;
        if !matches!(fds.len(), 1 | FDS_MAX) {
            let count = fds.len();
            return Err(format!(
                "{count} descriptors are neither 3 nor a terminal's 1"
            ));
        }
        let serial = {
            let mut waiting = self.lock();
            if waiting.sets.len() >= WAITING_MAX && !waiting.sets.contains_key(token.as_str()) {
                return Err(format!(
                    "those of {WAITING_MAX} other processes have not been used yet"
                ));
            }
            waiting.serial += 1;
            let serial = waiting.serial;
            waiting.sets.insert(token.to_string(), Set { serial, fds });
            serial
        };
        let later = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(WAITING_TIME).await;
            later.expire(token.as_str(), serial);
        });
        Ok(())
    }

    fn expire(&self, token: &str, serial: u64) {
        let mut waiting = self.lock();
        let set = waiting.sets.get(token);
        if set.is_some_and(|set| set.serial == serial) {
            waiting.sets.remove(token);
        }
    }

    /// One descriptor of a process.
    pub(super) fn get(&self, token: &str, stream: Stream) -> Result<OwnedFd, StdioError> {
        let waiting = self.lock();
        let set = waiting.sets.get(token);
        let set = set.ok_or_else(|| StdioError::NotHandedOver(token.to_owned()))?;
        let fd = set.fds.get(stream as usize).or(set.fds.first());
        let fd = fd.ok_or_else(|| StdioError::NotHandedOver(token.to_owned()))?;
        fd.try_clone().map_err(StdioError::Inherited)
    }

    /// A terminal that a request names as its stdin, if it does.
    pub fn terminal(&self, stdin: &str) -> Result<Option<OwnedFd>, StdioError> {
        let token = stdin.strip_prefix(FD_SCHEME);
        token
            .map(|token| self.get(token, Stream::Stdin))
            .transpose()
    }

    /// Closes what was not taken.
    pub(super) fn forget(&self, token: &str) {
        self.lock().sets.remove(token);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[tokio::test]
    async fn what_nobody_asks_for_is_closed_and_a_second_attempt_has_its_own_time() {
        let inherited = Inherited::default();
        inherited.put("a", vec![null()]).unwrap();
        let first = inherited.lock().serial;
        inherited.put("a", vec![null()]).unwrap();
        inherited.expire("a", first);
        assert!(inherited.get("a", Stream::Stdout).is_ok());
        inherited.expire("a", first + 1);
        let err = inherited.get("a", Stream::Stdout).unwrap_err();
        assert!(matches!(err, StdioError::NotHandedOver(token) if token == "a"));
    }

    #[tokio::test]
    async fn names_numbers_and_counts_are_bounded() {
        let inherited = Inherited::default();
        assert!(inherited.put("../x", vec![null()]).is_err());
        assert!(inherited.put("x", vec![]).is_err());
        assert!(inherited.put("x", vec![null(), null()]).is_err());
        for number in 0..WAITING_MAX {
            inherited.put(&format!("x{number}"), vec![null()]).unwrap();
        }
        let err = inherited.put("one-more", vec![null()]).unwrap_err();
        assert!(err.contains("64 other processes"), "{err}");
        inherited.put("x1", vec![null()]).unwrap();
        inherited.forget("x1");
        inherited.put("one-more", vec![null()]).unwrap();
    }
}
