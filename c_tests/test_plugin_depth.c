// A plug-in has no more objects in hand than its parameter `depth` allows.
#include "memory_plugin.h"

static void no_more_than_its_depth_is_loaded_at_once(void) {
    reset_plugin();
    kvkeep_options opened = quiet_options(4 * MIB);
    opened.backend_timeout_ms = 30000;
    enter(open_with(&opened));
    kvkeep_backend_vtable vtable = plugin_vtable();
    uint64_t backend;
    OK(kvkeep_add_backend_vtable(cache, &vtable, "depth=2&batch=1", &backend));
    put_below(cache, space, keys, COUNT, SIZE);
    plugin.loads_only = 1;
    be(LATE);
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    uint64_t job, other;
    OK(kvkeep_submit_prefetch(cache, session, keys, COUNT, &options, &job, NULL, NULL));
    AWAIT(plugin_count(&plugin.held_count) == 2);
    // A lookup goes past the loads that wait; when it is answered, the plug-in's thread has seen them.
    kvkeep_key absent;
    keys_of(&absent, 1000, 1);
    OK(kvkeep_submit_prefetch(cache, session, &absent, 1, &options, &other, NULL, NULL));
    OK(kvkeep_wait_job(cache, other, 60000));
    CHECK_EQUAL(plugin_count(&plugin.held_count), 2);
    be(WELL);
    release_held();
    OK(kvkeep_wait_job(cache, job, 60000));
    kvkeep_job_result result;
    KVKEEP_INIT(&result);
    OK(kvkeep_query_job(cache, job, &result));
    CHECK_EQUAL(result.hit_chunks, COUNT);
    leave();
    reset_plugin();
}

int main(void) {
    watchdog();
    RUN(no_more_than_its_depth_is_loaded_at_once);
    return 0;
}
