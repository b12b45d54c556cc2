//! A block slot on its thread: requests from the driver's queue become jobs for
//! an engine, and finished jobs a status.
//!
//! Neither a disk that is taken out nor a driver that resets the device loses
//! sight of jobs under way: both are kept until the last is done.

use std::io;
use std::sync::Arc;

use rustix::event::epoll::EventFlags;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::device::Shown;
use super::disk::{Disk, DiskError, Medium};
use super::engine::Engine;
use super::job::{Job, Progress};
use super::request::{ID_LEN, Operation, Request, Status};
use super::{QUEUE_SIZE, identity};
use crate::devices::virtio::queue_loop::{LoopQueue, QueueBroken};
use crate::devices::virtio::slot::{Endpoint, FIRST_TOKEN, Release, Reply};
use crate::devices::virtio::{ActivateError, Activation, GuestMemory, Interrupt};
use crate::event_loop::{Registrar, borrow};

const KICK: u32 = FIRST_TOKEN;
const ANSWERS: u32 = FIRST_TOKEN + 1;

/// Requests taken before other slots have a turn.
const REQUESTS_PER_TURN: usize = 64;

/// The endpoint of a block slot.
#[derive(Debug)]
pub(super) struct Drive {
    id: [u8; ID_LEN],
    shown: Arc<Shown>,
    engine: Engine,
    jobs: Jobs,
    disk: Option<Disk>,
    /// Who wants the disk out, once no job needs it.
    leaving: Vec<Reply>,
    driver: Option<Driver>,
    /// The driver resets the device, once no job writes to its memory.
    release: Option<Release>,
}

/// An active driver.
#[derive(Debug)]
struct Driver {
    memory: GuestMemory,
    queue: LoopQueue,
    kick: EventFd,
    interrupt: Interrupt,
    /// It knows of no flush: what it has written must stay written.
    through: bool,
    /// Only a reset helps.
    broken: bool,
}

/// A request that the engine is busy with.
#[derive(Debug)]
struct UnderWay {
    job: Job,
    head: u16,
    status: GuestAddress,
    answer_len: usize,
}

/// What is under way, by number: as many as the queue has places, though a driver
/// may offer more by using a place again that it has not got back.
#[derive(Debug)]
struct Jobs {
    places: Vec<Option<UnderWay>>,
    free: Vec<usize>,
}

impl Jobs {
    fn new() -> Self {
        let size = usize::from(QUEUE_SIZE);
        Self {
            places: std::iter::repeat_with(|| None).take(size).collect(),
            free: (0..size).collect(),
        }
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Not for full jobs.
    fn insert(&mut self, under_way: UnderWay) -> Option<u64> {
        let place = self.free.pop()?;
        self.places[place] = Some(under_way);
        Some(place as u64)
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut UnderWay> {
        let place = usize::try_from(number).ok()?;
        self.places.get_mut(place)?.as_mut()
    }

    fn remove(&mut self, number: u64) -> Option<UnderWay> {
        let place = usize::try_from(number).ok()?;
        let removed = self.places.get_mut(place)?.take()?;
        self.free.push(place);
        Some(removed)
    }
}

impl Drive {
    pub(super) fn new(slot: u8, shown: Arc<Shown>, engine: Engine) -> Self {
        Self {
            id: identity(slot),
            shown,
            engine,
            jobs: Jobs::new(),
            disk: None,
            leaving: Vec::new(),
            driver: None,
            release: None,
        }
    }

    fn show(&self, disk: Option<&Disk>) {
        self.shown
            .set(disk.map(|disk| disk.limits).unwrap_or_default());
        if let Some(driver) = &self.driver {
            driver.interrupt.config_changed();
        }
    }

    /// Takes requests, gives answers, and tells the driver of them.
    fn serve(&mut self, registrar: &Registrar<'_>) {
        let served = self
            .take_answers()
            .and_then(|()| self.take_requests())
            .and_then(|()| self.signal());
        if let Err(error) = served
            && let Some(driver) = &mut self.driver
        {
            tracing::debug!(%error, "block device needs reset");
            driver.broken = true;
            driver.interrupt.device_needs_reset();
            let _ = registrar.remove(borrow(&driver.kick));
        }
        self.start_engine();
        self.finish();
    }

    fn start_engine(&mut self) {
        if let Err(error) = self.engine.start() {
            tracing::warn!(%error, "disk requests wait: the kernel takes none");
            if let Some(driver) = &self.driver {
                // Tried again on the next turn.
                let _ = driver.kick.write(1);
            }
        }
    }

    fn take_requests(&mut self) -> Result<(), QueueBroken> {
        let stopped = self.release.is_some();
        let Some(driver) = self
            .driver
            .as_mut()
            .filter(|driver| !driver.broken && !stopped)
        else {
            return Ok(());
        };
        let disk = self.disk.as_ref().filter(|_| self.leaving.is_empty());
        let limits = disk.map(|disk| disk.limits).unwrap_or_default();
        let memory = GuestMemory::clone(&driver.memory);
        let mut left = REQUESTS_PER_TURN;
        loop {
            driver.queue.busy(&memory)?;
            while !self.jobs.is_full()
                && let Some(chain) = driver.queue.pop(&memory)?
            {
                if left == 0 {
                    driver.queue.put_back(1);
                    let _ = driver.kick.write(1);
                    return Ok(());
                }
                left -= 1;
                let head = chain.head_index();
                let Some(request) = Request::parse(chain, &memory, limits) else {
                    driver.queue.used(&memory, head, 0)?;
                    continue;
                };
                let status = match &request.operation {
                    Err(status) => *status,
                    Ok(Operation::Identify { to }) => {
                        to.copy_from(&self.id);
                        Status::Ok
                    }
                    Ok(operation) => {
                        let Some(job) = Job::new(operation, driver.through) else {
                            continue;
                        };
                        let under_way = UnderWay {
                            job,
                            head,
                            status: request.status,
                            answer_len: request.answer_len,
                        };
                        match begin(&mut self.jobs, &mut self.engine, under_way) {
                            Ok(()) => continue,
                            Err(status) => status,
                        }
                    }
                };
                driver.answer(head, request.status, request.answer_len, status)?;
            }
            // Without a place, the next answer goes on.
            if self.jobs.is_full() || !driver.queue.wait(&memory)? {
                return Ok(());
            }
        }
    }

    fn take_answers(&mut self) -> Result<(), QueueBroken> {
        self.engine.clear_event();
        while let Some((number, result)) = self.engine.answer() {
            self.take_answer(number, result)?;
        }
        Ok(())
    }

    fn take_answer(
        &mut self,
        number: u64,
        result: Result<u32, rustix::io::Errno>,
    ) -> Result<(), QueueBroken> {
        let Some(under_way) = self.jobs.get_mut(number) else {
            return Ok(());
        };
        let status = match under_way.job.answered(result) {
            Progress::Again => match self.engine.queue(number, under_way.job.call()) {
                Ok(()) => return Ok(()),
                Err(_) => Status::Failed,
            },
            Progress::Done(status) => status,
        };
        let done = self.jobs.remove(number);
        match (done, &mut self.driver) {
            (Some(done), Some(driver)) if !driver.broken && self.release.is_none() => {
                driver.answer(done.head, done.status, done.answer_len, status)
            }
            _ => Ok(()),
        }
    }

    fn signal(&mut self) -> Result<(), QueueBroken> {
        if let Some(driver) = self.driver.as_mut().filter(|driver| !driver.broken)
            && driver.queue.wants_interrupt(&driver.memory)?
        {
            driver.interrupt.used_buffers();
        }
        Ok(())
    }

    /// What waits for the last job, when that is done.
    fn finish(&mut self) {
        if !self.jobs.is_empty() {
            return;
        }
        if let Some(release) = self.release.take() {
            self.driver = None;
            drop(release);
        }
        if !self.leaving.is_empty() {
            let emptied = self.engine.set_disk(None);
            self.disk = None;
            let emptied = emptied.map_err(DiskError::step("letting go of the disk"));
            let refusal = emptied.err();
            for reply in self.leaving.drain(..) {
                reply.answer(refusal.as_ref().map_or(Ok(()), Err));
            }
        }
    }
}

/// Gives the engine a new job, or says how it ended at once.
fn begin(jobs: &mut Jobs, engine: &mut Engine, under_way: UnderWay) -> Result<(), Status> {
    let number = jobs.insert(under_way).ok_or(Status::Failed)?;
    let call = jobs.get_mut(number).map(|under_way| under_way.job.call());
    if let Some(Ok(())) = call.map(|call| engine.queue(number, call)) {
        return Ok(());
    }
    jobs.remove(number);
    Err(Status::Failed)
}

impl Driver {
    fn answer(
        &mut self,
        head: u16,
        place: GuestAddress,
        answer_len: usize,
        status: Status,
    ) -> Result<(), QueueBroken> {
        self.memory.write_obj(status.byte(), place)?;
        self.queue.used(&self.memory, head, answer_len)
    }
}

impl Endpoint for Drive {
    type Backend = Medium;
    type Error = DiskError;

    fn start(&mut self, registrar: &Registrar<'_>) -> io::Result<()> {
        registrar.add(self.engine.event(), ANSWERS, EventFlags::IN)
    }

    fn activate(
        &mut self,
        activation: Activation,
        registrar: &Registrar<'_>,
    ) -> Result<(), ActivateError> {
        let missing = ActivateError::QueueNotReady(0);
        let (mut queues, mut kicks) = LoopQueue::all_ready(activation.queues)?;
        let (Some(queue), Some(kick)) = (queues.pop(), kicks.pop()) else {
            return Err(missing);
        };
        registrar
            .add(borrow(&kick), KICK, EventFlags::IN)
            .map_err(|source| ActivateError::Io {
                what: "watching a queue",
                source,
            })?;
        if self.disk.is_some() {
            // It may have come while the driver looked.
            activation.interrupt.config_changed();
        }
        self.driver = Some(Driver {
            memory: activation.memory,
            queue,
            kick,
            interrupt: activation.interrupt,
            through: activation.driver_features & 1 << VIRTIO_BLK_F_FLUSH == 0,
            broken: false,
        });
        // The driver's requests may have been there before its queue was.
        self.serve(registrar);
        Ok(())
    }

    fn deactivate(&mut self, release: Release, registrar: &Registrar<'_>) {
        if let Some(driver) = &self.driver {
            // What was not added cannot be removed, and need not be.
            let _ = registrar.remove(borrow(&driver.kick));
        }
        self.release = Some(release);
        self.finish();
    }

    fn connect(&mut self, medium: Medium, _: &Registrar<'_>) -> Result<(), DiskError> {
        if self.disk.is_some() {
            return Err(DiskError::Occupied);
        }
        let disk = Disk::new(medium)?;
        self.engine
            .set_disk(Some(&disk))
            .map_err(DiskError::step("taking the disk"))?;
        self.show(Some(&disk));
        self.disk = Some(disk);
        Ok(())
    }

    fn disconnect(&mut self, reply: Reply, _: &Registrar<'_>) {
        self.show(None);
        self.leaving.push(reply);
        self.finish();
    }

    fn ready(&mut self, token: u32, _: EventFlags, registrar: &Registrar<'_>) {
        if token == KICK
            && let Some(driver) = &self.driver
        {
            // An empty count is a kick that was taken together with another.
            let _ = driver.kick.read();
        }
        self.serve(registrar);
    }
}

impl Drop for Drive {
    /// The kernel works on memory that must not go first.
    fn drop(&mut self) {
        while !self.jobs.is_empty() {
            let Some((number, result)) = self.engine.wait() else {
                return;
            };
            self.driver = None;
            if self.take_answer(number, result).is_err() || self.engine.start().is_err() {
                return;
            }
        }
    }
}
