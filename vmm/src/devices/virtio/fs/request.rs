//! One FUSE request: a descriptor chain in, a reply in the same chain out
//! (virtio 1.3, 5.11.6).
//!
//! virtiofsd's server does the protocol. In front of it stand the requests it
//! does not serve, and what it would panic on: it cuts the reply's header off
//! the chain's writable part without a look at its length. Guest memory can
//! change between two reads of it, so nothing rests on a field read twice.

use std::mem::size_of;

use rustix::io::Errno;
use vhost_user_backend::bitmap::BitmapMmapRegion;
use virtio_queue::DescriptorChain;
use virtiofsd::descriptor_utils::{Reader, Writer};
use virtiofsd::filesystem::{Context, FileSystem};
use virtiofsd::fuse::{BatchForgetIn, CreateIn, ForgetIn, ForgetOne, InHeader, Opcode, OutHeader};
use virtiofsd::server::Server;
use vm_memory::{ByteValued, GuestMemoryMmap};

use super::crowd::Crowd;
use super::listing::Listing;
use super::memory::ServerMemory;
use super::shared::SharedFs;

/// What one batch of forgotten nodes may hold: as much as the largest request.
const MAX_FORGOTTEN: usize = (1 << 20) / size_of::<ForgetOne>();

pub(super) type Chain<'a> = DescriptorChain<&'a GuestMemoryMmap<BitmapMmapRegion>>;

/// Answers requests, on any number of threads.
pub(super) struct Requests {
    server: Server<SharedFs>,
    /// Serves `READDIRPLUS`.
    lister: Server<Listing>,
    fs: SharedFs,
    crowd: Crowd,
}

impl Requests {
    pub(super) fn new(fs: SharedFs, crowd: Crowd) -> Self {
        Self {
            server: Server::new(fs.clone()),
            lister: Server::new(Listing::new(fs.clone())),
            fs,
            crowd,
        }
    }

    pub(super) fn crowd(&self) -> &Crowd {
        &self.crowd
    }

    /// Serves the request in `chain`; the number of bytes written to it.
    pub(super) fn serve(&self, memory: &ServerMemory, chain: Chain<'_>) -> u32 {
        let reader = Reader::new(memory.get(), chain.clone());
        let writer = Writer::new(memory.get(), chain);
        let (Ok(reader), Ok(writer)) = (reader, writer) else {
            // Buffers outside of RAM: there is nowhere to reply to.
            return 0;
        };
        self.answer(reader, writer)
    }

    /// The guest's driver is gone, and what it had open with it.
    pub(super) fn forget_all(&self) {
        self.server.destroy();
    }

    fn answer(&self, reader: Reader<'_>, writer: Writer<'_>) -> u32 {
        let mut body = reader.clone();
        let Ok(header) = body.read_obj::<InHeader>() else {
            return 0;
        };
        let opcode = Opcode::try_from(header.opcode).ok();
        match opcode {
            Some(Opcode::Forget) => return self.forget(header, body),
            Some(Opcode::BatchForget) => return self.batch_forget(header, body),
            // No request can be interrupted; its reply is on its way.
            Some(Opcode::Interrupt) => return 0,
            _ if writer.available_bytes() < size_of::<OutHeader>() => return 0,
            _ => {}
        }
        let is_listing = matches!(opcode, Some(Opcode::Readdirplus));
        let written = match opcode {
            Some(Opcode::Destroy) => {
                self.server.destroy();
                reply(writer, header.unique, Ok(&[]))
            }
            Some(Opcode::TmpFile) => self.tmpfile(header, body, writer),
            _ => {
                let to = writer.clone();
                let written = if is_listing {
                    self.lister.handle_message(reader, to, None::<&mut ()>)
                } else {
                    self.server.handle_message(reader, to, None::<&mut ()>)
                };
                match written {
                    Ok(written) => u32::try_from(written).unwrap_or(0),
                    Err(error) => {
                        tracing::debug!(opcode = header.opcode, "refused FUSE request: {error}");
                        reply(writer, header.unique, Err(Errno::INVAL.raw_os_error()))
                    }
                }
            }
        };
        self.crowd.served_one(is_listing);
        written
    }

    fn forget(&self, header: InHeader, mut body: Reader<'_>) -> u32 {
        if let Ok(ForgetIn { nlookup }) = body.read_obj() {
            self.fs
                .forget(Context::from(header), header.nodeid, nlookup);
        }
        0
    }

    fn batch_forget(&self, header: InHeader, mut body: Reader<'_>) -> u32 {
        let Ok(BatchForgetIn { count, .. }) = body.read_obj() else {
            return 0;
        };
        let forgotten: Vec<_> = (0..count)
            .take(MAX_FORGOTTEN)
            .map_while(|_| body.read_obj::<ForgetOne>().ok())
            .map(|one| (one.nodeid, one.nlookup))
            .collect();
        self.fs.batch_forget(Context::from(header), forgotten);
        0
    }

    fn tmpfile(&self, header: InHeader, mut body: Reader<'_>, writer: Writer<'_>) -> u32 {
        let made = body.read_obj::<CreateIn>().and_then(|asked| {
            self.fs
                .create_unnamed(Context::from(header), header.nodeid, asked)
        });
        match made {
            Ok((entry, open)) => {
                let body = [entry.as_slice(), open.as_slice()].concat();
                reply(writer, header.unique, Ok(&body))
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                reply(writer, header.unique, Err(errno))
            }
        }
    }
}

/// Writes a reply: what was asked for, or an errno.
fn reply(mut writer: Writer<'_>, unique: u64, result: Result<&[u8], i32>) -> u32 {
    use std::io::Write as _;

    let (error, body) = match result {
        Ok(body) => (0, body),
        Err(errno) => (-errno, [].as_slice()),
    };
    let Ok(len) = u32::try_from(size_of::<OutHeader>() + body.len()) else {
        return 0;
    };
    let header = OutHeader { len, error, unique };
    let written = writer
        .write_all(header.as_slice())
        .and_then(|()| writer.write_all(body));
    if written.is_ok() { len } else { 0 }
}
