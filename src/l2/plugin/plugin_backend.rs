//! The backend that calls a plug-in, from threads of its own.

use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::call_queue::PluginCall;
use super::foreign_struct::text;
use super::host_calls;
use super::open_request::{AfterRemoval, OpenRequest, Owed, Sweep, foreign_key};
use super::plugin_source::PluginSource;
use super::plugin_state::{PATIENCE, PluginState};
use super::vtable::{
    BackendHost, BackendKey, BackendParameter, KVKEEP_LOOKUP_IN_ORDER, kvkeep_backend_load, kvkeep_backend_query,
    kvkeep_backend_tell,
};
use crate::arena::Arena;
use crate::error::{
    Error, KVKEEP_ERR_IO, KVKEEP_ERR_NOT_FOUND, KVKEEP_ERR_TIMEOUT, KVKEEP_ERR_UNSUPPORTED, KVKEEP_OK, Result, Status,
};
use crate::key::{ObjectKey, SpaceTag};
use crate::l2::url::Parameters;
use crate::l2::{Backend, Found, Health, LoadRequest, LookupRequest, Observer, Reply, StoreRequest, Usage};
use crate::log::Log;
use crate::threads;

/// Bytes that a plug-in may write why it does not open, its NUL included.
const MESSAGE_BYTES: usize = 512;
/// How often removals that take too long are looked for, while there are any.
const PAUSE: Duration = Duration::from_secs(1);

/// The `plugin:` backend.
pub struct PluginBackend {
    state: Arc<PluginState>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    closed: AtomicBool,
    /// Stays in place until the plug-in has closed.
    _host: Box<BackendHost>,
}

// SAFETY: the host is written once and only read by the plug-in.
unsafe impl Send for PluginBackend {}
// SAFETY: as above.
unsafe impl Sync for PluginBackend {}

/// Opens a plug-in: gives what its functions get.
fn open_plugin(state: &PluginState, source: &PluginSource, own: &[&str], host: &BackendHost) -> Result<()> {
    let Some(open) = source.vtable.open else {
        return Err(Error::invalid("the plug-in has no function open: give it one"));
    };
    let texts: Vec<(CString, CString)> = source
        .parameters
        .iter()
        .filter(|(name, _)| !own.contains(&name.as_str()))
        .map(|(name, value)| {
            (CString::new(name.as_str()).unwrap_or_default(), CString::new(value.as_str()).unwrap_or_default())
        })
        .collect();
    let parameters: Vec<BackendParameter> =
        texts.iter().map(|(name, value)| BackendParameter { name: name.as_ptr(), value: value.as_ptr() }).collect();
    let (mut backend, mut message) = (std::ptr::null_mut(), [0; MESSAGE_BYTES]);
    // SAFETY: a function of this signature by the plug-in's promise; all arguments live until it returns, the host until it is closed.
    let status = unsafe {
        open(
            source.vtable.userdata,
            parameters.as_ptr(),
            parameters.len(),
            host,
            &raw mut backend,
            message.as_mut_ptr(),
            MESSAGE_BYTES,
        )
    };
    state.backend.store(backend, Ordering::Release);
    if status == KVKEEP_OK as i32 {
        return Ok(());
    }
    message[MESSAGE_BYTES - 1] = 0;
    let why = match text(message.as_ptr(), MESSAGE_BYTES) {
        why if why.is_empty() => format!("it answered {status} and no reason; ask its author"),
        why => why,
    };
    let status = Status::from_number(status).filter(|_| status < 0).unwrap_or(KVKEEP_ERR_IO);
    Err(Error::new(status, format!("the plug-in {} did not open: {why}", source.name)))
}

impl PluginBackend {
    /// Opens a plug-in. Parameters that are not the plug-in's own: `threads` (1), from which it is called, `batch` (32), the most
    /// objects of a load or a store, and `depth` (1024), the most objects of loads and stores under way.
    pub fn open(source: &PluginSource, arena: &Arena, log: &Log) -> Result<Arc<PluginBackend>> {
        const OWN: [&str; 3] = ["threads", "batch", "depth"];
        let pairs: Vec<(String, String)> =
            source.parameters.iter().filter(|(name, _)| OWN.contains(&name.as_str())).cloned().collect();
        let mut options = Parameters::new("plugin", &pairs);
        let bounded = |options: &mut Parameters<'_>, name, default, most| match options.number(name, default)? {
            0 => Err(options.wrong(name, &format!("0 is none; write 1 to {most}"))),
            number if number > most => Err(options.wrong(name, &format!("{number} is too many; write 1 to {most}"))),
            number => Ok(number as usize),
        };
        let (threads, batch) = (bounded(&mut options, "threads", 1, 64)?, bounded(&mut options, "batch", 32, 4096)?);
        let depth = bounded(&mut options, "depth", 1024, 1 << 16)?;
        let arena_bytes = arena.bytes() as u64;
        let state = PluginState::register(source.name.clone(), source.vtable, arena_bytes, depth, log.clone());
        let host = Box::new(host_calls::host(&state, arena));
        if let Err(error) = open_plugin(&state, source, &OWN, &host) {
            state.unregister();
            return Err(error);
        }
        let workers = Mutex::default();
        let backend = Arc::new(PluginBackend { state, threads: workers, closed: AtomicBool::new(false), _host: host });
        for _ in 0..threads {
            let state = backend.state.clone();
            match threads::spawn("kvkeep-plugin", move || run(&state, batch)) {
                Ok(thread) => backend.threads.lock().push(thread),
                Err(error) => {
                    backend.close();
                    return Err(Error::io("starting a thread for the plug-in", &error));
                }
            }
        }
        Ok(backend)
    }
}

/// A thread of the plug-in: makes its calls until it is closed and none is left.
fn run(state: &PluginState, batch: usize) {
    loop {
        let mut queue = state.queue.lock();
        let call = loop {
            if let Some(call) = queue.pop(batch) {
                break call;
            }
            if queue.is_closed() {
                return;
            }
            drop(queue);
            state.expire();
            let watched = state.has_waiters();
            queue = state.queue.lock();
            if !queue.has_next() && !queue.is_closed() {
                if watched {
                    state.wake.wait_for(&mut queue, PAUSE);
                } else {
                    state.wake.wait(&mut queue);
                }
            }
        };
        drop(queue);
        match call {
            PluginCall::Request(owed) => make_request(state, owed),
            PluginCall::Touch(keys) => tell(state, state.vtable.touch, &keys),
            PluginCall::Unpin(keys) => tell(state, state.vtable.unpin, &keys),
        }
    }
}

fn tell(state: &PluginState, function: kvkeep_backend_tell, keys: &[ObjectKey]) {
    let Some(function) = function else { return };
    let keys: Vec<BackendKey> = keys.iter().map(foreign_key).collect();
    // SAFETY: a function of this signature by the plug-in's promise; the array lives until it returns.
    unsafe { function(state.backend.load(Ordering::Acquire), keys.as_ptr(), keys.len()) };
}

/// Takes out of a request what needs no call: objects that are being removed.
fn without_removed(state: &PluginState, owed: Owed) -> Owed {
    let mut gone = Vec::new();
    let owed = {
        let queue = state.queue.lock();
        match owed {
            Owed::Lookup(lookup, _) => {
                let removing = lookup.keys.iter().map(|key| queue.is_being_removed(key)).collect();
                Owed::Lookup(lookup, removing)
            }
            Owed::Load(mut loads) => {
                gone = loads.extract_if(.., |load| queue.is_being_removed(&load.key)).collect();
                Owed::Load(loads)
            }
            other => other,
        }
    };
    state.release(gone.len());
    let deleted = Error::new(KVKEEP_ERR_NOT_FOUND, "the object is being deleted");
    Owed::Load(gone).fail(&deleted);
    owed
}

/// The function that a request is made by.
enum Function {
    Lookup,
    /// Load or store, which have one signature.
    Objects(kvkeep_backend_load),
    Remove,
    List,
    /// Usage or health.
    Query(kvkeep_backend_query),
}

/// Makes one request.
fn make_request(state: &PluginState, owed: Owed) {
    let now = Instant::now();
    let owed = without_removed(state, owed);
    let until = owed.deadline().unwrap_or(now + PATIENCE);
    if until <= now {
        if matches!(owed, Owed::Load(_) | Owed::Store(_)) {
            state.release(owed.len());
        }
        let message = format!("the deadline passed before the plug-in {} came to the request", state.name);
        return state.fail(owed, &Error::new(KVKEEP_ERR_TIMEOUT, message));
    }
    let count = owed.len();
    if count == 0 && !matches!(owed, Owed::List(_) | Owed::Usage | Owed::Health) {
        return state.end_empty(owed);
    }
    let (mut flags, mut cursor) = (0, 0);
    let function = match &owed {
        Owed::Lookup(lookup, _) => {
            flags = if lookup.in_order { KVKEEP_LOOKUP_IN_ORDER } else { 0 };
            Function::Lookup
        }
        Owed::Load(_) => Function::Objects(state.vtable.load),
        Owed::Store(_) => Function::Objects(state.vtable.store),
        Owed::Remove(..) | Owed::GivenUp(_) => Function::Remove,
        Owed::List(sweep) => {
            cursor = sweep.cursor;
            Function::List
        }
        Owed::Usage => Function::Query(state.vtable.usage),
        Owed::Health => Function::Query(state.vtable.health),
    };
    let request = OpenRequest::new(owed, until);
    let (keys, objects, space) = (request.keys(), request.objects(), request.space());
    let timeout_ms = u32::try_from((until - now).as_millis()).unwrap_or(u32::MAX).max(1);
    let (backend, vtable) = (state.backend.load(Ordering::Acquire), &state.vtable);
    let number = state.note(request);
    // SAFETY: functions of these signatures by the plug-in's promise. The arrays stay in place until the request is completed.
    unsafe {
        match function {
            Function::Lookup => vtable.lookup.map(|lookup| lookup(backend, number, keys, count, flags, timeout_ms)),
            Function::Remove => vtable.remove.map(|remove| remove(backend, number, keys, count, timeout_ms)),
            Function::Objects(function) => {
                function.map(|function| function(backend, number, objects, count, timeout_ms))
            }
            Function::List => vtable.list.map(|list| list(backend, number, space, cursor, timeout_ms)),
            Function::Query(function) => function.map(|function| function(backend, number, timeout_ms)),
        };
    }
}

impl Backend for PluginBackend {
    fn name(&self) -> &'static str {
        "plugin"
    }

    fn lookup_cached(&self, _keys: &[ObjectKey], found: &mut [Found]) {
        found.fill(Found::Unknown);
    }

    fn has_index(&self) -> bool {
        false
    }

    fn lookup(&self, lookup: LookupRequest) {
        self.state.push(PluginCall::Request(Owed::Lookup(lookup, Vec::new())));
    }

    fn unpin(&self, keys: &[ObjectKey]) {
        self.state.unpin(keys);
    }

    fn load(&self, loads: Vec<LoadRequest>) {
        self.state.push(PluginCall::Request(Owed::Load(loads)));
    }

    fn store(&self, stores: Vec<StoreRequest>) {
        self.state.push(PluginCall::Request(Owed::Store(stores)));
    }

    fn touch(&self, keys: &[ObjectKey]) {
        if self.state.vtable.touch.is_some() {
            self.state.push(PluginCall::Touch(keys.to_vec()));
        }
    }

    fn delete(&self, keys: Vec<ObjectKey>, reply: Reply<u64>) {
        self.state.push(PluginCall::Request(Owed::Remove(keys, AfterRemoval::Reply(reply))));
    }

    fn sweep(&self, space: Option<SpaceTag>, reply: Reply<u64>) {
        if self.state.vtable.list.is_none() {
            let message = format!("the plug-in {} cannot list its objects", self.state.name);
            return reply.send(Err(Error::new(KVKEEP_ERR_UNSUPPORTED, message)));
        }
        self.state.push(PluginCall::Request(Owed::List(Sweep { space, cursor: 0, removed: 0, reply })));
    }

    fn quarantine(&self, key: ObjectKey) {
        self.delete(vec![key], Reply::new(|_| {}));
    }

    /// A plug-in's objects are not known without asking it: `sweep` does.
    fn list(&self, _space: Option<SpaceTag>) -> Vec<(ObjectKey, u64)> {
        Vec::new()
    }

    fn set_observer(&self, observer: Observer) {
        self.state.set_observer(observer);
    }

    fn usage(&self) -> Usage {
        self.state.usage()
    }

    fn health(&self) -> Health {
        self.state.health()
    }

    fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.state.queue.lock().close();
        self.state.wake.notify_all();
        for thread in self.threads.lock().drain(..) {
            // The last handle may be dropped in an answer, on such a thread itself, which cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() {
                // A panic there was a panic in an answer; it was reported, and nothing is left to close.
                drop(thread.join());
            }
        }
        if let Some(close) = self.state.vtable.close {
            // SAFETY: a function of this signature by the plug-in's promise; no other call of it runs or begins.
            unsafe { close(self.state.backend.load(Ordering::Acquire)) };
        }
        self.state.unregister();
    }
}

impl Drop for PluginBackend {
    fn drop(&mut self) {
        self.close();
    }
}
