//! The image store below `/var/lib/lazaret`:
//!
//! ```text
//! images/index.json      what there is; replaced whole under `images/lock`
//! images/blobs/<hex>     configurations and manifests by digest
//! images/layers/<key>/   unpacked layers
//! images/tmp/            work in progress
//! l/<n>                  short links to the layers, for mount options
//! ```

use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;

use super::budget::BudgetError;
use super::digest::Digest;
use super::index::{ImageRecord, Index, LayerKey, LayerRecord};
use super::reference::{Reference, ReferenceError};
use super::removal::remove_tree;
use super::workspace::Workspace;
use crate::config::ImageLimits;
use crate::storage::atomic::{self, Durability, Lock};

/// The link number of the layer that an image without layers gets.
const EMPTY_LAYER_LINK: &str = "0";

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the image index {} is damaged", .0.display())]
    Index(PathBuf, #[source] serde_json::Error),
    #[error("the image index {} was written by a newer lazaret", .0.display())]
    IndexVersion(PathBuf),
    #[error("the blob {digest} of the image store is damaged: its digest is {actual}")]
    Blob { digest: Digest, actual: Digest },
    #[error("the configuration of image {id} is not valid")]
    Config {
        id: Digest,
        source: serde_json::Error,
    },
    #[error("No such image: {0}")]
    NoSuchImage(String),
    #[error("image id `{0}` is ambiguous; give more digits")]
    Ambiguous(String),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Budget(#[from] BudgetError),
    #[error("a layer of the image was removed while it was being loaded; try again")]
    LayerGone,
}

/// An image that a name led to.
#[derive(Debug, Clone)]
pub struct Image {
    pub id: Digest,
    pub record: ImageRecord,
}

/// A new layer in a workspace, ready to be moved into the store.
#[derive(Debug)]
pub struct NewLayer {
    pub key: LayerKey,
    /// The unpacked directory.
    pub directory: PathBuf,
    pub bytes: u64,
}

/// An image whose parts are all there.
#[derive(Debug)]
pub struct NewImage {
    pub config: Vec<u8>,
    pub manifest: Option<Vec<u8>>,
    pub layers: Vec<LayerKey>,
    pub created: Option<String>,
    pub tags: Vec<Reference>,
}

#[derive(Debug)]
pub struct ImageStore {
    root: PathBuf,
    links: PathBuf,
    limits: ImageLimits,
}

impl ImageStore {
    /// Opens the store below `data_dir`, making it if there is none.
    pub fn open(data_dir: &Path, limits: ImageLimits) -> Result<Self, StoreError> {
        let store = Self {
            root: data_dir.join("images"),
            links: data_dir.join("l"),
            limits,
        };
        // The links are made last: where they are, all the rest is.
        if !store.links.is_dir() {
            for directory in ["blobs", "layers/empty", "tmp"] {
                make_directory(&store.root.join(directory))?;
            }
            make_directory(&store.links)?;
        }
        Ok(store)
    }

    pub fn limits(&self) -> ImageLimits {
        self.limits
    }

    /// Keeps images from being removed while the lock lives.
    pub fn lock_shared(&self) -> Result<Lock, StoreError> {
        let path = self.root.join("lock");
        Lock::shared(&path).map_err(failed("lock", &path))
    }

    /// Keeps everyone else from changing the store while the lock lives.
    pub fn lock_exclusive(&self) -> Result<Lock, StoreError> {
        let path = self.root.join("lock");
        Lock::exclusive(&path).map_err(failed("lock", &path))
    }

    /// A place for work in progress; first clears up after killed commands.
    pub fn workspace(&self) -> Result<Workspace, StoreError> {
        let _lock = self.lock_exclusive()?;
        let parent = self.root.join("tmp");
        Workspace::remove_abandoned(&parent).map_err(failed("clear", &parent))?;
        Workspace::create(&parent).map_err(failed("create a directory in", &parent))
    }

    pub fn index(&self) -> Result<Index, StoreError> {
        let path = self.root.join("index.json");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Index::default()),
            Err(source) => return Err(failed("read", &path)(source)),
        };
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|source| StoreError::Index(path.clone(), source))?;
        if index.is_readable() {
            Ok(index)
        } else {
            Err(StoreError::IndexVersion(path))
        }
    }

    /// Finds an image by name, id, or the beginning of an id.
    pub fn resolve(&self, index: &Index, name: &str) -> Result<Image, StoreError> {
        let id = resolve_id(index, name)?;
        let record = index.images.get(&id).cloned();
        let record = record.ok_or_else(|| StoreError::NoSuchImage(name.to_owned()))?;
        Ok(Image { id, record })
    }

    pub fn config(&self, id: &Digest) -> Result<ImageConfiguration, StoreError> {
        let bytes = self.blob(id)?;
        serde_json::from_slice(&bytes).map_err(|source| StoreError::Config { id: *id, source })
    }

    fn blob(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        let path = self.blob_path(digest);
        let bytes = std::fs::read(&path).map_err(failed("read", &path))?;
        let actual = Digest::of(&bytes);
        if actual == *digest {
            Ok(bytes)
        } else {
            Err(StoreError::Blob {
                digest: *digest,
                actual,
            })
        }
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.hex())
    }

    fn layer_path(&self, key: &LayerKey) -> Result<PathBuf, StoreError> {
        let name = key.directory_name().ok_or(StoreError::LayerGone)?;
        Ok(self.root.join("layers").join(name))
    }

    /// The unpacked directory of a layer.
    pub fn layer_directory(&self, key: &LayerKey) -> Result<PathBuf, StoreError> {
        self.layer_path(key)
    }

    /// The image's layers for overlayfs, the topmost first, by their short
    /// names.
    pub fn lower_directories(
        &self,
        index: &Index,
        image: &ImageRecord,
    ) -> Result<Vec<PathBuf>, StoreError> {
        if image.layers.is_empty() {
            let path = self.links.join(EMPTY_LAYER_LINK);
            return match symlink("../images/layers/empty", &path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    Err(failed("create", &path)(error))
                }
                _ => Ok(vec![path]),
            };
        }
        let link = |key: &LayerKey| {
            let layer = index.layers.get(key).ok_or(StoreError::LayerGone)?;
            Ok(self.links.join(layer.link.to_string()))
        };
        image.layers.iter().rev().map(link).collect()
    }

    /// Moves new layers into place and makes the images known, in one step for
    /// every reader. Returns the images' ids.
    pub fn commit(
        &self,
        layers: &[NewLayer],
        images: &[NewImage],
    ) -> Result<Vec<Digest>, StoreError> {
        let _lock = self.lock_exclusive()?;
        let mut index = self.index()?;
        self.remove_orphans(&index)?;
        for layer in layers {
            if index.layers.contains_key(&layer.key) {
                // Another load was faster; ours goes with its workspace.
                continue;
            }
            let target = self.layer_path(&layer.key)?;
            std::fs::rename(&layer.directory, &target).map_err(failed("create", &target))?;
            let link = index.take_link();
            let link_path = self.links.join(link.to_string());
            let name = layer.key.directory_name().ok_or(StoreError::LayerGone)?;
            remove_link(&link_path)?;
            symlink(Path::new("../images/layers").join(name), &link_path)
                .map_err(failed("create", &link_path))?;
            index.layers.insert(
                layer.key.clone(),
                LayerRecord {
                    link,
                    bytes: layer.bytes,
                },
            );
        }
        let mut ids = Vec::new();
        for image in images {
            if image
                .layers
                .iter()
                .any(|key| !index.layers.contains_key(key))
            {
                return Err(StoreError::LayerGone);
            }
            let id = self.write_blob(&image.config)?;
            let manifest = image
                .manifest
                .as_ref()
                .map(|bytes| self.write_blob(bytes))
                .transpose()?;
            let record = ImageRecord {
                manifest,
                layers: image.layers.clone(),
                created: image.created.clone(),
            };
            index.images.insert(id, record);
            for tag in &image.tags {
                index.tags.insert(tag.clone(), id);
            }
            ids.push(id);
        }
        self.sync()?;
        self.write_index(&index)?;
        Ok(ids)
    }

    /// Replaces the index and removes what it no longer names.
    pub fn shrink(&self, mut index: Index, _lock: &Lock) -> Result<Index, StoreError> {
        index.drop_unused_layers();
        self.write_index(&index)?;
        self.remove_orphans(&index)?;
        Ok(index)
    }

    fn write_index(&self, index: &Index) -> Result<(), StoreError> {
        let path = self.root.join("index.json");
        let bytes =
            serde_json::to_vec(index).map_err(|source| StoreError::Index(path.clone(), source))?;
        atomic::replace(&path, &bytes, Durability::Disk).map_err(failed("write", &path))
    }

    fn write_blob(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        let path = self.blob_path(&digest);
        atomic::replace(&path, bytes, Durability::Process).map_err(failed("write", &path))?;
        Ok(digest)
    }

    /// Brings the layers to the disk before the index speaks of them.
    fn sync(&self) -> Result<(), StoreError> {
        let directory = std::fs::File::open(&self.root).map_err(failed("open", &self.root))?;
        rustix::fs::syncfs(directory).map_err(|error| failed("sync", &self.root)(error.into()))
    }

    /// Removes layers, links and blobs that a killed command left behind.
    fn remove_orphans(&self, index: &Index) -> Result<(), StoreError> {
        let is_layer = |name: &str| {
            name == "empty"
                || index
                    .layers
                    .keys()
                    .any(|key| key.directory_name() == Some(name))
        };
        let is_link = |name: &str| {
            name == EMPTY_LAYER_LINK
                || index
                    .layers
                    .values()
                    .any(|layer| layer.link.to_string() == name)
        };
        let is_blob = |name: &str| {
            index.images.iter().any(|(id, image)| {
                id.hex() == name
                    || image
                        .manifest
                        .is_some_and(|manifest| manifest.hex() == name)
            })
        };
        remove_unless(&self.root.join("layers"), is_layer)?;
        remove_unless(&self.links, is_link)?;
        remove_unless(&self.root.join("blobs"), is_blob)
    }
}

fn resolve_id(index: &Index, name: &str) -> Result<Digest, StoreError> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let reference: Result<Reference, _> = name.parse();
    if let Ok(reference) = &reference
        && let Some(id) = index.tags.get(reference)
    {
        return Ok(*id);
    }
    let prefix = name.strip_prefix("sha256:").unwrap_or(name);
    if !prefix.is_empty()
        && prefix
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    {
        let mut matching = index
            .images
            .keys()
            .filter(|id| id.hex().starts_with(prefix));
        match (matching.next(), matching.next()) {
            (Some(id), None) => return Ok(*id),
            (Some(_), Some(_)) => return Err(StoreError::Ambiguous(name.to_owned())),
            (None, _) => {}
        }
    }
    match reference {
        Ok(reference) => Err(StoreError::NoSuchImage(reference.familiar())),
        Err(error) => Err(error.into()),
    }
}

fn remove_unless(directory: &Path, is_known: impl Fn(&str) -> bool) -> Result<(), StoreError> {
    for entry in std::fs::read_dir(directory).map_err(failed("read", directory))? {
        let entry = entry.map_err(failed("read", directory))?;
        if !entry.file_name().to_str().is_some_and(&is_known) {
            let path = entry.path();
            remove_tree(&path).map_err(failed("remove", &path))?;
        }
    }
    Ok(())
}

fn remove_link(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn make_directory(path: &Path) -> Result<(), StoreError> {
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("create", path))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io {
        action,
        path,
        source,
    }
}
