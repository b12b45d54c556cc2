//! `docker save` and OCI archives into the store.
//! <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>

use std::fs::File;

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, Os};
use serde::Deserialize;

use super::archive::{Archive, ArchiveError};
use super::digest::{Digest, DigestError};
use super::index::Index;
use super::layer::{LayerError, LayerStack, MAX_LAYERS};
use super::reference::{Reference, ReferenceError};
use super::store::{ImageStore, NewImage, NewLayer, StoreError};

const DOCKER_MANIFEST: &str = "manifest.json";
const OCI_LAYOUT: &str = "oci-layout";
const OCI_INDEX: &str = "index.json";

/// Annotations that carry an image's name, the more precise one first.
const NAME_ANNOTATIONS: [&str; 2] = [
    "io.containerd.image.name",
    "org.opencontainers.image.ref.name",
];

/// How deep indexes may contain indexes: one for the layout, one for the
/// platforms, one to spare.
const MAX_INDEX_DEPTH: usize = 3;

/// Most images of one archive.
const MAX_IMAGES: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("the archive holds no image: it has neither {DOCKER_MANIFEST} nor {OCI_INDEX}")]
    NoImage,
    #[error("the archive holds no image for linux/{0}")]
    Platform(Arch),
    #[error("the archive's indexes are nested more than {MAX_INDEX_DEPTH} deep")]
    Nested,
    #[error("the archive holds more than {MAX_IMAGES} images")]
    Images,
    #[error("the archive's member `{name}` has the digest {actual}, not {expected}")]
    Blob {
        name: String,
        expected: Digest,
        actual: Digest,
    },
    #[error("the image's configuration names {config} layers, its manifest {manifest}")]
    LayerCount { config: usize, manifest: usize },
    #[error("the image's configuration is not valid")]
    Config(#[source] serde_json::Error),
    #[error("the image has {0} layers, at most {MAX_LAYERS} are possible")]
    TooManyLayers(usize),
}

/// An image that was loaded, and the names the archive gave it.
#[derive(Debug, PartialEq, Eq)]
pub struct Loaded {
    pub id: Digest,
    pub tags: Vec<Reference>,
}

/// One image of a `docker save` archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// A layer to be unpacked: a member, and the digest it must have.
struct LayerSource {
    member: String,
    blob: Option<Digest>,
}

struct Loader<'a> {
    store: &'a ImageStore,
    index: Index,
    archive: Archive,
    workspace: &'a std::path::Path,
    layers: Vec<NewLayer>,
    images: Vec<NewImage>,
}

/// Loads every image of the archive, or none.
pub fn load(store: &ImageStore, input: File) -> Result<Vec<Loaded>, LoadError> {
    let workspace = store.workspace()?;
    let archive = Archive::open(input, workspace.path(), store.limits())?;
    let mut loader = Loader {
        store,
        index: store.index()?,
        archive,
        workspace: workspace.path(),
        layers: Vec::new(),
        images: Vec::new(),
    };
    if loader.archive.contains(DOCKER_MANIFEST) {
        loader.docker()?;
    } else if loader.archive.contains(OCI_LAYOUT) || loader.archive.contains(OCI_INDEX) {
        loader.oci()?;
    }
    if loader.images.is_empty() {
        return Err(LoadError::NoImage);
    }
    let ids = store.commit(&loader.layers, &loader.images)?;
    let tags = loader.images.into_iter().map(|image| image.tags);
    Ok(ids
        .into_iter()
        .zip(tags)
        .map(|(id, tags)| Loaded { id, tags })
        .collect())
}

impl Loader<'_> {
    fn docker(&mut self) -> Result<(), LoadError> {
        let manifests: Vec<DockerManifest> = self.archive.json(DOCKER_MANIFEST)?;
        for manifest in manifests {
            let config = self.archive.document(&manifest.config)?;
            if let Some(expected) = digest_in_name(&manifest.config) {
                verify(&manifest.config, expected, &config)?;
            }
            let sources = manifest.layers.unwrap_or_default().into_iter();
            let sources: Vec<_> = sources
                .map(|member| LayerSource { member, blob: None })
                .collect();
            let tags = manifest.repo_tags.unwrap_or_default();
            let tags = tags
                .iter()
                .map(|tag| tag.parse())
                .collect::<Result<_, _>>()?;
            self.image(config, None, &sources, tags)?;
        }
        Ok(())
    }

    fn oci(&mut self) -> Result<(), LoadError> {
        let index: ImageIndex = self.archive.json(OCI_INDEX)?;
        for descriptor in index.manifests() {
            let tags = name_of(descriptor)?;
            if let Some(manifest) = self.find_manifest(descriptor, MAX_INDEX_DEPTH)? {
                self.oci_image(&manifest, tags)?;
            }
        }
        if self.images.is_empty() && !index.manifests().is_empty() {
            return Err(LoadError::Platform(Arch::default()));
        }
        Ok(())
    }

    /// The manifest for this machine that a descriptor leads to.
    fn find_manifest(
        &self,
        descriptor: &Descriptor,
        depth: usize,
    ) -> Result<Option<Vec<u8>>, LoadError> {
        if !runs_here(descriptor) {
            return Ok(None);
        }
        let bytes = self.blob(descriptor)?;
        if !is_index(descriptor) {
            return Ok(Some(bytes));
        }
        let depth = depth.checked_sub(1).ok_or(LoadError::Nested)?;
        let name = descriptor.digest().to_string();
        let index: ImageIndex = serde_json::from_slice(&bytes)
            .map_err(|source| ArchiveError::Document { name, source })?;
        for descriptor in index.manifests() {
            if let Some(manifest) = self.find_manifest(descriptor, depth)? {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    fn oci_image(&mut self, bytes: &[u8], tags: Vec<Reference>) -> Result<(), LoadError> {
        let name = Digest::of(bytes).to_string();
        let manifest: ImageManifest = serde_json::from_slice(bytes)
            .map_err(|source| ArchiveError::Document { name, source })?;
        let config = self.blob(manifest.config())?;
        let mut sources = Vec::new();
        for descriptor in manifest.layers() {
            let (member, digest) = blob_member(descriptor)?;
            sources.push(LayerSource {
                member,
                blob: Some(digest),
            });
        }
        self.image(config, Some(bytes.to_vec()), &sources, tags)
    }

    fn image(
        &mut self,
        config: Vec<u8>,
        manifest: Option<Vec<u8>>,
        sources: &[LayerSource],
        tags: Vec<Reference>,
    ) -> Result<(), LoadError> {
        if self.images.len() == MAX_IMAGES {
            return Err(LoadError::Images);
        }
        let parsed: ImageConfiguration =
            serde_json::from_slice(&config).map_err(LoadError::Config)?;
        let diff_ids = parsed.rootfs().diff_ids();
        if diff_ids.len() != sources.len() {
            let (config, manifest) = (diff_ids.len(), sources.len());
            return Err(LoadError::LayerCount { config, manifest });
        }
        if sources.len() > MAX_LAYERS {
            return Err(LoadError::TooManyLayers(sources.len()));
        }
        let mut stack = LayerStack::new(self.store, &self.index, self.workspace);
        for (source, diff_id) in sources.iter().zip(diff_ids) {
            let section = self.archive.member(&source.member)?;
            stack.push(diff_id.parse()?, source.blob, &mut self.layers, || section)?;
        }
        let layers = stack.into_keys();
        let created = parsed.created().clone();
        self.images.push(NewImage {
            config,
            manifest,
            layers,
            created,
            tags,
        });
        Ok(())
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, LoadError> {
        let (member, digest) = blob_member(descriptor)?;
        let bytes = self.archive.document(&member)?;
        verify(&member, digest, &bytes)?;
        Ok(bytes)
    }
}

fn blob_member(descriptor: &Descriptor) -> Result<(String, Digest), LoadError> {
    let digest: Digest = descriptor.digest().to_string().parse()?;
    Ok((format!("blobs/sha256/{}", digest.hex()), digest))
}

fn verify(name: &str, expected: Digest, bytes: &[u8]) -> Result<(), LoadError> {
    let actual = Digest::of(bytes);
    if actual == expected {
        return Ok(());
    }
    Err(LoadError::Blob {
        name: name.to_owned(),
        expected,
        actual,
    })
}

/// `docker save` names a configuration by its digest.
fn digest_in_name(name: &str) -> Option<Digest> {
    let file = name.rsplit('/').next()?;
    format!("sha256:{}", file.strip_suffix(".json").unwrap_or(file))
        .parse()
        .ok()
}

fn is_index(descriptor: &Descriptor) -> bool {
    let media_type = descriptor.media_type().to_string();
    media_type == "application/vnd.oci.image.index.v1+json"
        || media_type == "application/vnd.docker.distribution.manifest.list.v2+json"
}

fn runs_here(descriptor: &Descriptor) -> bool {
    descriptor.platform().as_ref().is_none_or(|platform| {
        *platform.architecture() == Arch::default() && *platform.os() == Os::default()
    })
}

fn name_of(descriptor: &Descriptor) -> Result<Vec<Reference>, ReferenceError> {
    let Some(annotations) = descriptor.annotations() else {
        return Ok(Vec::new());
    };
    let name = NAME_ANNOTATIONS
        .iter()
        .find_map(|key| annotations.get(*key));
    name.map(|name| name.parse()).into_iter().collect()
}
