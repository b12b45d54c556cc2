//! The environment of a container's process.

use std::io;
use std::path::Path;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The defaults, then the image's variables, then the user's: the last of a
/// name counts, at the place of the first.
pub fn environment(
    image: &[String],
    user: &[String],
    hostname: &str,
    home: &str,
    terminal: bool,
) -> Vec<String> {
    let mut merged: Vec<String> = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if terminal {
        merged.push("TERM=xterm".to_owned());
    }
    for variable in image.iter().chain(user) {
        let name = name_of(variable);
        let place = merged.iter().position(|other| name_of(other) == name);
        match (place, variable.contains('=')) {
            (Some(place), true) => merged[place].clone_from(variable),
            (None, true) => merged.push(variable.clone()),
            // A name alone, that the host does not have, takes a variable away.
            (Some(place), false) => drop(merged.remove(place)),
            (None, false) => {}
        }
    }
    if !merged.iter().any(|variable| name_of(variable) == "HOME") {
        merged.push(format!("HOME={home}"));
    }
    merged
}

fn name_of(variable: &str) -> &str {
    variable.split_once('=').map_or(variable, |(name, _)| name)
}

/// `-e NAME=value`, or `-e NAME` for the value that the host has.
pub fn read_env_flag(flag: &str) -> Result<String, String> {
    if name_of(flag).is_empty() {
        return Err(format!("invalid environment variable: {flag}"));
    }
    if flag.contains('=') {
        return Ok(flag.to_owned());
    }
    Ok(std::env::var(flag).map_or_else(|_| flag.to_owned(), |value| format!("{flag}={value}")))
}

/// One variable on each line; empty lines and those that begin with `#` are
/// left out.
pub fn read_env_file(path: &Path) -> io::Result<Vec<String>> {
    let text = std::fs::read_to_string(path)?;
    let lines = text.strip_prefix('\u{feff}').unwrap_or(&text).lines();
    lines
        .map(str::trim_start)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            if name_of(line).contains(char::is_whitespace) {
                return Err(io::Error::other(format!(
                    "variable `{line}` contains whitespaces"
                )));
            }
            read_env_flag(line).map_err(io::Error::other)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(items: &[&str]) -> Vec<String> {
        items.iter().map(|item| (*item).to_owned()).collect()
    }

    #[test]
    fn the_users_variables_win() {
        let merged = environment(
            &strings(&["PATH=/image", "A=1", "B=2"]),
            &strings(&["A=3", "B", "C=4"]),
            "box",
            "/root",
            true,
        );
        let expected = [
            "PATH=/image",
            "HOSTNAME=box",
            "TERM=xterm",
            "A=3",
            "C=4",
            "HOME=/root",
        ];
        assert_eq!(merged, expected);
    }

    #[test]
    fn files_hold_a_variable_on_each_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("env");
        std::fs::write(&path, "# comment\n\nA=1 2 # kept\n  B=\n").unwrap();
        assert_eq!(read_env_file(&path).unwrap(), ["A=1 2 # kept", "B="]);
        std::fs::write(&path, "A B=1\n").unwrap();
        assert!(read_env_file(&path).is_err());
        std::fs::write(&path, "=1\n").unwrap();
        assert!(read_env_file(&path).is_err());
    }
}
