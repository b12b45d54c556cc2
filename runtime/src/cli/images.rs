//! `lazaret images`

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use serde::Serialize;

use super::Host;
use super::failure::Failure;
use super::format::{self, Format};
use crate::image::digest::Digest;
use crate::image::index::{ImageRecord, Index};
use crate::image::reference::Reference;

/// List images
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only show image IDs
    #[arg(short, long)]
    quiet: bool,
    /// Don't truncate IDs
    #[arg(long)]
    no_trunc: bool,
    /// Format of the output
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Only show images of this repository, or this repository and tag
    #[arg(value_name = "REPOSITORY[:TAG]")]
    repository: Option<String>,
}

/// An image under one of its names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    created_at: String,
    created_since: String,
    #[serde(rename = "ID")]
    id: String,
    repository: String,
    size: String,
    tag: String,
}

impl Args {
    pub(crate) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let index = host.images()?.index()?;
        let mut output = BufWriter::new(io::stdout().lock());
        self.print(&mut output, &self.rows(&index)?)?;
        output.flush()?;
        Ok(ExitCode::SUCCESS)
    }

    fn rows(&self, index: &Index) -> Result<Vec<Row>, Failure> {
        let wanted: Option<(Reference, bool)> = match &self.repository {
            Some(text) => {
                let reference: Reference = text.parse()?;
                Some((
                    reference,
                    text.ends_with(&format!(":{}", text.parse::<Reference>()?.tag())),
                ))
            }
            None => None,
        };
        let mut images: Vec<(&Digest, &ImageRecord)> = index.images.iter().collect();
        images.sort_by(|(_, a), (_, b)| b.created.cmp(&a.created));
        let mut rows = Vec::new();
        for (id, image) in images {
            let tags: Vec<&Reference> = index.tags_of(id).collect();
            if tags.is_empty() && wanted.is_none() {
                rows.push(self.row(index, id, image, None));
            }
            for tag in tags {
                let shown = wanted.as_ref().is_none_or(|(wanted, with_tag)| {
                    wanted.familiar_repository() == tag.familiar_repository()
                        && (!with_tag || wanted.tag() == tag.tag())
                });
                if shown {
                    rows.push(self.row(index, id, image, Some(tag)));
                }
            }
        }
        Ok(rows)
    }

    fn row(&self, index: &Index, id: &Digest, image: &ImageRecord, tag: Option<&Reference>) -> Row {
        let none = || "<none>".to_owned();
        Row {
            created_at: format::date(image.created.as_deref()),
            created_since: format::since(image.created.as_deref()),
            id: if self.no_trunc {
                id.to_string()
            } else {
                id.hex()[..12].to_owned()
            },
            repository: tag.map_or_else(none, |tag| tag.familiar_repository().to_owned()),
            size: format::size(index.size_of(image)),
            tag: tag.map_or_else(none, |tag| tag.tag().to_owned()),
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
        let heading = ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
        let mut cells = vec![heading.map(str::to_owned).to_vec()];
        cells.extend(rows.iter().map(|row| {
            [
                &row.repository,
                &row.tag,
                &row.id,
                &row.created_since,
                &row.size,
            ]
            .map(String::clone)
            .to_vec()
        }));
        format::table(output, &cells)
    }
}
