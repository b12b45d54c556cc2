//! Host directories and files in a container: `-v HOST:CONTAINER[:ro]`.

use std::io;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("invalid volume specification `{0}`: HOST:CONTAINER or HOST:CONTAINER:ro is needed")]
    Format(String),
    #[error(
        "invalid volume specification `{spec}`: unknown option `{option}`, ro and rw are known"
    )]
    Option { spec: String, option: String },
    #[error(
        "invalid volume specification `{0}`: the host's path must be absolute (named volumes are \
         not supported)"
    )]
    RelativeSource(String),
    #[error("invalid volume specification `{0}`: the container's path must be absolute")]
    RelativeDestination(String),
    #[error("invalid volume specification `{0}`: the container's path must not be `/`")]
    Root(String),
    #[error("invalid volume specification `{0}`: the container's path must not contain `..`")]
    Parent(String),
    #[error("Duplicate mount point: {}", .0.display())]
    Duplicate(PathBuf),
    #[error("bind source path does not exist: {}", .0.display())]
    Missing(PathBuf),
    #[error("bind source {} is neither a directory nor a regular file", .0.display())]
    Kind(PathBuf),
    #[error("cannot look at the bind source {}", path.display())]
    Source { path: PathBuf, source: io::Error },
}

/// A path of the host made visible in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub source: PathBuf,
    pub destination: PathBuf,
    pub read_only: bool,
}

impl FromStr for Volume {
    type Err = VolumeError;

    fn from_str(spec: &str) -> Result<Self, VolumeError> {
        let mut parts = spec.split(':');
        let (Some(source), Some(destination)) = (parts.next(), parts.next()) else {
            return Err(VolumeError::Format(spec.to_owned()));
        };
        let read_only = parts
            .next()
            .map_or(Ok(false), |options| read_only(spec, options))?;
        if parts.next().is_some() || source.is_empty() || destination.is_empty() {
            return Err(VolumeError::Format(spec.to_owned()));
        }
        let (source, destination) = (Path::new(source), Path::new(destination));
        if !source.is_absolute() {
            return Err(VolumeError::RelativeSource(spec.to_owned()));
        }
        if !destination.is_absolute() {
            return Err(VolumeError::RelativeDestination(spec.to_owned()));
        }
        if destination
            .components()
            .any(|component| component == Component::ParentDir)
        {
            return Err(VolumeError::Parent(spec.to_owned()));
        }
        let destination: PathBuf = destination.components().collect();
        if destination == Path::new("/") {
            return Err(VolumeError::Root(spec.to_owned()));
        }
        Ok(Self {
            source: source.to_owned(),
            destination,
            read_only,
        })
    }
}

fn read_only(spec: &str, options: &str) -> Result<bool, VolumeError> {
    let mut read_only = false;
    for option in options.split(',') {
        match option {
            "ro" => read_only = true,
            "rw" => {}
            option => {
                let option = option.to_owned();
                return Err(VolumeError::Option {
                    spec: spec.to_owned(),
                    option,
                });
            }
        }
    }
    Ok(read_only)
}

impl Volume {
    /// Makes sure that there is something to bind. A missing path is an error:
    /// it is a typing error more often than a wish for an empty directory.
    pub fn check(&self) -> Result<(), VolumeError> {
        match std::fs::metadata(&self.source) {
            Ok(metadata) if metadata.is_dir() || metadata.is_file() => Ok(()),
            Ok(_) => Err(VolumeError::Kind(self.source.clone())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(VolumeError::Missing(self.source.clone()))
            }
            Err(source) => Err(VolumeError::Source {
                path: self.source.clone(),
                source,
            }),
        }
    }
}

/// Checks all volumes of a container.
pub fn check_all(volumes: &[Volume]) -> Result<(), VolumeError> {
    for (index, volume) in volumes.iter().enumerate() {
        volume.check()?;
        if volumes[..index]
            .iter()
            .any(|other| other.destination == volume.destination)
        {
            return Err(VolumeError::Duplicate(volume.destination.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_options_are_read() {
        let volume: Volume = "/src:/dst/".parse().unwrap();
        assert_eq!(volume.source, Path::new("/src"));
        assert_eq!(volume.destination, Path::new("/dst"));
        assert!(!volume.read_only);
        assert!("/src:/dst:ro".parse::<Volume>().unwrap().read_only);
        assert!(!"/src:/dst:rw".parse::<Volume>().unwrap().read_only);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        use VolumeError as E;
        let parse = |text: &str| text.parse::<Volume>().unwrap_err();
        assert!(matches!(parse("/src"), E::Format(_)));
        assert!(matches!(parse("/src:"), E::Format(_)));
        assert!(matches!(parse("/a:/b:ro:x"), E::Format(_)));
        assert!(matches!(parse("data:/dst"), E::RelativeSource(_)));
        assert!(matches!(parse("./data:/dst"), E::RelativeSource(_)));
        assert!(matches!(parse("/src:dst"), E::RelativeDestination(_)));
        assert!(matches!(parse("/src:/"), E::Root(_)));
        assert!(matches!(parse("/src:/a/../b"), E::Parent(_)));
        assert!(matches!(parse("/src:/dst:Z"), E::Option { .. }));
    }

    #[test]
    fn sources_must_exist_and_destinations_differ() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let volume = |source: &Path| Volume {
            source: source.to_owned(),
            destination: "/dst".into(),
            read_only: false,
        };
        check_all(&[volume(directory.path())]).unwrap();
        check_all(&[volume(&file)]).unwrap();
        let missing = directory.path().join("missing");
        assert!(matches!(
            check_all(&[volume(&missing)]),
            Err(VolumeError::Missing(_))
        ));
        assert!(matches!(
            check_all(&[volume(Path::new("/dev/null"))]),
            Err(VolumeError::Kind(_))
        ));
        let twice = [volume(&file), volume(directory.path())];
        assert!(matches!(check_all(&twice), Err(VolumeError::Duplicate(_))));
    }
}
