//! `process.oomScoreAdj` on the host: who shall go first when the host itself runs out
//! of memory. Inside, the agent sets it for the guest's own kernel.

use std::fs;
use std::io;

use serde_json::Value;
use thiserror::Error;

#[derive(Debug, Error)]
#[error("cannot set oom_score_adj {score} for process {pid}")]
pub struct OomScoreError {
    pid: u32,
    score: i64,
    source: io::Error,
}

/// Gives these processes the score of the spec, where it has one. None gets a lower one
/// than this process was given itself: whoever started it has put a bound to it.
pub(super) fn set_oom_score(spec: &Value, pids: &[u32]) -> Result<(), OomScoreError> {
    let Some(wanted) = spec["process"]["oomScoreAdj"].as_i64() else {
        return Ok(());
    };
    let own = fs::read_to_string("/proc/self/oom_score_adj");
    let score = bounded(wanted, own.ok().as_deref());
    for &pid in pids {
        let path = format!("/proc/{pid}/oom_score_adj");
        fs::write(path, score.to_string()).map_err(|source| OomScoreError {
            pid,
            score,
            source,
        })?;
    }
    Ok(())
}

fn bounded(wanted: i64, own: Option<&str>) -> i64 {
    let own = own.and_then(|own| own.trim().parse().ok());
    own.map_or(wanted, |own| wanted.max(own))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_score_is_below_the_callers() {
        assert_eq!(bounded(500, Some("0\n")), 500);
        assert_eq!(bounded(-500, Some("0\n")), 0);
        assert_eq!(bounded(-500, Some("-998\n")), -500);
        assert_eq!(bounded(3, None), 3);
    }

    #[test]
    fn processes_get_the_score_and_keep_theirs_without_one() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let score = || fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        let before = score();
        set_oom_score(&json!({}), &[pid]).unwrap();
        assert_eq!(score(), before);
        set_oom_score(&json!({ "process": { "oomScoreAdj": 987 } }), &[pid]).unwrap();
        assert_eq!(score(), "987\n");
        let err = set_oom_score(&json!({ "process": { "oomScoreAdj": 1001 } }), &[pid]);
        assert!(err.unwrap_err().to_string().contains("1001"));
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
