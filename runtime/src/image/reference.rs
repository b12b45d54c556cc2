//! Image names as people write them: `busybox`, `busybox:1.36`,
//! `registry:5000/team/app`, or an image id.
//! <https://pkg.go.dev/github.com/distribution/reference>

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const DEFAULT_DOMAIN: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library/";
const DEFAULT_TAG: &str = "latest";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("invalid reference format: `{0}`")]
    Format(String),
    #[error("invalid reference format: repository name `{0}` must be lowercase")]
    Uppercase(String),
}

/// A repository and a tag, complete: `docker.io/library/busybox:latest`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    repository: String,
    tag: String,
}

impl Reference {
    /// The repository as Docker shows it, without what is the default.
    pub fn familiar_repository(&self) -> &str {
        let domain = self.repository.strip_prefix(DEFAULT_DOMAIN);
        match domain.and_then(|rest| rest.strip_prefix('/')) {
            Some(path) => path.strip_prefix(DEFAULT_NAMESPACE).unwrap_or(path),
            None => &self.repository,
        }
    }

    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The name as Docker shows it: `busybox:latest`.
    pub fn familiar(&self) -> String {
        format!("{}:{}", self.familiar_repository(), self.tag)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let refuse = || ReferenceError::Format(text.chars().take(300).collect());
        let (name, tag) = match text.rsplit_once(':') {
            // A colon before a slash belongs to the registry's port.
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (text, DEFAULT_TAG),
        };
        let (domain, path) = match name.split_once('/') {
            Some((first, rest)) if is_domain(first) => (first, rest.to_owned()),
            _ if name.contains('/') => (DEFAULT_DOMAIN, name.to_owned()),
            _ => (DEFAULT_DOMAIN, format!("{DEFAULT_NAMESPACE}{name}")),
        };
        let lower = path.to_ascii_lowercase();
        if path != lower && is_path(&lower) {
            return Err(ReferenceError::Uppercase(name.to_owned()));
        }
        if name.is_empty() || !is_domain_text(domain) || !is_path(&path) || !is_tag(tag) {
            return Err(refuse());
        }
        let repository = format!("{domain}/{path}");
        if repository.len() > MAX_NAME {
            return Err(refuse());
        }
        Ok(Self {
            repository,
            tag: tag.to_owned(),
        })
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

/// The first component is a registry if it could not be a user's name.
fn is_domain(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':'])
}

fn is_domain_text(domain: &str) -> bool {
    let (host, port) = domain.split_once(':').unwrap_or((domain, "0"));
    !host.is_empty()
        && host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        })
        && !port.is_empty()
        && port.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_path(path: &str) -> bool {
    path.split('/').all(|component| {
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = component.as_bytes();
        let ends = bytes.first().zip(bytes.last());
        ends.is_some_and(|(first, last)| alphanumeric(*first) && alphanumeric(*last))
            && bytes
                .iter()
                .all(|byte| alphanumeric(*byte) || b"._-".contains(byte))
            && !component.contains("..")
            && !component.contains("___")
    })
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag
            .bytes()
            .all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_and_shown_short() {
        for (text, complete, familiar) in [
            (
                "busybox",
                "docker.io/library/busybox:latest",
                "busybox:latest",
            ),
            (
                "busybox:1.36",
                "docker.io/library/busybox:1.36",
                "busybox:1.36",
            ),
            ("user/app", "docker.io/user/app:latest", "user/app:latest"),
            (
                "localhost/app",
                "localhost/app:latest",
                "localhost/app:latest",
            ),
            ("r:5000/a/b:t", "r:5000/a/b:t", "r:5000/a/b:t"),
            ("r.io:5000/a", "r.io:5000/a:latest", "r.io:5000/a:latest"),
            (
                "docker.io/library/x",
                "docker.io/library/x:latest",
                "x:latest",
            ),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), complete);
            assert_eq!(reference.familiar(), familiar);
            assert_eq!(complete.parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in [
            "", ":tag", "a:", "a:b:c", "../a", "/a", "a/", "a//b", "a b", "-a", "a:.x", "a..b",
            "a\nb", "a/../b", "r.io:x/a", "bücher",
        ] {
            assert!(
                matches!(text.parse::<Reference>(), Err(ReferenceError::Format(_))),
                "{text}"
            );
        }
        assert_eq!(
            "BusyBox".parse::<Reference>(),
            Err(ReferenceError::Uppercase("BusyBox".to_owned()))
        );
        assert!("a".repeat(300).parse::<Reference>().is_err());
    }
}
