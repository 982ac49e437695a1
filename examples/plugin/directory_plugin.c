// A store for kvkeep as a plug-in: one file for each object in a directory. kvkeep calls these functions from threads of its own, so
// that each does its work and completes its request before it returns. To serve several at a time, add &threads=4:
//
//     plugin:/path/to/libdirectory_plugin.so?directory=/var/cache/objects&threads=4
//
// A store with connections of its own would note the request, return, and complete it from another thread.
#include <kvkeep.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NAME_BYTES = 2 * sizeof(kvkeep_backend_key) + 1, PATH_BYTES = 4096 };

typedef struct {
    const kvkeep_backend_host *host;
    char directory[PATH_BYTES - NAME_BYTES - 32];
} store;

static void complete(const store *self, uint64_t request, const int32_t *statuses, const uint64_t *sizes,
                     size_t count) {
    kvkeep_backend_answer answer;
    KVKEEP_INIT(&answer);
    answer.statuses = statuses;
    answer.sizes = sizes;
    answer.count = count;
    self->host->complete(request, &answer);
}

// The answer of a request that could not be worked on at all.
static void complete_failed(const store *self, uint64_t request, int32_t status, const char *message) {
    kvkeep_backend_answer answer;
    KVKEEP_INIT(&answer);
    answer.status = status;
    answer.message = message;
    self->host->complete(request, &answer);
}

// A key has no padding: its bytes in hexadecimal are a name.
static void path_of(const store *self, const kvkeep_backend_key *key, char *path) {
    int length = snprintf(path, PATH_BYTES, "%s/", self->directory);
    for (size_t i = 0; i < sizeof *key; i++) {
        length += snprintf(path + length, PATH_BYTES - (size_t)length, "%02x", ((const uint8_t *)key)[i]);
    }
}

static int32_t status_of(int error) {
    return error == ENOENT ? KVKEEP_ERR_NOT_FOUND : error == ENOSPC ? KVKEEP_ERR_NO_MEMORY : KVKEEP_ERR_IO;
}

static int32_t open_store(void *userdata, const kvkeep_backend_parameter *parameters, size_t parameter_count,
                          const kvkeep_backend_host *host, void **backend, char *message, size_t message_bytes) {
    (void)userdata;
    store *self = calloc(1, sizeof *self);
    if (!self) return KVKEEP_ERR_NO_MEMORY;
    self->host = host;
    for (size_t i = 0; i < parameter_count; i++) {
        const kvkeep_backend_parameter *given = &parameters[i];
        if (strcmp(given->name, "directory") != 0) {
            snprintf(message, message_bytes, "there is no parameter %s; write directory=/path", given->name);
            free(self);
            return KVKEEP_ERR_INVALID;
        }
        snprintf(self->directory, sizeof self->directory, "%s", given->value);
    }
    if (access(self->directory, R_OK | W_OK | X_OK) != 0) {
        snprintf(message, message_bytes, "%s is no directory that this user may write; write directory=/path",
                 self->directory);
        free(self);
        return KVKEEP_ERR_IO;
    }
    *backend = self;
    return KVKEEP_OK;
}

static void look_up(void *backend, uint64_t request, const kvkeep_backend_key *keys, size_t key_count, uint32_t flags,
                    uint32_t timeout_ms) {
    store *self = backend;
    int32_t *statuses = calloc(key_count, sizeof *statuses);
    uint64_t *sizes = calloc(key_count, sizeof *sizes);
    (void)flags, (void)timeout_ms;
    for (size_t i = 0; statuses && sizes && i < key_count; i++) {
        char path[PATH_BYTES];
        path_of(self, &keys[i], path);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        off_t length = file < 0 ? -1 : lseek(file, 0, SEEK_END);
        if (file >= 0) close(file);
        if (length > KVKEEP_OBJECT_HEADER_BYTES) sizes[i] = (uint64_t)length - KVKEEP_OBJECT_HEADER_BYTES;
        statuses[i] = sizes[i] > 0 ? KVKEEP_OK : KVKEEP_ERR_NOT_FOUND;
    }
    if (statuses && sizes) {
        complete(self, request, statuses, sizes, key_count);
    } else {
        complete_failed(self, request, KVKEEP_ERR_NO_MEMORY, "no memory for the answer of a lookup");
    }
    free(statuses);
    free(sizes);
}

// Reads or writes header and payload in one system call. What is shorter than asked for is an error of its object.
static int32_t move_object(const kvkeep_backend_object *object, int file, int writes) {
    struct iovec parts[2] = {{object->header, KVKEEP_OBJECT_HEADER_BYTES}, {object->data, object->size}};
    ssize_t moved = writes ? writev(file, parts, 2) : readv(file, parts, 2);
    if (moved < 0) return status_of(errno);
    return (uint64_t)moved == KVKEEP_OBJECT_HEADER_BYTES + object->size ? KVKEEP_OK : KVKEEP_ERR_IO;
}

static int32_t load_object(const store *self, const kvkeep_backend_object *object) {
    char path[PATH_BYTES];
    path_of(self, &object->key, path);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return status_of(errno);
    int32_t status = move_object(object, file, 0);
    close(file);
    return status;
}

// An object has its name when it is whole: no lookup sees half of one, and a crash leaves none.
static int32_t store_object(const store *self, const kvkeep_backend_object *object) {
    char path[PATH_BYTES], temporary[PATH_BYTES];
    path_of(self, &object->key, path);
    if (access(path, F_OK) == 0) return KVKEEP_ERR_EXISTS;
    snprintf(temporary, sizeof temporary, "%s/.new-XXXXXX", self->directory);
    int file = mkstemp(temporary);
    if (file < 0) return status_of(errno);
    int32_t status = move_object(object, file, 1);
    close(file);
    if (status == KVKEEP_OK && rename(temporary, path) != 0) status = status_of(errno);
    if (status != KVKEEP_OK) unlink(temporary);
    return status;
}

// Moves each object, and completes the request: kvkeep asks for `batch` of them at most.
static void move_all(const store *self, uint64_t request, const kvkeep_backend_object *objects, size_t count,
                     int32_t (*move)(const store *, const kvkeep_backend_object *)) {
    int32_t *statuses = calloc(count, sizeof *statuses);
    if (!statuses) return complete_failed(self, request, KVKEEP_ERR_NO_MEMORY, "no memory for an answer");
    for (size_t i = 0; i < count; i++) statuses[i] = move(self, &objects[i]);
    complete(self, request, statuses, NULL, count);
    free(statuses);
}

static void load(void *backend, uint64_t request, const kvkeep_backend_object *objects, size_t object_count,
                 uint32_t timeout_ms) {
    (void)timeout_ms;
    move_all(backend, request, objects, object_count, load_object);
}

static void store_all(void *backend, uint64_t request, const kvkeep_backend_object *objects, size_t object_count,
                      uint32_t timeout_ms) {
    (void)timeout_ms;
    move_all(backend, request, objects, object_count, store_object);
}

static void remove_all(void *backend, uint64_t request, const kvkeep_backend_key *keys, size_t key_count,
                       uint32_t timeout_ms) {
    store *self = backend;
    int32_t *statuses = calloc(key_count, sizeof *statuses);
    (void)timeout_ms;
    if (!statuses) return complete_failed(self, request, KVKEEP_ERR_NO_MEMORY, "no memory for an answer");
    for (size_t i = 0; i < key_count; i++) {
        char path[PATH_BYTES];
        path_of(self, &keys[i], path);
        statuses[i] = unlink(path) == 0 ? KVKEEP_OK : status_of(errno);
    }
    complete(self, request, statuses, NULL, key_count);
    free(statuses);
}

// The key that `path_of` wrote as a name; 0 for another file.
static int key_of_name(const char *name, kvkeep_backend_key *key) {
    if (strlen(name) != NAME_BYTES - 1) return 0;
    for (size_t i = 0; i < sizeof *key; i++) {
        char digits[3] = {name[2 * i], name[2 * i + 1], 0}, *end;
        ((uint8_t *)key)[i] = (uint8_t)strtoul(digits, &end, 16);
        if (*end) return 0;
    }
    return 1;
}

// All of them at once, as far as one answer may have them. kvkeep removes these, and then asks once more: a directory has no place to
// go on from that would outlive the removals, so that it begins anew, under another number.
static void list(void *backend, uint64_t request, const uint8_t *space, uint64_t cursor, uint32_t timeout_ms) {
    store *self = backend;
    size_t count = 0, capacity = 1 << 14;
    kvkeep_backend_key *keys = malloc(capacity * sizeof *keys);
    DIR *directory = opendir(self->directory);
    (void)timeout_ms;
    for (struct dirent *entry; keys && directory && count < capacity && (entry = readdir(directory));) {
        if (!key_of_name(entry->d_name, &keys[count])) continue;
        if (!space || memcmp(keys[count].space, space, sizeof keys[count].space) == 0) count++;
    }
    kvkeep_backend_answer answer;
    KVKEEP_INIT(&answer);
    answer.status = keys && directory ? KVKEEP_OK : KVKEEP_ERR_IO;
    answer.keys = keys;
    answer.key_count = count;
    answer.next_cursor = count == capacity ? cursor + 1 : 0;
    self->host->complete(request, &answer);
    if (directory) closedir(directory);
    free(keys);
}

static void close_store(void *backend) {
    free(backend);
}

const kvkeep_backend_vtable *kvkeep_plugin(void);

const kvkeep_backend_vtable *kvkeep_plugin(void) {
    static kvkeep_backend_vtable vtable;
    KVKEEP_INIT(&vtable);
    vtable.name = "directory";
    vtable.open = open_store;
    vtable.lookup = look_up;
    vtable.load = load;
    vtable.store = store_all;
    vtable.remove = remove_all;
    vtable.list = list;
    vtable.close = close_store;
    return &vtable;
}
