//! Names of containers: what is allowed, and what is made up where none is
//! given.

use crate::image::workspace::fill_random;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid container name ({0}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")]
pub struct NameError(String);

const ADJECTIVES: [&str; 32] = [
    "amber", "bold", "brisk", "calm", "clear", "cosy", "crisp", "deft", "eager", "early", "fair",
    "fleet", "fresh", "gentle", "glad", "grand", "keen", "kind", "lively", "lucid", "mellow",
    "merry", "neat", "nimble", "proud", "quick", "quiet", "steady", "sunny", "swift", "warm",
    "witty",
];

const NOUNS: [&str; 32] = [
    "anchor", "barge", "beacon", "brig", "buoy", "canoe", "caravel", "clipper", "cove", "cutter",
    "dinghy", "ferry", "frigate", "galley", "gull", "harbour", "heron", "jetty", "keel", "ketch",
    "lagoon", "lantern", "mast", "pier", "quay", "rudder", "schooner", "skiff", "sloop", "tern",
    "tiller", "yawl",
];

/// Checks a name that was given; a leading slash, as Docker shows names, is
/// dropped.
pub fn check(name: &str) -> Result<&str, NameError> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let first = bare
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = bare
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if first && rest && (2..=128).contains(&bare.len()) {
        Ok(bare)
    } else {
        Err(NameError(name.to_owned()))
    }
}

/// A name such as `swift_heron`; from the second try on with a number.
pub fn random(attempt: u32) -> String {
    let mut bytes = [0; 4];
    fill_random(&mut bytes);
    let pick = |words: &[&'static str; 32], byte: u8| words[usize::from(byte % 32)];
    let name = format!("{}_{}", pick(&ADJECTIVES, bytes[0]), pick(&NOUNS, bytes[1]));
    if attempt == 0 {
        name
    } else {
        format!("{name}{}", u16::from_ne_bytes([bytes[2], bytes[3]]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_single_plain_words() {
        assert_eq!(check("web-1"), Ok("web-1"));
        assert_eq!(check("/web.1_a"), Ok("web.1_a"));
        for name in [
            "",
            "a",
            ".hidden",
            "-x",
            "a/b",
            "a b",
            "..",
            "é1",
            &"a".repeat(129),
        ] {
            assert_eq!(check(name), Err(NameError(name.to_owned())));
        }
    }

    #[test]
    fn names_made_up_are_allowed() {
        for attempt in 0..40 {
            let name = random(attempt);
            assert_eq!(check(&name), Ok(name.as_str()));
        }
    }
}
