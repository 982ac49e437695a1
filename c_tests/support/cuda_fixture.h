// The CUDA driver as a test uses it, by name, so that tests start where there is none; and pages on any device.
#ifndef CUDA_FIXTURE_H
#define CUDA_FIXTURE_H

#include "check.h"

#include <dlfcn.h>

#define CUDA_FUNCTIONS(function) \
    function(int, cuInit, (unsigned)) function(int, cuDevicePrimaryCtxRetain, (void **, int)) \
        function(int, cuDevicePrimaryCtxRelease_v2, (int)) function(int, cuCtxPushCurrent_v2, (void *)) \
            function(int, cuCtxPopCurrent_v2, (void **)) function(int, cuStreamCreate, (void **, unsigned)) \
                function(int, cuStreamDestroy_v2, (void *)) function(int, cuStreamSynchronize, (void *)) \
                    function(int, cuLaunchHostFunc, (void *, void (*)(void *), void *)) \
                        function(int, cuMemsetD8Async, (uint64_t, unsigned char, size_t, void *)) \
                            function(int, cuMemAlloc_v2, (uint64_t *, size_t)) function(int, cuMemFree_v2, (uint64_t)) \
                                function(void *, fake_cuda_host, (uint64_t)) \
                                    function(uint64_t, fake_cuda_calls, (const char *)) \
                                        function(uint64_t, fake_cuda_live, (const char *)) \
                                            function(void, fake_cuda_fail, (const char *, uint64_t, int)) \
                                                function(void, fake_cuda_heal, (void))
#define CUDA_DECLARE(result, name, arguments) static result(*name) arguments __attribute__((unused));
CUDA_FUNCTIONS(CUDA_DECLARE)

// Whether there is a driver, which it loads.
static inline int cuda_begin(void) {
    static void *library;
    if (library) return 1;
    library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) return 0;
#define CUDA_FIND(result, name, arguments) *(void **)&name = dlsym(library, #name);
    CUDA_FUNCTIONS(CUDA_FIND)
    return 1;
}

// Makes a device's primary context current, until `cuda_leave`, as an engine does.
static inline void cuda_use(int device) {
    void *context;
    CHECK_EQUAL(cuDevicePrimaryCtxRetain(&context, device), 0);
    CHECK_EQUAL(cuCtxPushCurrent_v2(context), 0);
}

static inline void cuda_leave(int device) {
    void *context;
    CHECK_EQUAL(cuCtxPopCurrent_v2(&context), 0);
    CHECK_EQUAL(cuDevicePrimaryCtxRelease_v2(device), 0);
}

// Memory of a device: its address there, and where the test sees its bytes.
static inline void *device_pages(int32_t device, size_t bytes, uint64_t *address) {
    void *pages;
    if (device == KVKEEP_DEVICE_HOST) {
        CHECK(pages = aligned_alloc(64, (bytes + 63) / 64 * 64));
        *address = (uint64_t)(uintptr_t)pages;
        return pages;
    }
    CHECK(cuda_begin());
    CHECK_EQUAL(cuInit(0), 0);
    cuda_use(device);
    CHECK_EQUAL(cuMemAlloc_v2(address, bytes), 0);
    CHECK(pages = fake_cuda_host(*address));
    return pages;
}

#endif
