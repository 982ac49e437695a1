//! The CUDA path, bit by bit, on a driver that `c_tests/support/fake_cuda.c` plays: layouts of every kind, one GPU or several, drivers old
//! and new, memory that cannot be registered, processes that share a daemon.
//!
//! The loader looks for libcuda.so.1 where the environment said when a process began, so each test starts itself once more.
#![allow(unsafe_code)]

use std::ffi::{CString, c_int, c_uint, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use kvkeep::abi::Stats;
use kvkeep::config::{NodeConfig, SpaceSpec};
use kvkeep::daemon::client::{Client, ClientConfig};
use kvkeep::error::{KVKEEP_ERR_UNSUPPORTED, KVKEEP_OK};
use kvkeep::log::{Log, LogLevel};
use kvkeep::node::Node;
use kvkeep::open_cache::OpenCache;
use kvkeep::transfer::cpu_copy::Promise;
use kvkeep::transfer::submit::AskedTransfer;
use kvkeep::transfer::{PoolSpec, TransferRequest};

use crate::support::device::{Case, Devices, Kind, Memory, OnHost, round_trip, status, try_layouts};
use crate::support::random::Random;
use crate::support::skip::skipped;
use crate::support::test_name;

/// Says that a process is one that a test started, and what it is to do.
const ROLE: &str = "KVKEEP_CUDA_ROLE";

/// Builds the fake driver, less some functions, into a folder of its own: a driver that another test built anew meanwhile would be
/// loaded beside it as a second one.
fn driver_without(functions: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let status = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".to_owned()))
        .args(["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"])
        .arg(folder.path().join("libcuda.so.1"))
        .args(functions.iter().map(|name| format!("-D{name}=without_{name}")))
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/c_tests/support/fake_cuda.c"))
        .arg("-pthread")
        .status()
        .expect("a C compiler is there, since rustc links with one");
    assert!(status.success());
    // One file under both names that are looked for, as where a driver is installed.
    std::os::unix::fs::symlink("libcuda.so.1", folder.path().join("libcuda.so")).unwrap();
    folder
}

/// This program once more, for one test, in a role.
fn again(test: &str, role: &str, driver: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &test_name(module_path!(), test), "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).env("LD_LIBRARY_PATH", driver);
    command
}

/// Runs `body` in a process of its own, with a driver without `functions` and an environment for it.
fn with_driver(test: &str, functions: &[&str], environment: &[(&str, &str)], body: impl FnOnce()) {
    if std::env::var_os(ROLE).is_some() {
        return body();
    }
    let folder = driver_without(functions);
    let status = again(test, "body", folder.path()).envs(environment.iter().copied()).status().unwrap();
    assert!(status.success(), "{test} in its own process: {status}");
}

/// A function of the driver that is loaded. `F` is its type.
fn driver_function<F: Copy>(name: &str) -> F {
    let name = CString::new(name).unwrap();
    // SAFETY: a C string; the library stays loaded; each caller names the type that the driver gives the function.
    unsafe {
        let library = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null(), "the fake driver is not found");
        let function = libc::dlsym(library, name.as_ptr());
        assert!(!function.is_null(), "{name:?} is not there");
        assert_eq!(size_of::<F>(), size_of::<*mut c_void>());
        std::mem::transmute_copy(&function)
    }
}

/// Calls so far of a function of the fake driver.
fn calls(name: &str) -> u64 {
    let name = CString::new(name).unwrap();
    let count: unsafe extern "C" fn(*const std::ffi::c_char) -> u64 = driver_function("fake_cuda_calls");
    // SAFETY: a C string.
    unsafe { count(name.as_ptr()) }
}

/// Memory of a fake GPU.
struct OnGpu {
    host: *mut u64,
    words: usize,
    address: u64,
}

/// Workers' pages on so many GPUs in turn.
struct Gpus(u32);

impl Gpus {
    fn begin(count: u32) -> Gpus {
        let init: unsafe extern "C" fn(c_uint) -> c_int = driver_function("cuInit");
        // SAFETY: as the driver has it.
        assert_eq!(unsafe { init(0) }, 0);
        Gpus(count)
    }
}

impl Devices for Gpus {
    fn of(&self, worker: u32) -> i32 {
        (worker % self.0) as i32
    }

    fn memory(&self, worker: u32, words: usize) -> Box<dyn Memory> {
        let retain: unsafe extern "C" fn(*mut usize, c_int) -> c_int = driver_function("cuDevicePrimaryCtxRetain");
        let push: unsafe extern "C" fn(usize) -> c_int = driver_function("cuCtxPushCurrent_v2");
        let pop: unsafe extern "C" fn(*mut usize) -> c_int = driver_function("cuCtxPopCurrent_v2");
        let alloc: unsafe extern "C" fn(*mut u64, usize) -> c_int = driver_function("cuMemAlloc_v2");
        let seen: unsafe extern "C" fn(u64) -> *mut u64 = driver_function("fake_cuda_host");
        let (mut context, mut address) = (0, 0);
        // SAFETY: as the driver has them, with places for what they give.
        unsafe {
            assert_eq!(retain(&raw mut context, self.of(worker)), 0);
            assert_eq!(push(context), 0);
            assert_eq!(alloc(&raw mut address, words * 8), 0);
            assert_eq!(pop(&raw mut context), 0);
            Box::new(OnGpu { host: seen(address), words, address })
        }
    }
}

impl Memory for OnGpu {
    fn words(&self) -> &[u64] {
        // SAFETY: the fake's memory is the host's, as large as was asked for, and no copy is under way when it is looked at.
        unsafe { std::slice::from_raw_parts(self.host, self.words) }
    }

    fn words_mut(&mut self) -> &mut [u64] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.host, self.words) }
    }

    fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for OnGpu {
    fn drop(&mut self) {
        let free: unsafe extern "C" fn(u64) -> c_int = driver_function("cuMemFree_v2");
        // SAFETY: allocated by `memory`, given back once.
        assert_eq!(unsafe { free(self.address) }, 0);
    }
}

const SMALL: Case = Case {
    kind: Kind::Apart,
    layers: 3,
    groups: 1,
    tp: 1,
    bytes: 1024,
    gap: 64,
    per_chunk: 4,
    chunks: 20,
    tail: 3,
    skip: 0,
    temporary: false,
    seed: 5,
};

fn space_of(opened: &OpenCache, case: &Case) -> u64 {
    let chunk_tokens = 4 * case.per_chunk;
    let (model, layout, tenant) = ("resident".to_owned(), String::new(), String::new());
    opened.open_space(SpaceSpec { generation: 0, model, layout, tenant, chunk_tokens, quota_bytes: 0 }).unwrap()
}

fn embedded(mib: u64) -> OpenCache {
    let config = NodeConfig { backend_urls: vec!["memory:".to_owned()], ..NodeConfig::new(mib << 20) };
    OpenCache::new(Node::open(config).unwrap())
}

/// Tries layouts while a pool of each GPU stays open, so that L1 stays registered.
fn layouts(gpus: u32, one_of: u32) {
    let devices = Gpus::begin(gpus);
    let opened = embedded(64);
    let space = space_of(&opened, &SMALL);
    let resident: Vec<_> = (0..gpus).map(|worker| SMALL.pages(&devices, worker, 0)).collect();
    let pools: Vec<u64> = (0..).zip(&resident).map(|(rank, pages)| pages.pool(&opened, space, rank, 4)).collect();
    // One that surely loads something, whatever few others are tried.
    round_trip(&opened, &Case { tp: 2, ..SMALL }, &devices, &|_| {});
    try_layouts(&opened, &devices, one_of);
    for pool in pools {
        opened.transfers().close_pool(pool).unwrap();
    }
    opened.close();
}

#[test]
fn pages_come_back_bit_by_bit_from_a_gpu() {
    with_driver("pages_come_back_bit_by_bit_from_a_gpu", &[], &[("FAKE_CUDA_JITTER_US", "20")], || {
        layouts(1, 1);
        assert!(calls("cuLaunchKernel") > 0 && calls("move") > 0);
    });
}

#[test]
fn pages_come_back_from_two_gpus_by_their_copy_engines() {
    let environment = [("FAKE_CUDA_DEVICES", "2"), ("FAKE_CUDA_MOVE_US", "200000")];
    with_driver("pages_come_back_from_two_gpus_by_their_copy_engines", &[], &environment, || {
        layouts(2, 10);
        assert!(calls("batched") > calls("cuMemcpyBatchAsync") && calls("cuMemcpyBatchAsync") > 0);
        // L1 is registered once for both.
        assert_eq!(calls("cuMemHostRegister_v2"), 16);
    });
}

#[test]
fn an_old_driver_copies_one_by_one() {
    let environment = [("FAKE_CUDA_VERSION", "11080")];
    with_driver("an_old_driver_copies_one_by_one", &["cuMemcpyBatchAsync"], &environment, || {
        layouts(1, 10);
        assert_eq!((calls("cuLaunchKernel"), calls("move")), (0, 0));
        assert!(calls("cuMemcpyDtoHAsync_v2") > 0 && calls("cuMemcpyHtoDAsync_v2") > 0);
    });
}

#[test]
fn what_cannot_be_registered_is_copied_all_the_same() {
    let test = "what_cannot_be_registered_is_copied_all_the_same";
    with_driver(test, &[], &[("FAKE_CUDA_PINNED", "0")], || {
        layouts(1, 10);
        assert!(calls("cuMemHostRegister_v2") > 0);
        assert!(calls("cuMemcpyDtoHAsync_v2") > 0 && calls("cuMemcpyHtoDAsync_v2") > 0);

        // It is said, with the cause and the remedy.
        let devices = Gpus::begin(1);
        let said = Arc::new(Mutex::new(Vec::new()));
        let says = said.clone();
        let log = Log::new(LogLevel::Warn, move |_, line| says.lock().unwrap().push(line.to_owned()));
        let opened = OpenCache::new(Node::open(NodeConfig { log, ..NodeConfig::new(16 << 20) }).unwrap());
        round_trip(&opened, &SMALL, &devices, &|_| {});
        let mut stats = Stats::default();
        opened.stats(&mut stats).unwrap();
        assert!(stats.registrations_refused > 0);
        assert_eq!(stats.memlock_refused, stats.registrations_refused);
        opened.close();
        let said = said.lock().unwrap();
        assert!(!said.is_empty(), "nothing was said");
        for line in &*said {
            assert!(line.contains("slower") && line.contains("(ulimit -l)"), "{line}");
        }
    });
}

#[test]
fn what_is_registered_in_part_is_copied_as_it_is() {
    // One of four parts.
    let test = "what_is_registered_in_part_is_copied_as_it_is";
    with_driver(test, &[], &[("FAKE_CUDA_PINNED", "2097152")], || {
        let devices = Gpus::begin(1);
        let opened = embedded(8);
        let space = space_of(&opened, &SMALL);
        let resident = SMALL.pages(&devices, 0, 0);
        let pool = resident.pool(&opened, space, 0, SMALL.per_chunk);
        // The device is measured by now: what is moved from here on is moved for transfers.
        let reached = || calls("cuLaunchKernel") + calls("cuMemcpyBatchAsync");
        let before = reached();
        // Less than a part is left over, so that each part holds something.
        round_trip(&opened, &Case { bytes: 15 << 10, ..SMALL }, &devices, &|_| {});
        assert!(reached() > before);
        assert!(calls("cuMemcpyDtoHAsync_v2") > 0 && calls("cuMemcpyHtoDAsync_v2") > 0);
        opened.transfers().close_pool(pool).unwrap();
        opened.close();
    });
}

#[test]
fn a_pool_that_opens_while_the_last_one_closes_has_l1_registered() {
    with_driver("a_pool_that_opens_while_the_last_one_closes_has_l1_registered", &[], &[], || {
        let devices = Gpus::begin(1);
        let said = Arc::new(Mutex::new(Vec::new()));
        let says = said.clone();
        let log = Log::new(LogLevel::Warn, move |_, line| says.lock().unwrap().push(line.to_owned()));
        let opened = OpenCache::new(Node::open(NodeConfig { log, ..NodeConfig::new(64 << 20) }).unwrap());
        let space = space_of(&opened, &SMALL);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let pages = SMALL.pages(&devices, 0, 0);
                    for _ in 0..200 {
                        let pool = pages.pool(&opened, space, 0, SMALL.per_chunk);
                        opened.transfers().close_pool(pool).unwrap();
                    }
                });
            }
        });
        opened.close();
        assert_eq!(*said.lock().unwrap(), [""; 0]);
    });
}

#[test]
fn a_gpu_without_memory_to_measure_with_works() {
    let environment = [("FAKE_CUDA_MEMORY", "4000000")];
    with_driver("a_gpu_without_memory_to_measure_with_works", &[], &environment, || {
        let devices = Gpus::begin(1);
        let opened = embedded(16);
        let asked = calls("cuMemHostAlloc");
        round_trip(&opened, &Case { layers: 1, ..SMALL }, &devices, &|_| {});
        // AskedTransfer for in vain, and small fragments go through the kernel all the same.
        assert!(calls("cuMemHostAlloc") > asked && calls("cuLaunchKernel") > 0 && calls("move") > 0);
        opened.close();
    });
}

/// Opens a pool where it must be refused, and says so in words.
fn refused(words: &'static str) -> impl FnOnce() {
    move || {
        let opened = embedded(16);
        let space = space_of(&opened, &SMALL);
        let pages = SMALL.pages(&OnHost, 0, 0);
        // SAFETY: no pool is opened with it.
        let promise = unsafe { Promise::given() };
        let segments = pages.segments.clone();
        let spec = PoolSpec { device: 0, rank: 0, blocks: pages.blocks, blocks_per_chunk: 4, segments, promise };
        let error = opened.transfers().open_pool(space, spec).unwrap_err();
        assert_eq!(error.status, KVKEEP_ERR_UNSUPPORTED, "{error}");
        assert!(error.message.contains(words) && error.message.contains("KVKEEP_DEVICE_HOST"), "{error}");
        // The host is as good as ever.
        round_trip(&opened, &SMALL, &OnHost, &|_| {});
        opened.close();
    }
}

#[test]
fn a_driver_that_lacks_a_function_is_refused_by_its_name() {
    let test = "a_driver_that_lacks_a_function_is_refused_by_its_name";
    with_driver(test, &["cuEventRecord"], &[], refused("no function cuEventRecord: update the NVIDIA driver"));
}

#[test]
fn a_driver_that_is_too_old_is_refused() {
    let environment = [("FAKE_CUDA_VERSION", "11020")];
    with_driver("a_driver_that_is_too_old_is_refused", &[], &environment, refused("is one for CUDA 11.2: update it"));
}

#[test]
fn a_driver_without_a_device_is_refused() {
    let environment = [("FAKE_CUDA_DEVICES", "0")];
    with_driver("a_driver_without_a_device_is_refused", &[], &environment, refused("sees no device"));
}

#[test]
fn a_driver_that_does_not_start_is_refused() {
    let environment = [("FAKE_CUDA_FAIL", "cuInit:1:3")];
    let words = "CUDA_ERROR_NOT_INITIALIZED";
    with_driver("a_driver_that_does_not_start_is_refused", &[], &environment, refused(words));
}

#[test]
fn without_a_driver_the_message_says_how_to_get_one() {
    // SAFETY: a C string.
    if unsafe { !libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW).is_null() } {
        return skipped("without_a_driver_the_message_says_how_to_get_one", "this machine has a driver");
    }
    refused("libcuda.so.1 cannot be loaded: install the NVIDIA driver")();
}

const TEST: &str = "two_processes_share_what_their_gpus_computed";

/// A worker with pages on a GPU and a daemon to share with: the first stores, the second has other pages and loads.
fn worker(url: &str, stores: bool) {
    let devices = Gpus::begin(1);
    let opened = OpenCache::new(Client::open(ClientConfig::new(url).unwrap()).unwrap());
    let space = space_of(&opened, &SMALL);
    let session = opened.begin_session(space, "r", None).unwrap();
    let mut random = Random(77);
    let mut pages = SMALL.pages(&devices, 0, 0);
    let words: Vec<u64> = (0..pages.memory.words().len()).map(|_| random.next()).collect();
    let numbers: Vec<i32> = (0..pages.blocks as i32).collect();
    let (keys, blocks) = (SMALL.keys(0), SMALL.blocks(&numbers));
    if stores {
        pages.memory.words_mut().copy_from_slice(&words);
    }
    let pool = pages.pool(&opened, space, 0, SMALL.per_chunk);
    let (asked, mut job) = (AskedTransfer { pool, session, keys: &keys, blocks: &blocks }, 0);
    if stores {
        opened.transfers().submit_store(asked, TransferRequest::default(), &mut job).unwrap();
    } else {
        opened.transfers().submit_load(asked, TransferRequest::default(), &mut job).unwrap();
    }
    assert_eq!(status(&opened, job), KVKEEP_OK);
    if !stores {
        let mut expected = SMALL.pages(&OnHost, 0, 0);
        expected.memory.words_mut().copy_from_slice(&words);
        for segment in 0..pages.segments.len() {
            for block in (0..pages.blocks as i32).filter(|&block| (block as u32) < SMALL.used()) {
                assert!(pages.bytes(segment, block) == expected.bytes(segment, block), "{segment} {block}");
            }
        }
    }
    opened.close();
}

#[test]
fn two_processes_share_what_their_gpus_computed() {
    if let Ok(role) = std::env::var(ROLE) {
        let (verb, url) = role.split_once(' ').unwrap();
        return worker(url, verb == "store");
    }
    let driver = driver_without(&[]);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("kvkeep.sock");
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_kvkeep"))
        .args(["serve", "--l1", "32MiB", "--socket"])
        .arg(&socket)
        .env("LD_LIBRARY_PATH", driver.path())
        .spawn()
        .unwrap();
    let url = format!("unix://{}", socket.display());
    let began = std::time::Instant::now();
    while !socket.exists() {
        assert!(began.elapsed().as_secs() < 60 && daemon.try_wait().unwrap().is_none(), "the daemon does not start");
        std::thread::yield_now();
    }
    let done = ["store", "load"].map(|verb| again(TEST, &format!("{verb} {url}"), driver.path()).status().unwrap());
    let mapped = std::fs::read_to_string(format!("/proc/{}/maps", daemon.id())).unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert!(done.iter().all(|status| status.success()), "{done:?}");
    // The daemon could have loaded the driver, and had no need to.
    assert!(!mapped.contains("libcuda"), "{mapped}");
}
