//! The quickstart in Rust, which loads the library when it runs: two requests that share a prefix, then a new process that finds both
//! below L1. Built by `rustc --edition 2024 quickstart.rs`.
//!
//!     quickstart DIRECTORY            the first run: computes, stores, and hits in memory
//!     quickstart DIRECTORY again      a later process, also one in another language: hits on disk
//!
//! In place of a directory it takes the URL of another backend, or the socket of a daemon, "unix:///tmp/kvkeep.sock". KVKEEP_LIBRARY
//! names the library, unless it is installed.
mod kvkeep;

use kvkeep::{JobResult, Key, Library, Options, SessionOptions, SpaceOptions, Versioned, View};
use std::ffi::CString;
use std::ptr::{null, null_mut};

const CHUNK_TOKENS: usize = 256;
const CHUNK_BYTES: usize = 256 * 1024;
const WAIT_MS: u32 = 10_000;

/// Stands for the engine's forward pass: the KV bytes of a chunk depend on all tokens up to its end, as its key does.
fn compute_chunk(key: &Key) -> Vec<u8> {
    (0..CHUNK_BYTES).map(|i| key.hash[i % 32].wrapping_add((i / 32) as u8)).collect()
}

/// What an engine does with one request.
fn serve(lib: &Library, cache: kvkeep::Cache, space: u64, name: &str, tokens: &[u32]) -> Result<(), String> {
    let id = CString::new(name).map_err(|error| error.to_string())?;
    let options = SessionOptions { request_id: id.as_ptr(), ..Versioned::prepared() };
    let (mut session, mut job, mut count) = (0, 0, 0);
    let mut result = JobResult::prepared();
    // SAFETY, here and below: pointers and lengths are those of live arrays, as kvkeep.h asks.
    unsafe {
        lib.check((lib.begin_session)(cache, space, &options, &mut session))?;
        lib.check((lib.append_tokens)(cache, session, tokens.as_ptr(), tokens.len(), &mut count))?;
    }
    let mut keys = vec![Key::default(); count];
    unsafe {
        lib.check((lib.get_session_keys)(cache, session, 0, count, 0, 1, 1, keys.as_mut_ptr(), count))?;
        // One job looks up every tier and loads. An engine would be told by a callback or an eventfd.
        lib.check((lib.submit_prefetch)(cache, session, keys.as_ptr(), count, null(), &mut job, null(), null_mut()))?;
        lib.check((lib.wait_job)(cache, job, WAIT_MS))?;
        lib.check((lib.query_job)(cache, job, &mut result))?;
    }
    let (hits, missing) = keys.split_at(result.hit_chunks as usize);
    let mut views = vec![View { data: null_mut(), size: 0, status: 0, reserved: 0 }; count];
    if !hits.is_empty() {
        // The session holds a share of each hit: its bytes stay where they are until the share is returned.
        lib.check(unsafe { (lib.get_views)(cache, session, hits.as_ptr(), hits.len(), views.as_mut_ptr()) })?;
        for (key, view) in hits.iter().zip(&views) {
            let bytes = unsafe { std::slice::from_raw_parts(view.data, view.size as usize) };
            if bytes != compute_chunk(key) {
                return Err(format!("a chunk of {name} is wrong"));
            }
        }
        lib.check(unsafe { (lib.finish_read)(cache, session, hits.as_ptr(), hits.len(), 0, null_mut()) })?;
    }
    if !missing.is_empty() {
        let (first, left, sizes) = (missing.as_ptr(), missing.len(), vec![CHUNK_BYTES as u64; missing.len()]);
        let lifetime = kvkeep::LIFETIME_CACHED;
        lib.check(unsafe {
            (lib.reserve_write)(cache, session, first, left, sizes.as_ptr(), lifetime, views.as_mut_ptr())
        })?;
        // A chunk without a view was stored by somebody else meanwhile, or found no room: either way, go on without.
        for (key, view) in missing.iter().zip(&views).filter(|(_, view)| view.status == 0) {
            unsafe { std::slice::from_raw_parts_mut(view.data, CHUNK_BYTES) }.copy_from_slice(&compute_chunk(key));
        }
        lib.check(unsafe { (lib.finish_write)(cache, session, first, left, null_mut()) })?;
    }
    let (memory, below) = (result.tier_keys[0], result.tier_keys[1..].iter().sum::<u32>());
    println!("{name}: {} of {count} chunks were right ({memory} from memory, {below} from below)", hits.len());
    lib.check(unsafe { (lib.end_session)(cache, session) })
}

fn run(place: &str, names: [&str; 2]) -> Result<(), String> {
    let file = std::env::var("KVKEEP_LIBRARY").unwrap_or("libkvkeep.so.0.1".to_owned());
    let lib = Library::load(&file)?;
    let text = |text: &str| CString::new(text).map_err(|error| error.to_string());
    let url = text(&if place.contains("://") { place.to_owned() } else { format!("fs://{place}?capacity=1GiB") })?;
    let urls = [url.as_ptr()];
    let mut options = Options::prepared();
    if place.starts_with("unix:") {
        options.connect = url.as_ptr();
    } else {
        (options.l1_bytes, options.backend_urls, options.backend_count) = (64 << 20, urls.as_ptr(), 1);
    }
    let (model, layout) = (text("example-8b@main")?, text("bf16 layers=32 heads=8 dim=128 tp=1")?);
    let chunk_tokens = CHUNK_TOKENS as u32;
    let space_options =
        SpaceOptions { model: model.as_ptr(), layout: layout.as_ptr(), chunk_tokens, ..Versioned::prepared() };
    let (mut cache, mut space) = (null_mut(), 0);
    unsafe {
        lib.check((lib.open)(&options, &mut cache))?;
        lib.check((lib.open_space)(cache, &space_options, &mut space))?;
    }
    // Both prompts begin with the same 8 chunks, say a system prompt and a document; then each asks something else.
    let first: Vec<u32> = (0..12 * CHUNK_TOKENS as u32).map(|i| i * 7 % 32000).collect();
    let other = (8 * CHUNK_TOKENS as u32..12 * CHUNK_TOKENS as u32).map(|i| i * 11 % 32000);
    let second: Vec<u32> = first[..8 * CHUNK_TOKENS].iter().copied().chain(other).collect();
    serve(&lib, cache, space, names[0], &first)?;
    serve(&lib, cache, space, names[1], &second)?;
    lib.check(unsafe { (lib.flush)(cache, WAIT_MS) })?;
    lib.check(unsafe { (lib.close)(cache) })
}

fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [place] => run(place, ["request 1", "request 2"]),
        [place, "again"] => run(place, ["request 3", "request 4"]),
        _ => Err("usage: quickstart DIRECTORY|URL|unix:///SOCKET [again]".to_owned()),
    };
    if let Err(error) = &done {
        eprintln!("{error}");
    }
    std::process::ExitCode::from(u8::from(done.is_err()))
}
