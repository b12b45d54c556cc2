//! TCP between two machines: how fast, and how soon. By amounts, not by time, for a clock that counts
//! instructions makes a second long.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use anyhow::{Context, bail, ensure};

const PIECE: usize = 64 << 10;

/// What a client asks for: a letter and a number.
const SEND: u8 = b's';
const RECEIVE: u8 = b'r';
const ANSWER: u8 = b'a';

/// Serves one client after the other, until it is killed.
pub(crate) fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).with_context(|| address.to_string())?;
    writeln!(std::io::stdout(), "listening")?;
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut request = [0; 5];
        stream.read_exact(&mut request)?;
        let (letter, number) = (request[0], &request[1..]);
        let number = u32::from_be_bytes(number.try_into()?);
        match letter {
            SEND => {
                take(&mut stream, number)?;
                stream.write_all(&[SEND])?;
            }
            RECEIVE => give(&mut stream, number)?,
            ANSWER => {
                let mut byte = [0];
                for _ in 0..number {
                    stream.read_exact(&mut byte)?;
                    stream.write_all(&byte)?;
                }
            }
            other => bail!("request {other}"),
        }
    }
}

/// Prints what sending and receiving so many bytes come to in bytes a second, and half of the time
/// between a byte and its answer in microseconds.
pub(crate) fn measure(address: SocketAddr, bytes: u32, rounds: u32) -> anyhow::Result<()> {
    ensure!(bytes > 0 && rounds > 0, "nothing to measure");
    let mut stdout = std::io::stdout();
    let mut stream = request(address, SEND, bytes)?;
    let begin = Instant::now();
    give(&mut stream, bytes)?;
    // Sent is what has arrived.
    stream.read_exact(&mut [0])?;
    writeln!(stdout, "sent {}", rate(bytes, begin))?;

    let mut stream = request(address, RECEIVE, bytes)?;
    let begin = Instant::now();
    take(&mut stream, bytes)?;
    writeln!(stdout, "received {}", rate(bytes, begin))?;

    let mut stream = request(address, ANSWER, rounds)?;
    let begin = Instant::now();
    let mut byte = [0];
    for _ in 0..rounds {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
    }
    let microseconds = begin.elapsed().as_secs_f64() * 1e6;
    writeln!(stdout, "latency {}", microseconds / f64::from(rounds) / 2.0)?;
    Ok(())
}

fn request(address: SocketAddr, letter: u8, number: u32) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).with_context(|| address.to_string())?;
    stream.set_nodelay(true)?;
    let mut request = vec![letter];
    request.extend(number.to_be_bytes());
    stream.write_all(&request)?;
    Ok(stream)
}

fn rate(bytes: u32, begin: Instant) -> f64 {
    f64::from(bytes) / begin.elapsed().as_secs_f64()
}

fn give(stream: &mut TcpStream, bytes: u32) -> anyhow::Result<()> {
    let piece = vec![0x5a; PIECE];
    let mut left = usize::try_from(bytes)?;
    while left > 0 {
        let length = left.min(PIECE);
        stream.write_all(&piece[..length])?;
        left -= length;
    }
    Ok(())
}

fn take(stream: &mut TcpStream, bytes: u32) -> anyhow::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut left = usize::try_from(bytes)?;
    while left > 0 {
        let length = left.min(PIECE);
        let read = stream.read(&mut piece[..length])?;
        ensure!(read > 0, "the connection ended {left} bytes early");
        left -= read;
    }
    Ok(())
}
