//! A container's output in the format of Docker's json-file log driver: one
//! JSON object a line, `{"log":"…","stream":"stdout","time":"…"}`.
//!
//! A line of output longer than [`PIECE_MAX`] is logged in pieces, of which only
//! the last ends in a newline; so does output without a newline at its end.
//! Bytes that are not UTF-8 become U+FFFD.
//!
//! A record that could be written in part only, as on a full disk, is a damaged line of
//! its own: the next one begins a new line.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// What Docker's copier takes as one message.
const PIECE_MAX: usize = 16 * 1024;

/// A log file; the two streams of a container share it.
#[derive(Debug)]
pub struct JsonLog {
    records: Mutex<Records<File>>,
}

/// Where records go.
#[derive(Debug)]
struct Records<W> {
    file: W,
    /// The last line has no end.
    torn: bool,
}

/// One stream of a container, `stdout` or `stderr`.
#[derive(Debug)]
pub struct LogStream {
    log: Arc<JsonLog>,
    name: &'static str,
    /// A line that has not ended yet.
    pending: Vec<u8>,
    /// Reused from write to write.
    encoded: Vec<u8>,
}

impl JsonLog {
    pub fn open(path: &Path) -> io::Result<Arc<Self>> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(path)?;
        // The last writer may have been killed.
        let torn = is_torn(path, &file)?;
        Ok(Arc::new(Self {
            records: Mutex::new(Records { file, torn }),
        }))
    }

    pub fn stream(self: &Arc<Self>, name: &'static str) -> LogStream {
        LogStream {
            log: Arc::clone(self),
            name,
            pending: Vec::new(),
            encoded: Vec::new(),
        }
    }
}

impl LogStream {
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let time = timestamp(SystemTime::now());
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = PIECE_MAX - self.pending.len();
            let window = &rest[..room.min(rest.len())];
            let newline = window.iter().position(|byte| *byte == b'\n');
            let taken = newline.map_or(window.len(), |at| at + 1);
            self.pending.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            if newline.is_some() || self.pending.len() == PIECE_MAX {
                self.encode(&time);
            }
        }
        self.flush()
    }

    /// Logs what has no newline at the end of the stream.
    pub fn finish(&mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            self.encode(&timestamp(SystemTime::now()));
        }
        self.flush()
    }

    fn encode(&mut self, time: &str) {
        self.encoded.extend_from_slice(br#"{"log":""#);
        escape(&self.pending, &mut self.encoded);
        self.encoded.extend_from_slice(br#"","stream":""#);
        self.encoded.extend_from_slice(self.name.as_bytes());
        self.encoded.extend_from_slice(br#"","time":""#);
        self.encoded.extend_from_slice(time.as_bytes());
        self.encoded.extend_from_slice(b"\"}\n");
        self.pending.clear();
    }

    /// One write for all lines: those of the two streams do not mix.
    fn flush(&mut self) -> io::Result<()> {
        if self.encoded.is_empty() {
            return Ok(());
        }
        let records = &self.log.records;
        let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
        let result = records.append(&self.encoded);
        self.encoded.clear();
        result
    }
}

impl<W: Write> Records<W> {
    fn append(&mut self, records: &[u8]) -> io::Result<()> {
        if self.torn {
            self.write(b"\n")?;
        }
        self.write(records)
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    let (written, rest) = bytes.split_at(count);
                    self.torn = !written.ends_with(b"\n");
                    bytes = rest;
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }
}

/// Whether a file's last line has no end.
fn is_torn(path: &Path, file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    File::open(path)?.read_exact_at(&mut last, metadata.len() - 1)?;
    Ok(last != *b"\n")
}

/// RFC 3339 with as many decimals as there are, as Go's `RFC3339Nano` has it.
fn timestamp(time: SystemTime) -> String {
    let full = humantime::format_rfc3339_nanos(time).to_string();
    let digits = full.trim_end_matches('Z').trim_end_matches('0');
    format!("{}Z", digits.trim_end_matches('.'))
}

/// A JSON string's content, escaped as Go does: `<`, `>` and `&` too, and the
/// two line separators of Unicode.
fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        escape_str(chunk.valid(), out);
        for _ in chunk.invalid() {
            out.extend_from_slice(br"\ufffd");
        }
    }
}

fn escape_str(text: &str, out: &mut Vec<u8>) {
    let bytes = text.as_bytes();
    let mut plain = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let escaped: &[u8] = match byte {
            b'"' => br#"\""#,
            b'\\' => br"\\",
            b'\n' => br"\n",
            b'\r' => br"\r",
            b'<' | b'>' | b'&' | 0..=0x1f => b"",
            // The first byte of U+2028 and U+2029.
            0xe2 if matches!(bytes[at..], [_, 0x80, 0xa8 | 0xa9, ..]) => b"",
            _ => continue,
        };
        out.extend_from_slice(&bytes[plain..at]);
        plain = at + 1;
        if !escaped.is_empty() {
            out.extend_from_slice(escaped);
        } else if *byte == 0xe2 {
            out.extend_from_slice(if bytes[at + 2] == 0xa8 {
                br"\u2028"
            } else {
                br"\u2029"
            });
            plain = at + 3;
        } else {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            out.extend_from_slice(br"\u00");
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 15)]);
        }
    }
    out.extend_from_slice(&bytes[plain..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn logged(chunks: &[&[u8]]) -> Vec<(String, String)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c-json.log");
        let log = JsonLog::open(&path).unwrap();
        let mut stream = log.stream("stdout");
        for chunk in chunks {
            stream.write(chunk).unwrap();
        }
        stream.finish().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        text.lines()
            .map(|line| {
                let value: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(value["stream"], "stdout");
                let text = value["log"].as_str().unwrap().to_owned();
                (line.to_owned(), text)
            })
            .collect()
    }

    fn texts(chunks: &[&[u8]]) -> Vec<String> {
        logged(chunks).into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn a_line_is_one_record_however_it_arrives() {
        assert_eq!(
            texts(&[b"on", b"e\ntwo\n", b"end"]),
            ["one\n", "two\n", "end"]
        );
    }

    #[test]
    fn a_long_line_is_cut_and_only_its_end_has_a_newline() {
        let long = vec![b'x'; PIECE_MAX + 10];
        let pieces = texts(&[&long, b"\nnext\n"]);
        assert_eq!(pieces[0].len(), PIECE_MAX);
        assert_eq!(pieces[1], format!("{}\n", "x".repeat(10)));
        assert_eq!(pieces[2], "next\n");
    }

    #[test]
    fn a_line_of_just_the_piece_has_its_newline_in_the_next() {
        let long = vec![b'x'; PIECE_MAX];
        assert_eq!(texts(&[&long, b"\n"])[1], "\n");
    }

    #[test]
    fn characters_are_escaped_as_docker_does() {
        let (line, text) = logged(&["<a&b>\t\"\\\r\u{2028}é\x1b\n".as_bytes()]).remove(0);
        assert!(line.starts_with(
            r#"{"log":"\u003ca\u0026b\u003e\u0009\"\\\r\u2028é\u001b\n","stream":"stdout","time":""#
        ));
        assert_eq!(text, "<a&b>\t\"\\\r\u{2028}é\x1b\n");
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced_one_by_one() {
        assert_eq!(texts(&[b"a\xff\xfeb\n"]), ["a\u{fffd}\u{fffd}b\n"]);
    }

    /// A disk with so much room.
    struct Disk {
        content: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.content.extend_from_slice(&bytes[..count]);
            self.room -= count;
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_record_after_a_torn_one_has_a_line_of_its_own() {
        let log = |room| {
            let content = Vec::new();
            let file = Disk { content, room };
            let mut records = Records { file, torn: false };
            assert!(records.append(b"{one}\n{two}\n").is_err());
            // Still full.
            assert!(records.append(b"{lost}\n").is_err());
            records.file.room = usize::MAX;
            records.append(b"{three}\n").unwrap();
            records.append(b"{four}\n").unwrap();
            String::from_utf8(records.file.content).unwrap()
        };
        assert_eq!(log(0), "{three}\n{four}\n");
        assert_eq!(log(3), "{on\n{three}\n{four}\n");
        assert_eq!(log(6), "{one}\n{three}\n{four}\n");
        assert_eq!(log(10), "{one}\n{two\n{three}\n{four}\n");
        assert_eq!(log(11), "{one}\n{two}\n{three}\n{four}\n");
    }

    #[test]
    fn what_a_killed_writer_has_left_is_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c-json.log");
        let write = |text: &[u8]| {
            let mut stream = JsonLog::open(&path).unwrap().stream("stdout");
            stream.write(text).unwrap();
        };
        write(b"one\n");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(br#"{"log":"ha"#).unwrap();
        write(b"two\n");
        write(b"three\n");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].starts_with(r#"{"log":"one\n""#));
        assert_eq!(lines[1], r#"{"log":"ha"#);
        assert!(lines[2].starts_with(r#"{"log":"two\n""#));
        assert!(lines[3].starts_with(r#"{"log":"three\n""#));
    }

    #[test]
    fn a_log_need_not_be_a_regular_file() {
        let mut stream = JsonLog::open(Path::new("/dev/null"))
            .unwrap()
            .stream("stdout");
        stream.write(b"one\n").unwrap();
    }

    #[test]
    fn times_have_no_trailing_zeros() {
        let at = |nanos| timestamp(UNIX_EPOCH + Duration::from_nanos(nanos));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(1_500_000_000), "1970-01-01T00:00:01.5Z");
        assert_eq!(at(1_000_000_001), "1970-01-01T00:00:01.000000001Z");
    }
}
