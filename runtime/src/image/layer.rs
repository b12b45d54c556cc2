//! From a layer's archive to a directory in the workspace, digests verified.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::budget::Limited;
use super::compression::decompress;
use super::digest::{Digest, Digesting};
use super::index::{Index, LayerKey, chain_id};
use super::merged::MergedLayers;
use super::store::{ImageStore, NewLayer, StoreError};
use super::unpack::{UnpackError, Unpacked, unpack};
use crate::config::ImageLimits;

/// Most layers of an image, Docker's own limit: the links of as many fit the
/// page that mount options may take.
pub const MAX_LAYERS: usize = 127;

#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("layer {number}: cannot read its archive")]
    Read { number: usize, source: io::Error },
    #[error("layer {number} cannot be unpacked")]
    Unpack { number: usize, source: UnpackError },
    #[error("layer {number}: cannot create {}", path.display())]
    Directory {
        number: usize,
        path: PathBuf,
        source: io::Error,
    },
    #[error("layer {number}: the digest of its {what} is {actual}, not {expected} as announced")]
    Digest {
        number: usize,
        what: &'static str,
        expected: Digest,
        actual: Digest,
    },
    #[error("the image has {0} layers, at most {MAX_LAYERS} are possible")]
    Count(usize),
    #[error("the layers below layer {number} cannot be opened")]
    Lower { number: usize, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What unpacking a stream gave.
#[derive(Debug)]
pub struct UnpackedStream {
    pub diff_id: Digest,
    pub blob: Digest,
    pub unpacked: Unpacked,
}

/// Unpacks `compressed` into `directory` and digests it on both sides of the
/// compression, to the last byte.
pub fn unpack_stream(
    compressed: impl Read,
    directory: &Path,
    lower: &MergedLayers,
    limits: ImageLimits,
    number: usize,
) -> Result<UnpackedStream, LayerError> {
    let read = |source| LayerError::Read { number, source };
    let mut blob = BufReader::with_capacity(64 * 1024, Digesting::new(compressed));
    let (unpacked, diff_id) = {
        let plain = decompress(&mut blob).map_err(read)?;
        let mut plain = Digesting::new(Limited::new(plain, limits));
        let unpacked = unpack(BufReader::new(&mut plain), directory, lower, limits)
            .map_err(|source| LayerError::Unpack { number, source })?;
        io::copy(&mut plain, &mut io::sink()).map_err(read)?;
        (unpacked, plain.finish().0)
    };
    loop {
        let left = blob.fill_buf().map_err(read)?.len();
        if left == 0 {
            break;
        }
        blob.consume(left);
    }
    let (blob, _) = blob.into_inner().finish();
    Ok(UnpackedStream {
        diff_id,
        blob,
        unpacked,
    })
}

/// The layers of one image, from the bottom up.
#[derive(Debug)]
pub struct LayerStack<'a> {
    store: &'a ImageStore,
    index: &'a Index,
    workspace: &'a Path,
    keys: Vec<LayerKey>,
    directories: Vec<PathBuf>,
    chain: Option<Digest>,
}

impl<'a> LayerStack<'a> {
    pub fn new(store: &'a ImageStore, index: &'a Index, workspace: &'a Path) -> Self {
        Self {
            store,
            index,
            workspace,
            keys: Vec::new(),
            directories: Vec::new(),
            chain: None,
        }
    }

    pub fn into_keys(self) -> Vec<LayerKey> {
        self.keys
    }

    /// Puts a layer on top: one that is known, or what `open` reads.
    ///
    /// `blob` is the digest of the archive as it is stored, where it is known.
    pub fn push<R: Read>(
        &mut self,
        diff_id: Digest,
        blob: Option<Digest>,
        new: &mut Vec<NewLayer>,
        open: impl FnOnce() -> R,
    ) -> Result<(), LayerError> {
        let number = self.keys.len() + 1;
        if number > MAX_LAYERS {
            return Err(LayerError::Count(number));
        }
        let chain = chain_id(self.chain.as_ref(), &diff_id);
        self.chain = Some(chain);
        let candidates = [LayerKey::of_diff(&diff_id), LayerKey::of_chain(&chain)];
        for key in &candidates {
            if self.index.layers.contains_key(key) {
                let directory = self.store.layer_directory(key)?;
                self.add(key.clone(), directory);
                return Ok(());
            }
            if let Some(layer) = new.iter().find(|layer| layer.key == *key) {
                self.add(key.clone(), layer.directory.clone());
                return Ok(());
            }
        }
        let directory = self.workspace.join(format!("layer-{}", new.len()));
        std::fs::create_dir(&directory)
            .and_then(|()| set_mode(&directory))
            .map_err(|source| LayerError::Directory {
                number,
                path: directory.clone(),
                source,
            })?;
        let lower = MergedLayers::open(self.directories.iter().rev())
            .map_err(|source| LayerError::Lower { number, source })?;
        let result = unpack_stream(open(), &directory, &lower, self.store.limits(), number)?;
        let verify = |what, expected, actual| {
            if expected == actual {
                return Ok(());
            }
            Err(LayerError::Digest {
                number,
                what,
                expected,
                actual,
            })
        };
        if let Some(blob) = blob {
            verify("blob", blob, result.blob)?;
        }
        verify("content", diff_id, result.diff_id)?;
        let [by_diff, by_chain] = candidates;
        let key = if result.unpacked.needs_lower {
            by_chain
        } else {
            by_diff
        };
        let bytes = result.unpacked.bytes;
        new.push(NewLayer {
            key: key.clone(),
            directory: directory.clone(),
            bytes,
        });
        self.add(key, directory);
        Ok(())
    }

    fn add(&mut self, key: LayerKey, directory: PathBuf) {
        self.keys.push(key);
        self.directories.push(directory);
    }
}

/// The mode that a container's root has unless its image sets another.
pub fn set_mode(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))
}
