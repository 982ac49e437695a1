// What hosts need that have no macros, or whose next call may run on another thread.
#include "pages.h"

#include <pthread.h>

#define PREPARES(type) \
    do { \
        type by_macro, by_function; \
        KVKEEP_INIT(&by_macro); \
        memset(&by_function, 0xee, sizeof by_function); \
        OK(kvkeep_init_struct(&by_function, sizeof by_function, KVKEEP_ABI_VERSION)); \
        CHECK(memcmp(&by_macro, &by_function, sizeof by_macro) == 0); \
    } while (0)

static void structs_are_prepared_as_by_the_macro(void) {
    PREPARES(kvkeep_options);
    PREPARES(kvkeep_space_options);
    PREPARES(kvkeep_session_options);
    PREPARES(kvkeep_prefetch_options);
    PREPARES(kvkeep_pool_options);
    PREPARES(kvkeep_transfer_options);
    PREPARES(kvkeep_job_result);
    PREPARES(kvkeep_space_usage);
    PREPARES(kvkeep_session_state);
    PREPARES(kvkeep_stats);
    PREPARES(kvkeep_backend_answer);
    PREPARES(kvkeep_backend_vtable);
    kvkeep_options options;
    OK(kvkeep_init_struct(&options, sizeof options, kvkeep_abi_version()));
    options.l1_bytes = MIB;
    OK(kvkeep_close(open_with(&options)));
}

static void p6_structs_that_cannot_be_prepared(void) {
    uint64_t bytes[2] = {7, 7};
    FAILS(kvkeep_init_struct(NULL, 16, KVKEEP_ABI_VERSION), KVKEEP_ERR_INVALID, "versioned is NULL");
    FAILS(kvkeep_init_struct((char *)bytes + 1, 8, KVKEEP_ABI_VERSION), KVKEEP_ERR_INVALID, "not aligned to 8");
    FAILS(kvkeep_init_struct(bytes, 7, KVKEEP_ABI_VERSION), KVKEEP_ERR_INVALID, "struct_size is 7");
    FAILS(kvkeep_init_struct(bytes, 65537, KVKEEP_ABI_VERSION), KVKEEP_ERR_INVALID, "struct_size is 65537");
    FAILS(kvkeep_init_struct(bytes, 16, KVKEEP_ABI_VERSION + 1), KVKEEP_ERR_VERSION, "abi_version is 2");
    CHECK(bytes[0] == 7 && bytes[1] == 7);
}

static const char *error_of(uint32_t subject, uint64_t number) {
    static _Thread_local char text[2048];
    size_t length = 0;
    OK(kvkeep_get_error(cache, subject, number, text, sizeof text, &length));
    CHECK_EQUAL(strlen(text), length);
    return text;
}

static void check_error(uint32_t subject, uint64_t number, const char *words) {
    const char *text = error_of(subject, number);
    if (strstr(text, words)) return;
    fprintf(stderr, "the error of subject %u is \"%s\", without \"%s\"\n", subject, text, words);
    exit(1);
}

// Calls that fail, on a thread of their own.
static void *fail(void *absent_key) {
    const kvkeep_key *key = absent_key;
    kvkeep_view view;
    uint64_t number;
    kvkeep_job_result result;
    KVKEEP_INIT(&result);
    CHECK_STATUS(kvkeep_reserve_read(cache, session, key, 1, 0, &view), KVKEEP_PARTIAL);
    FAILS(kvkeep_query_job(cache, 12345, &result), KVKEEP_ERR_NOT_FOUND, "12345");
    FAILS(kvkeep_close_pool(cache, 54321), KVKEEP_ERR_NOT_FOUND, "54321");
    FAILS(kvkeep_touch(cache, space, NULL, 1, NULL), KVKEEP_ERR_INVALID, "keys is NULL");
    FAILS(kvkeep_remove_backend(cache, 99), KVKEEP_ERR_NOT_FOUND, "99");
    FAILS(kvkeep_add_backend(cache, "nosuch://place", &number), KVKEEP_ERR_INVALID, "nosuch");
    return NULL;
}

static void the_message_of_a_call_is_had_on_another_thread(void) {
    enter(open_l1(MIB));
    kvkeep_key key;
    keys_of(&key, 1, 1);
    size_t length = 77;
    char text[2048];
    FAILS(kvkeep_get_error(cache, KVKEEP_SUBJECT_SESSION, session, text, sizeof text, &length), KVKEEP_ERR_NOT_FOUND,
          "no failed call");
    pthread_t thread;
    CHECK_EQUAL(pthread_create(&thread, NULL, fail, &key), 0);
    CHECK_EQUAL(pthread_join(thread, NULL), 0);
    check_error(KVKEEP_SUBJECT_SESSION, session, "1 of 1 keys fell short");
    check_error(KVKEEP_SUBJECT_JOB, 12345, "12345");
    check_error(KVKEEP_SUBJECT_POOL, 54321, "54321");
    check_error(KVKEEP_SUBJECT_SPACE, space, "keys is NULL");
    check_error(KVKEEP_SUBJECT_BACKEND, 99, "99");
    check_error(KVKEEP_SUBJECT_CACHE, 0, "nosuch");
    // A transfer names a session and a pool, and is the session's.
    uint64_t job;
    FAILS(kvkeep_submit_load(cache, 54321, session, &key, 1, (int32_t[PER_CHUNK]){0, 1, 2, 3}, PER_CHUNK, NULL, &job,
                             NULL, NULL),
          KVKEEP_ERR_NOT_FOUND, "pool 54321");
    check_error(KVKEEP_SUBJECT_SESSION, session, "pool 54321");
    // To ask changes nothing, and neither does a call that succeeds.
    OK(kvkeep_renew_session(cache, session));
    check_error(KVKEEP_SUBJECT_SESSION, session, "pool 54321");
    leave();
    CHECK_STATUS(kvkeep_get_error(cache, KVKEEP_SUBJECT_SESSION, session, text, sizeof text, &length),
                 KVKEEP_ERR_CLOSED);
    CHECK_STATUS(kvkeep_get_tail_keys(cache, session, 1, 0, 1, 1, &key, 1), KVKEEP_ERR_CLOSED);
}

static void p6_errors_that_cannot_be_asked_for(void) {
    enter(open_l1(MIB));
    size_t length = 77;
    char text[8];
    FAILS(kvkeep_end_session(cache, 4711), KVKEEP_ERR_NOT_FOUND, "4711");
    FAILS(kvkeep_get_error(cache, 6, 4711, text, sizeof text, &length), KVKEEP_ERR_INVALID, "subject is 6");
    FAILS(kvkeep_get_error(cache, KVKEEP_SUBJECT_CACHE, 4711, text, sizeof text, &length), KVKEEP_ERR_INVALID,
          "number is 4711");
    FAILS(kvkeep_get_error(cache, KVKEEP_SUBJECT_SESSION, 4711, text, sizeof text, NULL), KVKEEP_ERR_INVALID,
          "length is NULL");
    FAILS(kvkeep_get_error(cache, KVKEEP_SUBJECT_SESSION, 4711, NULL, sizeof text, &length), KVKEEP_ERR_INVALID,
          "buffer is NULL");
    CHECK_STATUS(kvkeep_get_error(cache, KVKEEP_SUBJECT_SESSION, 4711, text, sizeof text, &length), KVKEEP_PARTIAL);
    CHECK_EQUAL(strlen(text), sizeof text - 1);
    CHECK(length > sizeof text);
    check_error(KVKEEP_SUBJECT_SESSION, 4711, "4711");
    leave();
}

static void a_cache_that_does_not_open_says_why_on_any_thread(void) {
    kvkeep_options options;
    KVKEEP_INIT(&options);
    options.l1_bytes = MIB;
    options.eviction_policy = "worst";
    kvkeep *none;
    FAILS(kvkeep_open(&options, &none), KVKEEP_ERR_INVALID, "worst");
    char text[2048];
    size_t length;
    OK(kvkeep_get_error(NULL, KVKEEP_SUBJECT_CACHE, 0, text, sizeof text, &length));
    CHECK(strstr(text, "worst") != NULL);
    options.abi_version++;
    CHECK_STATUS(kvkeep_open(&options, &none), KVKEEP_ERR_VERSION);
    OK(kvkeep_get_error(NULL, KVKEEP_SUBJECT_CACHE, 0, text, sizeof text, &length));
    CHECK(strstr(text, "version") != NULL);
    FAILS(kvkeep_get_error(NULL, KVKEEP_SUBJECT_SESSION, 1, text, sizeof text, &length), KVKEEP_ERR_NOT_FOUND,
          "no failed call");
}

// Each thread is a request: it finds the message of its own call, however many others fail.
static void *fail_often(void *key_count) {
    uint64_t mine = begin(cache, space);
    char wanted[64];
    size_t count = *(size_t *)key_count;
    kvkeep_key keys[8];
    kvkeep_view views[8];
    keys_of(keys, 1, count);
    snprintf(wanted, sizeof wanted, "%zu of %zu keys fell short", count, count);
    for (int i = 0; i < 500; i++) {
        CHECK_STATUS(kvkeep_reserve_read(cache, mine, keys, count, 0, views), KVKEEP_PARTIAL);
        check_error(KVKEEP_SUBJECT_SESSION, mine, wanted);
    }
    OK(kvkeep_end_session(cache, mine));
    return NULL;
}

static void each_request_finds_its_own_error(void) {
    enter(open_l1(MIB));
    pthread_t threads[8];
    size_t counts[8];
    for (size_t i = 0; i < 8; i++) {
        counts[i] = i + 1;
        CHECK_EQUAL(pthread_create(&threads[i], NULL, fail_often, &counts[i]), 0);
    }
    for (size_t i = 0; i < 8; i++) CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
    leave();
}

int main(void) {
    watchdog();
    pages_begin();
    RUN(structs_are_prepared_as_by_the_macro);
    RUN(p6_structs_that_cannot_be_prepared);
    RUN(the_message_of_a_call_is_had_on_another_thread);
    RUN(p6_errors_that_cannot_be_asked_for);
    RUN(a_cache_that_does_not_open_says_why_on_any_thread);
    RUN(each_request_finds_its_own_error);
    return 0;
}
