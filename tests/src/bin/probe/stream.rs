//! Bytes by the gigabyte in which no part is like another, so that a lost, doubled or moved block
//! shows in the checksum.

use std::io::{self, Write};

use anyhow::Context;

const CHUNK: usize = 64 * 1024;
const MIB: usize = 1 << 20;
const PAGE: usize = 4096;

/// Writes this many bytes of a fixed pseudo-random sequence (xorshift64) to standard output.
pub(crate) fn write(bytes: u64) -> anyhow::Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut stdout = io::stdout().lock();
    let mut chunk = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        for word in chunk.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let length = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        stdout.write_all(&chunk[..length])?;
        left -= length as u64;
    }
    stdout.flush()?;
    Ok(())
}

/// Uses this much memory, then says so and how much there was.
pub(crate) fn touch_memory(mib: u64) -> anyhow::Result<()> {
    let size = usize::try_from(mib)? * MIB;
    let mut memory = Vec::new();
    memory
        .try_reserve_exact(size)
        .with_context(|| format!("cannot have {mib} MiB"))?;
    memory.resize(size, 0_u8);
    for page in memory.iter_mut().step_by(PAGE) {
        *page = 1;
    }
    let touched: usize = memory
        .iter()
        .step_by(PAGE)
        .map(|byte| usize::from(*byte))
        .sum();
    writeln!(io::stdout(), "{} MiB", touched * PAGE / MIB)?;
    Ok(())
}
