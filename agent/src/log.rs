//! The agent's log: tracing events as JSON lines to the host's LOG port.
//!
//! Records go through a bounded queue. When the host does not read, records are dropped
//! and counted, and the count is the next record that gets through: nothing the host
//! does can stop the agent.

use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record as SpanRecord};
use tracing::subscriber::{Interest, SetGlobalDefaultError};
use tracing::{Event, Level, Metadata, Subscriber};

/// Records under way; a record is about 200 bytes.
const QUEUE: usize = 256;

/// Longest text of one record's field. Texts may come from the host or a container.
const TEXT_MAX: usize = 4096;

/// The other end of the log: what is to be written to the host.
#[derive(Debug)]
pub struct Records(mpsc::Receiver<Vec<u8>>);

#[derive(Serialize)]
struct Line<'a> {
    timestamp_ns: u64,
    level: &'a str,
    target: &'a str,
    fields: Map<String, Value>,
}

/// Makes this the log of the process.
pub fn install() -> Result<Records, SetGlobalDefaultError> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tracing::subscriber::set_global_default(Log {
        sender,
        dropped: AtomicU64::new(0),
    })?;
    Ok(Records(receiver))
}

impl Records {
    /// Writes records to the host for as long as it listens.
    pub async fn forward(mut self, mut host: impl AsyncWrite + Unpin) {
        while let Some(line) = self.0.recv().await {
            if host.write_all(&line).await.is_err() {
                break;
            }
        }
    }
}

#[derive(Debug)]
struct Log {
    sender: mpsc::Sender<Vec<u8>>,
    dropped: AtomicU64,
}

impl Subscriber for Log {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= Level::INFO
    }

    fn event(&self, event: &Event<'_>) {
        let Ok(slot) = self.sender.try_reserve() else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            fields.0.insert("dropped_before".to_owned(), dropped.into());
        }
        let metadata = event.metadata();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let line = Line {
            timestamp_ns: now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)),
            level: metadata.level().as_str(),
            target: metadata.target(),
            fields: fields.0,
        };
        if let Ok(mut text) = serde_json::to_vec(&line) {
            text.push(b'\n');
            slot.send(text);
        }
    }

    // Spans are not enabled; the remaining functions are never called for one.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &SpanRecord<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = Bounded::default();
        // An error is the end of the room, which is what it is for.
        let _ = write!(text, "{value:?}");
        self.0.insert(field.name().to_owned(), text.0.into());
    }
}

#[derive(Default)]
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if self.0.len() + character.len_utf8() > TEXT_MAX {
                return Err(fmt::Error);
            }
            self.0.push(character);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (Log, Records) {
        let (sender, receiver) = mpsc::channel(2);
        let dropped = AtomicU64::new(0);
        (Log { sender, dropped }, Records(receiver))
    }

    #[test]
    fn events_become_lines_and_what_does_not_fit_is_counted() {
        let (log, mut records) = log();
        tracing::subscriber::with_default(log, || {
            for turn in 0..4_u64 {
                tracing::info!(turn, name = "a\"b", "hello");
            }
            let first = records.0.try_recv().expect("a line");
            let first: Value = serde_json::from_slice(&first).expect("JSON");
            assert_eq!(first["level"], "INFO");
            assert_eq!(first["fields"]["message"], "hello");
            assert_eq!(first["fields"]["name"], "a\"b");
            tracing::warn!("after the flood");
            records.0.try_recv().expect("the second line");
            let last = records.0.try_recv().expect("the line after the drops");
            let last: Value = serde_json::from_slice(&last).expect("JSON");
            assert_eq!(last["fields"]["dropped_before"], 2);
        });
    }

    #[test]
    fn long_texts_are_cut() {
        let mut text = Bounded::default();
        write!(text, "{}", "é".repeat(TEXT_MAX)).expect_err("too long");
        assert_eq!(text.0.len(), TEXT_MAX);
    }
}
