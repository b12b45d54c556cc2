//! `lazaret-oci list`

use std::process::ExitCode;

use clap::ValueEnum;

use super::Host;
use super::container::Container;
use super::failure::{Failure, OciError};
use super::state::{State, print};

/// List the containers of a root (global option --root)
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Format of the list
    #[arg(
        short,
        long,
        value_enum,
        default_value = "table",
        value_name = "FORMAT"
    )]
    format: Format,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

const HEADER: [&str; 6] = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"];

/// Narrowest column and the space after each, as runc has them.
const COLUMN_MIN: usize = 12;
const PADDING: usize = 3;

impl Args {
    pub(super) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let mut states = Vec::new();
        for id in host.root.list()? {
            let state =
                Container::find(host, id.as_str()).and_then(|container| State::of(host, container));
            match state {
                Ok(state) => states.push(state),
                // Removed meanwhile, or not quite there yet.
                Err(OciError::NotExist) => {}
                Err(err) => host.log.warning(&format!("{}: {err}", id.as_str())),
            }
        }
        if self.quiet {
            for state in &states {
                print(&state.id)?;
            }
        } else if self.format == Format::Json {
            let text = match &states[..] {
                [] => "null".to_owned(),
                states => serde_json::to_string(states).expect("all keys are strings"),
            };
            print(&text)?;
        } else {
            for line in table(&states) {
                print(&line)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(states: &[State]) -> Vec<String> {
    let mut rows = vec![HEADER.map(str::to_owned)];
    rows.extend(states.iter().map(|state| {
        [
            state.id.clone(),
            state.pid.to_string(),
            state.status.clone(),
            state.bundle.display().to_string(),
            state.created.clone(),
            state.owner.clone(),
        ]
    }));
    align(&rows)
}

/// Columns as wide as their widest cell, but for the last.
fn align<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| {
        let widest = rows.iter().map(|row| row[column].chars().count()).max();
        (widest.unwrap_or_default() + PADDING).max(COLUMN_MIN)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| match column + 1 {
            last if last == N => cell.clone(),
            _ => format!("{cell:<width$}"),
        });
        cells.collect()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_twelve_wide_or_three_wider_than_the_widest() {
        let rows = [
            ["ID", "STATUS"].map(str::to_owned),
            ["a-longer-name", "running"].map(str::to_owned),
        ];
        assert_eq!(
            align(&rows),
            ["ID              STATUS", "a-longer-name   running"]
        );
    }
}
