//! Hostile and ordinary archives against the store, as root: each failure must
//! say why and leave nothing, neither in the store nor outside.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ::tar::{EntryType, Header};
use rustix::process::geteuid;

use super::digest::Digest;
use super::import::import;
use super::load::load;
use super::merged::MergedLayers;
use super::store::ImageStore;
use crate::config::ImageLimits;

/// A tar archive written header by header: what no honest tool would write.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn entry(mut self, kind: EntryType, name: &str, link: &str, data: &[u8]) -> Self {
        self.raw(kind, name, link, data, |_| {});
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(EntryType::Regular, name, "", data)
    }

    fn directory(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", b"")
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
            let digits = (1..20)
                .find(|n| (body.len() + n).to_string().len() == *n)
                .unwrap();
            data.extend((body.len() + digits).to_string().bytes().chain(body));
        }
        self.entry(EntryType::XHeader, "pax", "", &data)
    }

    fn raw(
        &mut self,
        kind: EntryType,
        name: &str,
        link: &str,
        data: &[u8],
        change: impl FnOnce(&mut Header),
    ) {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_000_000_000);
        header.set_uid(0);
        header.set_gid(0);
        change(&mut header);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

struct Bench {
    directory: tempfile::TempDir,
    store: ImageStore,
}

impl Bench {
    fn new() -> Self {
        assert!(geteuid().is_root(), "unpacking with owners needs root");
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("precious"), "precious").unwrap();
        let limits = ImageLimits {
            max_unpacked_mib: 1,
            max_entries: 50,
            reserve_mib: 1,
        };
        let store = ImageStore::open(&directory.path().join("data"), limits).unwrap();
        Self { directory, store }
    }

    fn input(&self, bytes: &[u8]) -> File {
        let path = self.directory.path().join("input.tar");
        std::fs::write(&path, bytes).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    fn import(&self, bytes: &[u8]) -> Result<Digest, String> {
        import(
            &self.store,
            self.input(bytes),
            "test",
            Some("test".parse().unwrap()),
        )
        .map_err(|error| chain(&error))
    }

    fn load(&self, bytes: &[u8]) -> Result<Vec<super::load::Loaded>, String> {
        load(&self.store, self.input(bytes)).map_err(|error| chain(&error))
    }

    /// Everything there is below the directory.
    fn listing(&self) -> Vec<PathBuf> {
        fn walk(path: &Path, into: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                if path.symlink_metadata().unwrap().is_dir() {
                    walk(&path, into);
                }
                into.push(path);
            }
        }
        let mut all = Vec::new();
        walk(self.directory.path(), &mut all);
        all.retain(|path| !path.ends_with("images/lock"));
        all.sort();
        all
    }

    /// The root of the only layer of the image `test`.
    fn root(&self) -> PathBuf {
        let index = self.store.index().unwrap();
        let image = self.store.resolve(&index, "test").unwrap();
        self.store.lower_directories(&index, &image.record).unwrap()[0].clone()
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += ": ";
        text += &error.to_string();
        source = error.source();
    }
    text
}

fn sparse_bomb() -> Vec<u8> {
    let mut tar = Tar::default();
    tar.raw(EntryType::GNUSparse, "bomb", "", b"", |header| {
        header.as_gnu_mut().unwrap().set_real_size(1 << 60);
    });
    tar.end()
}

fn huge_pax_header() -> Vec<u8> {
    let mut tar = Tar::default();
    tar.raw(EntryType::XHeader, "pax", "", b"", |header| {
        header.set_size(1 << 40);
    });
    tar.end()
}

fn huge_long_name() -> Vec<u8> {
    let mut tar = Tar::default();
    tar.raw(EntryType::GNULongName, "name", "", b"", |header| {
        header.set_size(1 << 40);
    });
    tar.end()
}

fn size_overflow() -> Vec<u8> {
    Tar::default()
        .pax(&[("size", b"18446744073709551615")])
        .file("x", b"")
        .end()
}

fn many_entries() -> Vec<u8> {
    (0..60)
        .fold(Tar::default(), |tar, n| tar.file(&format!("f{n}"), b""))
        .end()
}

fn damaged() -> Vec<u8> {
    let mut bytes = Tar::default().file("a", b"data").end();
    bytes[0] ^= 1;
    bytes
}

fn truncated_data() -> Vec<u8> {
    let bytes = Tar::default().file("a", &[7; 4096]).end();
    bytes[..2000].to_vec()
}

fn truncated_gzip() -> Vec<u8> {
    let noise: Vec<u8> = (0..90_000_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let tar = Tar::default().file("a", &noise).end();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&tar).unwrap();
    let bytes = encoder.finish().unwrap();
    bytes[..bytes.len() / 2].to_vec()
}

fn zstd_bomb() -> Vec<u8> {
    let tar = Tar::default().file("bomb", &vec![0; 8 << 20]).end();
    zstd::encode_all(&tar[..], 3).unwrap()
}

fn zero_bomb_after_the_end() -> Vec<u8> {
    let mut tar = Tar::default().file("a", b"x").end();
    tar.resize(tar.len() + (8 << 20), 0);
    zstd::encode_all(&tar[..], 3).unwrap()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn hostile_archives_are_refused_and_leave_nothing() {
    let link = EntryType::Symlink;
    let hard = EntryType::Link;
    let outside = "../../../../../precious";
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "absolute name",
            Tar::default().file("/etc/x", b"x").end(),
            "absolute",
        ),
        ("parent", Tar::default().file("../x", b"x").end(), "`..`"),
        (
            "parent inside",
            Tar::default().file("a/../../x", b"x").end(),
            "`..`",
        ),
        (
            "write through an absolute link",
            Tar::default()
                .entry(link, "l", "/", b"")
                .file("l/precious", b"x")
                .end(),
            "leads out",
        ),
        (
            "write through a relative link",
            Tar::default()
                .entry(link, "l", "../../..", b"")
                .file("l/precious", b"x")
                .end(),
            "leads out",
        ),
        (
            "write through links of links",
            Tar::default()
                .entry(link, "a", ".", b"")
                .entry(link, "b", "a/..", b"")
                .file("b/x", b"x")
                .end(),
            "leads out",
        ),
        (
            "directory through a link",
            Tar::default()
                .entry(link, "l", "/tmp", b"")
                .directory("l/x")
                .end(),
            "leads out",
        ),
        (
            "a loop of links",
            Tar::default()
                .entry(link, "l", "l", b"")
                .file("l/x", b"x")
                .end(),
            "leads out",
        ),
        (
            "hard link to a parent",
            Tar::default().entry(hard, "l", outside, b"").end(),
            "`..`",
        ),
        (
            "hard link through a link",
            Tar::default()
                .entry(link, "d", "/", b"")
                .entry(hard, "l", "d/etc/passwd", b"")
                .end(),
            "leads out",
        ),
        (
            "hard link to nothing",
            Tar::default().entry(hard, "l", "no", b"").end(),
            "does not exist",
        ),
        (
            "hard link to a directory",
            Tar::default()
                .directory("d")
                .entry(hard, "l", "d", b"")
                .end(),
            "cannot unpack",
        ),
        (
            "opaque marker through a link",
            Tar::default()
                .entry(link, "l", "/tmp", b"")
                .file("l/.wh..wh..opq", b"")
                .end(),
            "leads out",
        ),
        (
            "whiteout of the parent",
            Tar::default().file("a/.wh...", b"").end(),
            "cannot unpack",
        ),
        (
            "file as the root",
            Tar::default().file("./", b"").file(".", b"x").end(),
            "root directory",
        ),
        (
            "file as a directory",
            Tar::default().file("a", b"").file("a/b", b"").end(),
            "cannot unpack",
        ),
        (
            "overlay attribute",
            Tar::default()
                .pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/x")])
                .directory("d")
                .end(),
            "overlayfs reserves",
        ),
        (
            "owner out of range",
            Tar::default()
                .pax(&[("uid", b"4294967295")])
                .file("x", b"")
                .end(),
            "range",
        ),
        (
            "zero byte in a name",
            Tar::default()
                .pax(&[("path", b"a\0b")])
                .file("x", b"")
                .end(),
            "zero byte",
        ),
        (
            "long name",
            Tar::default()
                .pax(&[("path", &[b'a'; 5000])])
                .file("x", b"")
                .end(),
            "longer",
        ),
        (
            "unknown type",
            Tar::default()
                .entry(EntryType::new(b'V'), "x", "", b"")
                .end(),
            "not supported",
        ),
        ("sparse bomb", sparse_bomb(), "max_unpacked_mib"),
        ("zstd bomb", zstd_bomb(), "max_unpacked_mib"),
        (
            "zeros without end",
            zero_bomb_after_the_end(),
            "max_unpacked_mib",
        ),
        ("entries without end", many_entries(), "max_entries"),
        ("huge PAX header", huge_pax_header(), "at most"),
        ("huge long name", huge_long_name(), "at most"),
        ("size overflow", size_overflow(), "not valid"),
        ("damaged header", damaged(), "not a tar archive"),
        ("truncated data", truncated_data(), "truncated"),
        ("truncated gzip", truncated_gzip(), "cannot read"),
        (
            "truncated between entries",
            Tar::default().file("a", b"").0,
            "truncated",
        ),
        ("nothing", Vec::new(), "truncated"),
        ("xz", b"\xfd7zXZ\0rest".to_vec(), "xz compression"),
    ];
    for (name, archive, expected) in table {
        let bench = Bench::new();
        let before = bench.listing();
        let error = bench.import(&archive).expect_err(name);
        assert!(error.contains(expected), "{name}: {error}");
        assert_eq!(bench.listing(), before, "{name}");
        let precious = std::fs::read_to_string(bench.directory.path().join("precious"));
        assert_eq!(precious.unwrap(), "precious", "{name}");
    }
}

#[test]
fn what_docker_unpacks_is_unpacked() {
    let mut tar = Tar::default()
        .directory("./")
        .directory("bin")
        .file("bin/a", b"data");
    tar.raw(EntryType::Regular, "bin/su", "", b"su", |header| {
        header.set_mode(0o4755);
        header.set_uid(12);
        header.set_gid(34);
    });
    tar.raw(EntryType::Char, "null", "", b"", |header| {
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
    });
    let archive = tar
        .entry(EntryType::Link, "bin/b", "/bin/a", b"")
        .entry(EntryType::Symlink, "sh", "/bin/a", b"")
        .entry(EntryType::Fifo, "fifo", "", b"")
        .pax(&[
            ("path", &[b"deep/".as_slice(), &[b'n'; 200]].concat()),
            ("mtime", b"1.5"),
            ("SCHILY.xattr.user.key", b"a\nb=c"),
        ])
        .file("x", b"long")
        .entry(EntryType::Symlink, "lib", "usr/lib", b"")
        .directory("usr")
        .directory("usr/lib")
        .file("lib/so", b"through a link that stays inside")
        .end();
    let bench = Bench::new();
    bench.import(&archive).unwrap();
    let root = bench.root();
    let metadata = |name: &str| std::fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!(std::fs::read(root.join("bin/b")).unwrap(), b"data");
    assert_eq!(metadata("bin/a").ino(), metadata("bin/b").ino());
    let su = metadata("bin/su");
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid()), (0o4755, 12, 34));
    assert!(metadata("null").file_type().is_char_device());
    assert_eq!(metadata("null").rdev(), rustix::fs::makedev(1, 3));
    assert!(metadata("fifo").file_type().is_fifo());
    assert!(metadata("sh").file_type().is_symlink());
    assert_eq!(
        metadata("bin").mtime(),
        1_000_000_000,
        "filling it does not count"
    );
    let long = format!("deep/{}", "n".repeat(200));
    assert_eq!(
        (metadata(&long).mtime(), metadata(&long).mtime_nsec()),
        (1, 500_000_000)
    );
    let mut value = [0; 16];
    let length = rustix::fs::getxattr(root.join(&long), "user.key", &mut value).unwrap();
    assert_eq!(&value[..length], b"a\nb=c");
    assert!(root.join("usr/lib/so").exists());
}

fn docker_archive(layers: &[&[u8]], change: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| Digest::of(layer).to_string())
        .collect();
    let mut config = serde_json::json!({
        "architecture": oci_spec::image::Arch::default(),
        "os": "linux",
        "config": { "Cmd": ["sh"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    change(&mut config);
    let config = config.to_string().into_bytes();
    let config_name = format!("{}.json", Digest::of(&config).hex());
    let names: Vec<String> = (0..layers.len())
        .map(|n| format!("{n}/layer.tar"))
        .collect();
    let manifest = serde_json::json!([
        { "Config": config_name, "RepoTags": ["test:latest"], "Layers": names },
    ]);
    let mut tar = Tar::default();
    for (name, layer) in names.iter().zip(layers) {
        tar = tar.file(name, layer);
    }
    tar.file(&config_name, &config)
        .file("manifest.json", manifest.to_string().as_bytes())
        .end()
}

#[test]
fn layers_are_shared_and_whiteouts_hide() {
    let base = Tar::default()
        .directory("d")
        .file("d/a", b"1")
        .file("d/b", b"2")
        .file("e", b"3")
        .end();
    let top = Tar::default()
        .directory("d")
        .file("d/.wh.a", b"")
        .file(".wh.e", b"")
        .end();
    let opaque = Tar::default()
        .directory("d")
        .file("d/.wh..wh..opq", b"")
        .file("d/c", b"4")
        .end();
    let bench = Bench::new();
    let loaded = bench
        .load(&docker_archive(&[&base, &top, &opaque], |_| {}))
        .unwrap();
    assert_eq!(loaded[0].tags, ["test".parse().unwrap()]);
    let index = bench.store.index().unwrap();
    let image = bench.store.resolve(&index, "test").unwrap();
    let lower = bench
        .store
        .lower_directories(&index, &image.record)
        .unwrap();
    let merged = |layers: &[PathBuf], path: &str| {
        MergedLayers::open(layers)
            .unwrap()
            .open_file(path)
            .unwrap()
            .is_some()
    };
    assert!(merged(&lower, "/d/c") && !merged(&lower, "/d/b") && !merged(&lower, "/e"));
    assert!(merged(&lower[1..], "/d/b") && !merged(&lower[1..], "/d/a"));
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&base).unwrap();
        encoder.finish().unwrap()
    };
    assert_ne!(gzip, base);
    bench.load(&docker_archive(&[&base], |_| {})).unwrap();
    assert_eq!(
        bench.store.index().unwrap().layers.len(),
        3,
        "the base is not unpacked twice"
    );
}

#[test]
fn a_layer_that_leans_on_others_keeps_their_attributes() {
    let mut base = Tar::default();
    base.raw(EntryType::Directory, "tmp", "", b"", |header| {
        header.set_mode(0o1777);
    });
    let base = base.file("bin", b"tool").end();
    let top = Tar::default()
        .file("tmp/x", b"1")
        .entry(EntryType::Link, "tool", "bin", b"")
        .end();
    let bench = Bench::new();
    bench.load(&docker_archive(&[&base, &top], |_| {})).unwrap();
    let root = bench.root();
    let mode = std::fs::metadata(root.join("tmp"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o1777);
    assert_eq!(std::fs::read(root.join("tool")).unwrap(), b"tool");
    let index = bench.store.index().unwrap();
    let keys: Vec<String> = index.layers.keys().map(ToString::to_string).collect();
    assert!(
        keys[0].starts_with("chain-") && keys[1].starts_with("diff-"),
        "{keys:?}"
    );
}

#[test]
fn archives_that_lie_about_digests_are_refused() {
    let layer = Tar::default().file("a", b"1").end();
    let wrong = |config: &mut serde_json::Value| {
        config["rootfs"]["diff_ids"][0] = Digest::of(b"other").to_string().into();
    };
    let one_more = |config: &mut serde_json::Value| {
        config["rootfs"]["diff_ids"] = serde_json::json!([]);
    };
    let mut config_changed = docker_archive(&[&layer], |_| {});
    let at = config_changed
        .windows(4)
        .position(|bytes| bytes == b"\"sh\"")
        .unwrap();
    config_changed[at + 1] = b'S';
    for (name, archive, expected) in [
        (
            "diff id",
            docker_archive(&[&layer], wrong),
            "digest of its content",
        ),
        (
            "count",
            docker_archive(&[&layer], one_more),
            "names 0 layers",
        ),
        ("config", config_changed, "has the digest"),
        ("no manifest", layer.clone(), "holds no image"),
        (
            "bad second layer",
            docker_archive(&[&layer, b"junk"], |_| {}),
            "layer 2",
        ),
    ] {
        let bench = Bench::new();
        let before = bench.listing();
        let error = bench.load(&archive).expect_err(name);
        assert!(error.contains(expected), "{name}: {error}");
        assert_eq!(bench.listing(), before, "{name}");
    }
}

fn oci_archive(layer: &[u8], stored: &[u8], media_type: &str) -> Vec<u8> {
    let config = serde_json::json!({
        "architecture": oci_spec::image::Arch::default(),
        "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(layer).to_string()] },
    });
    let blob = |bytes: &[u8], media_type: &str| {
        serde_json::json!({
            "mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len(),
        })
    };
    let config = config.to_string().into_bytes();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(&config, "application/vnd.oci.image.config.v1+json"),
        "layers": [blob(stored, media_type)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut entry = blob(&manifest, "application/vnd.oci.image.manifest.v1+json");
    entry["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "oci:1" });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] });
    let name = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    Tar::default()
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)
        .file("index.json", index.to_string().as_bytes())
        .file(&name(&manifest), &manifest)
        .file(&name(&config), &config)
        .file(&name(stored), stored)
        .end()
}

#[test]
fn oci_archives_with_zstd_layers_are_loaded_and_verified() {
    let layer = Tar::default().file("a", b"1").end();
    let stored = zstd::encode_all(&layer[..], 3).unwrap();
    let archive = oci_archive(
        &layer,
        &stored,
        "application/vnd.oci.image.layer.v1.tar+zstd",
    );
    let bench = Bench::new();
    let loaded = bench.load(&archive).unwrap();
    assert_eq!(loaded[0].tags, ["oci:1".parse().unwrap()]);

    let mut changed = archive;
    let at = changed
        .windows(stored.len())
        .position(|bytes| bytes == stored)
        .unwrap();
    // The reserved end of the frame's descriptor: another digest, same content.
    changed.splice(at + stored.len()..at + stored.len(), []);
    changed[at + stored.len() - 1] ^= 1;
    let bench = Bench::new();
    let before = bench.listing();
    bench.load(&changed).unwrap_err();
    assert_eq!(bench.listing(), before);
}

#[test]
fn removed_images_take_their_layers_along() {
    let bench = Bench::new();
    let before = bench.listing();
    let id = bench.import(&Tar::default().file("a", b"1").end()).unwrap();
    let lock = bench.store.lock_exclusive().unwrap();
    let mut index = bench.store.index().unwrap();
    index.images.remove(&id);
    index.tags.clear();
    bench.store.shrink(index, &lock).unwrap();
    let mut after = bench.listing();
    after.retain(|path| !path.ends_with("images/index.json"));
    assert_eq!(after, before);
}
