// What tests may ask of and tell fake_cuda.c, beside the driver's own functions, which it has under their names.
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include <stddef.h>
#include <stdint.h>

// Where the bytes of a device address are in the host's memory; NULL if it is none.
void *fake_cuda_host(uint64_t device_address);
// Calls of a function so far; "move" and "copy" count what streams have carried out, "fragment" what of it was in one piece,
// "batched" copies given in batches.
uint64_t fake_cuda_calls(const char *name);
// The nth next call of a function (1: the very next) fails with `code`, one that a real device does not survive for good.
// "move" and "copy" are for what a stream carries out. 0: none fails any more.
void fake_cuda_fail(const char *name, uint64_t nth, int code);
// What there is of a kind now: "streams", "events", "host" (allocations), "registered" (ranges), "device" (allocations),
// "modules", "retained" (primary contexts, counted).
uint64_t fake_cuda_live(const char *what);
// Forgets what was lost and who is told to fail.
void fake_cuda_heal(void);

#endif
