//! The registry: the pools and transfers of one open cache, by number, and the calls that name them.
//!
//! Two locks: the registry's, then a transfer's. No device and no call of the cache is waited for under either.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::Mutex;

use super::copy_device::Device;
use super::cuda::{CudaDevice, Gpus};
use super::host::HostDevice;
use super::large_store::LargeStores;
use super::layout::Layout;
use super::page_pool::{PagePool, PoolSpec, cuda_device};
use super::transfer_job::{Progress, Transfer, TransferOwner};
use crate::abi::JobResult;
use crate::cache::Cache;
use crate::config::SpaceSpec;
use crate::error::{
    Error, KVKEEP_ERR_CANCELLED, KVKEEP_ERR_CLOSED, KVKEEP_ERR_DISCONNECTED, KVKEEP_ERR_LIMIT, KVKEEP_ERR_LOCKED,
    KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_TIMEOUT, KVKEEP_OK, KVKEEP_PENDING, Result, Status,
};
use crate::shape::Shape;

/// Marks the numbers of transfers, together with upper 16 bits of 0: no prefetch job is ever given such a number.
const TRANSFER: u64 = 1 << 47;
/// Most transfers not released.
const TRANSFERS_MAX: usize = 1 << 16;
/// Most pools of one handle.
const POOLS_MAX: usize = 1 << 10;
/// How long an answer is kept that its caller does not read.
const KEPT: Duration = Duration::from_secs(300);

/// Whether a job is a transfer.
pub fn is_transfer(job: u64) -> bool {
    job & !(TRANSFER - 1) == TRANSFER
}

#[derive(Default)]
pub(super) struct RegistryState {
    pools: HashMap<u64, Arc<PagePool>>,
    last_pool: u64,
    transfers: HashMap<u64, Arc<Transfer>>,
    last_transfer: u64,
    /// Those that are done, oldest first.
    done: VecDeque<(Instant, u64)>,
    /// Tokens of a chunk, of the spaces opened here.
    chunk_tokens: HashMap<u64, u32>,
}

/// The pools and transfers of one open cache.
pub struct Transfers {
    cache: Arc<dyn Cache>,
    host: Arc<dyn Device>,
    gpus: Arc<Gpus>,
    pub(super) inner: Mutex<RegistryState>,
    closing: AtomicBool,
    pub(super) large_stores: Arc<LargeStores>,
    pub(super) me: Weak<Transfers>,
}

fn no_pool(number: u64) -> Error {
    Error::new(
        KVKEEP_ERR_NOT_FOUND,
        format!("pool {number} is not open: it was never opened by this handle, or was closed; open it first"),
    )
}

/// The error of a wait that took too long.
fn not_done(id: u64, what: &str) -> Error {
    Error::new(KVKEEP_ERR_TIMEOUT, format!("{what} of transfer {id} is not done yet: wait longer or cancel it"))
}

fn no_transfer(id: u64) -> Error {
    Error::new(
        KVKEEP_ERR_NOT_FOUND,
        format!(
            "transfer {id} is not there: it was never given by this handle, was released, or was not asked for in time"
        ),
    )
}

/// Cancels all of `transfers`.
fn stop(transfers: &[Arc<Transfer>], why: &str) {
    transfers.iter().for_each(|transfer| transfer.stop(KVKEEP_ERR_CANCELLED, why));
}

/// Waits until stopped transfers are done: the bytes in flight have landed.
fn wait_for(transfers: &[Arc<Transfer>]) {
    for transfer in transfers {
        let mut progress = transfer.progress.lock();
        while progress.answer().is_none() {
            transfer.changed.wait(&mut progress);
        }
    }
}

impl Transfers {
    /// None yet, of `cache`.
    pub fn new(cache: Arc<dyn Cache>) -> Arc<Transfers> {
        Transfers::by(cache, HostDevice::new())
    }

    /// None yet, of `cache`, whose pages on the host are copied by `host`.
    pub(super) fn by(cache: Arc<dyn Cache>, host: Arc<dyn Device>) -> Arc<Transfers> {
        let notified = cache.clone();
        let gpus = Arc::new(Gpus::new(cache.log().clone(), move |memlock| notified.note_unregistered(memlock)));
        let large_stores = LargeStores::new(cache.clone());
        Arc::new_cyclic(|me| Transfers {
            cache,
            host,
            gpus,
            inner: Mutex::default(),
            closing: AtomicBool::new(false),
            large_stores,
            me: me.clone(),
        })
    }

    /// The cache that it copies for.
    pub fn cache(&self) -> &dyn Cache {
        &*self.cache
    }

    /// A space was opened through this handle.
    pub fn note_space(&self, number: u64, spec: &SpaceSpec) {
        self.inner.lock().chunk_tokens.insert(number, spec.chunk_tokens);
    }

    /// Refuses to close a space that pools are open of.
    pub fn check_without_pools(&self, space: u64) -> Result<()> {
        match self.inner.lock().pools.values().find(|pool| pool.space == space) {
            None => Ok(()),
            Some(pool) => Err(Error::new(
                KVKEEP_ERR_LOCKED,
                format!("pool {} of space {space} is open: close the pools of a space first", pool.number),
            )),
        }
    }

    /// A space was closed through this handle.
    pub fn forget_space(&self, space: u64) {
        self.inner.lock().chunk_tokens.remove(&space);
    }

    fn check_open(&self) -> Result<()> {
        if self.closing.load(Ordering::Acquire) {
            return Err(Error::new(KVKEEP_ERR_CLOSED, "the cache is closing: submit nothing more"));
        }
        Ok(())
    }

    /// Registers a pool of a space.
    pub fn open_pool(&self, space: u64, spec: PoolSpec) -> Result<u64> {
        let ordinal = cuda_device(spec.device)?;
        let layout = Layout::new(spec.blocks, spec.blocks_per_chunk, &spec.segments)?;
        self.check_pool(&self.inner.lock(), space, &layout)?;
        // Opening a GPU takes its time, so nothing is locked meanwhile.
        let device: Arc<dyn Device> = match ordinal {
            None => {
                self.host.open()?;
                self.host.clone()
            }
            Some(ordinal) => {
                let l1 = self.cache.arena();
                Arc::new(CudaDevice::open(&self.gpus, ordinal, &spec.segments, spec.blocks, l1)?)
            }
        };
        let entered = self
            .declare(space, &layout.shapes(spec.rank))
            .and_then(|()| self.enter_pool(space, &spec, layout, device.clone()));
        if entered.is_err() {
            self.close_device(&device);
        }
        entered
    }

    /// Refuses a pool that does not fit its space. Gives the tokens of a chunk.
    fn check_pool(&self, inner: &RegistryState, space: u64, layout: &Layout) -> Result<u32> {
        self.check_open()?;
        let chunk_tokens = *inner.chunk_tokens.get(&space).ok_or_else(|| {
            Error::new(
                KVKEEP_ERR_NOT_FOUND,
                format!("space {space} was not opened by this handle: open it with kvkeep_open_space first"),
            )
        })?;
        if !chunk_tokens.is_multiple_of(layout.blocks_per_chunk) {
            return Err(Error::invalid(format!(
                "blocks_per_chunk is {}, which does not divide the space's {chunk_tokens} tokens of a chunk: make chunk_tokens a \
                 multiple of the tokens of a block",
                layout.blocks_per_chunk
            )));
        }
        if inner.pools.len() >= POOLS_MAX {
            return Err(Error::new(
                KVKEEP_ERR_LIMIT,
                format!("{} pools are open: close some first", inner.pools.len()),
            ));
        }
        Ok(chunk_tokens)
    }

    /// Refuses a pool whose objects would look different from those of others, in any process. While the daemon is
    /// away the pool is accepted unchecked: its first transfer asks again, and is refused then.
    fn declare(&self, space: u64, shapes: &[Shape]) -> Result<()> {
        match self.cache.declare_shapes(space, shapes) {
            Err(error) if error.status == KVKEEP_ERR_DISCONNECTED => Ok(()),
            declared => declared,
        }
    }

    fn enter_pool(&self, space: u64, spec: &PoolSpec, layout: Layout, device: Arc<dyn Device>) -> Result<u64> {
        let mut inner = self.inner.lock();
        let chunk_tokens = self.check_pool(&inner, space, &layout)?;
        inner.last_pool += 1;
        let number = inner.last_pool;
        let block_tokens = chunk_tokens / layout.blocks_per_chunk;
        let (rank, promise, shapes) = (spec.rank, spec.promise, layout.shapes(spec.rank));
        let pool = PagePool { number, space, rank, block_tokens, layout, shapes, promise, device };
        inner.pools.insert(number, Arc::new(pool));
        Ok(number)
    }

    /// Closes a pool's own device; the host's is shared by all pools.
    fn close_device(&self, device: &Arc<dyn Device>) {
        if !Arc::ptr_eq(device, &self.host) {
            device.close();
        }
    }

    /// Forgets a pool: its transfers are cancelled, and its memory is not touched any more when this returns.
    pub fn close_pool(&self, number: u64) -> Result<()> {
        let (pool, of_pool): (_, Vec<Arc<Transfer>>) = {
            let mut inner = self.inner.lock();
            let pool = inner.pools.remove(&number).ok_or_else(|| no_pool(number))?;
            (
                pool,
                inner.transfers.values().filter(|transfer| transfer.targets.pool.number == number).cloned().collect(),
            )
        };
        stop(&of_pool, "its pool was closed");
        wait_for(&of_pool);
        self.close_device(&pool.device);
        Ok(())
    }

    pub(super) fn pool(&self, number: u64) -> Result<Arc<PagePool>> {
        self.inner.lock().pools.get(&number).cloned().ok_or_else(|| no_pool(number))
    }

    /// Refuses a transfer that could not be entered, before anything is done for it.
    pub(super) fn check_room(&self, pool: u64) -> Result<()> {
        self.make_room(&mut self.inner.lock(), pool)
    }

    /// Forgets answers that were not read in time, and refuses one more transfer where there are too many.
    fn make_room(&self, inner: &mut RegistryState, pool: u64) -> Result<()> {
        self.check_open()?;
        let now = Instant::now();
        while let Some(&(done, id)) = inner.done.front()
            && (now - done >= KEPT || !inner.transfers.contains_key(&id))
        {
            inner.done.pop_front();
            inner.transfers.remove(&id);
        }
        if inner.transfers.len() >= TRANSFERS_MAX {
            return Err(Error::new(
                KVKEEP_ERR_LIMIT,
                format!("{} transfers are not released yet: release those that are done", inner.transfers.len()),
            ));
        }
        if !inner.pools.contains_key(&pool) {
            return Err(no_pool(pool));
        }
        Ok(())
    }

    /// Makes a transfer known, by a number of its own.
    pub(super) fn enter(&self, pool: u64, make: impl FnOnce(u64) -> Arc<Transfer>) -> Result<Arc<Transfer>> {
        let mut inner = self.inner.lock();
        self.make_room(&mut inner, pool)?;
        inner.last_transfer += 1;
        let transfer = make(TRANSFER | inner.last_transfer);
        inner.transfers.insert(transfer.id, transfer.clone());
        Ok(transfer)
    }

    fn transfer(&self, id: u64) -> Result<Arc<Transfer>> {
        if !is_transfer(id) {
            return Err(Error::invalid(format!(
                "job {id} is no transfer: pass the number that kvkeep_submit_store or kvkeep_submit_load gave"
            )));
        }
        let transfer = self.inner.lock().transfers.get(&id).cloned();
        transfer.filter(|transfer| !transfer.progress.lock().is_released()).ok_or_else(|| no_transfer(id))
    }

    /// Blocks until a transfer is done.
    pub fn wait(&self, id: u64, timeout_ms: u32) -> Result<()> {
        let transfer = self.transfer(id)?;
        let until = Instant::now() + Duration::from_millis(u64::from(timeout_ms));
        let mut progress = transfer.progress.lock();
        while progress.answer().is_none() {
            if transfer.changed.wait_until(&mut progress, until).timed_out() && progress.answer().is_none() {
                return Err(not_done(id, "all"));
            }
            if progress.is_released() {
                return Err(no_transfer(id));
            }
        }
        Ok(())
    }

    /// Blocks until a layer of a transfer is done. PARTIAL if less of it than was asked for was there.
    pub fn wait_layer(&self, id: u64, layer: u32, timeout_ms: u32) -> Result<Status> {
        self.wait_until(id, layer, timeout_ms, Progress::layer_done).map(|(_, _, status)| status)
    }

    /// Makes a caller's stream wait until a layer is done. Blocks until the copies are queued where the stream can wait for them,
    /// and on a device without streams until the layer is done.
    pub fn stream_wait_layer(&self, id: u64, layer: u32, stream: u64, timeout_ms: u32) -> Result<Status> {
        if !self.transfer(id)?.targets.pool.device.follow(stream, None)? {
            return self.wait_layer(id, layer, timeout_ms);
        }
        let (transfer, place, status) = self.wait_until(id, layer, timeout_ms, Progress::layer_queued)?;
        let mark = transfer.progress.lock().mark_of(place);
        transfer.targets.pool.device.follow(stream, mark.as_deref())?;
        Ok(status)
    }

    /// Blocks until something is true of a layer of a transfer. Gives the transfer and the layer's place, too.
    fn wait_until(
        &self,
        id: u64,
        layer: u32,
        timeout_ms: u32,
        is_true: fn(&Progress, usize) -> Option<Status>,
    ) -> Result<(Arc<Transfer>, usize, Status)> {
        let transfer = self.transfer(id)?;
        let place = transfer.targets.pool.layout.layers.binary_search(&layer).map_err(|_| {
            Error::invalid(format!(
                "no segment of the transfer's pool is of layer {layer}: pass a layer number of its segments"
            ))
        })?;
        let until = Instant::now() + Duration::from_millis(u64::from(timeout_ms));
        let mut progress = transfer.progress.lock();
        loop {
            if progress.is_released() {
                return Err(no_transfer(id));
            }
            if let Some(status) = is_true(&progress, place) {
                drop(progress);
                return if status as i32 >= 0 {
                    Ok((transfer, place, status))
                } else {
                    Err(Error::new(
                        status,
                        format!("transfer {id} ended with {status:?}, some layers uncopied: submit it again"),
                    ))
                };
            }
            if transfer.changed.wait_until(&mut progress, until).timed_out() && is_true(&progress, place).is_none() {
                return Err(not_done(id, &format!("layer {layer}")));
            }
        }
    }

    /// The error of a query for lookup hits: a transfer looks nothing up.
    pub fn no_lookup(&self, id: u64) -> Error {
        self.transfer(id).err().unwrap_or_else(|| {
            Error::invalid(format!(
                "job {id} is a transfer, which looks nothing up: ask kvkeep_query_blocks what became of it"
            ))
        })
    }

    /// The answer of a transfer.
    pub fn query(&self, id: u64, result: &mut JobResult) -> Result<Status> {
        let transfer = self.transfer(id)?;
        let progress = transfer.progress.lock();
        let Some(answer) = progress.answer().copied() else { return Ok(KVKEEP_PENDING) };
        let (struct_size, abi_version) = (result.struct_size, result.abi_version);
        *result = JobResult { struct_size, abi_version, ..answer };
        Ok(KVKEEP_OK)
    }

    /// The status of each block of a transfer; PENDING before it is done.
    pub fn query_blocks(&self, id: u64, statuses: &mut [i32]) -> Result<Status> {
        let transfer = self.transfer(id)?;
        let per_chunk = transfer.targets.pool.layout.blocks_per_chunk as usize;
        let count = transfer.targets.keys.len() * per_chunk;
        if statuses.len() != count {
            return Err(Error::invalid(format!(
                "count is {}, the transfer has {count} blocks: pass room for a status for each block number it was given",
                statuses.len()
            )));
        }
        let progress = transfer.progress.lock();
        if progress.answer().is_none() {
            return Ok(KVKEEP_PENDING);
        }
        for (key, of_key) in statuses.chunks_mut(per_chunk).enumerate() {
            let of_blocks = progress.block_statuses(&transfer.targets, key);
            of_key.iter_mut().zip(of_blocks).for_each(|(place, status)| *place = status as i32);
        }
        Ok(KVKEEP_OK)
    }

    /// Cancels a transfer that is not done.
    pub fn cancel(&self, id: u64) -> Result<()> {
        self.transfer(id)?.stop(KVKEEP_ERR_CANCELLED, "cancelled by its caller");
        Ok(())
    }

    /// Forgets a transfer, which is cancelled if it is not done.
    pub fn release(&self, id: u64) -> Result<()> {
        let transfer = self.transfer(id)?;
        let done = {
            let mut progress = transfer.progress.lock();
            progress.release();
            progress.answer().is_some()
        };
        if done {
            self.inner.lock().transfers.remove(&id);
        }
        transfer.changed.notify_all();
        transfer.stop(KVKEEP_ERR_CANCELLED, "released before it was done");
        Ok(())
    }

    /// A session was aborted: its transfers are cancelled.
    pub fn abort_session(&self, session: u64) {
        let of_session: Vec<Arc<Transfer>> =
            self.inner.lock().transfers.values().filter(|transfer| transfer.session == session).cloned().collect();
        stop(&of_session, "its session was aborted");
    }

    /// Refuses new transfers and cancels those that are not done, which are given.
    fn stop_for_good(&self) -> Vec<Arc<Transfer>> {
        let all: Vec<Arc<Transfer>> = {
            let inner = self.inner.lock();
            self.closing.store(true, Ordering::Release);
            inner.transfers.values().cloned().collect()
        };
        stop(&all, "the cache was closed");
        all
    }

    /// Refuses new transfers and cancels those that are not done.
    pub fn begin_closing(&self) {
        self.stop_for_good();
    }

    /// Waits until every transfer is done, and ends the threads. Blocks.
    pub fn close(&self) {
        wait_for(&self.stop_for_good());
        self.large_stores.close();
        let pools: Vec<Arc<PagePool>> = self.inner.lock().pools.drain().map(|(_, pool)| pool).collect();
        pools.iter().for_each(|pool| self.close_device(&pool.device));
        self.host.close();
    }
}

impl TransferOwner for Transfers {
    fn cache(&self) -> &dyn Cache {
        &*self.cache
    }

    fn transfer_done(&self, transfer: &Transfer) {
        let mut inner = self.inner.lock();
        if transfer.progress.lock().is_released() {
            inner.transfers.remove(&transfer.id);
        } else {
            inner.done.push_back((Instant::now(), transfer.id));
        }
    }
}
