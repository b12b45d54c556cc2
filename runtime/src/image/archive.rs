//! Random access to the members of an image archive, which may come through a
//! pipe and name its parts in any order.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::budget::{Budget, BudgetError, Limited};
use super::compression::{Compression, decompress};
use super::entry_path::{EntryPath, PathError};
use super::tar_reader::{Entry, EntryKind, TarError, TarReader};
use crate::config::ImageLimits;

/// Most members of an image archive; a layer's files are not counted.
const MAX_MEMBERS: usize = 64 * 1024;

/// Largest manifest, index or configuration: registries refuse more than 4 MiB.
const MAX_DOCUMENT_BYTES: u64 = 4 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error(transparent)]
    Budget(#[from] BudgetError),
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    #[error("cannot keep the archive in {directory}")]
    Spool {
        directory: String,
        source: io::Error,
    },
    #[error("the archive's member `{name}` is refused")]
    Name { name: String, source: PathError },
    #[error("the archive has more than {MAX_MEMBERS} members")]
    Members,
    #[error("the archive has no member `{0}`")]
    Missing(String),
    #[error(
        "the archive's member `{name}` has {size} bytes, at most {MAX_DOCUMENT_BYTES} are read"
    )]
    DocumentSize { name: String, size: u64 },
    #[error("the archive's member `{name}` is not valid")]
    Document {
        name: String,
        source: serde_json::Error,
    },
}

#[derive(Debug, Clone)]
enum Member {
    Data { offset: u64, size: u64 },
    Link(String),
}

/// An archive whose members can be read by name.
#[derive(Debug)]
pub struct Archive {
    file: File,
    members: HashMap<String, Member>,
}

impl Archive {
    /// Reads the archive's table of contents. What is compressed or cannot be
    /// sought in is first copied to an unnamed file in `directory`.
    pub fn open(input: File, directory: &Path, limits: ImageLimits) -> Result<Self, ArchiveError> {
        let file = if is_plain_file(&input).map_err(ArchiveError::Read)? {
            input
        } else {
            spool(input, directory, limits)?
        };
        let size = file.metadata().map_err(ArchiveError::Read)?.len();
        let whole = BufReader::new(Section {
            file: &file,
            offset: 0,
            left: size,
        });
        let mut reader = TarReader::new(whole);
        let mut members = HashMap::new();
        while let Some(entry) = reader.next_entry()? {
            let Some((name, member)) = member(&entry, reader.position(), size)? else {
                continue;
            };
            if members.len() == MAX_MEMBERS {
                return Err(ArchiveError::Members);
            }
            members.insert(name, member);
        }
        if !reader.end_seen() {
            return Err(TarError::Truncated(reader.position()).into());
        }
        Ok(Self { file, members })
    }

    pub fn contains(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// The bytes of a member, read as they are asked for.
    pub fn member(&self, name: &str) -> Result<Section<'_>, ArchiveError> {
        let missing = || ArchiveError::Missing(name.to_owned());
        let mut member = self.members.get(name).ok_or_else(missing)?;
        if let Member::Link(target) = member {
            member = self.members.get(target).ok_or_else(missing)?;
        }
        match member {
            Member::Data { offset, size } => Ok(Section {
                file: &self.file,
                offset: *offset,
                left: *size,
            }),
            Member::Link(_) => Err(missing()),
        }
    }

    /// A whole member that is small by its nature.
    pub fn document(&self, name: &str) -> Result<Vec<u8>, ArchiveError> {
        let mut section = self.member(name)?;
        let size = section.left;
        if size > MAX_DOCUMENT_BYTES {
            return Err(ArchiveError::DocumentSize {
                name: name.to_owned(),
                size,
            });
        }
        let mut bytes = Vec::new();
        section
            .read_to_end(&mut bytes)
            .map_err(ArchiveError::Read)?;
        Ok(bytes)
    }

    pub fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, ArchiveError> {
        serde_json::from_slice(&self.document(name)?).map_err(|source| ArchiveError::Document {
            name: name.to_owned(),
            source,
        })
    }
}

/// A part of a file as a stream of its own.
#[derive(Debug)]
pub struct Section<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

fn member(entry: &Entry, offset: u64, end: u64) -> Result<Option<(String, Member)>, ArchiveError> {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let refuse = |source| ArchiveError::Name {
        name: lossy(&entry.path),
        source,
    };
    let path = EntryPath::of_member(&entry.path).map_err(refuse)?;
    let member = match entry.kind {
        EntryKind::File => {
            if offset.checked_add(entry.size).is_none_or(|last| last > end) {
                return Err(TarError::Truncated(end).into());
            }
            Member::Data {
                offset,
                size: entry.size,
            }
        }
        EntryKind::HardLink => {
            let target = EntryPath::of_link_target(&entry.link).map_err(refuse)?;
            Member::Link(target.display())
        }
        // Docker saves a layer that two images share once, and links to it.
        EntryKind::Symlink => match link_target(&path, &entry.link) {
            Some(target) => Member::Link(target),
            None => return Err(refuse(PathError::Parent)),
        },
        // Nothing that an image is made of: reading it fails as missing.
        _ => return Ok(None),
    };
    Ok(Some((path.display(), member)))
}

/// The member that a link's relative target means, if it is in the archive.
fn link_target(path: &EntryPath, target: &[u8]) -> Option<String> {
    let mut components: Vec<&[u8]> = path.components().iter().map(Vec::as_slice).collect();
    components.pop();
    if target.starts_with(b"/") {
        return None;
    }
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop()?;
            }
            component => components.push(component),
        }
    }
    Some(String::from_utf8_lossy(&components.join(&b'/')).into_owned())
}

fn is_plain_file(input: &File) -> io::Result<bool> {
    if !input.metadata()?.is_file() {
        return Ok(false);
    }
    let mut start = [0; 8];
    let count = input.read_at(&mut start, 0)?;
    // A shell may have read a part of its own: only the whole file is indexed.
    let from_start = (&*input).stream_position()? == 0;
    Ok(from_start && Compression::of(&start[..count])? == Compression::Plain)
}

fn spool(input: File, directory: &Path, limits: ImageLimits) -> Result<File, ArchiveError> {
    let failed = |source| ArchiveError::Spool {
        directory: directory.display().to_string(),
        source,
    };
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let file = openat(CWD, directory, flags, Mode::RUSR | Mode::WUSR);
    let mut file = File::from(file.map_err(|error| failed(error.into()))?);
    let input = BufReader::new(input);
    let mut stream = Limited::new(decompress(input).map_err(ArchiveError::Read)?, limits);
    let mut budget = Budget::new(limits);
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Ok(file),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ArchiveError::Read(error)),
        };
        budget.write(file.as_fd(), count)?;
        file.write_all(&buffer[..count]).map_err(failed)?;
    }
}
