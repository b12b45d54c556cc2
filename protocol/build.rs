//! Generates the ttrpc client and server of `agent.proto`.

use std::path::Path;
use std::{env, fs, io};

use ttrpc_codegen::{Codegen, Customize, ProtobufCustomize};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=agent.proto");
    let out_dir = env::var("OUT_DIR").map_err(io::Error::other)?;
    Codegen::new()
        .out_dir(&out_dir)
        .input("agent.proto")
        .include(".")
        .rust_protobuf()
        .rust_protobuf_customize(ProtobufCustomize::default().gen_mod_rs(false))
        .customize(Customize {
            async_all: true,
            ..Customize::default()
        })
        .run()?;
    for file in ["agent.rs", "agent_ttrpc.rs"] {
        drop_inner_attributes(&Path::new(&out_dir).join(file))?;
    }
    Ok(())
}

/// `include!` takes no inner attributes, and the generator writes some; `lib.rs`
/// sets what they set.
fn drop_inner_attributes(path: &Path) -> io::Result<()> {
    let source = fs::read_to_string(path)?;
    let kept = source
        .lines()
        .filter(|line| !line.starts_with("#![") && !line.starts_with("//!"));
    fs::write(path, kept.collect::<Vec<_>>().join("\n"))
}
