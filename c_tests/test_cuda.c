// A GPU's pool on a fake driver: who waits for whom, and what goes as one.
#include "cuda_transfers.h"

#include <semaphore.h>

// Work of an engine's on a stream, which goes on when the test says so.
static sem_t gate;

static void pass(void *data) {
    (void)data;
    while (sem_wait(&gate) != 0) {
    }
}

static void *new_stream(void) {
    void *stream;
    CHECK_EQUAL(cuStreamCreate(&stream, 1), 0);
    return stream;
}

static void a_store_waits_for_what_writes_its_pages(void) {
    // On a stream, and on the default one.
    for (int i = 0; i < 2; i++) {
        enter();
        void *stream = i == 0 ? new_stream() : NULL;
        CHECK_EQUAL(cuLaunchHostFunc(stream, pass, NULL), 0);
        CHECK_EQUAL(cuMemsetD8Async(pages_at, 0xa5, PAGES_BYTES, stream), 0);
        uint64_t job = store_on(stream);
        FAILS(kvkeep_wait_job(cache, job, 30), KVKEEP_ERR_TIMEOUT, "not done");
        sem_post(&gate);
        CHECK_STATUS(result_of(job).status, KVKEEP_OK);
        kvkeep_view views[KEYS];
        OK(kvkeep_reserve_read(cache, session, keys, KEYS, 0, views));
        for (int k = 0; k < KEYS; k++) {
            for (uint64_t at = 0; at < views[k].size; at += BLOCK) CHECK(is_all((uint8_t *)views[k].data + at, 0xa5));
        }
        OK(kvkeep_finish_read(cache, session, keys, KEYS, 0, NULL));
        if (stream) CHECK_EQUAL(cuStreamDestroy_v2(stream), 0);
        leave();
    }
}

static void a_load_waits_for_what_last_used_its_pages(void) {
    enter();
    CHECK_STATUS(result_of(store_on(NULL)).status, KVKEEP_OK);
    void *stream = new_stream();
    CHECK_EQUAL(cuLaunchHostFunc(stream, pass, NULL), 0);
    CHECK_EQUAL(cuMemsetD8Async(pages_at, 0, PAGES_BYTES, stream), 0);
    uint64_t job = load_on(stream);
    FAILS(kvkeep_wait_job(cache, job, 30), KVKEEP_ERR_TIMEOUT, "not done");
    sem_post(&gate);
    CHECK_STATUS(result_of(job).status, KVKEEP_OK);
    check_pages_are_stored_ones();
    CHECK(is_all(block(0, 1), 0));
    CHECK_EQUAL(cuStreamDestroy_v2(stream), 0);
    leave();
}

// A kernel of the engine's that uses a layer's pages.
static int used[LAYERS], right[LAYERS];

static void use_layer(void *data) {
    int layer = (int)(intptr_t)data, same = 1;
    for (int s = 2 * layer; s < 2 * layer + 2; s++) {
        for (int i = 0; i < IDS; i++) same &= is_all(block(s, ids[i]), byte_at(s, ids[i]));
    }
    right[layer] = same;
    __atomic_store_n(&used[layer], 1, __ATOMIC_SEQ_CST);
}

static void use_layers_behind(uint64_t job, void *stream) {
    for (int layer = 0; layer < LAYERS; layer++) {
        used[layer] = right[layer] = 0;
        OK(kvkeep_stream_wait_layer(cache, job, (uint32_t)layer, (uint64_t)(uintptr_t)stream, 60000));
        CHECK_EQUAL(cuLaunchHostFunc(stream, use_layer, (void *)(intptr_t)layer), 0);
    }
}

static void a_stream_waits_for_layers_and_its_caller_does_not(void) {
    enter();
    CHECK_STATUS(result_of(store_on(NULL)).status, KVKEEP_OK);
    memset(pages, 0, PAGES_BYTES);
    void *busy = new_stream(), *next = new_stream();
    CHECK_EQUAL(cuLaunchHostFunc(busy, pass, NULL), 0);
    uint64_t job = load_on(busy), other = load_on(busy);
    // All of it is queued behind the busy stream, and so is what waits for it.
    use_layers_behind(other, next);
    FAILS(kvkeep_wait_job(cache, job, 0), KVKEEP_ERR_TIMEOUT, "not done");
    FAILS(kvkeep_wait_layer(cache, job, 0, 0), KVKEEP_ERR_TIMEOUT, "layer 0");
    for (int layer = 0; layer < LAYERS; layer++) CHECK(!__atomic_load_n(&used[layer], __ATOMIC_SEQ_CST));
    sem_post(&gate);
    CHECK_EQUAL(cuStreamSynchronize(next), 0);
    for (int layer = 0; layer < LAYERS; layer++) CHECK(used[layer] && right[layer]);
    CHECK_STATUS(result_of(job).status, KVKEEP_OK);
    CHECK_STATUS(result_of(other).status, KVKEEP_OK);
    // Nothing to wait for is waited for at once.
    use_layers_behind(other, next);
    CHECK_EQUAL(cuStreamSynchronize(next), 0);
    CHECK_EQUAL(cuStreamDestroy_v2(busy), 0);
    CHECK_EQUAL(cuStreamDestroy_v2(next), 0);
    leave();
}

static void a_stream_waits_for_what_is_still_below(void) {
    enter_with(open_l2(8 * MIB, "fault:memory:?fault.delay=0.5&fault.delay_ms=20&fault.seed=4"));
    OK(try_pool(0, pages_at, &pool));
    CHECK_STATUS(result_of(store_on(NULL)).status, KVKEEP_OK);
    OK(kvkeep_flush(cache, 30000));
    OK(kvkeep_clear(cache, space, 0, NULL));
    memset(pages, 0, PAGES_BYTES);
    void *stream = new_stream();
    uint64_t job = load_on(NULL);
    use_layers_behind(job, stream);
    CHECK_EQUAL(cuStreamSynchronize(stream), 0);
    for (int layer = 0; layer < LAYERS; layer++) CHECK(used[layer] && right[layer]);
    CHECK_STATUS(result_of(job).status, KVKEEP_OK);
    CHECK_EQUAL(cuStreamDestroy_v2(stream), 0);
    leave();
}

static void neighbours_go_as_one(void) {
    enter();
    for (int apart = 1; apart <= 2; apart++) {
        for (int i = 0; i < IDS; i++) ids[i] = apart * i;
        keys_of(keys, 1000 * (uint32_t)apart, KEYS);
        uint64_t before = fake_cuda_calls("fragment");
        CHECK_STATUS(result_of(store_on(NULL)).status, KVKEEP_OK);
        uint64_t fragments = fake_cuda_calls("fragment") - before;
        // Those of a chunk, in each segment; or none.
        CHECK_EQUAL(fragments, SEGMENTS * (apart == 1 ? KEYS : IDS));
    }
    check_pages_are_stored_ones();
    leave();
}

static void closing_waits_for_what_is_in_flight(void) {
    enter();
    void *stream = new_stream();
    CHECK_EQUAL(cuLaunchHostFunc(stream, pass, NULL), 0);
    uint64_t job = store_on(stream);
    OK(kvkeep_stream_wait_layer(cache, job, LAYERS - 1, 0, 60000));
    OK(kvkeep_cancel_job(cache, job));
    FAILS(kvkeep_wait_job(cache, job, 30), KVKEEP_ERR_TIMEOUT, "not done");
    sem_post(&gate);
    // Queued copies land; that it was cancelled all the same is its answer.
    CHECK_STATUS(result_of(job).status, KVKEEP_ERR_CANCELLED);
    CHECK_EQUAL(cuStreamDestroy_v2(stream), 0);
    leave();
}

int main(void) {
    watchdog();
    sem_init(&gate, 0, 0);
    cuda_transfers_begin();
    RUN(a_store_waits_for_what_writes_its_pages);
    RUN(a_load_waits_for_what_last_used_its_pages);
    RUN(a_stream_waits_for_layers_and_its_caller_does_not);
    RUN(a_stream_waits_for_what_is_still_below);
    RUN(neighbours_go_as_one);
    RUN(closing_waits_for_what_is_in_flight);
    cuda_transfers_end();
    return 0;
}
