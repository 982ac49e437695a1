// A cache that others connect to while this process has it open: the process is the daemon, with a store of its own below.
#include "memory_plugin.h"

static char url[256], bad[512];
static const char *directory;

static kvkeep_options listening(const char *parameters) {
    kvkeep_options options = quiet_options(4 * MIB);
    snprintf(url, sizeof url, "unix://%s/s%s", directory, parameters);
    options.listen = url;
    return options;
}

static kvkeep *connect_to(const char *parameters) {
    char to[512];
    snprintf(to, sizeof to, "unix://%s/s%s", directory, parameters);
    kvkeep_options options;
    KVKEEP_INIT(&options);
    options.connect = to;
    return open_with(&options);
}

static void a_client_hits_what_the_host_stored(void) {
    kvkeep_options options = listening("?mode=0600");
    enter(open_with(&options));
    OK(kvkeep_serve_clients(cache));
    put(cache, space, keys, COUNT, SIZE);
    kvkeep *host = cache, *client = connect_to("");
    uint64_t of_client = open_space(client, "model");
    CHECK_EQUAL(of_client, space);
    session = begin(client, of_client);
    kvkeep_view views[COUNT];
    OK(kvkeep_reserve_read(client, session, keys, COUNT, 0, views));
    for (int i = 0; i < COUNT; i++) CHECK(holds(&keys[i], &views[i]));
    CHECK_EQUAL(stats_of(host).l1_shares, COUNT);
    CHECK_EQUAL(stats_of(host).clients, 1);
    OK(kvkeep_end_session(client, session));
    OK(kvkeep_close(client));
    leave();
}

static void a_store_of_the_host_serves_its_clients(void) {
    reset_plugin();
    kvkeep_options options = listening("");
    enter(open_with(&options));
    kvkeep_backend_vtable vtable = plugin_vtable();
    OK(kvkeep_add_backend_vtable(cache, &vtable, NULL, NULL));
    OK(kvkeep_serve_clients(cache));
    put_below(cache, space, keys, COUNT, SIZE);
    kvkeep *host = cache;
    cache = connect_to("");
    session = begin(cache, open_space(cache, "model"));
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.hit_chunks, COUNT);
    CHECK_EQUAL(result.tier_keys[1], COUNT);
    // The client's own functions are out of the daemon's reach.
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, NULL, NULL), KVKEEP_ERR_UNSUPPORTED, "daemon");
    OK(kvkeep_end_session(cache, session));
    OK(kvkeep_close(cache));
    cache = host;
    leave();
    CHECK_EQUAL(plugin.closed, 1);
    reset_plugin();
}

static void clients_are_told_when_the_host_closes(void) {
    kvkeep_options options = listening("");
    enter(open_with(&options));
    OK(kvkeep_serve_clients(cache));
    kvkeep *client = connect_to("?patience_ms=60000");
    uint64_t of_client = begin(client, open_space(client, "model"));
    (void)of_client;
    begun_count = 0;
    OK(kvkeep_close(cache));
    kvkeep_stats stats;
    KVKEEP_INIT(&stats);
    CHECK_STATUS(kvkeep_query_stats(client, &stats), KVKEEP_ERR_DISCONNECTED);
    OK(kvkeep_close(client));
    // The socket is free again.
    enter(open_with(&options));
    leave();
}

static void a_socket_that_is_none_or_taken_is_refused(void) {
    kvkeep_options options = listening("");
    enter(open_with(&options));
    kvkeep *second = NULL;
    // Nobody is let in before it says so, and it says so once.
    KVKEEP_INIT(&options);
    snprintf(bad, sizeof bad, "unix://%s/s", directory);
    options.connect = bad;
    FAILS(kvkeep_open(&options, &second), KVKEEP_ERR_DISCONNECTED, "daemon");
    OK(kvkeep_serve_clients(cache));
    FAILS(kvkeep_serve_clients(cache), KVKEEP_ERR_EXISTS, "already");
    kvkeep *alone = open_l1(4 * MIB);
    FAILS(kvkeep_serve_clients(alone), KVKEEP_ERR_INVALID, "no socket");
    OK(kvkeep_close(alone));
    FAILS(kvkeep_serve_clients(NULL), KVKEEP_ERR_CLOSED, "not open");
    options = listening("");
    FAILS(kvkeep_open(&options, &second), KVKEEP_ERR_EXISTS, "another daemon");
    static const struct {
        const char *url, *words;
        kvkeep_status status;
    } refused[] = {
        {"/tmp/s", "is no URL", KVKEEP_ERR_INVALID},
        {"fs:///tmp/s", "names no socket", KVKEEP_ERR_INVALID},
        {"unix:relative", "names no socket", KVKEEP_ERR_INVALID},
        {"unix:///no/such/directory/s", "/no/such/directory", KVKEEP_ERR_IO},
        {"unix:///tmp/s?http=everywhere", "http", KVKEEP_ERR_INVALID},
        {"unix:///tmp/s?mode=999", "mode", KVKEEP_ERR_INVALID},
        {"unix:///tmp/s?port=1", "has no parameter", KVKEEP_ERR_INVALID},
    };
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        options.listen = refused[i].url;
        FAILS(kvkeep_open(&options, &second), refused[i].status, refused[i].words);
    }
    KVKEEP_INIT(&options);
    snprintf(bad, sizeof bad, "unix://%s/s", directory);
    options.connect = bad;
    options.listen = "unix:///tmp/other";
    FAILS(kvkeep_open(&options, &second), KVKEEP_ERR_INVALID, "listen is set");
    CHECK(second == NULL);
    leave();
}

int main(void) {
    watchdog();
    directory = strdup(new_directory());
    RUN(a_client_hits_what_the_host_stored);
    RUN(a_store_of_the_host_serves_its_clients);
    RUN(clients_are_told_when_the_host_closes);
    RUN(a_socket_that_is_none_or_taken_is_refused);
    remove_directory(directory);
    free((void *)directory);
    return 0;
}
