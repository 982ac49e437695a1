// The machine behind fake_cuda.c: devices, memory with two addresses, streams that are threads, and who is told to fail.
#ifndef FAKE_CUDA_MACHINE_H
#define FAKE_CUDA_MACHINE_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

typedef int CUresult;
typedef struct device *CUcontext;
typedef struct stream *CUstream;
typedef struct event *CUevent;
typedef unsigned long long CUdeviceptr;

enum {
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    UNSUPPORTED_PTX = 222,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    ALREADY_REGISTERED = 712,
    NOT_REGISTERED = 713,
    MISALIGNED = 716,
    DEVICES_MAX = 8,
    PAGE = 4096,
};

typedef enum { COPY, MOVE, FILL, RECORD, WAIT, CALL } kind;

struct step {
    kind kind;
    uint64_t to, from, bytes; // COPY, FILL (from: the byte); MOVE: list and count
    struct event *event;
    uint64_t turn;
    void (*function)(void *);
    void *data;
    struct step *next;
};

struct stream {
    struct device *device;
    struct step *first, *last;
    bool ending;
    pthread_t thread;
    struct stream *next;
};

struct event {
    struct device *device;
    uint64_t recorded, reached, steps;
    bool gone;
    struct event *next;
};

// Device memory, or host memory that the device reaches.
struct range {
    uint64_t from, bytes;
    uint8_t *bytes_at;
    int device; // -1: host
    bool allocated, read_only;
    struct range *next;
};

struct device {
    // `ending`: streams that are destroyed and have not done all that they were given.
    int ordinal, lost, ending;
    uint64_t retained, used;
    struct stream *legacy;
};

struct count {
    char name[48];
    uint64_t calls, fail_at;
    int code;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct device devices[DEVICES_MAX];
static struct stream *streams;
static struct event *events;
static struct range *ranges;
static struct count counts[96];
static int device_count, version;
static uint64_t memory, pinned_max, pinned, jitter_us, move_us, modules;
static bool ready;
static __thread CUcontext stack[8];
static __thread int depth;

static void die(const char *what) {
    fprintf(stderr, "fake_cuda: %s\n", what);
    abort();
}

static uint64_t number_of(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static struct count *count_of(const char *name) {
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        if (!counts[i].name[0]) snprintf(counts[i].name, sizeof counts[i].name, "%s", name);
        if (strcmp(counts[i].name, name) == 0) return &counts[i];
    }
    die("too many names");
    return NULL;
}

__attribute__((constructor)) static void begin(void) {
    device_count = (int)number_of("FAKE_CUDA_DEVICES", 1);
    version = (int)number_of("FAKE_CUDA_VERSION", 12080);
    memory = number_of("FAKE_CUDA_MEMORY", 1ull << 34);
    pinned_max = number_of("FAKE_CUDA_PINNED", UINT64_MAX);
    jitter_us = number_of("FAKE_CUDA_JITTER_US", 0);
    move_us = number_of("FAKE_CUDA_MOVE_US", 0);
    for (int i = 0; i < DEVICES_MAX; i++) devices[i].ordinal = i;
    char *list = getenv("FAKE_CUDA_FAIL") ? strdup(getenv("FAKE_CUDA_FAIL")) : NULL, *rest;
    for (char *one = list ? strtok_r(list, ",", &rest) : NULL; one; one = strtok_r(NULL, ",", &rest)) {
        char name[48];
        unsigned long long nth;
        int code;
        if (sscanf(one, "%47[^:]:%llu:%d", name, &nth, &code) != 3)
            die("FAKE_CUDA_FAIL is no list of function:nth:code");
        struct count *count = count_of(name);
        count->fail_at = nth;
        count->code = code;
    }
    free(list);
}

static bool is_fatal(int code) {
    return code == 46 || code == 214 || code == ILLEGAL_ADDRESS || code == 702 || (code >= 714 && code <= 719) ||
           code == 999;
}

static struct device *current(void) {
    return depth > 0 ? stack[depth - 1] : NULL;
}

// Counts a call and says whether it is to fail. `device` is lost if the error is of that kind.
static int called(const char *name, struct device *device) {
    struct count *count = count_of(name);
    count->calls++;
    if (device && device->lost) return device->lost;
    if (count->calls != count->fail_at) return 0;
    if (device && is_fatal(count->code)) {
        device->lost = count->code;
        pthread_cond_broadcast(&changed);
    }
    return count->code;
}

#define ENTER(device) \
    pthread_mutex_lock(&lock); \
    int code = ready || strcmp(__func__, "cuInit") == 0 ? called(__func__, device) : NOT_INITIALIZED; \
    if (code) return leave(code)

// For functions of the current context.
#define ENTER_CURRENT \
    ENTER(current()); \
    struct device *device = current(); \
    if (!device || device->retained == 0) return leave(INVALID_CONTEXT)

static int leave(int code) {
    pthread_mutex_unlock(&lock);
    return code;
}

static struct range *range_at(uint64_t address) {
    struct range *range = ranges;
    while (range && (address < range->from || address - range->from >= range->bytes)) range = range->next;
    return range;
}

// Where `bytes` bytes are that must be inside one range, of one side; NULL if they are not.
static uint8_t *inside(uint64_t address, uint64_t bytes, bool on_host, struct device *device) {
    struct range *range = range_at(address);
    if (!range || bytes > range->bytes - (address - range->from)) return NULL;
    if (on_host ? range->device >= 0 : range->device != device->ordinal) return NULL;
    return range->bytes_at + (address - range->from);
}

static void add_range(struct range made) {
    struct range *range = malloc(sizeof *range);
    *range = made;
    range->next = ranges;
    ranges = range;
}

static bool remove_range(uint64_t from, int side, bool allocated) {
    for (struct range **at = &ranges; *at; at = &(*at)->next) {
        struct range *range = *at;
        if (range->from != from || (range->device >= 0) != (side >= 0) || range->allocated != allocated) continue;
        if (side >= 0) devices[range->device].used -= range->bytes;
        else if (!allocated) pinned -= range->bytes;
        if (allocated) munmap(range->bytes_at, range->bytes);
        if (side >= 0) munmap((void *)range->from, range->bytes);
        *at = range->next;
        free(range);
        return true;
    }
    return false;
}

static void dawdle(kind kind) {
    static __thread unsigned seed;
    if (kind == MOVE && move_us > 0) usleep((useconds_t)move_us);
    if (jitter_us == 0) return;
    if (seed == 0) seed = (unsigned)(uintptr_t)&seed | 1;
    struct timespec pause = {0, (long)(rand_r(&seed) % jitter_us) * 1000};
    if (rand_r(&seed) % 4 == 0) nanosleep(&pause, NULL);
}

// Carries out a step that moves bytes, under the lock. Addresses are looked up when it runs, as a device does.
static int move_bytes(struct device *device, struct step *step) {
    int code = called(step->kind == MOVE ? "move" : step->kind == COPY ? "copy" : "fill", device);
    if (code) return is_fatal(code) ? code : ILLEGAL_ADDRESS;
    if (step->kind == FILL) {
        uint8_t *to = inside(step->to, step->bytes, false, device);
        if (!to) return ILLEGAL_ADDRESS;
        memset(to, (int)step->from, step->bytes);
        return 0;
    }
    struct {
        uint64_t from, to, bytes;
    } one = {step->from, step->to, step->bytes}, *list = NULL;
    uint64_t count = 1;
    if (step->kind == MOVE) {
        count = step->bytes;
        list = (void *)inside(step->from, count * sizeof one, true, device);
        if (!list) return ILLEGAL_ADDRESS;
    }
    for (uint64_t i = count; i-- > 0;) {
        if (list) one = list[i];
        if (list && ((one.from | one.to | one.bytes) & 3)) return MISALIGNED;
        struct range *target = range_at(one.to);
        bool up = target && target->device >= 0;
        uint8_t *from = inside(one.from, one.bytes, up, device), *to = inside(one.to, one.bytes, !up, device);
        if (!from || !to || target->read_only) return ILLEGAL_ADDRESS;
        count_of("fragment")->calls++;
        memcpy(to, from, one.bytes);
    }
    return 0;
}

static bool may_go(struct stream *stream) {
    struct step *step = stream->first;
    return step && (step->kind != WAIT || step->event->reached >= step->turn || stream->device->lost);
}

static void *run(void *data) {
    struct stream *stream = data;
    pthread_mutex_lock(&lock);
    while (true) {
        while (!may_go(stream) && !(stream->ending && !stream->first)) pthread_cond_wait(&changed, &lock);
        struct step *step = stream->first;
        if (!step) break;
        pthread_mutex_unlock(&lock);
        dawdle(step->kind);
        // What a caller put there may call the driver, or wait for long.
        if (step->kind == CALL) step->function(step->data);
        pthread_mutex_lock(&lock);
        if (step->kind <= FILL && !stream->device->lost) {
            int code = move_bytes(stream->device, step);
            if (code) stream->device->lost = code;
        }
        if (step->kind == RECORD && step->event->reached < step->turn) step->event->reached = step->turn;
        stream->first = step->next;
        if (step->event && --step->event->steps == 0 && step->event->gone) free(step->event);
        free(step);
        pthread_cond_broadcast(&changed);
    }
    stream->device->ending--;
    pthread_cond_broadcast(&changed);
    free(stream);
    pthread_mutex_unlock(&lock);
    return NULL;
}

static struct stream *new_stream(struct device *device) {
    struct stream *stream = calloc(1, sizeof *stream);
    stream->device = device;
    stream->next = streams;
    streams = stream;
    if (pthread_create(&stream->thread, NULL, run, stream) != 0) die("no thread");
    return stream;
}

static struct stream *stream_of(CUstream handle) {
    if ((uintptr_t)handle <= 2) {
        struct device *device = current();
        if (device && !device->legacy) device->legacy = new_stream(device);
        return device ? device->legacy : NULL;
    }
    struct stream *stream = streams;
    while (stream && stream != handle) stream = stream->next;
    return stream;
}

static struct event *event_of(CUevent handle) {
    struct event *event = events;
    while (event && event != handle) event = event->next;
    return event;
}

static void push(struct stream *stream, struct step made) {
    struct step *step = malloc(sizeof *step);
    *step = made;
    if (step->event) step->event->steps++;
    step->next = NULL;
    if (stream->first) stream->last->next = step;
    else stream->first = step;
    stream->last = step;
    pthread_cond_broadcast(&changed);
}

static void drain(struct stream *stream) {
    while (stream->first && !stream->device->lost) pthread_cond_wait(&changed, &lock);
}

// 1: the device reaches all of it. 0: none of it. -1: a part, or two registrations, which the driver refuses.
static int reaches(uint64_t from, uint64_t bytes) {
    for (struct range *range = ranges; range; range = range->next) {
        if (range->device >= 0 || from + bytes <= range->from || from >= range->from + range->bytes) continue;
        return from >= range->from && from + bytes <= range->from + range->bytes ? 1 : -1;
    }
    return 0;
}

static int copy(struct device *device, struct stream *stream, uint64_t host, uint64_t page, uint64_t bytes, bool up) {
    if (!stream) return INVALID_HANDLE;
    if (bytes == 0 || stream->device != device || !inside(page, bytes, false, device)) return INVALID_VALUE;
    int reached = reaches(host, bytes);
    if (reached < 0) return INVALID_VALUE;
    struct step step = {.kind = COPY, .from = up ? host : page, .to = up ? page : host, .bytes = bytes};
    if (reached) {
        push(stream, step);
        return 0;
    }
    // Pageable memory: the caller waits, and the bytes are there when it returns.
    drain(stream);
    if (device->lost) return device->lost;
    int code = called("copy", device);
    if (code) return code;
    count_of("fragment")->calls++;
    uint8_t *at = inside(page, bytes, false, device);
    if (up) memcpy(at, (void *)host, bytes);
    else memcpy((void *)host, at, bytes);
    return 0;
}

#endif
