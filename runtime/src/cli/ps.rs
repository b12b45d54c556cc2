//! `lazaret ps`

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use serde::Serialize;

use super::Host;
use super::failure::Failure;
use super::format::{self, Format};
use super::lifecycle::Lifecycle;
use crate::storage::container::{ContainerRecord, State};

/// Longest command that is shown in full, quotes apart.
const COMMAND_WIDTH: usize = 20;

/// List containers
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    all: bool,
    /// Only display container IDs
    #[arg(short, long)]
    quiet: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Format of the output
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    command: String,
    created_at: String,
    #[serde(rename = "ID")]
    id: String,
    image: String,
    mounts: String,
    names: String,
    ports: String,
    running_for: String,
    state: &'static str,
    status: String,
}

impl Args {
    pub(crate) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let records = Lifecycle::open(host)?.list()?;
        let shown =
            |record: &&ContainerRecord| self.all || matches!(record.state, State::Running { .. });
        let rows: Vec<Row> = records
            .iter()
            .filter(shown)
            .map(|record| self.row(record))
            .collect();
        let mut output = BufWriter::new(io::stdout().lock());
        self.print(&mut output, &rows)?;
        output.flush()?;
        Ok(ExitCode::SUCCESS)
    }

    fn row(&self, record: &ContainerRecord) -> Row {
        let id = if self.no_trunc {
            record.id.as_str()
        } else {
            record.id.short()
        };
        let mounts: Vec<String> = record
            .volumes
            .iter()
            .map(|volume| volume.source.display().to_string())
            .collect();
        Row {
            command: quoted(&record.command, self.no_trunc),
            created_at: format::date(Some(&record.created)),
            id: id.to_owned(),
            image: record.image.clone(),
            mounts: mounts.join(","),
            names: record.name.clone(),
            ports: String::new(),
            running_for: format::since(Some(&record.created)),
            state: match record.state {
                State::Created => "created",
                State::Running { .. } => "running",
                State::Exited { .. } => "exited",
            },
            status: status(&record.state),
        }
    }

    fn print(&self, output: &mut impl Write, rows: &[Row]) -> io::Result<()> {
        if self.quiet {
            return rows
                .iter()
                .try_for_each(|row| writeln!(output, "{}", row.id));
        }
        if self.format == Format::Json {
            return rows.iter().try_for_each(|row| {
                serde_json::to_writer(&mut *output, row)?;
                writeln!(output)
            });
        }
        let heading = [
            "CONTAINER ID",
            "IMAGE",
            "COMMAND",
            "CREATED",
            "STATUS",
            "PORTS",
            "NAMES",
        ];
        let mut cells = vec![heading.map(str::to_owned).to_vec()];
        cells.extend(rows.iter().map(|row| {
            [
                &row.id,
                &row.image,
                &row.command,
                &row.running_for,
                &row.status,
                &row.ports,
                &row.names,
            ]
            .map(String::clone)
            .to_vec()
        }));
        format::table(output, &cells)
    }
}

/// The command in quotes, what is odd in it escaped, and short.
fn quoted(command: &[String], whole: bool) -> String {
    let text: String = command.join(" ").escape_default().collect();
    if whole || text.chars().count() <= COMMAND_WIDTH {
        return format!("\"{text}\"");
    }
    let short: String = text.chars().take(COMMAND_WIDTH - 1).collect();
    format!("\"{short}…\"")
}

fn status(state: &State) -> String {
    match state {
        State::Created => "Created".to_owned(),
        State::Running { started } => {
            let since = format::since(Some(started));
            format!("Up {}", since.trim_end_matches(" ago"))
        }
        State::Exited {
            finished,
            exit_code,
            ..
        } => {
            format!("Exited ({exit_code}) {}", format::since(Some(finished)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_quoted_and_short() {
        let command = |words: &[&str]| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(quoted(&command(&["sleep", "5"]), false), "\"sleep 5\"");
        let long = command(&["sh", "-c", "echo a very long line"]);
        assert_eq!(quoted(&long, false), "\"sh -c echo a very l…\"");
        assert_eq!(quoted(&long, true), "\"sh -c echo a very long line\"");
        assert_eq!(
            quoted(&command(&["\u{1b}[2J\n"]), false),
            "\"\\u{1b}[2J\\n\""
        );
    }

    #[test]
    fn states_read_as_in_docker() {
        let finished = "2020-01-01T00:00:00Z".to_owned();
        let state = State::Exited {
            started: None,
            finished,
            exit_code: 7,
            error: String::new(),
        };
        assert!(status(&state).starts_with("Exited (7) "));
        assert!(status(&state).ends_with(" years ago"));
        assert_eq!(status(&State::Created), "Created");
    }
}
