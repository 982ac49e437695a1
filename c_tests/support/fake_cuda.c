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

#include "fake_cuda_machine.h"

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
    for (int i = 0; i < DEVICES_MAX; i++) {
        // What a lost device was given is not done when it is well again: its memory may be somebody else's by then.
        while (devices[i].lost && devices[i].ending > 0) pthread_cond_wait(&changed, &lock);
        devices[i].lost = 0;
    }
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
    static const struct {
        int code;
        const char *name;
    } names[] = {
        {1, "CUDA_ERROR_INVALID_VALUE"},     {2, "CUDA_ERROR_OUT_OF_MEMORY"},
        {3, "CUDA_ERROR_NOT_INITIALIZED"},   {100, "CUDA_ERROR_NO_DEVICE"},
        {101, "CUDA_ERROR_INVALID_DEVICE"},  {200, "CUDA_ERROR_INVALID_IMAGE"},
        {201, "CUDA_ERROR_INVALID_CONTEXT"}, {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"},
        {400, "CUDA_ERROR_INVALID_HANDLE"},  {600, "CUDA_ERROR_NOT_READY"},
        {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {719, "CUDA_ERROR_LAUNCH_FAILED"},
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
    stream->device->ending++;
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
    add_range(
        (struct range){.from = (uintptr_t)made, .bytes = bytes, .bytes_at = made, .device = -1, .allocated = true});
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
    if (madvise((void *)first, end - first, advice) != 0 && errno != EFAULT && errno != ENOSYS)
        return leave(INVALID_VALUE);
    pinned += bytes;
    add_range(
        (struct range){.from = (uintptr_t)at, .bytes = bytes, .bytes_at = at, .device = -1, .read_only = read_only});
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
    add_range((struct range){
        .from = (uintptr_t)place, .bytes = bytes, .bytes_at = at, .device = device->ordinal, .allocated = true});
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

struct attributes {
    int order, from_kind, from_id, to_kind, to_id;
    unsigned flags;
};

CUresult cuMemcpyBatchAsync(CUdeviceptr *to, CUdeviceptr *from, size_t *bytes, size_t count,
                            struct attributes *attributes, size_t *indexes, size_t attribute_count, size_t *failed,
                            CUstream handle) {
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
CUresult cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared, CUstream handle, void **parameters,
                        void **extra) {
    ENTER_CURRENT;
    struct stream *stream = stream_of(handle);
    if (!stream || function != &modules || stream->device != device) return leave(INVALID_HANDLE);
    uint64_t threads = (uint64_t)block_x * block_y * block_z, blocks = (uint64_t)grid_x * grid_y * grid_z;
    if (threads == 0 || threads > 1024 || threads % 32 || blocks == 0 || shared || extra) return leave(INVALID_VALUE);
    push(stream, (struct step){.kind = MOVE, .from = *(uint64_t *)parameters[0], .bytes = *(unsigned *)parameters[1]});
    return leave(0);
}
