//! `lazaret rmi`

use std::io::{self, Write};
use std::process::ExitCode;

use super::Host;
use super::failure::Failure;
use crate::image::digest::Digest;
use crate::image::index::Index;
use crate::image::reference::Reference;
use crate::image::store::ImageStore;
use crate::storage::container::ContainerRecord;

/// Remove one or more images
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names, names with tags, or IDs of the images
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

impl Args {
    pub(crate) fn run(self, host: &Host) -> Result<ExitCode, Failure> {
        let store = host.images()?;
        let containers = host.containers()?;
        let mut code = ExitCode::SUCCESS;
        for name in &self.images {
            // The lock keeps `run` from taking an image that is about to go.
            let lock = store.lock_exclusive()?;
            let mut index = store.index()?;
            match remove(&store, &mut index, name, &containers.list()?) {
                Ok(report) => {
                    store.shrink(index, &lock)?;
                    io::stdout().write_all(report.as_bytes())?;
                }
                Err(failure) => code = failure.report(),
            }
        }
        Ok(code)
    }
}

/// Takes a name, or an image with all its names, out of the index.
fn remove(
    store: &ImageStore,
    index: &mut Index,
    name: &str,
    containers: &[ContainerRecord],
) -> Result<String, Failure> {
    let image = store.resolve(index, name)?;
    let tags: Vec<Reference> = index.tags_of(&image.id).cloned().collect();
    let named = name
        .parse()
        .ok()
        .filter(|reference| tags.contains(reference));
    let user = containers
        .iter()
        .find(|container| container.image_id == image.id);
    match (named, user) {
        (Some(reference), _) if tags.len() > 1 => {
            index.tags.remove(&reference);
            Ok(format!("Untagged: {}\n", reference.familiar()))
        }
        (Some(reference), Some(user)) => Err(Failure::new(format!(
            "conflict: unable to remove repository reference \"{}\" - container {} is using its \
             referenced image {}",
            reference.familiar(),
            user.id.short(),
            &image.id.hex()[..12]
        ))),
        (None, Some(user)) => Err(Failure::new(format!(
            "conflict: unable to delete {} - image is being used by container {}",
            &image.id.hex()[..12],
            user.id.short()
        ))),
        (None, None) if tags.len() > 1 => Err(Failure::new(format!(
            "conflict: unable to delete {} - image is referenced in multiple repositories",
            &image.id.hex()[..12]
        ))),
        (_, None) => Ok(delete(index, &image.id, &tags)),
    }
}

fn delete(index: &mut Index, id: &Digest, tags: &[Reference]) -> String {
    let mut report: Vec<String> = Vec::new();
    for tag in tags {
        index.tags.remove(tag);
        report.push(format!("Untagged: {}\n", tag.familiar()));
    }
    index.images.remove(id);
    report.push(format!("Deleted: {id}\n"));
    report.concat()
}
