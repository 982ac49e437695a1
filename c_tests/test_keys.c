// Keys of encrypted backends that the host program gives when it is asked.
#include "memory_plugin.h"

#include <pthread.h>

// A key service with one name; key `number` has the byte keys[number] 32 times.
struct service {
    const char *name;
    const char *keys;
    int32_t status; // of every call, if it is not 0
    uint32_t calls;
    pthread_t caller;
};

static int32_t give_key(void *userdata, const char *name, uint32_t number, uint8_t *key) {
    struct service *service = userdata;
    service->calls++;
    service->caller = pthread_self();
    for (int i = 0; i < 32; i++) CHECK_EQUAL(key[i], 0);
    if (service->status != 0) return service->status;
    if (strcmp(name, service->name) != 0 || number >= strlen(service->keys)) return KVKEEP_ERR_NOT_FOUND;
    memset(key, service->keys[number], 32);
    return KVKEEP_OK;
}

static int32_t give_one_key_always(void *userdata, const char *name, uint32_t number, uint8_t *key) {
    (void)userdata, (void)name, (void)number;
    memset(key, 1, 32);
    return KVKEEP_OK;
}

static int32_t give_keys_without_end(void *userdata, const char *name, uint32_t number, uint8_t *key) {
    (void)userdata, (void)name;
    memset(key, (int)(number % 255 + 1), 31);
    key[31] = (uint8_t)(number / 255);
    return KVKEEP_OK;
}

static int32_t write_no_key(void *userdata, const char *name, uint32_t number, uint8_t *key) {
    (void)userdata, (void)name, (void)number, (void)key;
    return KVKEEP_OK;
}

static kvkeep_options asking(struct service *service) {
    kvkeep_options options = quiet_options(4 * MIB);
    options.key_callback = give_key;
    options.key_userdata = service;
    return options;
}

static char url[10000];
static const char *urls = url;

// A cache over a directory whose key is the service's "tenant".
static void enter_with(const char *directory, struct service *service) {
    kvkeep_options options = asking(service);
    snprintf(url, sizeof url, "fs://%s/objects?capacity=1GiB&key_from=tenant%s", directory, fs_parameters(""));
    options.backend_urls = &urls;
    options.backend_count = 1;
    enter(open_with(&options));
}

static kvkeep_backend_state state_of_backend(void) {
    kvkeep_backend_state states[8];
    size_t count = 0;
    memset(states, 0, sizeof states);
    OK(kvkeep_query_backends(cache, states, 8, &count));
    CHECK_EQUAL(count, 1);
    return states[0];
}

static void objects_are_found_again_by_the_key_that_is_given(void) {
    char directory[4096];
    snprintf(directory, sizeof directory, "%s", new_directory());
    struct service first = {.name = "tenant", .keys = "a"};
    enter_with(directory, &first);
    CHECK_EQUAL(first.calls, 2);
    CHECK(pthread_equal(first.caller, pthread_self()));
    put_below(cache, space, keys, COUNT, SIZE);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    leave();
    struct service again = {.name = "tenant", .keys = "a"};
    enter_with(directory, &again);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    // Loads and stores ask for nothing.
    CHECK_EQUAL(again.calls, 2);
    leave();
    // Another key: misses, which are counted, and nothing goes.
    struct service another = {.name = "tenant", .keys = "b"};
    enter_with(directory, &another);
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.lookup_chunks, COUNT);
    CHECK_EQUAL(result.hit_chunks, 0);
    CHECK_EQUAL(stats_of(cache).load_failures, COUNT);
    CHECK_EQUAL(stats_of(cache).corruptions, 0);
    CHECK_EQUAL(state_of_backend().objects, COUNT);
    leave();
    // The newest key encrypts, and the old one still decrypts, in whatever place it is.
    struct service rotated = {.name = "tenant", .keys = "cba"};
    enter_with(directory, &rotated);
    CHECK_EQUAL(rotated.calls, 4);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    kvkeep_key newer = key_of(500);
    put_below(cache, space, &newer, 1, SIZE);
    leave();
    struct service newest = {.name = "tenant", .keys = "c"};
    enter_with(directory, &newest);
    keys[0] = newer;
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, 1);
    leave();
    remove_directory(directory);
}

static void a_key_is_that_of_a_file_with_the_same_bytes(void) {
    char directory[4096], file_path[4200];
    snprintf(directory, sizeof directory, "%s", new_directory());
    struct service service = {.name = "tenant", .keys = "a"};
    enter_with(directory, &service);
    put_below(cache, space, keys, COUNT, SIZE);
    leave();
    snprintf(file_path, sizeof file_path, "%s/keys", directory);
    FILE *file = fopen(file_path, "w");
    CHECK(file != NULL);
    for (int i = 0; i < 32; i++) fputs("61", file);
    CHECK_EQUAL(fclose(file), 0);
    snprintf(url, sizeof url, "fs://%s/objects?key_file=%s%s", directory, file_path, fs_parameters(""));
    enter(open_l2(4 * MIB, url));
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    leave();
    remove_directory(directory);
}

static void backends_are_added_with_keys_of_their_own_names(void) {
    struct service service = {.name = "wrong", .keys = "a"};
    kvkeep_options options = asking(&service);
    enter(open_with(&options));
    uint64_t backend = 0;
    FAILS(kvkeep_add_backend(cache, "memory:?key_from=tenant", &backend), KVKEEP_ERR_NOT_FOUND,
          "key_callback has no key for \"tenant\"");
    service.name = "a b";
    OK(kvkeep_add_backend(cache, "memory:?key_from=a%20b", &backend));
    put_below(cache, space, keys, COUNT, SIZE);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    OK(kvkeep_finish_read(cache, session, keys, COUNT, 0, NULL));
    CHECK_EQUAL(state_of_backend().objects, COUNT);
    CHECK(strstr(state_of_backend().url, "a%20b") == NULL);
    // A store that the host brings is encrypted, too.
    reset_plugin();
    kvkeep_backend_vtable vtable = plugin_vtable();
    uint32_t calls = service.calls;
    OK(kvkeep_add_backend_vtable(cache, &vtable, "key_from=a%20b", NULL));
    CHECK_EQUAL(service.calls, calls + 2);
    leave();
    reset_plugin();
}

static void a_key_that_is_not_given_is_an_error(void) {
    struct service service = {.name = "tenant", .keys = "a"};
    kvkeep_options options = asking(&service);
    kvkeep *opened = NULL;
    options.backend_urls = &urls;
    options.backend_count = 1;
    snprintf(url, sizeof url, "memory:?key_from=tenant");
    static const struct {
        int32_t returned;
        kvkeep_status status;
        const char *words;
    } failures[] = {
        {KVKEEP_ERR_TIMEOUT, KVKEEP_ERR_TIMEOUT, "gave no key 0 for \"tenant\" and returned KVKEEP_ERR_TIMEOUT"},
        {KVKEEP_ERR_PERMISSION, KVKEEP_ERR_PERMISSION, "returned KVKEEP_ERR_PERMISSION"},
        {KVKEEP_ERR_INTERNAL, KVKEEP_ERR_IO, "returned KVKEEP_ERR_INTERNAL"},
        {KVKEEP_PENDING, KVKEEP_ERR_INVALID, "key_callback returned 1 for key 0 of \"tenant\""},
        {-12345, KVKEEP_ERR_INVALID, "key_callback returned -12345"},
    };
    for (size_t i = 0; i < sizeof failures / sizeof *failures; i++) {
        service.status = failures[i].returned;
        FAILS(kvkeep_open(&options, &opened), failures[i].status, failures[i].words);
    }
    service.status = 0;
    options.key_callback = give_one_key_always;
    FAILS(kvkeep_open(&options, &opened), KVKEEP_ERR_INVALID, "gave one key as 0 and 1 of \"tenant\"");
    options.key_callback = give_keys_without_end;
    FAILS(kvkeep_open(&options, &opened), KVKEEP_ERR_INVALID, "gave more than 255 keys for \"tenant\"");
    options.key_callback = write_no_key;
    FAILS(kvkeep_open(&options, &opened), KVKEEP_ERR_INVALID, "wrote no key");
    options.key_callback = give_key;
    snprintf(url, sizeof url, "memory:?key_from=");
    FAILS(kvkeep_open(&options, &opened), KVKEEP_ERR_INVALID, "key_from= has no name");
    snprintf(url, sizeof url, "memory:?key_from=%%00a");
    FAILS(kvkeep_open(&options, &opened), KVKEEP_ERR_INVALID, "or a NUL in it");
    snprintf(url, sizeof url, "memory:?key_from=tenant&key_env=KEYS");
    FAILS(kvkeep_open(&options, &opened), KVKEEP_ERR_INVALID, "keep one of key_file, key_env and key_from");
    options.key_callback = NULL;
    snprintf(url, sizeof url, "memory:?key_from=tenant");
    FAILS(kvkeep_open(&options, &opened), KVKEEP_ERR_INVALID, "the cache was opened without key_callback");
    // A wrong key opens nothing: the directory is not made.
    char directory[4096], objects[4200];
    snprintf(directory, sizeof directory, "%s", new_directory());
    snprintf(objects, sizeof objects, "%s/objects", directory);
    snprintf(url, sizeof url, "fs://%s?key_from=tenant", objects);
    FAILS(kvkeep_open(&options, &opened), KVKEEP_ERR_INVALID, "key_callback");
    CHECK(access(objects, F_OK) != 0);
    remove_directory(directory);
    CHECK(opened == NULL);
}

static void keys_are_those_of_the_daemon(void) {
    char directory[4096], socket[4200];
    snprintf(directory, sizeof directory, "%s", new_directory());
    snprintf(socket, sizeof socket, "unix://%s/s", directory);
    struct service service = {.name = "tenant", .keys = "a"};
    kvkeep_options options = asking(&service);
    options.listen = socket;
    enter(open_with(&options));
    OK(kvkeep_serve_clients(cache));
    KVKEEP_INIT(&options);
    options.connect = socket;
    kvkeep *client = open_with(&options);
    OK(kvkeep_add_backend(client, "memory:?key_from=tenant", NULL));
    CHECK_EQUAL(service.calls, 2);
    CHECK(!pthread_equal(service.caller, pthread_self()));
    FAILS(kvkeep_add_backend(client, "memory:?key_from=other", NULL), KVKEEP_ERR_NOT_FOUND, "no key for \"other\"");
    OK(kvkeep_close(client));
    options.key_callback = give_key;
    client = NULL;
    FAILS(kvkeep_open(&options, &client), KVKEEP_ERR_INVALID, "key_callback is set");
    CHECK(client == NULL);
    leave();
    remove_directory(directory);
}

int main(void) {
    watchdog();
    RUN(objects_are_found_again_by_the_key_that_is_given);
    RUN(a_key_is_that_of_a_file_with_the_same_bytes);
    RUN(backends_are_added_with_keys_of_their_own_names);
    RUN(a_key_that_is_not_given_is_an_error);
    RUN(keys_are_those_of_the_daemon);
    return 0;
}
