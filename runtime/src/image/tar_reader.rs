//! Entries of a tar stream, with every allocation bounded.
//!
//! Headers are decoded by the `tar` crate. Its own iterator is not used: it
//! reads long names and PAX records of any size into memory and splits PAX
//! records at newlines, which binary attributes contain.
//! <https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13>

use std::io::{self, Read};

use ::tar::{EntryType, GnuExtSparseHeader, Header};

use super::pax::{self, PaxError, PaxRecords};

const BLOCK: u64 = 512;

/// Most bytes of a PAX header or a long name: room for a path of 4 KiB and
/// for several extended attributes at their limit of 64 KiB.
const MAX_EXTENSION_BYTES: u64 = 1024 * 1024;

/// Most extents of a sparse file: 1 MiB of memory.
const MAX_EXTENTS: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    #[error("the archive is truncated after {0} bytes")]
    Truncated(u64),
    #[error("the archive has no tar header at byte {0}: it is damaged or not a tar archive")]
    Checksum(u64),
    #[error("the archive's header at byte {offset} is not valid")]
    Header { offset: u64, source: io::Error },
    #[error(
        "the archive's extended header at byte {offset} has {size} bytes, at most {MAX_EXTENSION_BYTES} are read"
    )]
    ExtensionSize { offset: u64, size: u64 },
    #[error("the archive's extended header at byte {offset} is not valid")]
    Pax { offset: u64, source: PaxError },
    #[error("the sparse file at byte {0} of the archive has a map that is not valid")]
    Sparse(u64),
}

/// What an entry stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    File,
    /// A file with holes: extents of data as (offset, length).
    Sparse(Vec<(u64, u64)>),
    Directory,
    Symlink,
    HardLink,
    Char,
    Block,
    Fifo,
    Unknown(u8),
}

/// One member of the archive, its headers merged.
#[derive(Debug, Clone)]
pub struct Entry {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: EntryKind,
    /// Size of the file, holes included.
    pub size: u64,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds and nanoseconds of the modification time.
    pub mtime: (i64, u32),
    /// Major and minor number of a device node.
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Iterates over the entries of `input`; the data of the entry returned last
/// is what [`Read`] gives.
#[derive(Debug)]
pub struct TarReader<R> {
    input: R,
    position: u64,
    unread: u64,
    padding: u64,
    end_seen: bool,
}

impl<R: Read> TarReader<R> {
    pub fn new(input: R) -> Self {
        Self {
            input,
            position: 0,
            unread: 0,
            padding: 0,
            end_seen: false,
        }
    }

    /// Bytes of the archive consumed so far: after [`Self::next_entry`] the
    /// place of the entry's data.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether the archive ended with the marker that tar writes. Without it a
    /// cut between two entries cannot be told from the end.
    pub fn end_seen(&self) -> bool {
        self.end_seen
    }

    /// Gives back the input, from which what follows the end can be read.
    pub fn into_input(self) -> R {
        self.input
    }

    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut records = PaxRecords::default();
        let mut long_path = None;
        let mut long_link = None;
        loop {
            self.skip(self.unread + self.padding)?;
            (self.unread, self.padding) = (0, 0);
            let offset = self.position;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header
                .entry_size()
                .map_err(|source| TarError::Header { offset, source })?;
            match header.entry_type() {
                EntryType::XGlobalHeader => self.expect_data(offset, size)?,
                EntryType::XHeader => {
                    let bytes = self.extension(offset, size)?;
                    records =
                        pax::parse(&bytes).map_err(|source| TarError::Pax { offset, source })?;
                }
                EntryType::GNULongName => long_path = Some(self.long_name(offset, size)?),
                EntryType::GNULongLink => long_link = Some(self.long_name(offset, size)?),
                _ => {
                    records.path = long_path.or(records.path);
                    records.link = long_link.or(records.link);
                    return self.entry(offset, &header, size, records).map(Some);
                }
            }
        }
    }

    fn entry(
        &mut self,
        offset: u64,
        header: &Header,
        header_size: u64,
        records: PaxRecords,
    ) -> Result<Entry, TarError> {
        let bad = |source| TarError::Header { offset, source };
        let path = records
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = records
            .link
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        let stored = records.size.unwrap_or(header_size);
        let mut size = stored;
        let kind = match header.entry_type() {
            // Before POSIX a directory was a file whose name ends in a slash.
            EntryType::Regular if path.ends_with(b"/") => EntryKind::Directory,
            EntryType::Regular | EntryType::Continuous => EntryKind::File,
            EntryType::GNUSparse => {
                let (extents, real_size) = self.sparse_map(offset, header, stored)?;
                size = real_size;
                EntryKind::Sparse(extents)
            }
            EntryType::Directory => EntryKind::Directory,
            EntryType::Symlink => EntryKind::Symlink,
            EntryType::Link => EntryKind::HardLink,
            EntryType::Char => EntryKind::Char,
            EntryType::Block => EntryKind::Block,
            EntryType::Fifo => EntryKind::Fifo,
            other => EntryKind::Unknown(other.as_byte()),
        };
        if matches!(
            kind,
            EntryKind::File | EntryKind::Sparse(_) | EntryKind::Unknown(_)
        ) {
            self.expect_data(offset, stored)?;
        } else {
            size = 0;
        }
        let device = if matches!(kind, EntryKind::Char | EntryKind::Block) {
            let major = header.device_major().map_err(bad)?;
            (
                major.unwrap_or(0),
                header.device_minor().map_err(bad)?.unwrap_or(0),
            )
        } else {
            (0, 0)
        };
        // Times before 1970 are stored as negative numbers.
        let mtime = (header.mtime().map_err(bad)?.cast_signed(), 0);
        Ok(Entry {
            path,
            link,
            kind,
            size,
            mode: header.mode().map_err(bad)?,
            uid: records.uid.map_or_else(|| header.uid(), Ok).map_err(bad)?,
            gid: records.gid.map_or_else(|| header.gid(), Ok).map_err(bad)?,
            mtime: records.mtime.unwrap_or(mtime),
            device,
            xattrs: records.xattrs,
        })
    }

    /// The next header block, or `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let offset = self.position;
        let mut header = Header::new_old();
        if !self.read_block(header.as_mut_bytes())? {
            return Ok(None);
        }
        let bytes = header.as_bytes();
        if bytes.iter().all(|byte| *byte == 0) {
            self.end_seen = true;
            return Ok(None);
        }
        // The checksum counts its own field as spaces.
        let sum: u32 = bytes[..148]
            .iter()
            .chain(&bytes[156..])
            .map(|byte| u32::from(*byte))
            .sum();
        match header.cksum() {
            Ok(stored) if stored == sum + 8 * u32::from(b' ') => Ok(Some(header)),
            _ => Err(TarError::Checksum(offset)),
        }
    }

    fn expect_data(&mut self, offset: u64, size: u64) -> Result<(), TarError> {
        let padding = size.wrapping_neg() % BLOCK;
        if size
            .checked_add(padding)
            .and_then(|all| all.checked_add(self.position))
            .is_none()
        {
            let source = io::Error::other(format!("size {size}"));
            return Err(TarError::Header { offset, source });
        }
        (self.unread, self.padding) = (size, padding);
        Ok(())
    }

    fn extension(&mut self, offset: u64, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION_BYTES {
            return Err(TarError::ExtensionSize { offset, size });
        }
        self.expect_data(offset, size)?;
        let mut bytes = Vec::new();
        self.by_ref()
            .take(size)
            .read_to_end(&mut bytes)
            .map_err(TarError::Read)?;
        if bytes.len() as u64 == size {
            Ok(bytes)
        } else {
            Err(TarError::Truncated(self.position))
        }
    }

    fn long_name(&mut self, offset: u64, size: u64) -> Result<Vec<u8>, TarError> {
        let mut name = self.extension(offset, size)?;
        let end = name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    fn sparse_map(
        &mut self,
        offset: u64,
        header: &Header,
        stored: u64,
    ) -> Result<(Vec<(u64, u64)>, u64), TarError> {
        let invalid = || TarError::Sparse(offset);
        let gnu = header.as_gnu().ok_or_else(invalid)?;
        let real_size = gnu.real_size().map_err(|_| invalid())?;
        let mut extents = Vec::new();
        add_extents(&mut extents, &gnu.sparse).ok_or_else(invalid)?;
        let mut extended = gnu.is_extended();
        while extended {
            let mut more = GnuExtSparseHeader::new();
            if !self.read_block(more.as_mut_bytes())? {
                return Err(TarError::Truncated(self.position));
            }
            add_extents(&mut extents, more.sparse()).ok_or_else(invalid)?;
            extended = more.is_extended();
        }
        let mut end = 0;
        let mut data: u64 = 0;
        for (start, length) in &extents {
            if *start < end {
                return Err(invalid());
            }
            end = start.checked_add(*length).ok_or_else(invalid)?;
            data = data.checked_add(*length).ok_or_else(invalid)?;
        }
        if end > real_size || data != stored {
            return Err(invalid());
        }
        Ok((extents, real_size))
    }

    /// Fills `block`; `false` means that the archive ends before it.
    fn read_block(&mut self, block: &mut [u8]) -> Result<bool, TarError> {
        let mut filled = 0;
        while filled < block.len() {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(TarError::Truncated(self.position)),
                Ok(count) => {
                    filled += count;
                    self.position += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TarError::Read(error)),
            }
        }
        Ok(true)
    }

    fn skip(&mut self, count: u64) -> Result<(), TarError> {
        let skipped = io::copy(&mut self.input.by_ref().take(count), &mut io::sink())
            .map_err(TarError::Read)?;
        self.position += skipped;
        if skipped == count {
            Ok(())
        } else {
            Err(TarError::Truncated(self.position))
        }
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.unread).map_or(buffer.len(), |all| all.min(buffer.len()));
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.input.read(&mut buffer[..wanted])?;
        if count == 0 {
            let text = format!("the archive is truncated after {} bytes", self.position);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        self.unread -= count as u64;
        self.position += count as u64;
        Ok(count)
    }
}

fn add_extents(extents: &mut Vec<(u64, u64)>, headers: &[::tar::GnuSparseHeader]) -> Option<()> {
    for header in headers.iter().filter(|header| !header.is_empty()) {
        if extents.len() == MAX_EXTENTS {
            return None;
        }
        extents.push((header.offset().ok()?, header.length().ok()?));
    }
    Some(())
}
