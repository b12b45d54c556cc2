//! The image store's table of contents, `index.json`: which images there are,
//! what they are called, which unpacked layers they stand on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::reference::Reference;

const VERSION: u32 = 1;

/// The name of an unpacked layer's directory.
///
/// A layer is named by the digest of its archive and so shared by all images
/// that have it; one that took something from the layers below it is named by
/// the chain of digests down to the first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayerKey(String);

impl LayerKey {
    pub fn of_diff(diff_id: &Digest) -> Self {
        Self(format!("diff-{}", diff_id.hex()))
    }

    pub fn of_chain(chain_id: &Digest) -> Self {
        Self(format!("chain-{}", chain_id.hex()))
    }

    /// A single path component, whatever the index says.
    pub fn directory_name(&self) -> Option<&str> {
        let digits = self
            .0
            .strip_prefix("diff-")
            .or_else(|| self.0.strip_prefix("chain-"))?;
        let is_hex = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then_some(self.0.as_str())
    }
}

impl fmt::Display for LayerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The chain id of a layer on top of others.
/// <https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid>
pub fn chain_id(below: Option<&Digest>, diff_id: &Digest) -> Digest {
    below.map_or(*diff_id, |below| {
        Digest::of(format!("{below} {diff_id}").as_bytes())
    })
}

/// An unpacked layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The short name that stands for the layer in overlayfs's mount options,
    /// which must fit a page.
    pub link: u32,
    /// Bytes of all its files.
    pub bytes: u64,
}

/// An image; its id is the digest of its configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The digest of the OCI manifest, where the archive had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<Digest>,
    /// From the bottom to the top.
    pub layers: Vec<LayerKey>,
    /// When the image was made (RFC 3339), if its configuration says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    version: u32,
    pub images: BTreeMap<Digest, ImageRecord>,
    pub tags: BTreeMap<Reference, Digest>,
    pub layers: BTreeMap<LayerKey, LayerRecord>,
    next_link: u32,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            version: VERSION,
            images: BTreeMap::new(),
            tags: BTreeMap::new(),
            layers: BTreeMap::new(),
            next_link: 1,
        }
    }
}

impl Index {
    pub fn is_readable(&self) -> bool {
        self.version == VERSION
    }

    /// A link name that no layer has.
    pub fn take_link(&mut self) -> u32 {
        let link = self.next_link;
        self.next_link += 1;
        link
    }

    /// The bytes that an image's layers hold together.
    pub fn size_of(&self, image: &ImageRecord) -> u64 {
        image
            .layers
            .iter()
            .filter_map(|key| self.layers.get(key))
            .map(|layer| layer.bytes)
            .sum()
    }

    pub fn tags_of(&self, id: &Digest) -> impl Iterator<Item = &Reference> {
        self.tags
            .iter()
            .filter(move |(_, tagged)| *tagged == id)
            .map(|(reference, _)| reference)
    }

    /// Forgets layers that no image stands on.
    pub fn drop_unused_layers(&mut self) -> Vec<(LayerKey, LayerRecord)> {
        let used: BTreeSet<&LayerKey> = self
            .images
            .values()
            .flat_map(|image| &image.layers)
            .collect();
        let unused: Vec<LayerKey> = self
            .layers
            .keys()
            .filter(|key| !used.contains(key))
            .cloned()
            .collect();
        unused
            .into_iter()
            .filter_map(|key| self.layers.remove_entry(&key))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(layers: &[&LayerKey]) -> ImageRecord {
        let layers = layers.iter().map(|key| (*key).clone()).collect();
        ImageRecord {
            manifest: None,
            layers,
            created: None,
        }
    }

    #[test]
    fn layers_go_with_the_last_image_that_needs_them() {
        let shared = LayerKey::of_diff(&Digest::of(b"shared"));
        let own = LayerKey::of_chain(&Digest::of(b"own"));
        let mut index = Index::default();
        for key in [&shared, &own] {
            let link = index.take_link();
            index
                .layers
                .insert(key.clone(), LayerRecord { link, bytes: 5 });
        }
        index.images.insert(Digest::of(b"one"), image(&[&shared]));
        index
            .images
            .insert(Digest::of(b"two"), image(&[&shared, &own]));
        assert_eq!(index.size_of(&index.images[&Digest::of(b"two")]), 10);
        index.images.remove(&Digest::of(b"two"));
        let dropped = index.drop_unused_layers();
        assert_eq!(
            dropped.iter().map(|(key, _)| key).collect::<Vec<_>>(),
            [&own]
        );
        index.images.clear();
        assert_eq!(index.drop_unused_layers().len(), 1);
        assert!(index.layers.is_empty());
    }

    #[test]
    fn chains_depend_on_the_order() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(chain_id(None, &a), a);
        assert_ne!(chain_id(Some(&a), &b), chain_id(Some(&b), &a));
    }

    #[test]
    fn a_layer_name_is_one_component() {
        assert!(
            LayerKey::of_diff(&Digest::of(b""))
                .directory_name()
                .is_some()
        );
        for name in ["../x", "diff-", "diff-../../etc", ""] {
            let key: LayerKey = serde_json::from_value(name.into()).unwrap();
            assert_eq!(key.directory_name(), None);
        }
    }
}
