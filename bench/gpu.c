// What a GPU's pool does on this machine: bit-exactness over random layouts, then bytes per second by fragment size beside one large
// pinned copy, both directions at once, CPU time, and how long L1 takes to be registered. Run by gpu.sh.
//
//   gpu check [LAYOUTS [DEVICE]]         pages come back as they were
//   gpu table [L1_GIB [DEVICE]]          the table, in Markdown
#include <kvkeep.h>

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define KIB ((size_t)1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

static void die(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

#define OK(call) \
    do { \
        if ((call) != KVKEEP_OK) die(#call, kvkeep_last_error()); \
    } while (0)
#define CUDA(call) \
    do { \
        if ((call) != 0) die(#call, "the driver failed"); \
    } while (0)

#define FUNCTIONS(function) \
    function(cuInit, (unsigned)) function(cuDriverGetVersion, (int *)) function(cuDeviceGetName, (char *, int, int)) \
        function(cuDevicePrimaryCtxRetain, (void **, int)) function(cuCtxPushCurrent_v2, (void *)) \
            function(cuStreamCreate, (void **, unsigned)) function(cuStreamSynchronize, (void *)) \
                function(cuMemAlloc_v2, (uint64_t *, size_t)) function(cuMemFree_v2, (uint64_t)) \
                    function(cuMemHostAlloc, (void **, size_t, unsigned)) function(cuMemFreeHost, (void *)) \
                        function(cuMemcpyHtoDAsync_v2, (uint64_t, const void *, size_t, void *)) \
                            function(cuMemcpyDtoHAsync_v2, (void *, uint64_t, size_t, void *)) \
                                function(cuPointerGetAttribute, (void *, int, uint64_t))
#define DECLARE(name, arguments) static int(*name) arguments;
FUNCTIONS(DECLARE)

static kvkeep *cache;
static uint64_t space, session;
static void *stream;

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static uint64_t state = 1;

static uint64_t next(void) {
    state += 0x9e3779b97f4a7c15u;
    uint64_t bits = state;
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    return bits ^ (bits >> 31);
}

static uint32_t below(uint32_t bound) {
    return (uint32_t)(next() % bound);
}

static char *begin(int device) {
    static char name[128];
    void *library = dlopen("libcuda.so.1", RTLD_NOW), *context;
    if (!library) die("libcuda.so.1", "no NVIDIA driver here");
#define FIND(name, arguments) \
    if (!(*(void **)&name = dlsym(library, #name))) die(#name, "not in libcuda.so.1");
    FUNCTIONS(FIND)
    CUDA(cuInit(0));
    CUDA(cuDeviceGetName(name, sizeof name, device));
    CUDA(cuDevicePrimaryCtxRetain(&context, device));
    CUDA(cuCtxPushCurrent_v2(context));
    CUDA(cuStreamCreate(&stream, 1));
    return name;
}

static void open_cache(uint64_t l1_bytes) {
    kvkeep_options options;
    KVKEEP_INIT(&options);
    options.l1_bytes = l1_bytes;
    options.watermark_high_percent = 100;
    OK(kvkeep_open(&options, &cache));
}

static void open_space(uint32_t chunk_tokens, const char *layout) {
    kvkeep_space_options options;
    KVKEEP_INIT(&options);
    options.model = "bench";
    options.layout = layout;
    options.chunk_tokens = chunk_tokens;
    OK(kvkeep_open_space(cache, &options, &space));
    kvkeep_session_options of_session;
    KVKEEP_INIT(&of_session);
    of_session.request_id = "bench";
    OK(kvkeep_begin_session(cache, space, &of_session, &session));
}

static void key_of(kvkeep_key *key, uint64_t number) {
    memset(key, 0, sizeof *key);
    memcpy(key->hash, &number, sizeof number);
}

static void *allocate(size_t bytes) {
    void *made = calloc(1, bytes ? bytes : 1);
    if (!made) die("calloc", "no memory");
    return made;
}

static void upload(uint64_t to, const void *from, size_t bytes) {
    CUDA(cuMemcpyHtoDAsync_v2(to, from, bytes, stream));
    CUDA(cuStreamSynchronize(stream));
}

static void download(void *to, uint64_t from, size_t bytes) {
    CUDA(cuMemcpyDtoHAsync_v2(to, from, bytes, stream));
    CUDA(cuStreamSynchronize(stream));
}

static void finish(uint64_t job) {
    kvkeep_job_result result;
    KVKEEP_INIT(&result);
    OK(kvkeep_wait_job(cache, job, 600000));
    OK(kvkeep_query_job(cache, job, &result));
    if (result.status != KVKEEP_OK) die("a transfer", result.message);
    OK(kvkeep_release_job(cache, job));
}

// A layout of random numbers: what is stored from some blocks comes back in others, and nothing else is touched.
static void check_layout(int device, int number) {
    enum { SEGMENTS_MAX = 12, CHUNKS_MAX = 6 };
    uint32_t segments = 1 + below(SEGMENTS_MAX), per_chunk = 1u << below(5), chunks = 1 + below(CHUNKS_MAX);
    uint32_t used = chunks * per_chunk, blocks = 2 * used + 3;
    uint32_t words = below(8) == 0 ? 1 + below(16 * 1024) : 1 + below(1024);
    kvkeep_segment made[SEGMENTS_MAX];
    memset(made, 0, sizeof made);
    size_t bytes = 0;
    for (uint32_t s = 0; s < segments; s++) {
        made[s].block_bytes = 4 * (uint64_t)words;
        made[s].block_stride = made[s].block_bytes + 4 * below(8);
        made[s].layer = s / 2;
        made[s].address = bytes;
        bytes += made[s].block_stride * blocks;
    }
    uint64_t pages;
    CUDA(cuMemAlloc_v2(&pages, bytes));
    for (uint32_t s = 0; s < segments; s++) made[s].address += pages;
    uint8_t *before = allocate(bytes + 8), *after = allocate(bytes + 8);
    for (size_t at = 0; at < bytes; at += 8) {
        uint64_t random = next();
        memcpy(before + at, &random, 8);
    }
    upload(pages, before, bytes);

    char layout[32];
    snprintf(layout, sizeof layout, "%d", number);
    open_space(16 * per_chunk, layout);
    kvkeep_pool_options options;
    KVKEEP_INIT(&options);
    options.device = device;
    options.block_count = blocks;
    options.blocks_per_chunk = per_chunk;
    options.segments = made;
    options.segment_count = segments;
    uint64_t pool, job;
    OK(kvkeep_open_pool(cache, space, &options, &pool));
    int32_t *ids = allocate(blocks * sizeof *ids);
    for (uint32_t i = 0; i < blocks; i++) {
        uint32_t j = below(i + 1);
        ids[i] = ids[j];
        ids[j] = (int32_t)i;
    }
    kvkeep_key keys[CHUNKS_MAX];
    for (uint32_t i = 0; i < chunks; i++) key_of(&keys[i], next());
    kvkeep_transfer_options on;
    KVKEEP_INIT(&on);
    on.stream = (uint64_t)(uintptr_t)stream;
    OK(kvkeep_submit_store(cache, pool, session, keys, chunks, ids, used, &on, &job, NULL, NULL));
    finish(job);
    OK(kvkeep_submit_load(cache, pool, session, keys, chunks, ids + used, used, &on, &job, NULL, NULL));
    // The stream waits for it, not the host.
    OK(kvkeep_stream_wait_layer(cache, job, (segments - 1) / 2, on.stream, 60000));
    download(after, pages, bytes);
    finish(job);
    for (uint32_t s = 0; s < segments; s++) {
        for (uint32_t i = 0; i < used; i++) {
            size_t from = made[s].address - pages + made[s].block_stride * (uint64_t)ids[i];
            size_t to = made[s].address - pages + made[s].block_stride * (uint64_t)ids[used + i];
            memcpy(before + to, before + from, made[s].block_bytes);
        }
    }
    if (memcmp(before, after, bytes) != 0) die("pages", "not as they were");
    OK(kvkeep_close_pool(cache, pool));
    OK(kvkeep_end_session(cache, session));
    OK(kvkeep_clear(cache, 0, 0, NULL));
    CUDA(cuMemFree_v2(pages));
    free(before);
    free(after);
    free(ids);
}

// ---- The table ----

// Rounds are short enough for a small device, and the best of some counts.
enum { ROUNDS = 5 };
static const size_t sizes[] = {4 * KIB, 8 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 512 * KIB, 1 * MIB, 4 * MIB};
static const size_t moved = 512 * MIB;

struct load {
    uint64_t pages, pool;
    uint32_t blocks, per_chunk, chunks;
    kvkeep_key *keys;
    int32_t *ids;
};

static uint64_t open_pages(struct load *load, int device, size_t bytes) {
    // No two blocks are neighbours.
    load->blocks = (uint32_t)(moved / bytes);
    load->per_chunk = (uint32_t)(4 * MIB / bytes);
    load->chunks = load->blocks / load->per_chunk;
    CUDA(cuMemAlloc_v2(&load->pages, 2 * moved));
    kvkeep_segment segment = {.address = load->pages, .block_bytes = bytes, .block_stride = 2 * bytes};
    kvkeep_pool_options options;
    KVKEEP_INIT(&options);
    options.device = device;
    options.block_count = load->blocks;
    options.blocks_per_chunk = load->per_chunk;
    options.segments = &segment;
    options.segment_count = 1;
    OK(kvkeep_open_pool(cache, space, &options, &load->pool));
    load->keys = allocate(load->chunks * sizeof *load->keys);
    load->ids = allocate(load->blocks * sizeof *load->ids);
    for (uint32_t i = 0; i < load->blocks; i++) load->ids[i] = (int32_t)i;
    return load->pool;
}

static void name_keys(struct load *load) {
    for (uint32_t i = 0; i < load->chunks; i++) key_of(&load->keys[i], next());
}

static void close_pages(struct load *load) {
    OK(kvkeep_close_pool(cache, load->pool));
    CUDA(cuMemFree_v2(load->pages));
    free(load->keys);
    free(load->ids);
}

static uint64_t start(struct load *load, int is_load) {
    uint64_t job;
    OK((is_load ? kvkeep_submit_load : kvkeep_submit_store)(cache, load->pool, session, load->keys, load->chunks,
                                                            load->ids, load->blocks, NULL, &job, NULL, NULL));
    return job;
}

static double gb(size_t bytes, double seconds) {
    return (double)bytes / seconds * 1e-9;
}

static double plain(int up) {
    void *host;
    uint64_t pages;
    double best = 1e9;
    CUDA(cuMemHostAlloc(&host, moved, 0));
    CUDA(cuMemAlloc_v2(&pages, moved));
    memset(host, 1, moved);
    for (int round = 0; round < ROUNDS; round++) {
        double began = now();
        if (up) upload(pages, host, moved);
        else download(host, pages, moved);
        double took = now() - began;
        if (took < best) best = took;
    }
    CUDA(cuMemFreeHost(host));
    CUDA(cuMemFree_v2(pages));
    return gb(moved, best);
}

// Waits until all of L1 is registered, which the driver tells of an address. One object takes nearly all of it.
static double registered_after(double began, size_t l1_bytes) {
    kvkeep_key key;
    kvkeep_view view;
    key_of(&key, next());
    uint64_t size = l1_bytes - 4 * MIB;
    OK(kvkeep_reserve_write(cache, session, &key, 1, &size, KVKEEP_LIFETIME_TEMPORARY, &view));
    struct timespec brief = {0, 1000000};
    for (uint64_t at = 0; at < size; at += 2 * MIB) {
        unsigned kind = 0;
        while (cuPointerGetAttribute(&kind, 2, (uint64_t)(uintptr_t)view.data + at) != 0 || kind != 1)
            nanosleep(&brief, NULL);
    }
    double took = now() - began;
    OK(kvkeep_abort_write(cache, session, &key, 1, NULL));
    return took;
}

static void table(int device, size_t l1_gib, const char *name) {
    int version = 0;
    CUDA(cuDriverGetVersion(&version));
    open_cache(l1_gib * GIB);
    open_space(16, "first");
    struct load load = {0};
    double began = now();
    open_pages(&load, device, 4 * MIB);
    double opened = now() - began, took = registered_after(began, l1_gib * GIB);
    double plain_down = plain(0), plain_up = plain(1);
    printf("## %s\n\n", name);
    printf("Driver of CUDA %d.%d. One pinned copy of %zu MiB: D2H %.1f GB/s, H2D %.1f GB/s. L1 of %zu GiB was "
           "registered %.2f s after its "
           "pool was asked for; the call took %.2f s.\n\n",
           version / 1000, version % 1000 / 10, moved / MIB, plain_down, plain_up, l1_gib, took, opened);
    printf("| fragment | D2H GB/s | of one copy | H2D GB/s | of one copy | both at once, GB/s | CPU s per GiB, D2H | "
           "H2D |\n");
    printf("|---|---|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        char layout[32];
        snprintf(layout, sizeof layout, "%zu", sizes[i]);
        struct load down = {0}, up = {0};
        open_space((uint32_t)(4 * MIB / sizes[i]), layout);
        open_pages(&down, device, sizes[i]);
        open_pages(&up, device, sizes[i]);
        double best[3] = {1e9, 1e9, 1e9}, cpu[2] = {1e9, 1e9};
        for (int round = 0; round <= ROUNDS; round++) {
            OK(kvkeep_clear(cache, 0, 0, NULL));
            name_keys(&up);
            double times[4], used[3];
            used[0] = cpu_seconds();
            times[0] = now();
            finish(start(&up, 0));
            times[1] = now();
            used[1] = cpu_seconds();
            finish(start(&up, 1));
            times[2] = now();
            used[2] = cpu_seconds();
            name_keys(&down);
            double both = now();
            uint64_t first = start(&down, 0), second = start(&up, 1);
            finish(first);
            finish(second);
            times[3] = now() - both;
            for (int way = 0; way < 2; way++) {
                // The first round only warms up.
                if (round == 0) continue;
                if (times[way + 1] - times[way] < best[way]) best[way] = times[way + 1] - times[way];
                if (used[way + 1] - used[way] < cpu[way]) cpu[way] = used[way + 1] - used[way];
            }
            if (round > 0 && times[3] < best[2]) best[2] = times[3];
        }
        double gib = (double)moved / (double)GIB;
        printf("| %zu KiB | %.1f | %.0f %% | %.1f | %.0f %% | %.1f | %.3f | %.3f |\n", sizes[i] / KIB,
               gb(moved, best[0]), 100 * gb(moved, best[0]) / plain_down, gb(moved, best[1]),
               100 * gb(moved, best[1]) / plain_up, gb(2 * moved, best[2]), cpu[0] / gib, cpu[1] / gib);
        fflush(stdout);
        close_pages(&down);
        close_pages(&up);
    }
    close_pages(&load);
}

int main(int count, char **words) {
    int checks = count > 1 && strcmp(words[1], "check") == 0;
    if (count < 2 || (!checks && strcmp(words[1], "table") != 0))
        die("usage", "gpu check [LAYOUTS [DEVICE]] | gpu table [L1_GIB [DEVICE]]");
    int number = count > 2 ? atoi(words[2]) : checks ? 1000 : 8, device = count > 3 ? atoi(words[3]) : 0;
    const char *name = begin(device);
    if (!checks) {
        if (strncmp(name, "Fake", 4) == 0) die(name, "its speed says nothing");
        table(device, (size_t)number, name);
        OK(kvkeep_close(cache));
        return 0;
    }
    open_cache(256 * MIB);
    for (int i = 0; i < number; i++) {
        state = (uint64_t)i;
        check_layout(device, i);
    }
    OK(kvkeep_close(cache));
    printf("%d layouts came back bit by bit on %s\n", number, name);
    return 0;
}
