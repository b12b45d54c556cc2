//! PAX extended header records, `<length> <key>=<value>\n`.
//! <https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13_03>

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
const SPARSE_PREFIX: &[u8] = b"GNU.sparse.";

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PaxError {
    #[error("its record at byte {0} has no valid length")]
    Length(usize),
    #[error("its record at byte {0} is not of the form key=value")]
    Record(usize),
    #[error("its record `{0}` has no valid number")]
    Number(&'static str),
    #[error("its sparse file is in a PAX format that is not supported; use `tar --format=gnu`")]
    Sparse,
}

/// The records that unpacking obeys; all others are comments to it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PaxRecords {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

pub fn parse(bytes: &[u8]) -> Result<PaxRecords, PaxError> {
    let mut records = PaxRecords::default();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let space = rest.iter().take(20).position(|byte| *byte == b' ');
        let space = space.ok_or(PaxError::Length(at))?;
        let length: usize = number(&rest[..space]).ok_or(PaxError::Length(at))?;
        if length > rest.len() || length < space + 2 {
            return Err(PaxError::Length(at));
        }
        let record = rest[space + 1..length]
            .strip_suffix(b"\n")
            .ok_or(PaxError::Record(at))?;
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or(PaxError::Record(at))?;
        records.set(&record[..equals], &record[equals + 1..])?;
        at += length;
    }
    Ok(records)
}

impl PaxRecords {
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), PaxError> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value).ok_or(PaxError::Number("size"))?),
            b"uid" => self.uid = Some(number(value).ok_or(PaxError::Number("uid"))?),
            b"gid" => self.gid = Some(number(value).ok_or(PaxError::Number("gid"))?),
            b"mtime" => self.mtime = Some(time(value).ok_or(PaxError::Number("mtime"))?),
            key if key.starts_with(XATTR_PREFIX) => {
                self.xattrs
                    .push((key[XATTR_PREFIX.len()..].to_vec(), value.to_vec()));
            }
            key if key.starts_with(SPARSE_PREFIX) => return Err(PaxError::Sparse),
            _ => {}
        }
        Ok(())
    }
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    let digits = std::str::from_utf8(digits).ok()?;
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        digits.parse().ok()
    } else {
        None
    }
}

/// Seconds with an optional fraction, before 1970 with a minus sign.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let dot = digits
        .iter()
        .position(|byte| *byte == b'.')
        .unwrap_or(digits.len());
    let seconds: i64 = number(&digits[..dot])?;
    let mut nanoseconds = 0;
    let fraction = digits.get(dot + 1..).unwrap_or_default();
    for index in 0..9 {
        let digit = fraction.get(index).copied().unwrap_or(b'0');
        nanoseconds = nanoseconds * 10 + u32::from(digit.checked_sub(b'0').filter(|d| *d < 10)?);
    }
    match (negative, nanoseconds) {
        (false, _) => Some((seconds, nanoseconds)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanoseconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let digits = (1..20)
            .find(|n| (body.len() + n).to_string().len() == *n)
            .unwrap();
        [(body.len() + digits).to_string().as_bytes(), &body[..]].concat()
    }

    #[test]
    fn records_fill_their_fields() {
        let bytes = [
            record("path", b"a/b"),
            record("linkpath", b"c"),
            record("size", b"9000000000"),
            record("mtime", b"12.5"),
            record("comment", b"none"),
            record("SCHILY.xattr.security.capability", b"\x01\n\x00=\n"),
        ]
        .concat();
        let records = parse(&bytes).unwrap();
        assert_eq!(records.path.unwrap(), b"a/b");
        assert_eq!(records.link.unwrap(), b"c");
        assert_eq!(records.size, Some(9_000_000_000));
        assert_eq!(records.mtime, Some((12, 500_000_000)));
        let capability = (b"security.capability".to_vec(), b"\x01\n\x00=\n".to_vec());
        assert_eq!(records.xattrs, [capability]);
    }

    #[test]
    fn times_before_1970_round_down() {
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"1.x"), None);
    }

    #[test]
    fn damaged_records_are_errors() {
        for bytes in [
            &b"7 a=b"[..],
            b"99999999999999999999999 a=b\n",
            b"0 a=b\n",
            b"2 \n",
            b"x a=b\n",
            b"+6 a=b\n",
            b"4 a\n",
        ] {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
        assert_eq!(parse(&record("size", b"-1")), Err(PaxError::Number("size")));
        assert_eq!(
            parse(&record("GNU.sparse.major", b"1")),
            Err(PaxError::Sparse)
        );
    }
}
