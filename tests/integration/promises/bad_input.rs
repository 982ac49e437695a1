//! P6: bad input through the C functions is a status with a message, changes nothing, and never crashes.

use std::ffi::{CStr, c_char};
use std::ops::{Deref, DerefMut};
use std::ptr::{null, null_mut, without_provenance_mut};

use kvkeep::abi::{Completion, JobResult, KeyState, SpaceUsage, Stats, View};
use kvkeep::error::{
    KVKEEP_ERR_CLOSED, KVKEEP_ERR_INTERNAL, KVKEEP_ERR_INVALID, KVKEEP_ERR_VERSION, KVKEEP_OK, Status,
};
use kvkeep::events::Event;
use kvkeep::ffi::cache::*;
use kvkeep::ffi::object::*;
use kvkeep::ffi::observe::*;
use kvkeep::ffi::options::*;
use kvkeep::ffi::prefetch::*;
use kvkeep::ffi::session::*;
use kvkeep::ffi::version::{KVKEEP_ABI_VERSION, kvkeep_last_error};
use kvkeep::key::Key;
use kvkeep::misses::miss_report::MissReport;

use super::cache::{KIB, MIB, key, views, watched};
use crate::support::random::{Random, number, rounds};

const KEYS: usize = 48;
/// Functions that the fuzz knows.
const FUNCTIONS: u64 = 31;

/// A versioned struct, as KVKEEP_INIT prepares it.
fn init<T>() -> T {
    // SAFETY: the ABI's structs are plain data, valid when zeroed, and begin with size and version.
    unsafe {
        let mut zeroed: T = std::mem::zeroed();
        let head = (&raw mut zeroed).cast::<u32>();
        head.write(size_of::<T>() as u32);
        head.add(1).write(KVKEEP_ABI_VERSION);
        zeroed
    }
}

/// What calls are given; half of the rounds are tame, so that there is a state to change.
struct Input {
    random: Random,
    wild: bool,
}

impl Deref for Input {
    type Target = Random;

    fn deref(&self) -> &Random {
        &self.random
    }
}

impl DerefMut for Input {
    fn deref_mut(&mut self) -> &mut Random {
        &mut self.random
    }
}

impl Input {
    /// A number, often a small or an extreme one.
    fn number(&mut self) -> u64 {
        let any = self.next();
        self.of(&[
            0,
            1,
            2,
            3,
            127,
            128,
            255,
            1 << 20,
            1 << 31,
            u64::from(u32::MAX),
            1 << 40,
            u64::MAX - 1,
            u64::MAX,
            any,
        ])
    }

    /// A count for arrays of [`KEYS`], or one that no call may take.
    fn count(&mut self) -> usize {
        let fits = 1 + self.below(KEYS as u64) as usize;
        if self.wild && self.one_in(4) {
            self.of(&[0, (1 << 20) + 1, 1 << 40, usize::MAX / 8, usize::MAX])
        } else {
            fits
        }
    }

    fn pointer<T>(&mut self, valid: *mut T) -> *mut T {
        match self.below(16) {
            0 if self.wild => null_mut(),
            1 if self.wild => valid.cast::<u8>().wrapping_add(1).cast(),
            _ => valid,
        }
    }

    fn text(&mut self) -> *const c_char {
        self.of(&[c"text".as_ptr(), c"".as_ptr(), c"\xff\xfe".as_ptr(), c"\u{1F600}".as_ptr(), null()])
    }

    /// Spoils the head of a struct now and then.
    fn spoil<T>(&mut self, mut options: T) -> T {
        let head = (&raw mut options).cast::<u32>();
        let size = size_of::<T>() as u32;
        // SAFETY: every versioned struct begins with two 32-bit numbers. A size is never more than what is there.
        unsafe {
            if self.wild && self.one_in(8) {
                head.write(self.of(&[0, 3, 7, 8, size - 4, u32::MAX, 1 << 31]));
            }
            if self.wild && self.one_in(16) {
                head.add(1).write(self.number() as u32);
            }
        }
        options
    }
}

fn message() -> String {
    // SAFETY: never NULL, and valid until the next call on this thread.
    unsafe { CStr::from_ptr(kvkeep_last_error()) }.to_str().unwrap().to_owned()
}

/// What no refused call may change.
fn books(stats: &Stats) -> [u64; 11] {
    [
        stats.l1_used_bytes,
        stats.l1_locked_bytes,
        stats.l1_objects,
        stats.l1_staged,
        stats.l1_shares,
        stats.sessions,
        stats.jobs,
        stats.jobs_submitted,
        stats.commits,
        stats.evictions,
        stats.read_hits,
    ]
}

#[test]
fn p6_garbage_is_refused_with_a_message_and_changes_nothing() {
    watched(|| {
        let seed = number("KVKEEP_FUZZ_SEED", || 1);
        println!("seed {seed}");
        let mut random = Input { random: Random(seed), wild: false };
        let mut cache = null_mut();
        let mut options: kvkeep_options = init();
        options.l1_bytes = MIB;
        options.sessions_max = 20;
        options.jobs_max = 20;
        options.watermark_high_percent = 100;
        let mut space_options: kvkeep_space_options = init();
        space_options.model = c"model".as_ptr();
        space_options.chunk_tokens = 4;
        let mut space = 0;
        // SAFETY: well-formed arguments; the same holds for the calls below, each of whose pointers is NULL, misaligned
        // (and refused), or to what its type and count say.
        unsafe {
            assert_eq!(kvkeep_open(&options, &mut cache), KVKEEP_OK);
            assert_eq!(kvkeep_open_space(cache, &space_options, &mut space), KVKEEP_OK);
        }
        let mut sessions = vec![0, 1, u64::MAX];
        let mut jobs = vec![0, 1, u64::MAX];
        for round in 0..rounds("KVKEEP_FUZZ_ROUNDS", 60_000) {
            random.wild = !random.wild;
            let mut key_array: Vec<Key> = (0..KEYS).map(|_| key(random.below(40) as u32)).collect();
            let mut sizes: Vec<u64> =
                (0..KEYS).map(|_| if random.one_in(9) { random.number() } else { 64 << random.below(12) }).collect();
            let (mut out, mut statuses, mut tokens) = (views(KEYS), [0i32; KEYS], [random.next() as u32; KEYS]);
            let (mut number, mut small, mut length) = (0u64, 0u32, 0usize);
            let handle = match random.below(40) {
                0 => null_mut(),
                1 => without_provenance_mut(random.number() as usize),
                2 => without_provenance_mut(cache.addr() ^ 1 << random.below(64)),
                _ => cache,
            };
            let session = random.of(&sessions);
            let job = random.of(&jobs);
            let space = if random.one_in(8) { random.number() } else { space };
            let count = random.count();
            let extra = if random.one_in(4) { random.number() as i32 } else { random.below(3) as i32 };
            let keys = random.pointer(key_array.as_mut_ptr());
            // Now and then over the keys themselves.
            let data: *mut View =
                if random.one_in(20) { key_array.as_mut_ptr().cast() } else { random.pointer(out.as_mut_ptr()) };
            let said = if random.one_in(3) { null_mut() } else { random.pointer(statuses.as_mut_ptr()) };
            let sized = random.pointer(sizes.as_mut_ptr());
            let place = random.pointer(&raw mut number);
            let (r1, r2, r3, r4) = (random.number(), random.number(), random.number(), random.number());
            let function = random.below(FUNCTIONS);
            let mut before: Stats = init();
            // SAFETY: as above. Counts beyond the arrays' are beyond what any call takes.
            let status = unsafe {
                kvkeep_query_stats(cache, &mut before);
                match function {
                    0 => {
                        let mut options: kvkeep_session_options = init();
                        options.request_id = random.text();
                        options.reserved = u32::from(random.one_in(9));
                        let options = random.spoil(options);
                        let status = kvkeep_begin_session(handle, space, &options, place);
                        if status == KVKEEP_OK {
                            sessions.push(number);
                        }
                        status
                    }
                    1 => kvkeep_end_session(handle, session),
                    2 => kvkeep_abort_session(handle, session),
                    3 => {
                        kvkeep_append_tokens(handle, session, random.pointer(tokens.as_mut_ptr()), count, place.cast())
                    }
                    4 => {
                        kvkeep_get_session_keys(handle, session, r1, r2 as usize, r3 as u32, r4 as u32, 1, keys, count)
                    }
                    5 => kvkeep_get_session_keys(handle, session, 0, count, 0, 1, 1, keys, count),
                    6 | 7 => kvkeep_reserve_write(handle, session, keys, count, sized, random.below(3) as u32, data),
                    8 => kvkeep_finish_write(handle, session, keys, count, said),
                    9 => kvkeep_abort_write(handle, session, keys, count, said),
                    10 => kvkeep_finish_write_and_reserve_read(handle, session, keys, count, extra, data),
                    11 | 12 => kvkeep_reserve_read(handle, session, keys, count, extra, data),
                    13 => kvkeep_finish_read(handle, session, keys, count, extra, said),
                    14 => {
                        kvkeep_finish_read_tokens(handle, session, 0, r2, r3 as u32, r4 as u32, r1 as u32, extra, place)
                    }
                    15 => kvkeep_get_views(handle, session, keys, count, data),
                    16 => kvkeep_touch(handle, space, keys, count, said),
                    17 => kvkeep_retain(handle, space, keys, count, r1 as u32, r2 as u32, said),
                    18 => kvkeep_delete(handle, space, keys, count, said),
                    19 if random.one_in(9) => kvkeep_clear(handle, space, r1 as u32, place),
                    20 | 21 => {
                        let mut options: kvkeep_prefetch_options = init();
                        let rules = [kvkeep_group_rule {
                            group: r1 as u32,
                            mode: random.below(3) as u32,
                            window_chunks: r2 as u32,
                            reserved: [0; 5],
                        }];
                        options.extra_count = extra;
                        options.objects_per_chunk = if random.wild { random.of(&[0, 1, 2, 3, u32::MAX]) } else { 1 };
                        options.mode = if random.wild { random.below(4) as u32 } else { 0 };
                        options.window_chunks = r3 as u32;
                        options.group_rule_count = if random.wild { random.of(&[0, 1, 65, usize::MAX]) } else { 0 };
                        options.group_rules = random.pointer(rules.as_ptr().cast_mut());
                        options.policy = random.below(4) as u32;
                        options.lifetime = random.below(3) as u32;
                        options.priority = r4 as i32;
                        options.notify = random.of(&[0, 0, 0, 1, 2]);
                        let options = random.spoil(options);
                        let status =
                            kvkeep_submit_prefetch(handle, session, keys, count, &options, place, None, null_mut());
                        if status == KVKEEP_OK {
                            jobs.push(number);
                        }
                        status
                    }
                    22 => {
                        let mut result = random.spoil(init::<JobResult>());
                        kvkeep_query_job(handle, job, &mut result);
                        kvkeep_query_lookup_hits(handle, job, random.pointer(&raw mut small))
                    }
                    23 => {
                        let bytes = random.of(&[0, 1, KEYS * 24 - 1, usize::MAX]);
                        kvkeep_wait_job(handle, job, 0);
                        kvkeep_query_bitmap(handle, job, random.pointer(out.as_mut_ptr().cast::<u8>()), bytes)
                    }
                    24 => {
                        let mut completions = [std::mem::zeroed::<Completion>(); 2];
                        let capacity = random.of(&[0, 1, 2, usize::MAX]);
                        kvkeep_take_completions(handle, completions.as_mut_ptr(), capacity, &mut length);
                        if random.one_in(2) { kvkeep_release_job(handle, job) } else { kvkeep_cancel_job(handle, job) }
                    }
                    25 => {
                        let mut events = [std::mem::zeroed::<Event>(); 2];
                        let capacity = random.of(&[0, 1, 2, usize::MAX]);
                        number = random.of(&[0, 1, number, u64::MAX]);
                        let next = random.pointer(&raw mut number);
                        kvkeep_read_events(handle, next, events.as_mut_ptr(), capacity, &mut length)
                    }
                    26 => kvkeep_evict(handle, space, keys, count, said),
                    27 => {
                        let mut states = [KeyState::default(); KEYS];
                        kvkeep_query_keys(handle, space, keys, count, random.pointer(states.as_mut_ptr()))
                    }
                    28 => {
                        let mut usage = random.spoil(init::<SpaceUsage>());
                        kvkeep_query_space(handle, space, random.pointer(&raw mut usage));
                        let mut report = random.spoil(init::<MissReport>());
                        kvkeep_query_misses(handle, space, random.pointer(&raw mut report))
                    }
                    29 => {
                        kvkeep_init_struct(random.pointer(out.as_mut_ptr().cast()), KEYS * 24 - 8, r1 as u32);
                        kvkeep_get_tail_keys(handle, session, r1 as u32, 0, count as u32, 1, keys, count)
                    }
                    _ => {
                        let buffer = random.pointer(out.as_mut_ptr().cast::<c_char>());
                        let capacity = random.of(&[0, 1, KEYS * 24 - 1]);
                        kvkeep_explain_key(handle, space, keys, buffer, capacity, random.pointer(&raw mut length));
                        kvkeep_get_error(handle, r1 as u32, session, buffer, capacity, random.pointer(&raw mut length));
                        kvkeep_explain_session(handle, session, buffer, capacity, &mut length)
                    }
                }
            };
            let context = || format!("seed {seed}, round {round}, function {function}: {status:?}");
            assert_ne!(status, KVKEEP_ERR_INTERNAL, "{} {}", context(), message());
            if (status as i32) < 0 {
                let text = message();
                assert!(text.len() > 10, "{} says {text:?}", context());
                let mut after: Stats = init();
                // SAFETY: a valid handle and struct.
                unsafe { kvkeep_query_stats(cache, &mut after) };
                // Two of the cases are two calls, of which the first may have done its work.
                if function != 24 {
                    assert_eq!(books(&before), books(&after), "{}", context());
                }
            }
            if jobs.len() > 60 {
                jobs.remove(3);
            }
            if sessions.len() > 40 {
                sessions.remove(3);
            }
        }
        // SAFETY: the handle is closed once, then used as a closed one.
        unsafe {
            let mut stats: Stats = init();
            assert_eq!(kvkeep_query_stats(cache, &mut stats), KVKEEP_OK);
            assert!(stats.commits > 100 && stats.jobs_submitted > 100 && stats.read_hits > 100);
            assert_eq!(kvkeep_close(cache), KVKEEP_OK);
            assert_eq!(kvkeep_close(cache), KVKEEP_ERR_CLOSED);
            assert_eq!(kvkeep_query_stats(cache, &mut stats), KVKEEP_ERR_CLOSED);
            assert_eq!(kvkeep_end_session(cache, 1), KVKEEP_ERR_CLOSED);
        }
    });
}

#[test]
fn p6_options_that_make_no_sense_open_nothing() {
    let mut refused: Vec<(Status, kvkeep_options)> = Vec::new();
    let mut with = |expected, change: &dyn Fn(&mut kvkeep_options)| {
        let mut options: kvkeep_options = init();
        options.l1_bytes = 64 * KIB;
        change(&mut options);
        refused.push((expected, options));
    };
    with(KVKEEP_ERR_INVALID, &|options| options.struct_size = 3);
    with(KVKEEP_ERR_INVALID, &|options| options.struct_size = 0);
    with(KVKEEP_ERR_VERSION, &|options| options.abi_version = 99);
    with(KVKEEP_ERR_INVALID, &|options| options.l1_bytes = 0);
    with(KVKEEP_ERR_INVALID, &|options| options.l1_bytes = 100);
    with(kvkeep::error::KVKEEP_ERR_NO_MEMORY, &|options| options.l1_bytes = 1 << 60);
    with(KVKEEP_ERR_INVALID, &|options| options.flags = 1 << 20);
    for percent in [0, 101, 1 << 32, u64::MAX] {
        with(KVKEEP_ERR_INVALID, &|options| {
            (options.flags, options.l1_bytes) = (KVKEEP_FLAG_L1_PERCENT, percent);
        });
    }
    with(KVKEEP_ERR_INVALID, &|options| options.eviction_policy = c"best".as_ptr());
    with(KVKEEP_ERR_INVALID, &|options| options.eviction_policy = c"\xff".as_ptr());
    with(KVKEEP_ERR_INVALID, &|options| options.watermark_high_percent = 101);
    with(KVKEEP_ERR_INVALID, &|options| options.watermark_low_percent = 90);
    with(KVKEEP_ERR_INVALID, &|options| options.store_mode = 4);
    with(KVKEEP_ERR_INVALID, &|options| options.backend_count = 1);
    with(KVKEEP_ERR_INVALID, &|options| options.backend_count = usize::MAX);
    with(KVKEEP_ERR_INVALID, &|options| options.reserved = 1);
    with(KVKEEP_ERR_INVALID, &|options| options.log_level = 9);
    let mut cache = null_mut();
    let untouched = cache;
    for (i, (expected, options)) in refused.iter().enumerate() {
        // SAFETY: a struct that is refused, and a place for a handle.
        let status = unsafe { kvkeep_open(options, &mut cache) };
        assert_eq!((status, cache), (*expected, untouched), "case {i}: {}", message());
        assert!(message().len() > 20, "case {i}");
    }
    // SAFETY: NULL is refused.
    unsafe {
        assert_eq!(kvkeep_open(null(), &mut cache), KVKEEP_ERR_INVALID);
        let mut options: kvkeep_options = init();
        options.l1_bytes = 64 * KIB;
        assert_eq!(kvkeep_open(&options, null_mut()), KVKEEP_ERR_INVALID);
        assert_eq!(kvkeep_close(null_mut()), KVKEEP_OK);
    }
}

#[test]
fn p6_a_message_can_be_read_while_the_threads_own_objects_are_destroyed() {
    /// Destroyed after every object of the thread that was made later.
    struct First {
        message: *const c_char,
        text: String,
        said: std::sync::mpsc::Sender<(bool, String)>,
    }
    impl Drop for First {
        fn drop(&mut self) {
            // SAFETY: the header says that the text is there until the next call.
            let stays = unsafe { CStr::from_ptr(self.message) }.to_str() == Ok(&self.text);
            // SAFETY: NULL is refused.
            assert_eq!(unsafe { kvkeep_open(null(), null_mut()) }, KVKEEP_ERR_INVALID);
            self.said.send((stays, message())).unwrap();
        }
    }
    thread_local! {
        static FIRST: std::cell::RefCell<Option<First>> = const { std::cell::RefCell::new(None) };
    }
    let (said, hear) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        FIRST.with(|first| {
            // SAFETY: a handle that was never given out.
            assert_eq!(unsafe { kvkeep_end_session(without_provenance_mut(8), 1) }, KVKEEP_ERR_CLOSED);
            *first.borrow_mut() = Some(First { message: kvkeep_last_error(), text: message(), said });
        });
    });
    let (stays, next) = hear.recv().unwrap();
    assert!(stays && next.contains("options is NULL"), "{next}");
    thread.join().unwrap();
}

#[test]
fn p6_a_long_message_is_cut_between_characters() {
    let policy = std::ffi::CString::new("\u{e9}".repeat(3000)).unwrap();
    let mut options: kvkeep_options = init();
    (options.l1_bytes, options.eviction_policy) = (64 * KIB, policy.as_ptr());
    // SAFETY: a struct that is refused, and a place for a handle.
    assert_eq!(unsafe { kvkeep_open(&options, &mut null_mut()) }, KVKEEP_ERR_INVALID);
    assert!((2046..=2047).contains(&message().len()));
}

#[test]
fn p12_a_refused_reservation_names_the_session_that_holds_most_and_the_remedy() {
    // SAFETY: open handles, and places that live for the calls.
    unsafe {
        let (mut cache, mut options) = (null_mut(), init::<kvkeep_options>());
        options.l1_bytes = 64 * KIB;
        assert_eq!(kvkeep_open(&options, &mut cache), KVKEEP_OK);
        let (mut space, mut space_options) = (0, init::<kvkeep_space_options>());
        space_options.model = c"m".as_ptr();
        assert_eq!(kvkeep_open_space(cache, &space_options, &mut space), KVKEEP_OK);
        let begin = |name: &CStr| {
            let (mut session, mut options) = (0, init::<kvkeep_session_options>());
            options.request_id = name.as_ptr();
            assert_eq!(kvkeep_begin_session(cache, space, &options, &mut session), KVKEEP_OK);
            session
        };
        let (small, large, late) = (begin(c"small"), begin(c"large"), begin(c"late"));
        let reserve = |session, number, size: u64| {
            let mut view = views(1);
            kvkeep_reserve_write(cache, session, &key(number), 1, &size, 0, view.as_mut_ptr());
            view[0].status
        };
        assert_eq!((reserve(small, 1, 16 * KIB), reserve(large, 2, 40 * KIB)), (0, 0));
        assert_eq!(reserve(late, 3, 16 * KIB), kvkeep::error::KVKEEP_ERR_NO_MEMORY as i32);
        let pid = std::process::id();
        let cause = format!("session {large} holds 62 % of L1: return its shares or end it, or make L1 larger ");
        let holder = format!("(\"large\", pid {pid}, has 40960 of 65536 bytes");
        assert!(message().contains(&cause) && message().contains(&holder), "{}", message());
        assert_eq!(kvkeep_close(cache), KVKEEP_OK);
    }
}
