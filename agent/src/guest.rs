//! What a booted or cloned guest must be told before it runs anything: entropy, time,
//! its name, its processors.
#![expect(unsafe_code, reason = "the ioctls of random(4) have no safe wrapper")]

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::failure::{Failure, OrFail, Result};

/// Bounds of the protocol for `SetupSandboxRequest.entropy`.
const ENTROPY_MIN: usize = 32;
const ENTROPY_MAX: usize = 512;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Argument of `RNDADDENTROPY` (random(4)): `struct rand_pool_info` with its buffer.
#[repr(C)]
struct PoolInfo {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; ENTROPY_MAX],
}

/// `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)` of linux/random.h.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// Credits the host's entropy and has the kernel's generator start anew from it.
pub(crate) fn add_entropy(entropy: &[u8]) -> Result<()> {
    if !(ENTROPY_MIN..=ENTROPY_MAX).contains(&entropy.len()) {
        return Err(Failure::invalid(format!(
            "{} bytes of entropy, not {ENTROPY_MIN} to {ENTROPY_MAX}",
            entropy.len()
        )));
    }
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let random =
        openat(CWD, "/dev/urandom", flags, Mode::empty()).or_fail(|| "open /dev/urandom")?;
    let size = libc::c_int::try_from(entropy.len()).unwrap_or_default();
    let mut pool = PoolInfo {
        entropy_count: size * 8,
        buf_size: size,
        buf: [0; ENTROPY_MAX],
    };
    pool.buf[..entropy.len()].copy_from_slice(entropy);
    // SAFETY: `pool` is laid out as rand_pool_info and holds `buf_size` bytes; the
    // kernel reads it only.
    let added = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const pool) };
    check(added).or_fail(|| "credit entropy")?;
    // SAFETY: this ioctl takes no argument.
    let reseeded = unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) };
    check(reseeded).or_fail(|| "reseed the random number generator")
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Steps the wall clock to the host's.
pub(crate) fn set_clock(wall_clock_ns: u64) -> Result<()> {
    let doing = || format!("set the clock to {wall_clock_ns} ns");
    let part = |value: u64| i64::try_from(value).map_err(io::Error::other);
    let now = Timespec {
        tv_sec: part(wall_clock_ns / NANOS_PER_SECOND).or_fail(doing)?,
        tv_nsec: part(wall_clock_ns % NANOS_PER_SECOND).or_fail(doing)?,
    };
    clock_settime(ClockId::Realtime, now).or_fail(doing)
}

pub(crate) fn set_hostname(name: &str) -> Result<()> {
    rustix::system::sethostname(name.as_bytes()).or_fail(|| format!("set hostname {name}"))
}

/// Brings processors online until that many are.
pub(crate) fn set_online_cpus(wanted: u32) -> Result<()> {
    for cpu in 1..wanted {
        let path = PathBuf::from(format!("/sys/devices/system/cpu/cpu{cpu}/online"));
        let doing = || format!("bring processor {cpu} online");
        let online = fs::read_to_string(&path).or_fail(doing)?;
        if online.trim() == "0" {
            fs::write(&path, "1").or_fail(doing)?;
        }
    }
    Ok(())
}

pub(crate) fn kernel_release() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}
