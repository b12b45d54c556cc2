//! Scripts under a clock that counts instructions, which now and then loses a guest: the emulator
//! delivers it an interrupt a second time, while it has interrupts off, and it waits for itself for
//! ever. That run is no figure, and is made again.

use anyhow::ensure;
use lazaret_tests::Machine;

use crate::clock::Clock;

/// In seconds of the machine's clock. What is measured takes a fraction of one.
const LIMIT: u32 = 3;

const ATTEMPTS: u32 = 4;

/// What `timeout` ends with.
const LATE: &str = "124";

/// The machine is a lab that was made for this: nothing else runs in it.
const CLEAN_UP: &str = "pkill -KILL lazaret-vmm
lazaret ps -a | awk 'NR > 1 { print $1 }' | xargs -r -n 1 lazaret rm -f >/dev/null";

/// Runs a script and gives what it writes.
pub(crate) fn shell(machine: &Machine, clock: Clock, script: &str) -> anyhow::Result<String> {
    if clock != Clock::Instructions {
        return machine.shell(script);
    }
    for _ in 0..ATTEMPTS {
        let output = machine.shell(&format!(
            "code=0; timeout --kill-after=1 {LIMIT} bash <<'SCRIPT' || code=$?\n{script}\nSCRIPT\n\
             echo; echo $code"
        ))?;
        let (output, code) = output.trim_end().rsplit_once('\n').unwrap_or_default();
        if code != LATE {
            ensure!(code == "0", "exit code {code} of {script}");
            return Ok(output.to_owned());
        }
        machine.shell(CLEAN_UP)?;
    }
    anyhow::bail!("lost {ATTEMPTS} guests in a row: {script}")
}
