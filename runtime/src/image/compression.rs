//! Plain, gzip and zstd streams, told apart by their first bytes as Docker
//! does: media types and file names lie too often.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

const GZIP: &[u8] = &[0x1f, 0x8b, 0x08];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const ZSTD_SKIPPABLE: &[u8] = &[0x2a, 0x4d, 0x18];
const UNSUPPORTED: [(&[u8], &str); 3] = [
    (b"BZh", "bzip2"),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
    (b"\x04\x22\x4d\x18", "lz4"),
];

/// Memory a zstd stream may make its decoder hold, as a power of two: 128 MiB,
/// the most that `zstd` itself accepts without being asked for more.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Plain,
    Gzip,
    Zstd,
}

impl Compression {
    /// Judges by the first bytes; an error names a format that is not read.
    pub fn of(start: &[u8]) -> io::Result<Self> {
        if start.starts_with(GZIP) {
            return Ok(Self::Gzip);
        }
        let skippable = start.len() > 3
            && start[1..].starts_with(ZSTD_SKIPPABLE)
            && (0x50..=0x5f).contains(&start[0]);
        if start.starts_with(ZSTD) || skippable {
            return Ok(Self::Zstd);
        }
        for (magic, name) in UNSUPPORTED {
            if start.starts_with(magic) {
                let text = format!("{name} compression is not supported; use gzip or zstd");
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
        }
        Ok(Self::Plain)
    }
}

/// Reads the uncompressed bytes of `input`.
pub fn decompress<'a>(mut input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    match Compression::of(input.fill_buf()?)? {
        Compression::Plain => Ok(Box::new(input)),
        Compression::Gzip => Ok(Box::new(MultiGzDecoder::new(input))),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Ok(Box::new(decoder))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;

    use super::*;

    fn read(compressed: &[u8]) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        decompress(compressed)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn each_format_gives_the_same_bytes() {
        let text = b"a lazaret was the quarantine house of a port".repeat(100);
        assert_eq!(read(&text).unwrap(), text);
        assert_eq!(read(&gzip(&text)).unwrap(), text);
        assert_eq!(
            read(&zstd::encode_all(&text[..], 3).unwrap()).unwrap(),
            text
        );
    }

    #[test]
    fn members_and_frames_follow_each_other() {
        let twice = [gzip(b"one"), gzip(b"two")].concat();
        assert_eq!(read(&twice).unwrap(), b"onetwo");
        let frame = |text: &[u8]| zstd::encode_all(text, 3).unwrap();
        assert_eq!(
            read(&[frame(b"one"), frame(b"two")].concat()).unwrap(),
            b"onetwo"
        );
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        let text: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
        for whole in [gzip(&text), zstd::encode_all(&text[..], 3).unwrap()] {
            assert!(read(&whole[..whole.len() / 2]).is_err());
        }
    }

    #[test]
    fn formats_that_are_not_read_are_named() {
        let error = read(b"BZh91AY&SY").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(error.to_string().contains("bzip2"));
    }
}
