//! A plain root file system archive as an image of one layer.

use std::fs::File;
use std::io;
use std::time::SystemTime;

use oci_spec::image::{
    Arch, ConfigBuilder, HistoryBuilder, ImageConfigurationBuilder, Os, RootFsBuilder,
};

use super::digest::Digest;
use super::index::LayerKey;
use super::layer::{LayerError, set_mode, unpack_stream};
use super::merged::MergedLayers;
use super::reference::Reference;
use super::store::{ImageStore, NewImage, NewLayer, StoreError};

#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Layer(#[from] LayerError),
    #[error("cannot create the layer's directory")]
    Directory(#[source] io::Error),
    #[error("the archive has no end marker: it is empty or truncated")]
    Truncated,
    #[error("cannot describe the image")]
    Config(#[source] oci_spec::OciSpecError),
}

/// Imports `input`; `source` is what the image's history says about it.
pub fn import(
    store: &ImageStore,
    input: File,
    source: &str,
    tag: Option<Reference>,
) -> Result<Digest, ImportError> {
    let workspace = store.workspace()?;
    let directory = workspace.path().join("layer-0");
    std::fs::create_dir(&directory)
        .and_then(|()| set_mode(&directory))
        .map_err(ImportError::Directory)?;
    let lower = MergedLayers::open(std::iter::empty::<&str>()).map_err(ImportError::Directory)?;
    let result = unpack_stream(input, &directory, &lower, store.limits(), 1)?;
    if !result.unpacked.end_seen {
        // No digest was announced that would tell a cut archive from a whole.
        return Err(ImportError::Truncated);
    }
    let created = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
    let config = config(&result.diff_id, source, &created).map_err(ImportError::Config)?;
    let key = LayerKey::of_diff(&result.diff_id);
    let layer = NewLayer {
        key: key.clone(),
        directory,
        bytes: result.unpacked.bytes,
    };
    let image = NewImage {
        config: config.into_bytes(),
        manifest: None,
        layers: vec![key],
        created: Some(created),
        tags: tag.into_iter().collect(),
    };
    store
        .commit(&[layer], &[image])?
        .pop()
        .ok_or_else(|| StoreError::LayerGone.into())
}

fn config(diff_id: &Digest, source: &str, created: &str) -> Result<String, oci_spec::OciSpecError> {
    let history = HistoryBuilder::default()
        .created(created)
        .comment(format!("Imported from {source}"))
        .build()?;
    let rootfs = RootFsBuilder::default()
        .typ("layers")
        .diff_ids(vec![diff_id.to_string()])
        .build()?;
    ImageConfigurationBuilder::default()
        .created(created)
        .architecture(Arch::default())
        .os(Os::default())
        .config(ConfigBuilder::default().build()?)
        .rootfs(rootfs)
        .history(vec![history])
        .build()?
        .to_string()
}
