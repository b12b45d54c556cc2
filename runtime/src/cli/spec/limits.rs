//! `--cpus` and `--memory`: how they are written and what can be had.

use std::str::FromStr;

const MIB: u64 = 1024 * 1024;
const NANO: u64 = 1_000_000_000;

/// Docker's own minimum.
const MIN_MEMORY: u64 = 6 * MIB;

/// What a microVM can have.
const MAX_VCPUS: u64 = 32;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    #[error("invalid size: '{0}'")]
    Size(String),
    #[error("failed to parse {0} as a rational number")]
    Number(String),
    #[error("Minimum memory limit allowed is 6MB")]
    MinimumMemory,
    #[error("the memory limit of {asked} bytes is more than the {host} bytes that this host has")]
    HostMemory { asked: u64, host: u64 },
    #[error("Range of CPUs is from 0.01 to {0}.00, as there are only {0} CPUs available")]
    Cpus(u64),
}

/// An amount of memory: `512m`, `1g`, `6MiB`, or plain bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory(pub u64);

impl FromStr for Memory {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let refuse = || LimitError::Size(text.to_owned());
        let lower = text.to_ascii_lowercase();
        let digits = lower
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(lower.len());
        let (number, unit) = lower.split_at(digits);
        let factor: u64 = match unit.trim_start() {
            "" | "b" => 1,
            "k" | "kb" | "kib" => 1 << 10,
            "m" | "mb" | "mib" => 1 << 20,
            "g" | "gb" | "gib" => 1 << 30,
            "t" | "tb" | "tib" => 1 << 40,
            _ => return Err(refuse()),
        };
        let nano = nano(number).ok_or_else(refuse)?;
        let bytes = u128::from(nano) * u128::from(factor) / u128::from(NANO);
        u64::try_from(bytes).map(Self).map_err(|_| refuse())
    }
}

/// A number of CPUs in billionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus(pub u64);

impl FromStr for Cpus {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        nano(text)
            .map(Self)
            .ok_or_else(|| LimitError::Number(text.to_owned()))
    }
}

/// A decimal number in billionths, exactly.
fn nano(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() && fraction.is_empty() || !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let nine: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    whole.checked_mul(NANO)?.checked_add(nine.parse().ok()?)
}

/// Checks limits against what this host has.
pub fn check_limits(
    cpus: Option<Cpus>,
    memory: Option<Memory>,
    host_cpus: u64,
    host_memory: u64,
) -> Result<(), LimitError> {
    let cpu_limit = host_cpus.min(MAX_VCPUS);
    if let Some(Cpus(nano)) = cpus
        && nano != 0
        && !(NANO / 100..=cpu_limit * NANO).contains(&nano)
    {
        return Err(LimitError::Cpus(cpu_limit));
    }
    match memory {
        Some(Memory(bytes)) if bytes != 0 && bytes < MIN_MEMORY => Err(LimitError::MinimumMemory),
        Some(Memory(asked)) if asked > host_memory => Err(LimitError::HostMemory {
            asked,
            host: host_memory,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, bytes) in [
            ("6291456", 6 * MIB),
            ("6m", 6 * MIB),
            ("1.5G", 1536 * MIB),
            ("64MiB", 64 * MIB),
        ] {
            assert_eq!(text.parse(), Ok(Memory(bytes)), "{text}");
        }
        for text in ["", "m", "-1m", "1x", "1.2.3", "99999999999g"] {
            assert!(text.parse::<Memory>().is_err(), "{text}");
        }
    }

    #[test]
    fn cpus_are_exact_fractions() {
        assert_eq!("1.5".parse(), Ok(Cpus(1_500_000_000)));
        assert_eq!(".25".parse(), Ok(Cpus(250_000_000)));
        for text in ["", ".", "a", "-1", "1e3"] {
            assert!(text.parse::<Cpus>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_the_host_does_not_have_is_refused() {
        let check = |cpus, memory| check_limits(cpus, memory, 2, 1024 * MIB);
        assert_eq!(check(Some(Cpus(2 * NANO)), Some(Memory(6 * MIB))), Ok(()));
        assert_eq!(check(Some(Cpus(3 * NANO)), None), Err(LimitError::Cpus(2)));
        assert_eq!(check(Some(Cpus(1)), None), Err(LimitError::Cpus(2)));
        assert_eq!(
            check(None, Some(Memory(MIB))),
            Err(LimitError::MinimumMemory)
        );
        let error = check(None, Some(Memory(2048 * MIB))).unwrap_err();
        assert!(matches!(error, LimitError::HostMemory { .. }));
    }
}
