//! Tables, sizes and ages as Docker prints them.

use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use clap::ValueEnum;

/// Narrowest column, and the space between two.
const MIN_WIDTH: usize = 10;
const PADDING: usize = 3;

/// How a list is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    /// One JSON object on each line.
    Json,
}

/// Writes rows under a heading, each column as wide as its widest cell.
pub fn table(output: &mut impl Write, rows: &[Vec<String>]) -> io::Result<()> {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        (widest + PADDING).max(MIN_WIDTH)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let mut line = String::new();
        for (index, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if index + 1 < columns {
                let fill = widths[index].saturating_sub(cell.chars().count());
                line.extend(std::iter::repeat_n(' ', fill));
            }
        }
        writeln!(output, "{line}")?;
    }
    Ok(())
}

/// `4.26MB`: powers of 1000, three digits.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        value if value < 10.0 => 2,
        value if value < 100.0 => 1,
        _ => 0,
    };
    let mut digits = format!("{value:.decimals$}");
    if digits.contains('.') {
        let kept = digits.trim_end_matches('0').trim_end_matches('.').len();
        digits.truncate(kept);
    }
    format!("{digits}{}", UNITS[unit])
}

/// `3 minutes`, the way Docker rounds.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let minutes = seconds / 60;
    let hours = (seconds + 1800) / 3600;
    match (seconds, minutes, hours) {
        (0, _, _) => "Less than a second".to_owned(),
        (1, _, _) => "1 second".to_owned(),
        (2..60, _, _) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, 2..60, _) => format!("{minutes} minutes"),
        (_, _, 1) => "About an hour".to_owned(),
        (_, _, 0..48) => format!("{hours} hours"),
        (_, _, 48..336) => format!("{} days", hours / 24),
        (_, _, 336..1440) => format!("{} weeks", hours / 24 / 7),
        (_, _, 1440..17_520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// `3 minutes ago` for an RFC 3339 time, `N/A` for what is none.
pub fn since(time: Option<&str>) -> String {
    match time.and_then(|text| humantime::parse_rfc3339_weak(text).ok()) {
        Some(time) => {
            format!(
                "{} ago",
                duration(SystemTime::now().duration_since(time).unwrap_or_default())
            )
        }
        None => "N/A".to_owned(),
    }
}

/// `2026-11-21 09:30:00 +0000 UTC` for an RFC 3339 time in UTC.
pub fn date(time: Option<&str>) -> String {
    match time.and_then(|text| humantime::parse_rfc3339_weak(text).ok()) {
        Some(time) => {
            let text = humantime::format_rfc3339_seconds(time).to_string();
            format!("{} +0000 UTC", text.trim_end_matches('Z').replace('T', " "))
        }
        None => "N/A".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let row = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect();
        let mut output = Vec::new();
        table(
            &mut output,
            &[row(&["A", "LONG HEADING", "C"]), row(&["x", "y", "z"])],
        )
        .unwrap();
        let text = String::from_utf8(output).unwrap();
        assert_eq!(
            text,
            "A         LONG HEADING   C\nx         y              z\n"
        );
    }

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (4_261_574, "4.26MB"),
            (42_615_740, "42.6MB"),
            (426_157_400, "426MB"),
            (10_500_000_000, "10.5GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn ages_are_rounded_as_docker_does() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (3 * 86_400, "3 days"),
            (21 * 86_400, "3 weeks"),
            (90 * 86_400, "3 months"),
            (3 * 366 * 86_400, "3 years"),
        ] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn dates_that_are_none_are_not_applicable() {
        assert_eq!(
            date(Some("2026-11-21T09:30:00.5Z")),
            "2026-11-21 09:30:00 +0000 UTC"
        );
        assert_eq!(date(None), "N/A");
        assert_eq!(since(Some("yesterday")), "N/A");
    }
}
