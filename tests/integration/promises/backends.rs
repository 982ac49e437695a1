//! Backends that come and go at run time.

use kvkeep::cache::Cache as _;
use kvkeep::config::PrefetchRequest;
use kvkeep::error::KVKEEP_ERR_NOT_FOUND;

use super::cache::{Cache, KIB, MIB, WATCHDOG_MS, until, watched};

#[test]
fn what_a_job_found_in_a_backend_is_loaded_before_it_is_removed() {
    watched(|| {
        let cache = Cache::open(MIB, &[], |config| config.loading_bytes_max = 16 * KIB);
        let backend = cache.node.add_backend("fault:memory:?fault.delay=1&fault.delay_ms=10").unwrap();
        cache.store_below(0..24, 16 * KIB);
        let session = cache.session();
        let job = cache.submit(session, 0..24, PrefetchRequest::default());
        let mut chunks = 0;
        until("the early answer", || {
            cache.node.query_lookup_hits(job, &mut chunks).unwrap();
            chunks == 24
        });
        // Most of it waits for the loads before it.
        cache.node.remove_backend(backend).unwrap();
        cache.node.wait(job, WATCHDOG_MS).unwrap();
        assert_eq!(cache.answer(job).unwrap().hit_chunks, 24);
        assert_eq!(cache.node.remove_backend(backend).unwrap_err().status, KVKEEP_ERR_NOT_FOUND);
        assert_eq!(cache.prefetch(session, 30..31).hit_chunks, 0);
        cache.node.close();
    });
}
