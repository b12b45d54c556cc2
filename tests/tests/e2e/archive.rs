//! Image archives made in memory: Docker's and OCI's format, any compression, any entry.

use std::fmt::Write as _;
use std::io::Write;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// One entry of a layer.
pub(crate) struct Entry<'a> {
    path: &'a str,
    kind: EntryType,
    mode: u32,
    link: &'a str,
    data: &'a [u8],
}

pub(crate) fn file<'a>(path: &'a str, mode: u32, data: &'a [u8]) -> Entry<'a> {
    Entry {
        path,
        kind: EntryType::Regular,
        mode,
        link: "",
        data,
    }
}

pub(crate) fn directory(path: &str) -> Entry<'_> {
    Entry {
        path,
        kind: EntryType::Directory,
        mode: 0o755,
        link: "",
        data: &[],
    }
}

pub(crate) fn link<'a>(kind: EntryType, path: &'a str, target: &'a str) -> Entry<'a> {
    Entry {
        path,
        kind,
        mode: 0o777,
        link: target,
        data: &[],
    }
}

/// A tar archive of these entries, whatever they are called.
pub(crate) fn layer(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(entry.data.len() as u64);
        // Not set_path and set_link_name, which refuse what hostile archives hold.
        let gnu = header.as_gnu_mut().expect("a GNU header");
        gnu.name[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
        gnu.linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_cksum();
        builder
            .append(&header, entry.data)
            .expect("memory takes it");
    }
    builder.into_inner().expect("memory takes it")
}

#[derive(Clone, Copy)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => bytes.to_vec(),
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder
                .write_all(bytes)
                .and_then(|()| encoder.finish())
                .expect("memory takes it")
        }
        Compression::Zstd => zstd::encode_all(bytes, 1).expect("memory takes it"),
    }
}

fn hex_digest(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("memory takes it");
    }
    text
}

/// An image configuration around `config`, for these layers.
fn image_config(config: &Value, layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers
        .iter()
        .map(|layer| format!("sha256:{}", hex_digest(layer)))
        .collect();
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "2020-01-01T00:00:00Z",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    config.to_string().into_bytes()
}

/// What `docker save` writes.
pub(crate) fn docker_archive(tag: &str, config: &Value, layers: &[Vec<u8>]) -> Vec<u8> {
    let config = image_config(config, layers);
    let names: Vec<_> = (0..layers.len())
        .map(|number| format!("{number}/layer.tar"))
        .collect();
    let manifest = json!([{ "Config": "config.json", "RepoTags": [tag], "Layers": names }]);
    let manifest = manifest.to_string();
    let mut entries = vec![
        file("manifest.json", 0o644, manifest.as_bytes()),
        file("config.json", 0o644, &config),
    ];
    entries.extend(
        names
            .iter()
            .zip(layers)
            .map(|(name, layer)| file(name, 0o644, layer)),
    );
    layer(&entries)
}

/// What `skopeo copy … oci-archive:` and buildkit write.
pub(crate) fn oci_archive(
    tag: &str,
    config: &Value,
    layers: &[Vec<u8>],
    compression: Compression,
) -> Vec<u8> {
    let suffix = match compression {
        Compression::None => "",
        Compression::Gzip => "+gzip",
        Compression::Zstd => "+zstd",
    };
    let mut blobs = Vec::new();
    let mut blob = |media_type: &str, bytes: Vec<u8>| {
        let digest = hex_digest(&bytes);
        let descriptor = json!({
            "mediaType": format!("application/vnd.oci.image.{media_type}"),
            "digest": format!("sha256:{digest}"),
            "size": bytes.len(),
        });
        blobs.push((format!("blobs/sha256/{digest}"), bytes));
        descriptor
    };
    let config = blob("config.v1+json", image_config(config, layers));
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| {
            blob(
                &format!("layer.v1.tar{suffix}"),
                compress(layer, compression),
            )
        })
        .collect();
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let mut manifest = blob("manifest.v1+json", manifest.to_string().into_bytes());
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string();
    let mut entries = vec![
        file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#),
        file("index.json", 0o644, index.as_bytes()),
    ];
    entries.extend(blobs.iter().map(|(name, bytes)| file(name, 0o644, bytes)));
    layer(&entries)
}
