// Small fragments between an engine's pages and L1, which the device reaches through its own mapping of registered memory.
// A warp takes a fragment at a time. Addresses and sizes are multiples of 4; where they are of 16, a thread moves 16 bytes.
// scripts/compile_kernel.py makes kernel.ptx of this.

struct fragment {
    unsigned long long from, to, bytes;
};

template <typename Word> __device__ void move(const fragment &one, unsigned lane) {
    const Word *from = (const Word *)one.from;
    Word *to = (Word *)one.to;
    const unsigned long long words = one.bytes / sizeof(Word);
    unsigned long long at = lane;
    // Several reads under way at once, since each crosses the bus.
#pragma unroll 1
    for (; at + 3 * 32 < words; at += 4 * 32) {
        Word a = __ldcs(from + at), b = __ldcs(from + at + 32), c = __ldcs(from + at + 64), d = __ldcs(from + at + 96);
        __stcs(to + at, a);
        __stcs(to + at + 32, b);
        __stcs(to + at + 64, c);
        __stcs(to + at + 96, d);
    }
#pragma unroll 1
    for (; at < words; at += 32) __stcs(to + at, __ldcs(from + at));
}

extern "C" __global__ void kvkeep_move(const fragment *fragments, unsigned count) {
    const unsigned lane = threadIdx.x % 32, warps = gridDim.x * blockDim.x / 32;
#pragma unroll 1
    for (unsigned i = (blockIdx.x * blockDim.x + threadIdx.x) / 32; i < count; i += warps) {
        const fragment one = fragments[i];
        if (((one.from | one.to | one.bytes) & 15) == 0) {
            move<uint4>(one, lane);
        } else {
            move<unsigned>(one, lane);
        }
    }
}
