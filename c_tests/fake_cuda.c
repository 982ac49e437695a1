// A CUDA driver without a device: what kvkeep uses of libcuda.so.1, over host memory, so that its GPU path runs anywhere.
//
// A stream is a queue and a thread, so that what is not ordered goes wrong. Device addresses are no host addresses: whoever
// follows one faults, and every copy is checked against the allocation. It is stricter than the real one, and just as
// unforgiving: a lost device stays lost. It proves logic, not speed.
//
// Environment: FAKE_CUDA_DEVICES (1), FAKE_CUDA_VERSION (12080), FAKE_CUDA_MEMORY (bytes of a device), FAKE_CUDA_FAIL
// ("function:nth:code,…"), FAKE_CUDA_JITTER_US (most that a stream dawdles before a step, 0), FAKE_CUDA_MOVE_US (how much longer a
// kernel takes, 0), FAKE_CUDA_PINNED (bytes that may be registered). A function that an older driver lacks is left out by compiling with -Dname=without_name.
#include "fake_cuda.h"

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
    uint64_t to, from, bytes;  // COPY, FILL (from: the byte); MOVE: list and count
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
    int device;  // -1: host
    bool allocated, read_only;
    struct range *next;
};

struct device {
    int ordinal, lost;
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
        if (sscanf(one, "%47[^:]:%llu:%d", name, &nth, &code) != 3) die("FAKE_CUDA_FAIL is no list of function:nth:code");
        struct count *count = count_of(name);
        count->fail_at = nth;
        count->code = code;
    }
    free(list);
}

static bool is_fatal(int code) {
    return code == 46 || code == 214 || code == ILLEGAL_ADDRESS || code == 702 || (code >= 714 && code <= 719) || code == 999;
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
    struct { uint64_t from, to, bytes; } one = {step->from, step->to, step->bytes}, *list = NULL;
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

// ---- What tests ask ----

void *fake_cuda_host(uint64_t address) {
    pthread_mutex_lock(&lock);
    struct range *range = range_at(address);
    void *at = range ? range->bytes_at + (address - range->from) : NULL;
    pthread_mutex_unlock(&lock);
    return at;
}

uint64_t fake_cuda_calls(const char *name) {
    pthread_mutex_lock(&lock);
    uint64_t calls = count_of(name)->calls;
    pthread_mutex_unlock(&lock);
    return calls;
}

void fake_cuda_fail(const char *name, uint64_t nth, int code) {
    pthread_mutex_lock(&lock);
    struct count *count = count_of(name);
    count->fail_at = nth ? count->calls + nth : 0;
    count->code = code;
    pthread_mutex_unlock(&lock);
}

uint64_t fake_cuda_live(const char *what) {
    pthread_mutex_lock(&lock);
    uint64_t live = 0;
    for (struct stream *stream = streams; stream; stream = stream->next)
        live += strcmp(what, "streams") == 0 && stream != stream->device->legacy;
    for (struct event *event = events; event; event = event->next) live += strcmp(what, "events") == 0;
    for (struct range *range = ranges; range; range = range->next) {
        const char *kind = range->device >= 0 ? "device" : range->allocated ? "host" : "registered";
        live += strcmp(what, kind) == 0;
    }
    if (strcmp(what, "modules") == 0) live = modules;
    for (int i = 0; i < DEVICES_MAX; i++) live += strcmp(what, "retained") == 0 ? devices[i].retained : 0;
    pthread_mutex_unlock(&lock);
    return live;
}

void fake_cuda_heal(void) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < DEVICES_MAX; i++) devices[i].lost = 0;
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) counts[i].fail_at = 0;
    pthread_mutex_unlock(&lock);
}

// ---- The driver ----

CUresult cuInit(unsigned flags) {
    ENTER(NULL);
    if (flags != 0) return leave(INVALID_VALUE);
    if (device_count == 0) return leave(NO_DEVICE);
    ready = true;
    return leave(0);
}

CUresult cuDriverGetVersion(int *found) {
    *found = version;
    return 0;
}

CUresult cuGetErrorName(CUresult error, const char **name) {
    static const struct { int code; const char *name; } names[] = {
        {1, "CUDA_ERROR_INVALID_VALUE"}, {2, "CUDA_ERROR_OUT_OF_MEMORY"}, {3, "CUDA_ERROR_NOT_INITIALIZED"},
        {100, "CUDA_ERROR_NO_DEVICE"}, {101, "CUDA_ERROR_INVALID_DEVICE"}, {200, "CUDA_ERROR_INVALID_IMAGE"},
        {201, "CUDA_ERROR_INVALID_CONTEXT"}, {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"}, {400, "CUDA_ERROR_INVALID_HANDLE"},
        {600, "CUDA_ERROR_NOT_READY"}, {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {719, "CUDA_ERROR_LAUNCH_FAILED"},
        {801, "CUDA_ERROR_NOT_SUPPORTED"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (names[i].code == error) return *name = names[i].name, 0;
    }
    return *name = NULL, INVALID_VALUE;
}

CUresult cuDeviceGetCount(int *count) {
    ENTER(NULL);
    *count = device_count;
    return leave(0);
}

CUresult cuDeviceGet(int *device, int ordinal) {
    ENTER(NULL);
    if (ordinal < 0 || ordinal >= device_count) return leave(INVALID_DEVICE);
    *device = ordinal;
    return leave(0);
}

CUresult cuDeviceGetName(char *name, int bytes, int device) {
    ENTER(NULL);
    snprintf(name, (size_t)bytes, "Fake GPU %d", device);
    return leave(0);
}

CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
    ENTER(NULL);
    (void)device;
    // The same addresses on both sides; registering what may only be read.
    *value = attribute == 41 || attribute == 91 || attribute == 113;
    return leave(0);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, int device) {
    ENTER(&devices[device]);
    devices[device].retained++;
    *context = &devices[device];
    return leave(0);
}

CUresult cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER(NULL);
    if (devices[device].retained == 0) die("a primary context was released too often");
    devices[device].retained--;
    return leave(0);
}

CUresult cuCtxPushCurrent_v2(CUcontext context) {
    ENTER(NULL);
    if (!context || context->retained == 0) return leave(INVALID_CONTEXT);
    if (depth == 8) die("contexts are pushed and not popped");
    stack[depth++] = context;
    return leave(0);
}

CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    ENTER(NULL);
    if (depth == 0) return leave(INVALID_CONTEXT);
    *context = stack[--depth];
    return leave(0);
}

CUresult cuThreadExchangeStreamCaptureMode(int *mode) {
    static __thread int now = 0;
    int before = now;
    now = *mode;
    *mode = before;
    return 0;
}

CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    ENTER_CURRENT;
    if (flags > 1) return leave(INVALID_VALUE);
    *stream = new_stream(device);
    return leave(0);
}

CUresult cuStreamDestroy_v2(CUstream handle) {
    ENTER(NULL);
    struct stream *stream = stream_of(handle);
    if (!stream || (uintptr_t)handle <= 2) return leave(INVALID_HANDLE);
    struct stream **at = &streams;
    while (*at != stream) at = &(*at)->next;
    *at = stream->next;
    // It ends when it has done what it was given.
    pthread_detach(stream->thread);
    stream->ending = true;
    pthread_cond_broadcast(&changed);
    return leave(0);
}

CUresult cuStreamSynchronize(CUstream handle) {
    ENTER_CURRENT;
    struct stream *stream = stream_of(handle);
    if (!stream) return leave(INVALID_HANDLE);
    drain(stream);
    return leave(device->lost);
}

CUresult cuStreamWaitEvent(CUstream handle, CUevent waited, unsigned flags) {
    ENTER_CURRENT;
    struct stream *stream = stream_of(handle);
    struct event *event = event_of(waited);
    if (!stream || !event || flags != 0) return leave(INVALID_HANDLE);
    if (event->recorded > 0) push(stream, (struct step){.kind = WAIT, .event = event, .turn = event->recorded});
    return leave(0);
}

CUresult cuStreamIsCapturing(CUstream handle, int *status) {
    ENTER_CURRENT;
    (void)device;
    if (!stream_of(handle)) return leave(INVALID_HANDLE);
    *status = 0;
    return leave(0);
}

CUresult cuEventCreate(CUevent *made, unsigned flags) {
    ENTER_CURRENT;
    (void)flags;
    struct event *event = calloc(1, sizeof *event);
    event->device = device;
    event->next = events;
    events = *made = event;
    return leave(0);
}

CUresult cuEventDestroy_v2(CUevent handle) {
    ENTER(NULL);
    struct event *event = event_of(handle);
    if (!event) return leave(INVALID_HANDLE);
    struct event **at = &events;
    while (*at != event) at = &(*at)->next;
    *at = event->next;
    event->gone = true;
    if (event->steps == 0) free(event);
    return leave(0);
}

CUresult cuEventRecord(CUevent handle, CUstream on) {
    ENTER_CURRENT;
    struct stream *stream = stream_of(on);
    struct event *event = event_of(handle);
    if (!stream || !event || stream->device != event->device || event->device != device) return leave(INVALID_HANDLE);
    push(stream, (struct step){.kind = RECORD, .event = event, .turn = ++event->recorded});
    return leave(0);
}

CUresult cuEventSynchronize(CUevent handle) {
    ENTER_CURRENT;
    struct event *event = event_of(handle);
    if (!event) return leave(INVALID_HANDLE);
    uint64_t turn = event->recorded;
    while (event->reached < turn && !device->lost) pthread_cond_wait(&changed, &lock);
    return leave(device->lost);
}

static int allocate_host(void **at, size_t bytes) {
    bytes = (bytes + PAGE - 1) / PAGE * PAGE;
    if (bytes == 0 || bytes > memory) return bytes == 0 ? INVALID_VALUE : OUT_OF_MEMORY;
    void *made = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) return OUT_OF_MEMORY;
    add_range((struct range){.from = (uintptr_t)made, .bytes = bytes, .bytes_at = made, .device = -1, .allocated = true});
    *at = made;
    return 0;
}

CUresult cuMemHostAlloc(void **at, size_t bytes, unsigned flags) {
    ENTER_CURRENT;
    (void)flags, (void)device;
    return leave(allocate_host(at, bytes));
}

CUresult cuMemFreeHost(void *at) {
    ENTER(NULL);
    return leave(remove_range((uintptr_t)at, -1, true) ? 0 : INVALID_VALUE);
}

CUresult cuMemHostRegister_v2(void *at, size_t bytes, unsigned flags) {
    ENTER_CURRENT;
    (void)device;
    if (!at || bytes == 0 || flags > 15) return leave(INVALID_VALUE);
    if (reaches((uintptr_t)at, bytes) != 0) return leave(ALREADY_REGISTERED);
    if (bytes > pinned_max - pinned) return leave(OUT_OF_MEMORY);
    bool read_only = flags & 8;
    // Pins the pages, which takes the right to write them unless they are registered for reading.
    uint64_t first = (uintptr_t)at / PAGE * PAGE, end = ((uintptr_t)at + bytes + PAGE - 1) / PAGE * PAGE;
    int advice = read_only ? 22 : 23;
    if (madvise((void *)first, end - first, advice) != 0 && errno != EFAULT && errno != ENOSYS) return leave(INVALID_VALUE);
    pinned += bytes;
    add_range((struct range){.from = (uintptr_t)at, .bytes = bytes, .bytes_at = at, .device = -1, .read_only = read_only});
    return leave(0);
}

CUresult cuMemHostUnregister(void *at) {
    // A lost device does not keep memory.
    pthread_mutex_lock(&lock);
    int code = called(__func__, NULL);
    if (code) return leave(code);
    unsigned char present;
    if (mincore(at, 1, &present) != 0 && errno == ENOMEM) die("memory was unmapped while it was registered");
    return leave(remove_range((uintptr_t)at, -1, false) ? 0 : NOT_REGISTERED);
}

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    ENTER_CURRENT;
    bytes = (bytes + PAGE - 1) / PAGE * PAGE;
    if (bytes == 0) return leave(INVALID_VALUE);
    if (bytes > memory - device->used) return leave(OUT_OF_MEMORY);
    void *place = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED || at == MAP_FAILED) return leave(OUT_OF_MEMORY);
    device->used += bytes;
    add_range((struct range){.from = (uintptr_t)place, .bytes = bytes, .bytes_at = at, .device = device->ordinal, .allocated = true});
    *address = (uintptr_t)place;
    return leave(0);
}

CUresult cuMemFree_v2(CUdeviceptr address) {
    ENTER(NULL);
    return leave(remove_range(address, 0, true) ? 0 : INVALID_VALUE);
}

CUresult cuPointerGetAttribute(void *data, int attribute, CUdeviceptr address) {
    ENTER(NULL);
    struct range *range = range_at(address);
    if (!range) return leave(INVALID_VALUE);
    if (attribute == 2) *(unsigned *)data = range->device >= 0 ? 2 : 1;
    else if (attribute == 9) *(int *)data = range->device >= 0 ? range->device : 0;
    else return leave(INVALID_VALUE);
    return leave(0);
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    ENTER_CURRENT;
    return leave(copy(device, stream_of(stream), (uintptr_t)from, to, bytes, true));
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER_CURRENT;
    return leave(copy(device, stream_of(stream), (uintptr_t)to, from, bytes, false));
}

CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char byte, size_t bytes, CUstream handle) {
    ENTER_CURRENT;
    struct stream *stream = stream_of(handle);
    if (!stream || !inside(to, bytes, false, device)) return leave(INVALID_VALUE);
    push(stream, (struct step){.kind = FILL, .to = to, .from = byte, .bytes = bytes});
    return leave(0);
}

CUresult cuLaunchHostFunc(CUstream handle, void (*function)(void *), void *data) {
    ENTER_CURRENT;
    (void)device;
    struct stream *stream = stream_of(handle);
    if (!stream) return leave(INVALID_HANDLE);
    push(stream, (struct step){.kind = CALL, .function = function, .data = data});
    return leave(0);
}

struct attributes { int order, from_kind, from_id, to_kind, to_id; unsigned flags; };

CUresult cuMemcpyBatchAsync(CUdeviceptr *to, CUdeviceptr *from, size_t *bytes, size_t count, struct attributes *attributes,
                            size_t *indexes, size_t attribute_count, size_t *failed, CUstream handle) {
    ENTER_CURRENT;
    struct stream *stream = stream_of(handle);
    *failed = SIZE_MAX;
    if (!stream || (uintptr_t)handle <= 2) return leave(INVALID_HANDLE);
    if (count == 0 || attribute_count != 1 || indexes[0] != 0 || attributes->order != 1) return leave(INVALID_VALUE);
    // In any order: the last first.
    for (size_t i = count; i-- > 0;) {
        struct range *target = range_at(to[i]);
        bool up = target && target->device >= 0;
        *failed = i;
        if (reaches(up ? from[i] : to[i], bytes[i]) != 1) return leave(INVALID_VALUE);
        int code = copy(device, stream, up ? from[i] : to[i], up ? to[i] : from[i], bytes[i], up);
        if (code) return leave(code);
    }
    *failed = SIZE_MAX;
    count_of("batched")->calls += count;
    return leave(0);
}

CUresult cuModuleLoadData(void **module, const void *image) {
    ENTER_CURRENT;
    (void)device;
    unsigned major, minor;
    const char *said = strstr(image, ".version ");
    if (!said || sscanf(said, ".version %u.%u", &major, &minor) != 2) return leave(INVALID_IMAGE);
    // PTX 8.1 came with CUDA 12.1, and so on.
    if ((int)((major + 4) * 1000 + minor * 10) > version) return leave(UNSUPPORTED_PTX);
    modules++;
    *module = &modules;
    return leave(0);
}

CUresult cuModuleUnload(void *module) {
    ENTER(NULL);
    if (module != &modules || modules == 0) return leave(INVALID_HANDLE);
    modules--;
    return leave(0);
}

CUresult cuModuleGetFunction(void **function, void *module, const char *name) {
    ENTER_CURRENT;
    (void)device;
    if (module != &modules || strcmp(name, "kvkeep_move") != 0) return leave(NOT_FOUND);
    *function = &modules;
    return leave(0);
}

// The kernel's list and number of fragments; see src/transfer/cuda/kernel.cu.
CUresult cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                        unsigned block_z, unsigned shared, CUstream handle, void **parameters, void **extra) {
    ENTER_CURRENT;
    struct stream *stream = stream_of(handle);
    if (!stream || function != &modules || stream->device != device) return leave(INVALID_HANDLE);
    uint64_t threads = (uint64_t)block_x * block_y * block_z, blocks = (uint64_t)grid_x * grid_y * grid_z;
    if (threads == 0 || threads > 1024 || threads % 32 || blocks == 0 || shared || extra) return leave(INVALID_VALUE);
    push(stream, (struct step){.kind = MOVE, .from = *(uint64_t *)parameters[0], .bytes = *(unsigned *)parameters[1]});
    return leave(0);
}
