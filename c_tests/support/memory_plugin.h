// A plug-in over a small table in memory that can be told to misbehave, each time in one way.
#ifndef MEMORY_PLUGIN_H
#define MEMORY_PLUGIN_H

#include "below.h"

#include <pthread.h>

enum { TABLE = 256, HELD = 256 };

enum misbehaviour {
    WELL = 0,
    TWICE,           // completes every request twice
    LATE,            // completes no load, store or lookup until release_held()
    BLOCKS,          // does not return from a lookup until release_held()
    FROM_A_THREAD,   // completes from another thread, after its function has returned
    STATUS_POSITIVE, // answers with a status that is no error
    STATUS_UNKNOWN,  // answers with a number that is no status
    KEY_STATUS,      // says so of each key, in an answer that is OK
    WRONG_COUNT,     // answers for one key too many
    NO_ANSWER,       // completes with NULL
    OTHER_ABI,       // completes with a struct of another ABI
    WRONG_HEADER,    // gives a header that was never stored
    WRONG_BYTES,     // gives other bytes than were stored
    SHORT,           // gives half of an object, and says so
    HUGE_SIZE,       // finds objects that are larger than L1
    NO_SIZES,        // finds objects and does not say of which size
    ANYHOW,          // each request in one of these ways or well, by the seed
};

struct table_entry {
    kvkeep_backend_key key;
    uint8_t header[KVKEEP_OBJECT_HEADER_BYTES];
    uint8_t data[SIZE];
    uint64_t size;
};

struct answer_held {
    enum misbehaviour how;
    uint64_t request;
    kvkeep_backend_answer answer;
    int32_t statuses[BATCH_MAX];
    uint64_t sizes[BATCH_MAX];
};

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    const kvkeep_backend_host *host;
    enum misbehaviour how;
    struct table_entry *table[TABLE];
    struct answer_held *held[HELD];
    int held_count, blocked, release;
    // Only loads go wrong.
    int loads_only;
    unsigned seed;
    // Answers on their way in threads of their own.
    int threads;
    // What was called how often, and what `complete` returned.
    int opened, closed, lookups, loads, stores, touches, unpins, removals, lists;
    int completed, refused;
    int complete_when_closed;
} plugin = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static inline int plugin_count(const int *counter) {
    pthread_mutex_lock(&plugin.mutex);
    int count = *counter;
    pthread_mutex_unlock(&plugin.mutex);
    return count;
}

static inline void be(enum misbehaviour how) {
    pthread_mutex_lock(&plugin.mutex);
    plugin.how = how;
    pthread_mutex_unlock(&plugin.mutex);
}

static inline kvkeep_status complete_once(uint64_t request, const kvkeep_backend_answer *answer) {
    kvkeep_status status = plugin.host->complete(request, answer);
    pthread_mutex_lock(&plugin.mutex);
    if (status == KVKEEP_OK) {
        plugin.completed++;
    } else {
        plugin.refused++;
    }
    pthread_mutex_unlock(&plugin.mutex);
    return status;
}

static inline void *complete_in_thread(void *userdata) {
    struct answer_held *held = userdata;
    OK(complete_once(held->request, &held->answer));
    free(held);
    pthread_mutex_lock(&plugin.mutex);
    plugin.threads--;
    pthread_cond_broadcast(&plugin.changed);
    pthread_mutex_unlock(&plugin.mutex);
    return NULL;
}

// Answers, or misbehaves.
static inline void answer_with(struct answer_held *held) {
    kvkeep_backend_answer *answer = &held->answer;
    uint64_t request = held->request;
    switch (held->how) {
    case TWICE:
        OK(complete_once(request, answer));
        CHECK_STATUS(complete_once(request, answer), KVKEEP_ERR_INVALID);
        break;
    case LATE:
        pthread_mutex_lock(&plugin.mutex);
        CHECK(plugin.held_count < HELD);
        plugin.held[plugin.held_count++] = held;
        pthread_cond_broadcast(&plugin.changed);
        pthread_mutex_unlock(&plugin.mutex);
        return;
    case FROM_A_THREAD: {
        pthread_t thread;
        pthread_mutex_lock(&plugin.mutex);
        plugin.threads++;
        pthread_mutex_unlock(&plugin.mutex);
        CHECK_EQUAL(pthread_create(&thread, NULL, complete_in_thread, held), 0);
        CHECK_EQUAL(pthread_detach(thread), 0);
        return;
    }
    case STATUS_POSITIVE:
        answer->status = 2;
        OK(complete_once(request, answer));
        break;
    case STATUS_UNKNOWN:
        answer->status = -999;
        OK(complete_once(request, answer));
        break;
    case KEY_STATUS:
        for (size_t i = 0; i < answer->count; i++) held->statuses[i] = 77;
        OK(complete_once(request, answer));
        break;
    case WRONG_COUNT:
        answer->count++;
        CHECK_STATUS(complete_once(request, answer), KVKEEP_ERR_INVALID);
        break;
    case NO_ANSWER: CHECK_STATUS(complete_once(request, NULL), KVKEEP_ERR_INVALID); break;
    case OTHER_ABI:
        answer->abi_version++;
        CHECK_STATUS(complete_once(request, answer), KVKEEP_ERR_VERSION);
        break;
    default: OK(complete_once(request, answer)); break;
    }
    free(held);
}

// The way in which a request will be answered. Half of them well, where it is anyhow. The mutex is held.
static inline enum misbehaviour choose_how(int is_load) {
    if (plugin.loads_only && !is_load) return WELL;
    if (plugin.how != ANYHOW) return plugin.how;
    plugin.seed = plugin.seed * 1664525u + 1013904223u;
    unsigned draw = plugin.seed >> 16;
    enum misbehaviour how = draw % 2 ? WELL : (enum misbehaviour)(draw / 2 % ANYHOW);
    return how == BLOCKS ? WELL : how;
}

static inline struct answer_held *answer_for(uint64_t request, size_t count, int is_load) {
    struct answer_held *held = calloc(1, sizeof *held);
    CHECK(held != NULL && count <= BATCH_MAX);
    pthread_mutex_lock(&plugin.mutex);
    held->how = choose_how(is_load);
    pthread_mutex_unlock(&plugin.mutex);
    held->request = request;
    KVKEEP_INIT(&held->answer);
    held->answer.statuses = held->statuses;
    held->answer.sizes = held->sizes;
    held->answer.count = count;
    return held;
}

// The entry of a key, or a free one for NULL. The mutex is held.
static inline struct table_entry **entry_of(const kvkeep_backend_key *key) {
    for (int i = 0; i < TABLE; i++) {
        struct table_entry *entry = plugin.table[i];
        if (key ? entry && memcmp(&entry->key, key, sizeof *key) == 0 : !entry) return &plugin.table[i];
    }
    return NULL;
}

static inline int table_count(void) {
    int count = 0;
    pthread_mutex_lock(&plugin.mutex);
    for (int i = 0; i < TABLE; i++) count += plugin.table[i] != NULL;
    pthread_mutex_unlock(&plugin.mutex);
    return count;
}

static inline int32_t plugin_open(void *userdata, const kvkeep_backend_parameter *parameters, size_t parameter_count,
                                  const kvkeep_backend_host *host, void **backend, char *message,
                                  size_t message_bytes) {
    CHECK(userdata == &plugin);
    CHECK(host->struct_size >= sizeof *host && host->abi_version == KVKEEP_ABI_VERSION);
    for (size_t i = 0; i < parameter_count; i++) {
        if (strcmp(parameters[i].name, "status") != 0) continue;
        snprintf(message, message_bytes, "the server said %s; start it", parameters[i].value);
        return atoi(parameters[i].value);
    }
    plugin.host = host;
    plugin.opened++;
    *backend = &plugin;
    return KVKEEP_OK;
}

static inline void plugin_lookup(void *backend, uint64_t request, const kvkeep_backend_key *keys, size_t key_count,
                                 uint32_t flags, uint32_t timeout_ms) {
    CHECK(backend == &plugin && timeout_ms > 0 && flags <= KVKEEP_LOOKUP_IN_ORDER);
    struct answer_held *held = answer_for(request, key_count, 0);
    pthread_mutex_lock(&plugin.mutex);
    plugin.lookups++;
    if (held->how == BLOCKS) {
        plugin.blocked++;
        while (!plugin.release) pthread_cond_wait(&plugin.changed, &plugin.mutex);
    }
    for (size_t i = 0; i < key_count; i++) {
        struct table_entry **entry = entry_of(&keys[i]);
        held->statuses[i] = entry ? KVKEEP_OK : KVKEEP_ERR_NOT_FOUND;
        held->sizes[i] = entry ? (*entry)->size : 0;
        if (entry && held->how == HUGE_SIZE) held->sizes[i] = UINT64_MAX / 2;
    }
    if (held->how == NO_SIZES) held->answer.sizes = NULL;
    pthread_mutex_unlock(&plugin.mutex);
    answer_with(held);
}

static inline void plugin_load(void *backend, uint64_t request, const kvkeep_backend_object *objects,
                               size_t object_count, uint32_t timeout_ms) {
    CHECK(backend == &plugin && timeout_ms > 0);
    struct answer_held *held = answer_for(request, object_count, 1);
    pthread_mutex_lock(&plugin.mutex);
    plugin.loads++;
    for (size_t i = 0; i < object_count; i++) {
        const kvkeep_backend_object *object = &objects[i];
        const uint8_t *data = object->data, *arena = plugin.host->arena;
        CHECK(data >= arena && data + object->size <= arena + plugin.host->arena_bytes);
        struct table_entry **entry = entry_of(&object->key);
        held->statuses[i] = entry ? KVKEEP_OK : KVKEEP_ERR_NOT_FOUND;
        held->sizes[i] = object->size;
        if (!entry) continue;
        CHECK_EQUAL((*entry)->size, object->size);
        memcpy(object->header, (*entry)->header, sizeof(*entry)->header);
        memcpy(object->data, (*entry)->data, object->size);
        if (held->how == WRONG_HEADER) memset(object->header, 0x55, KVKEEP_OBJECT_HEADER_BYTES);
        if (held->how == WRONG_BYTES) ((uint8_t *)object->data)[object->size / 2] ^= 4;
        if (held->how == SHORT) held->sizes[i] /= 2;
    }
    pthread_mutex_unlock(&plugin.mutex);
    answer_with(held);
}

static inline void plugin_store(void *backend, uint64_t request, const kvkeep_backend_object *objects,
                                size_t object_count, uint32_t timeout_ms) {
    CHECK(backend == &plugin && timeout_ms > 0);
    struct answer_held *held = answer_for(request, object_count, 0);
    held->answer.sizes = NULL;
    pthread_mutex_lock(&plugin.mutex);
    plugin.stores++;
    for (size_t i = 0; i < object_count; i++) {
        if (entry_of(&objects[i].key)) {
            held->statuses[i] = KVKEEP_ERR_EXISTS;
            continue;
        }
        struct table_entry **place = entry_of(NULL), *entry = malloc(sizeof *entry);
        CHECK(place != NULL && entry != NULL && objects[i].size <= SIZE);
        entry->key = objects[i].key;
        entry->size = objects[i].size;
        memcpy(entry->header, objects[i].header, sizeof entry->header);
        memcpy(entry->data, objects[i].data, objects[i].size);
        *place = entry;
    }
    pthread_mutex_unlock(&plugin.mutex);
    answer_with(held);
}

static inline void plugin_remove(void *backend, uint64_t request, const kvkeep_backend_key *keys, size_t key_count,
                                 uint32_t timeout_ms) {
    CHECK(backend == &plugin && timeout_ms > 0);
    struct answer_held *held = answer_for(request, key_count, 0);
    held->answer.sizes = NULL;
    pthread_mutex_lock(&plugin.mutex);
    plugin.removals++;
    for (size_t i = 0; i < key_count; i++) {
        struct table_entry **entry = entry_of(&keys[i]);
        held->statuses[i] = entry ? KVKEEP_OK : KVKEEP_ERR_NOT_FOUND;
        if (!entry) continue;
        free(*entry);
        *entry = NULL;
    }
    pthread_mutex_unlock(&plugin.mutex);
    answer_with(held);
}

// Three keys a time.
static inline void plugin_list(void *backend, uint64_t request, const uint8_t *wanted, uint64_t cursor,
                               uint32_t timeout_ms) {
    CHECK(backend == &plugin && timeout_ms > 0);
    kvkeep_backend_key listed[3];
    struct answer_held *held = answer_for(request, 0, 0);
    pthread_mutex_lock(&plugin.mutex);
    plugin.lists++;
    uint64_t at = cursor;
    for (; at < TABLE && held->answer.key_count < 3; at++) {
        if (!plugin.table[at]) continue;
        if (wanted && memcmp(plugin.table[at]->key.space, wanted, 16) != 0) continue;
        listed[held->answer.key_count++] = plugin.table[at]->key;
    }
    held->answer.keys = listed;
    held->answer.next_cursor = at < TABLE ? at : 0;
    pthread_mutex_unlock(&plugin.mutex);
    OK(complete_once(request, &held->answer));
    free(held);
}

static inline void plugin_touch(void *backend, const kvkeep_backend_key *keys, size_t key_count) {
    CHECK(backend == &plugin && keys != NULL);
    pthread_mutex_lock(&plugin.mutex);
    plugin.touches += (int)key_count;
    pthread_mutex_unlock(&plugin.mutex);
}

static inline void plugin_unpin(void *backend, const kvkeep_backend_key *keys, size_t key_count) {
    CHECK(backend == &plugin && keys != NULL);
    pthread_mutex_lock(&plugin.mutex);
    plugin.unpins += (int)key_count;
    pthread_mutex_unlock(&plugin.mutex);
}

static inline void plugin_usage(void *backend, uint64_t request, uint32_t timeout_ms) {
    CHECK(backend == &plugin && timeout_ms > 0);
    kvkeep_backend_answer answer;
    KVKEEP_INIT(&answer);
    answer.objects = (uint64_t)table_count();
    answer.bytes = answer.objects * SIZE;
    answer.capacity_bytes = TABLE * (uint64_t)SIZE;
    answer.evictions = 7;
    OK(complete_once(request, &answer));
}

static inline void plugin_health(void *backend, uint64_t request, uint32_t timeout_ms) {
    CHECK(backend == &plugin && timeout_ms > 0);
    kvkeep_backend_answer answer;
    KVKEEP_INIT(&answer);
    OK(complete_once(request, &answer));
}

// Completes what it kept, and lets blocked functions go on.
static inline void release_held(void) {
    pthread_mutex_lock(&plugin.mutex);
    plugin.release = 1;
    pthread_cond_broadcast(&plugin.changed);
    struct answer_held *held[HELD];
    int count = plugin.held_count;
    memcpy(held, plugin.held, sizeof held);
    plugin.held_count = 0;
    pthread_mutex_unlock(&plugin.mutex);
    for (int i = 0; i < count; i++) {
        OK(complete_once(held[i]->request, &held[i]->answer));
        free(held[i]);
    }
}

static inline void plugin_close(void *backend) {
    CHECK(backend == &plugin);
    if (plugin.complete_when_closed) release_held();
    pthread_mutex_lock(&plugin.mutex);
    while (plugin.threads > 0) pthread_cond_wait(&plugin.changed, &plugin.mutex);
    plugin.closed++;
    pthread_mutex_unlock(&plugin.mutex);
}

static inline kvkeep_backend_vtable plugin_vtable(void) {
    kvkeep_backend_vtable vtable;
    KVKEEP_INIT(&vtable);
    vtable.name = "table";
    vtable.userdata = &plugin;
    vtable.open = plugin_open;
    vtable.lookup = plugin_lookup;
    vtable.load = plugin_load;
    vtable.store = plugin_store;
    vtable.touch = plugin_touch;
    vtable.unpin = plugin_unpin;
    vtable.remove = plugin_remove;
    vtable.list = plugin_list;
    vtable.usage = plugin_usage;
    vtable.health = plugin_health;
    vtable.close = plugin_close;
    return vtable;
}

// Forgets what earlier tests stored and counted.
static inline void reset_plugin(void) {
    for (int i = 0; i < TABLE; i++) {
        free(plugin.table[i]);
        plugin.table[i] = NULL;
    }
    plugin.how = WELL;
    plugin.loads_only = 0;
    plugin.seed = 0;
    plugin.held_count = plugin.blocked = plugin.release = plugin.complete_when_closed = 0;
    plugin.opened = plugin.closed = plugin.lookups = plugin.loads = plugin.stores = plugin.touches = 0;
    plugin.unpins = plugin.removals = plugin.lists = 0;
    plugin.completed = plugin.refused = 0;
}

#endif
