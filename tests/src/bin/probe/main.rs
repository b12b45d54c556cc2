//! What tests run where an image or a machine may hold nothing but itself: file-system checks, many
//! files, a stream of bytes that can be told from any other; what engines do beside a runtime. Linked
//! statically.

mod console;
mod files;
mod init;
mod posix;
mod reap;
mod stream;
mod tcp;

use std::path::Path;

use anyhow::{Context, bail};

const USAGE: &str = "probe posix DIR | locked FILE | files-make DIR N | files-check DIR N \
    | stream BYTES | memory MIB | reap PIDFILE COMMAND… | console SOCKET ROWS COLUMNS \
    | tcp-serve ADDRESS:PORT | tcp-measure ADDRESS:PORT BYTES ROUNDS";

fn main() -> anyhow::Result<()> {
    if std::process::id() == 1 && Path::new(init::BEHAVIOUR).exists() {
        return init::run();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["posix", directory] => posix::check(Path::new(directory)),
        ["locked", file] => posix::locked(Path::new(file)),
        ["files-make", directory, count] => files::make(Path::new(directory), number(count)?),
        ["files-check", directory, count] => files::check(Path::new(directory), number(count)?),
        ["reap", pid_file, ref command @ ..] => reap::wait_for(Path::new(pid_file), command),
        ["console", socket, rows, columns] => {
            console::relay(Path::new(socket), rows.parse()?, columns.parse()?)
        }
        ["stream", bytes] => stream::write(number(bytes)?),
        ["tcp-serve", address] => tcp::serve(address.parse()?),
        ["tcp-measure", address, bytes, rounds] => {
            tcp::measure(address.parse()?, bytes.parse()?, rounds.parse()?)
        }
        ["memory", mib] => stream::touch_memory(number(mib)?),
        _ => bail!("usage: {USAGE}"),
    }
}

fn number(text: &str) -> anyhow::Result<u64> {
    text.parse()
        .with_context(|| format!("{text:?} is no number"))
}
