// Clients of a daemon: one that is not there, that goes and comes back, and what it refuses to readers and beyond its bounds.
#include "pages.h"
#include "serve.h"
#include "completions.h"

static char *directory;
static pid_t daemon_pid;

static void start(const char *url, const char *flag, const char *value) {
    struct command command = serve_command(directory, 4 * MIB);
    add(&command, "--l2", url);
    if (flag) add(&command, flag, value);
    CHECK((daemon_pid = start_serving(&command, directory)) != 0);
}

static void stop(void) {
    CHECK_EQUAL(kill(daemon_pid, SIGTERM), 0);
    int how = -1;
    CHECK_EQUAL(waitpid(daemon_pid, &how, 0), daemon_pid);
    CHECK(WIFEXITED(how) && WEXITSTATUS(how) == 0);
}

static void kill_daemon(void) {
    CHECK_EQUAL(kill(daemon_pid, SIGKILL), 0);
    CHECK_EQUAL(waitpid(daemon_pid, NULL, 0), daemon_pid);
}

static kvkeep_status try_connect(const char *parameters, uint32_t flags, kvkeep **opened) {
    char url[4200];
    snprintf(url, sizeof url, "unix://%s/s%s", directory, parameters);
    kvkeep_options options;
    KVKEEP_INIT(&options);
    options.connect = url;
    options.flags = flags;
    return kvkeep_open(&options, opened);
}

static kvkeep *connect_as(uint32_t flags) {
    kvkeep *opened = NULL;
    OK(try_connect("", flags, &opened));
    return opened;
}

static void *open_patiently(void *opened) {
    OK(try_connect("?wait_ms=600000", 0, opened));
    return NULL;
}

static void who_waits_for_a_daemon_connects_when_it_starts(void) {
    kvkeep *opened = NULL;
    FAILS(try_connect("", 0, &opened), KVKEEP_ERR_DISCONNECTED, "no daemon answers");
    FAILS(try_connect("?wait_ms=30", 0, &opened), KVKEEP_ERR_DISCONNECTED, "no daemon answers");
    CHECK(opened == NULL);
    pthread_t waiting;
    CHECK_EQUAL(pthread_create(&waiting, NULL, open_patiently, &opened), 0);
    start("memory:", NULL, NULL);
    CHECK_EQUAL(pthread_join(waiting, NULL), 0);
    CHECK_EQUAL(stats_of(opened).clients, 1);
    OK(kvkeep_close(opened));
    stop();
}

// What every function says that asks a daemon which is gone; the numbers are of its run.
static void check_all_disconnected(uint64_t job, uint64_t transfer) {
    kvkeep_job_result result;
    KVKEEP_INIT(&result);
    kvkeep_stats stats;
    KVKEEP_INIT(&stats);
    kvkeep_space_options space_options;
    KVKEEP_INIT(&space_options);
    space_options.model = "new";
    kvkeep_key key = key_of(1);
    kvkeep_key_state state;
    kvkeep_space_usage usage;
    kvkeep_miss_report misses;
    KVKEEP_INIT(&usage);
    KVKEEP_INIT(&misses);
    kvkeep_view view;
    kvkeep_event event;
    const uint64_t size = 4096;
    uint64_t number = 0;
    uint32_t tokens[4] = {1, 2, 3, 4}, chunks;
    int32_t ids[PER_CHUNK];
    uint8_t bits;
    size_t length;
    char text[64];
    blocks_of(ids, 0, PER_CHUNK);
#define GONE(call) FAILS(call, KVKEEP_ERR_DISCONNECTED, "went away")
    GONE(kvkeep_open_space(cache, &space_options, &number));
    GONE(kvkeep_add_backend(cache, "memory:", &number));
    GONE(kvkeep_remove_backend(cache, 1));
    GONE(kvkeep_flush(cache, 60000));
    GONE(kvkeep_begin_session(cache, space, NULL, &number));
    GONE(kvkeep_end_session(cache, session));
    GONE(kvkeep_abort_session(cache, session));
    GONE(kvkeep_append_tokens(cache, session, tokens, 4, &number));
    GONE(kvkeep_get_session_keys(cache, session, 0, 1, 0, 1, 1, &key, 1));
    GONE(kvkeep_reserve_write(cache, session, &key, 1, &size, 0, &view));
    GONE(kvkeep_finish_write(cache, session, &key, 1, NULL));
    GONE(kvkeep_abort_write(cache, session, &key, 1, NULL));
    GONE(kvkeep_finish_write_and_reserve_read(cache, session, &key, 1, 0, &view));
    GONE(kvkeep_reserve_read(cache, session, &key, 1, 0, &view));
    GONE(kvkeep_finish_read(cache, session, &key, 1, 0, NULL));
    GONE(kvkeep_finish_read_tokens(cache, session, 0, 16, 0, 1, 1, 0, NULL));
    GONE(kvkeep_get_views(cache, session, &key, 1, &view));
    GONE(kvkeep_renew_session(cache, session));
    GONE(kvkeep_set_quota(cache, space, 0));
    GONE(kvkeep_close_space(cache, 1));
    kvkeep_session_state state_of_session;
    KVKEEP_INIT(&state_of_session);
    GONE(kvkeep_query_session(cache, session, &state_of_session));
    GONE(kvkeep_query_backends(cache, NULL, 0, &length));
    GONE(kvkeep_query_prefix_lengths(cache, job, NULL, 0, &length));
    GONE(kvkeep_touch(cache, space, &key, 1, NULL));
    GONE(kvkeep_query_keys(cache, space, &key, 1, &state));
    GONE(kvkeep_retain(cache, space, &key, 1, 50, 1000, NULL));
    GONE(kvkeep_evict(cache, space, &key, 1, NULL));
    GONE(kvkeep_delete(cache, space, &key, 1, NULL));
    GONE(kvkeep_clear(cache, space, 0, NULL));
    GONE(kvkeep_submit_prefetch(cache, session, &key, 1, NULL, &number, NULL, NULL));
    GONE(kvkeep_query_lookup_hits(cache, job, &chunks));
    GONE(kvkeep_query_job(cache, job, &result));
    GONE(kvkeep_query_bitmap(cache, job, &bits, 1));
    GONE(kvkeep_wait_job(cache, job, 60000));
    GONE(kvkeep_cancel_job(cache, job));
    GONE(kvkeep_release_job(cache, job));
    GONE(kvkeep_query_stats(cache, &stats));
    GONE(kvkeep_query_space(cache, space, &usage));
    GONE(kvkeep_query_misses(cache, space, &misses));
    GONE(kvkeep_explain_misses(cache, text, sizeof text, &length));
    GONE(kvkeep_get_metrics(cache, text, sizeof text, &length));
    GONE(kvkeep_explain_key(cache, space, &key, text, sizeof text, &length));
    GONE(kvkeep_explain_session(cache, session, text, sizeof text, &length));
    GONE(kvkeep_read_events(cache, &number, &event, 1, &length));
    GONE(kvkeep_submit_store(cache, pool, session, &key, 1, ids, PER_CHUNK, NULL, &number, NULL, NULL));
    GONE(kvkeep_submit_load(cache, pool, session, &key, 1, ids, PER_CHUNK, NULL, &number, NULL, NULL));
#undef GONE
    CHECK_EQUAL(number, 0);
    // A transfer is this process's own, and knows how it ended.
    FAILS(kvkeep_wait_layer(cache, transfer, 0, 60000), KVKEEP_ERR_DISCONNECTED, "ended with");
    FAILS(kvkeep_stream_wait_layer(cache, transfer, 0, 0, 60000), KVKEEP_ERR_DISCONNECTED, "ended with");
    OK(kvkeep_query_job(cache, transfer, &result));
    CHECK_STATUS(result.status, KVKEEP_ERR_DISCONNECTED);
    check_blocks(transfer, PER_CHUNK, KVKEEP_ERR_DISCONNECTED);
}

static void p4_what_a_daemon_had_accepted_ends_with_it_and_the_client_goes_on_with_the_next(void) {
    start("fault:memory:?fault.load_hang=1", NULL, NULL);
    enter(connect_as(0));
    kvkeep_key key = key_of(1);
    int32_t ids[PER_CHUNK];
    blocks_of(ids, 0, PER_CHUNK);
    store_all(&key, 1, 0);
    OK(kvkeep_flush(cache, 30000));
    OK(kvkeep_clear(cache, space, 0, NULL));
    struct completions of_job = NO_COMPLETIONS, of_transfer = NO_COMPLETIONS;
    uint64_t job, transfer;
    OK(kvkeep_submit_prefetch(cache, session, &key, 1, NULL, &job, note_completion, &of_job));
    OK(kvkeep_submit_load(cache, pool, session, &key, 1, ids, PER_CHUNK, NULL, &transfer, note_completion,
                          &of_transfer));
    kill_daemon();
    struct completions *both[] = {&of_job, &of_transfer};
    for (int i = 0; i < 2; i++) {
        kvkeep_completion completion = await_completions(both[i], 1);
        CHECK_STATUS(completion.status, KVKEEP_ERR_DISCONNECTED);
        CHECK_EQUAL(completion.hit_chunks, 0);
        CHECK(strstr(completion.message, "daemon") != NULL);
    }
    CHECK(strstr(of_job.last.message, "submit the job again") != NULL);
    check_all_disconnected(job, transfer);

    // The next one is found by itself: the space keeps its number, and what was lost says so on.
    start("memory:", NULL, NULL);
    uint64_t former = session;
    AWAIT(kvkeep_begin_session(cache, space, NULL, &session) == KVKEEP_OK);
    FAILS(kvkeep_end_session(cache, former), KVKEEP_ERR_DISCONNECTED, "went away");
    FAILS(kvkeep_wait_job(cache, job, 0), KVKEEP_ERR_DISCONNECTED, "went away");
    store_all(&key, 1, 0);
    OK(kvkeep_end_session(cache, session));
    begun_count = 0;
    leave();
    CHECK_EQUAL(of_job.count, 1);
    CHECK_EQUAL(of_transfer.count, 1);
    stop();
}

static void a_stopped_daemon_holds_no_call_longer_than_its_patience(void) {
    start("memory:", NULL, NULL);
    kvkeep *opened = NULL;
    FAILS(try_connect("?patience_ms=0", 0, &opened), KVKEEP_ERR_INVALID, "patience_ms is 0");
    OK(try_connect("?patience_ms=100", 0, &opened));
    enter(opened);
    kvkeep_key key = key_of(1);
    kvkeep_view view;
    store_all(&key, 1, 0);
    OK(kvkeep_reserve_read(cache, session, &key, 1, 0, &view));
    CHECK_EQUAL(kill(daemon_pid, SIGSTOP), 0);
    CHECK_EQUAL(waitpid(daemon_pid, NULL, WUNTRACED), daemon_pid);
    uint64_t late = 0;
    FAILS(kvkeep_begin_session(cache, space, NULL, &late), KVKEEP_ERR_TIMEOUT, "did not answer in time");
    FAILS(kvkeep_reserve_read(cache, session, &key, 1, 0, &view), KVKEEP_ERR_TIMEOUT, "patience_ms");
    FAILS(kvkeep_flush(cache, 100), KVKEEP_ERR_TIMEOUT, "stopped or overloaded");
    CHECK_EQUAL(late, 0);
    CHECK_EQUAL(kill(daemon_pid, SIGCONT), 0);
    // The session and its share are there, and what was given up left nothing.
    AWAIT(kvkeep_flush(cache, 30000) == KVKEEP_OK);
    AWAIT(stats_of(cache).sessions == 1 && stats_of(cache).l1_shares == 1);
    OK(kvkeep_finish_read(cache, session, &key, 1, 0, NULL));
    leave();
    stop();
}

static void a_reader_is_refused_whatever_writes(void) {
    start("memory:", NULL, NULL);
    kvkeep *writer = connect_as(0), *reader = connect_as(KVKEEP_FLAG_READ_ONLY);
    kvkeep_key key = key_of(1), other = key_of(2);
    uint64_t shared = open_space(writer, "model"), kept = begin(writer, shared);
    put_in(writer, kept, &key, 1, 4096);
    enter(reader);
    CHECK_EQUAL(space, shared);
    kvkeep_view view;
    const uint64_t size = 4096;
    int32_t ids[PER_CHUNK];
    uint64_t job = 77, removed = 77;
    blocks_of(ids, 0, PER_CHUNK);
#define REFUSED(call) FAILS(call, KVKEEP_ERR_PERMISSION, "reader")
    REFUSED(kvkeep_reserve_write(reader, session, &other, 1, &size, 0, &view));
    REFUSED(kvkeep_finish_write(reader, session, &other, 1, NULL));
    REFUSED(kvkeep_abort_write(reader, session, &other, 1, NULL));
    REFUSED(kvkeep_finish_write_and_reserve_read(reader, session, &other, 1, 0, &view));
    REFUSED(kvkeep_evict(reader, space, &key, 1, NULL));
    REFUSED(kvkeep_delete(reader, space, &key, 1, NULL));
    REFUSED(kvkeep_retain(reader, space, &key, 1, 50, 1000, NULL));
    REFUSED(kvkeep_clear(reader, space, 1, &removed));
    REFUSED(kvkeep_submit_store(reader, pool, session, &other, 1, ids, PER_CHUNK, NULL, &job, NULL, NULL));
#undef REFUSED
    CHECK_EQUAL(job, 77);
    CHECK_EQUAL(removed, 77);
    OK(kvkeep_reserve_read(reader, session, &key, 1, 0, &view));
    CHECK(holds(&key, &view));
    kvkeep_key_state state;
    OK(kvkeep_query_keys(reader, space, &key, 1, &state));
    CHECK_EQUAL(state.shares, 1);
    kvkeep_space_usage usage;
    KVKEEP_INIT(&usage);
    OK(kvkeep_query_space(reader, space, &usage));
    CHECK_EQUAL(usage.objects, 1);
    OK(kvkeep_finish_read(reader, session, &key, 1, 0, NULL));
    CHECK_EQUAL(stats_of(writer).l1_objects, 1);
    CHECK_EQUAL(stats_of(writer).l1_staged, 0);
    OK(kvkeep_close_pool(reader, pool));
    OK(kvkeep_close(reader));
    OK(kvkeep_end_session(writer, kept));
    begun_count = 0;
    OK(kvkeep_close(writer));
    stop();
}

// A client of its own, with a pool whose blocks have so many bytes.
struct client {
    kvkeep *cache;
    uint64_t space, session, pool;
};

static kvkeep_status try_pool(struct client *client, uint64_t block_bytes) {
    kvkeep_segment segments[2 * LAYERS];
    kvkeep_pool_options options = pool_options(segments);
    for (int i = 0; i < 2 * LAYERS; i++) segments[i].block_bytes = block_bytes;
    options.block_count = BLOCKS * BLOCK / (uint32_t)block_bytes;
    return kvkeep_open_pool(client->cache, client->space, &options, &client->pool);
}

static struct client join(void) {
    struct client client = {.cache = connect_as(0)};
    client.space = open_space(client.cache, "model");
    OK(kvkeep_begin_session(client.cache, client.space, NULL, &client.session));
    return client;
}

static kvkeep_status try_load(struct client *client, int32_t *statuses) {
    kvkeep_key key = key_of(1);
    int32_t ids[PER_CHUNK];
    uint64_t job = 0;
    blocks_of(ids, 0, PER_CHUNK);
    kvkeep_status status = kvkeep_submit_load(client->cache, client->pool, client->session, &key, 1, ids, PER_CHUNK,
                                              NULL, &job, NULL, NULL);
    if (status != KVKEEP_OK) return status;
    OK(kvkeep_wait_job(client->cache, job, 60000));
    OK(kvkeep_query_blocks(client->cache, job, statuses, PER_CHUNK));
    return KVKEEP_OK;
}

static void clients_whose_pages_look_different_are_refused_before_and_after_a_restart(void) {
    char url[4200];
    int32_t statuses[PER_CHUNK];
    snprintf(url, sizeof url, "fs://%s/l2?capacity=1GiB%s", directory, fs_parameters(""));
    start(url, NULL, NULL);
    enter(connect_as(0));
    struct client other = join();
    FAILS(try_pool(&other, BLOCK / 2), KVKEEP_ERR_INVALID, "earlier pool");
    CHECK(strstr(kvkeep_last_error(), "layout of kvkeep_space_options") != NULL);
    kvkeep_key key = key_of(1);
    store_all(&key, 1, 0);
    OK(kvkeep_flush(cache, 30000));
    OK(try_pool(&other, BLOCK));
    OK(try_load(&other, statuses));
    for (int i = 0; i < PER_CHUNK; i++) OK(statuses[i]);
    OK(kvkeep_close_pool(other.cache, other.pool));

    // Without a daemon nobody can tell: the first to copy at the next one is right there.
    kill_daemon();
    AWAIT(kvkeep_begin_session(other.cache, other.space, NULL, &other.session) == KVKEEP_ERR_DISCONNECTED);
    OK(try_pool(&other, BLOCK / 2));
    start(url, NULL, NULL);
    AWAIT(kvkeep_begin_session(other.cache, other.space, NULL, &other.session) == KVKEEP_OK);
    memset(pages, 0xee, sizeof before);
    // What the other wrote to the directory is none of its own.
    OK(try_load(&other, statuses));
    for (int i = 0; i < PER_CHUNK; i++) CHECK_STATUS(statuses[i], KVKEEP_ERR_IO);
    for (size_t i = 0; i < sizeof before; i++) CHECK_EQUAL(((uint8_t *)pages)[i], 0xee);
    AWAIT(kvkeep_begin_session(cache, space, NULL, &session) == KVKEEP_OK);
    int32_t ids[PER_CHUNK];
    uint64_t job = 0;
    blocks_of(ids, 0, PER_CHUNK);
    FAILS(kvkeep_submit_load(cache, pool, session, &key, 1, ids, PER_CHUNK, NULL, &job, NULL, NULL), KVKEEP_ERR_INVALID,
          "earlier pool");
    FAILS(kvkeep_submit_store(cache, pool, session, &key, 1, ids, PER_CHUNK, NULL, &job, NULL, NULL),
          KVKEEP_ERR_INVALID, "earlier pool");
    CHECK_EQUAL(job, 0);
    OK(kvkeep_close(other.cache));
    OK(kvkeep_end_session(cache, session));
    begun_count = 0;
    leave();
    stop();
}

static void p9_clients_are_bounded(void) {
    start("memory:", "--clients-max", "1");
    kvkeep *only = connect_as(0), *more = NULL;
    FAILS(try_connect("", 0, &more), KVKEEP_ERR_LIMIT, "1 clients are connected");
    CHECK(more == NULL);
    OK(kvkeep_close(only));
    // A connection ends a moment after its client has closed.
    AWAIT(try_connect("", 0, &more) == KVKEEP_OK);
    OK(kvkeep_close(more));
    stop();
}

static void a_daemon_that_does_not_let_one_in_says_so(void) {
    if (geteuid() != 0) {
        skipped(__func__, "only root can be another user");
        return;
    }
    CHECK_EQUAL(chmod(directory, 0755), 0);
    start("memory:", "--socket-mode", "0666");
    kvkeep *opened = NULL;
    CHECK_EQUAL(seteuid(65534), 0);
    kvkeep_status status = try_connect("", 0, &opened);
    FAILS(status, KVKEEP_ERR_PERMISSION, "user 65534");
    CHECK_EQUAL(seteuid(0), 0);
    CHECK(opened == NULL);
    stop();
}

int main(void) {
    watchdog();
    pages_begin();
    directory = new_directory();
    RUN(who_waits_for_a_daemon_connects_when_it_starts);
    RUN(p4_what_a_daemon_had_accepted_ends_with_it_and_the_client_goes_on_with_the_next);
    RUN(a_stopped_daemon_holds_no_call_longer_than_its_patience);
    RUN(a_reader_is_refused_whatever_writes);
    RUN(clients_whose_pages_look_different_are_refused_before_and_after_a_restart);
    RUN(p9_clients_are_bounded);
    RUN(a_daemon_that_does_not_let_one_in_says_so);
    remove_directory(directory);
    return 0;
}
