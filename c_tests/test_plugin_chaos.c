// A plug-in that misbehaves by chance, in every way, while jobs are submitted, cancelled and forgotten, and the plug-in is removed and
// added: each job completes once, no share or byte is left, and no wrong byte reaches a reader. KVKEEP_CHAOS_SEED repeats a run,
// KVKEEP_PLUGIN_ROUNDS makes it longer.
#include "memory_plugin.h"

enum { WORKERS = 3, KEYS = 64, RUN_LENGTH = 6 };

static uint64_t rounds, backend;
static int working, asked, ended;
static pthread_mutex_t counting = PTHREAD_MUTEX_INITIALIZER;

static void count_end(void *userdata, const kvkeep_completion *completion) {
    (void)completion;
    pthread_mutex_lock(&counting);
    (*(int *)userdata)++;
    ended++;
    pthread_mutex_unlock(&counting);
}

static int counted(const int *counter) {
    pthread_mutex_lock(&counting);
    int count = *counter;
    pthread_mutex_unlock(&counting);
    return count;
}

static void count(int *counter, int by) {
    pthread_mutex_lock(&counting);
    *counter += by;
    pthread_mutex_unlock(&counting);
}

static unsigned draw(unsigned *seed, unsigned most) {
    *seed = *seed * 1664525u + 1013904223u;
    return (*seed >> 16) % most;
}

static void store_run(uint64_t own, const kvkeep_key *run) {
    kvkeep_view views[RUN_LENGTH];
    uint64_t sizes[RUN_LENGTH];
    for (int i = 0; i < RUN_LENGTH; i++) sizes[i] = SIZE;
    CHECK(kvkeep_reserve_write(cache, own, run, RUN_LENGTH, sizes, KVKEEP_LIFETIME_CACHED, views) >= 0);
    for (int i = 0; i < RUN_LENGTH; i++) {
        if (views[i].status == KVKEEP_OK) fill(&run[i], &views[i]);
    }
    CHECK(kvkeep_finish_write(cache, own, run, RUN_LENGTH, NULL) >= 0);
}

// Reads what a job finds; every byte must be its key's.
static void load_run(uint64_t own, const kvkeep_key *run, int cancels) {
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    kvkeep_job_result result;
    KVKEEP_INIT(&result);
    uint64_t job;
    int told = 0;
    OK(kvkeep_submit_prefetch(cache, own, run, RUN_LENGTH, &options, &job, count_end, &told));
    count(&asked, 1);
    if (cancels) OK(kvkeep_cancel_job(cache, job));
    OK(kvkeep_wait_job(cache, job, 60000));
    OK(kvkeep_query_job(cache, job, &result));
    if (result.status == KVKEEP_OK && result.hit_chunks > 0) check_held(cache, own, run, result.hit_chunks);
    AWAIT(counted(&told));
    CHECK_EQUAL(counted(&told), 1);
}

// On a busy machine the plug-in may be fenced for most of the rounds: then there are more, until everything was met.
static int met_everything(void) {
    kvkeep_stats stats = stats_of(cache);
    return plugin_count(&plugin.refused) > 0 && stats.loads > 0 && stats.corruptions > 0 && stats.stores > 0;
}

static void *work(void *userdata) {
    unsigned seed = *(unsigned *)userdata;
    for (uint64_t round = 0; round < rounds || !met_everything(); round++) {
        kvkeep_key run[RUN_LENGTH];
        keys_of(run, draw(&seed, KEYS - RUN_LENGTH), RUN_LENGTH);
        kvkeep_session_options options;
        KVKEEP_INIT(&options);
        uint64_t own, removed;
        OK(kvkeep_begin_session(cache, space, &options, &own));
        switch (draw(&seed, 8)) {
        case 0: CHECK(kvkeep_delete(cache, space, run, RUN_LENGTH, NULL) >= 0); break;
        case 1:
        case 2:
        case 3: store_run(own, run); break;
        default: CHECK(kvkeep_clear(cache, space, 0, &removed) >= 0); load_run(own, run, draw(&seed, 4) == 0);
        }
        OK(draw(&seed, 2) ? kvkeep_end_session(cache, own) : kvkeep_abort_session(cache, own));
    }
    count(&working, -1);
    return NULL;
}

static void p4_whatever_a_plug_in_does_each_job_ends_once(void) {
    const char *given = getenv("KVKEEP_CHAOS_SEED"), *length = getenv("KVKEEP_PLUGIN_ROUNDS");
    unsigned seed = given ? (unsigned)strtoul(given, NULL, 10) : (unsigned)time(NULL);
    printf("KVKEEP_CHAOS_SEED=%u\n", seed);
    rounds = length ? strtoull(length, NULL, 10) : 600;
    reset_plugin();
    kvkeep_options options = quiet_options(8 * MIB);
    options.backend_timeout_ms = 15;
    cache = open_with(&options);
    space = open_space(cache, "model");
    kvkeep_backend_vtable vtable = plugin_vtable();
    plugin.seed = seed;
    plugin.complete_when_closed = 1;
    plugin.how = ANYHOW;
    OK(kvkeep_add_backend_vtable(cache, &vtable, "threads=2&batch=3", &backend));
    pthread_t threads[WORKERS];
    unsigned seeds[WORKERS];
    working = WORKERS;
    for (unsigned i = 0; i < WORKERS; i++) {
        seeds[i] = seed + i * 7919;
        CHECK_EQUAL(pthread_create(&threads[i], NULL, work, &seeds[i]), 0);
    }
    // What is late is answered after all, so that the plug-in is fenced only for a while; now and then it is removed and added.
    for (unsigned turn = 1; counted(&working); turn++) {
        for (int i = 0; i < 20; i++) pause_briefly();
        release_held();
        if (turn % 16) continue;
        kvkeep_status removed = kvkeep_remove_backend(cache, backend);
        CHECK(removed == KVKEEP_OK || removed == KVKEEP_ERR_TIMEOUT);
        AWAIT(plugin_count(&plugin.closed) == plugin_count(&plugin.opened));
        OK(kvkeep_add_backend_vtable(cache, &vtable, "threads=2&batch=3", &backend));
    }
    for (int i = 0; i < WORKERS; i++) CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
    be(WELL);
    release_held();
    kvkeep_stats stats = stats_of(cache);
    printf("%d jobs; %llu objects loaded, %llu failed, %llu corrupt; %llu stored, %llu late; %d answers, %d refused; "
           "opened %d times\n",
           asked, (unsigned long long)stats.loads, (unsigned long long)stats.load_failures,
           (unsigned long long)stats.corruptions, (unsigned long long)stats.stores,
           (unsigned long long)stats.backend_timeouts, plugin.completed, plugin.refused, plugin.opened);
    CHECK_EQUAL(asked, ended);
    CHECK(met_everything());
    AWAIT(stats_of(cache).l1_locked_bytes == 0);
    CHECK_EQUAL(stats_of(cache).l1_shares, 0);
    OK(kvkeep_close(cache));
    CHECK_EQUAL(plugin.opened, plugin.closed);
    reset_plugin();
}

int main(void) {
    watchdog();
    RUN(p4_whatever_a_plug_in_does_each_job_ends_once);
    return 0;
}
