// A toy engine with a paged KV cache, in Go. engine.cpp and engine.py are the same engine: they find what it has stored, and print the
// same lines.
//
//	engine DIRECTORY            the first run: computes, stores, preempts a request and takes it up again
//	engine DIRECTORY again      a later process, also one in another language: finds below L1 what was stored
//
// In place of a directory it takes the URL of another backend, or the socket of a daemon, "unix:///tmp/kvkeep.sock".
// Build it with cgo: CGO_CFLAGS and CGO_LDFLAGS say where kvkeep.h and libkvkeep.so are, unless they are installed.
package main

/*
#cgo LDFLAGS: -lkvkeep
#include <kvkeep.h>
#include <stdlib.h>
*/
import "C"

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"
)

const (
	layers, blocks, blockTokens, chunkBlocks, entryBytes = 4, 23, 16, 4, 32
	chunkTokens, pageBytes                               = chunkBlocks * blockTokens, blocks * blockTokens * entryBytes
	// A real engine waits no longer than it would compute.
	waitMs = 30000
)

var cache *C.kvkeep

// check makes a Go error of a failed call. The goroutine may be on another thread by now, where kvkeep_last_error has other words: the
// message is asked for by what the call named.
func check(status C.kvkeep_status, subject C.uint32_t, number C.uint64_t) error {
	if status >= 0 {
		return nil
	}
	var text [2048]C.char
	var length C.size_t
	name := C.GoString(C.kvkeep_status_name(C.int32_t(status)))
	if C.kvkeep_get_error(cache, subject, number, &text[0], C.size_t(len(text)), &length) < 0 {
		return errors.New(name)
	}
	return fmt.Errorf("%s: %s", name, C.GoString(&text[0]))
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// failure is a failed call on its way to guarded.
type failure struct{ error }

func try(status C.kvkeep_status, subject C.uint32_t, number C.uint64_t) {
	if err := check(status, subject, number); err != nil {
		panic(failure{err})
	}
}

// guarded does what the engine can do without: the cache only saves work.
func guarded(name, what string, work func()) {
	defer func() {
		switch err := recover().(type) {
		case nil:
		case failure:
			fmt.Fprintf(os.Stderr, "%s %s: %v\n", name, what, err)
		default:
			panic(err)
		}
	}()
	work()
}

// prepare is KVKEEP_INIT, a macro that Go does not see.
func prepare(versioned unsafe.Pointer, bytes uintptr) {
	must(check(C.kvkeep_init_struct(versioned, C.size_t(bytes), C.KVKEEP_ABI_VERSION), C.KVKEEP_SUBJECT_CACHE, 0))
}

func blocksFor(tokens int) int { return (tokens + blockTokens - 1) / blockTokens }

// states gives a number for each token that depends on all tokens up to it.
func states(tokens []C.uint32_t) []uint32 {
	all, state := make([]uint32, len(tokens)), uint32(2166136261)
	for i, token := range tokens {
		state = (state ^ uint32(token)) * 16777619
		all[i] = state
	}
	return all
}

// entry is the K (part 0) or V (part 1) of a token in a layer.
func entry(state uint32, layer, part int) []byte {
	made := make([]byte, entryBytes)
	for i := range made {
		made[i] = byte(int(state>>(8*(i%4))) + layer*29 + part*13 + i)
	}
	return made
}

// sample gives the next token, from a byte of each token's entry.
func sample(count int, firstByte func(i int) byte) C.uint32_t {
	sum := 0
	for i := 0; i < count; i++ {
		sum += int(firstByte(i)) * (i + 1)
	}
	return C.uint32_t(sum % 32000)
}

type request struct {
	name         string
	tokens       []C.uint32_t
	left         int
	aborts       bool
	promptTokens int
	session      C.uint64_t
	blocks       []C.int32_t
	// Tokens whose entries are in the pages, those that the session knows, those that a preemption saved, and chunks that are stored.
	computed, named, saved, stored int
	said                           string
}

func newRequest(name string, prompt []C.uint32_t, left int, aborts bool) *request {
	return &request{name: name, tokens: append([]C.uint32_t{}, prompt...), left: left, aborts: aborts, promptTokens: len(prompt)}
}

type engine struct {
	space, pool      C.uint64_t
	pages            [layers][2][]byte
	free             []C.int32_t
	waiting, running []*request
}

// run is the scheduler: it admits as many requests as there are blocks for, then computes a token of each, and so on.
func (e *engine) run(requests ...*request) {
	e.waiting = requests
	for len(e.waiting)+len(e.running) > 0 {
		for len(e.waiting) > 0 && blocksFor(len(e.waiting[0].tokens)) <= len(e.free) {
			r := e.waiting[0]
			e.waiting = e.waiting[1:]
			e.admit(r)
		}
		for _, r := range append([]*request{}, e.running...) {
			if e.place(r) < 0 || !e.hasRoom(r) {
				continue
			}
			e.compute(r)
			r.tokens = append(r.tokens, sample(r.computed, func(i int) byte { return e.at(r, i, i%layers, i%2)[0] }))
			if r.left--; r.left == 0 {
				e.finish(r)
			}
		}
	}
}

func (e *engine) admit(r *request) {
	for len(r.blocks) < blocksFor(len(r.tokens)) {
		e.takeBlock(r)
	}
	e.running = append(e.running, r)
	r.session, r.computed, r.named, r.stored = 0, 0, 0, 0
	guarded(r.name, "goes on without the cache", func() { e.load(r) })
	// Of a prompt that is found whole, the last token is computed for what comes after it.
	if r.computed == len(r.tokens) {
		r.computed--
	}
	r.said += fmt.Sprintf(", %d cached", r.computed)
}

// load looks the prompt up, and brings what is known of it into the pages.
func (e *engine) load(r *request) {
	var options C.kvkeep_session_options
	prepare(unsafe.Pointer(&options), unsafe.Sizeof(options))
	options.request_id = C.CString(r.name)
	defer C.free(unsafe.Pointer(options.request_id))
	try(C.kvkeep_begin_session(cache, e.space, &options, &r.session), C.KVKEEP_SUBJECT_SPACE, e.space)
	known, tail := len(r.tokens), 0
	if r.saved > 0 {
		known, tail = r.saved, r.saved%chunkTokens
	}
	var count C.size_t
	r.try(C.kvkeep_append_tokens(cache, r.session, &r.tokens[0], C.size_t(known), &count))
	r.named = known
	keys := r.keys(0, int(count), tail)
	if len(keys) == 0 {
		return
	}
	var prefetch C.kvkeep_prefetch_options
	prepare(unsafe.Pointer(&prefetch), unsafe.Sizeof(prefetch))
	prefetch.deadline_ms, prefetch.pause_after_lookup = waitMs, 1
	var job C.uint64_t
	r.try(C.kvkeep_submit_prefetch(cache, r.session, &keys[0], C.size_t(len(keys)), &prefetch, &job, nil, nil))
	// A scheduler would go on with others meanwhile, or be told (notify_lookup). Then it decides whether to load at all: kvkeep_cancel_job,
	// if computing is quicker.
	var hits C.uint32_t
	status := C.kvkeep_status(C.KVKEEP_PENDING)
	for status == C.KVKEEP_PENDING {
		status = C.kvkeep_query_lookup_hits(cache, job, &hits)
	}
	try(status, C.KVKEEP_SUBJECT_JOB, job)
	try(C.kvkeep_resume_job(cache, job), C.KVKEEP_SUBJECT_JOB, job)
	if hits == 0 {
		return
	}
	// The load joins the prefetch, and returns the shares that it took.
	var transfer C.kvkeep_transfer_options
	prepare(unsafe.Pointer(&transfer), unsafe.Sizeof(transfer))
	transfer.return_shares = 1
	ids := r.blocksOf(int(hits), 0, known)
	r.try(C.kvkeep_submit_load(cache, e.pool, r.session, &keys[0], C.size_t(hits), &ids[0], C.size_t(len(ids)), &transfer, &job, nil, nil))
	wait(job)
	statuses, good := make([]C.int32_t, len(ids)), 0
	try(C.kvkeep_query_blocks(cache, job, &statuses[0], C.size_t(len(ids))), C.KVKEEP_SUBJECT_JOB, job)
	C.kvkeep_release_job(cache, job)
	for good < len(ids) && statuses[good] == C.KVKEEP_OK {
		good++
	}
	r.computed, r.stored = min(good/chunkBlocks*chunkTokens, known), min(good/chunkBlocks, int(count))
	for i, state := range states(r.tokens[:r.computed]) {
		for at := 0; at < 2*layers; at++ {
			if !bytes.Equal(e.at(r, i, at/2, at%2), entry(state, at/2, at%2)) {
				must(fmt.Errorf("token %d of %s is wrong", i, r.name))
			}
		}
	}
}

func (r *request) try(status C.kvkeep_status) {
	try(status, C.KVKEEP_SUBJECT_SESSION, r.session)
}

// wait returns when no page of the transfer is touched any more: pages must not be used before, whatever happened.
func wait(job C.uint64_t) {
	for C.kvkeep_wait_job(cache, job, waitMs) == C.KVKEEP_ERR_TIMEOUT {
		C.kvkeep_cancel_job(cache, job)
	}
}

// keys are those of `count` chunks from `first` on, and of the `tail` tokens behind the last full chunk.
func (r *request) keys(first, count, tail int) []C.kvkeep_key {
	keys := make([]C.kvkeep_key, count, count+1)
	if count > 0 {
		r.try(C.kvkeep_get_session_keys(cache, r.session, C.uint64_t(first), C.size_t(count), 0, 1, 1, &keys[0], C.size_t(count)))
	}
	if tail > 0 {
		keys = keys[:count+1]
		r.try(C.kvkeep_get_tail_keys(cache, r.session, C.uint32_t(tail), 0, 1, 1, &keys[count], 1))
	}
	return keys
}

// blocksOf gives the blocks of `count` chunks from `first` on; those that `tokens` tokens do not reach are none.
func (r *request) blocksOf(count, first, tokens int) []C.int32_t {
	ids := make([]C.int32_t, count*chunkBlocks)
	for i := range ids {
		ids[i] = C.KVKEEP_BLOCK_NONE
		if block := first*chunkBlocks + i; block < blocksFor(tokens) {
			ids[i] = r.blocks[block]
		}
	}
	return ids
}

// at is the place of token i in a layer's K or V.
func (e *engine) at(r *request, i, layer, part int) []byte {
	start := (int(r.blocks[i/blockTokens])*blockTokens + i%blockTokens) * entryBytes
	return e.pages[layer][part][start : start+entryBytes]
}

func (e *engine) place(r *request) int {
	for i, running := range e.running {
		if running == r {
			return i
		}
	}
	return -1
}

func (e *engine) takeBlock(r *request) {
	r.blocks = append(r.blocks, e.free[len(e.free)-1])
	e.free = e.free[:len(e.free)-1]
}

// hasRoom takes a block where one is needed. Without a free one, the request that was admitted last gives its blocks up.
func (e *engine) hasRoom(r *request) bool {
	for blocksFor(len(r.tokens)) > len(r.blocks) {
		if len(e.free) > 0 {
			e.takeBlock(r)
			continue
		}
		victim := e.running[len(e.running)-1]
		victim.saved = victim.computed
		e.leave(victim, victim.computed%chunkTokens)
		victim.said += ", preempted"
		e.waiting = append([]*request{victim}, e.waiting...)
		if victim == r {
			return false
		}
	}
	return true
}

// compute stands for the forward pass.
func (e *engine) compute(r *request) {
	for i, state := range states(r.tokens) {
		for at := 0; i >= r.computed && at < 2*layers; at++ {
			copy(e.at(r, i, at/2, at%2), entry(state, at/2, at%2))
		}
	}
	r.computed = len(r.tokens)
}

// leave stores what is not stored yet, and frees the blocks, which are the library's until the store is done.
func (e *engine) leave(r *request, tail int) {
	if r.session != 0 && r.aborts {
		// Nothing of it is under way. A transfer that were, would be waited for before its pages are freed.
		C.kvkeep_abort_session(cache, r.session)
	} else if r.session != 0 {
		guarded(r.name, "is not stored", func() { e.store(r, tail) })
		C.kvkeep_end_session(cache, r.session)
	}
	e.free, r.blocks = append(e.free, r.blocks...), nil
	place := e.place(r)
	e.running = append(e.running[:place], e.running[place+1:]...)
}

func (e *engine) store(r *request, tail int) {
	if more := r.computed - r.named; more > 0 {
		r.try(C.kvkeep_append_tokens(cache, r.session, &r.tokens[r.named], C.size_t(more), nil))
	}
	keys := r.keys(r.stored, r.computed/chunkTokens-r.stored, tail)
	if len(keys) == 0 {
		return
	}
	var job C.uint64_t
	ids := r.blocksOf(len(keys), r.stored, r.computed)
	r.try(C.kvkeep_submit_store(cache, e.pool, r.session, &keys[0], C.size_t(len(keys)), &ids[0], C.size_t(len(ids)), nil, &job, nil, nil))
	wait(job)
	try(C.kvkeep_release_job(cache, job), C.KVKEEP_SUBJECT_JOB, job)
}

func (e *engine) finish(r *request) {
	e.leave(r, 0)
	end, expected := "output right", append([]C.uint32_t{}, r.tokens[:r.promptTokens]...)
	for i := r.promptTokens; i < len(r.tokens); i++ {
		all := states(expected)
		expected = append(expected, sample(len(all), func(i int) byte { return entry(all[i], i%layers, i%2)[0] }))
		if expected[i] != r.tokens[i] {
			end = "OUTPUT WRONG"
		}
	}
	if r.aborts {
		end = "aborted"
	}
	fmt.Printf("%s: %d prompt tokens%s, %s\n", r.name, r.promptTokens, r.said, end)
}

// openPool registers pages in C's memory, where they stay.
func (e *engine) openPool() {
	var segments [2 * layers]C.kvkeep_segment
	var parts [2 * layers]C.uint32_t
	for i := range segments {
		page := C.calloc(pageBytes, 1)
		e.pages[i/2][i%2] = unsafe.Slice((*byte)(page), pageBytes)
		segments[i].address, segments[i].block_bytes, segments[i].layer = C.uint64_t(uintptr(page)), blockTokens*entryBytes, C.uint32_t(i/2)
		parts[i] = C.KVKEEP_PART_KEY + C.uint32_t(i%2)
	}
	var options C.kvkeep_pool_options
	prepare(unsafe.Pointer(&options), unsafe.Sizeof(options))
	options.device, options.block_count, options.blocks_per_chunk = C.KVKEEP_DEVICE_HOST, blocks, chunkBlocks
	// Arrays of C's own, since C must not be given pointers to Go's memory inside of a struct.
	options.segments = (*C.kvkeep_segment)(C.CBytes(unsafe.Slice((*byte)(unsafe.Pointer(&segments)), unsafe.Sizeof(segments))))
	options.parts = (*C.uint32_t)(C.CBytes(unsafe.Slice((*byte)(unsafe.Pointer(&parts)), unsafe.Sizeof(parts))))
	options.segment_count = C.size_t(len(segments))
	must(check(C.kvkeep_open_pool(cache, e.space, &options, &e.pool), C.KVKEEP_SUBJECT_SPACE, e.space))
}

func min(a, b int) int {
	if a < b {
		return a
	}
	return b
}

func main() {
	if len(os.Args) < 2 || len(os.Args) > 3 || len(os.Args) == 3 && os.Args[2] != "again" {
		fmt.Fprintln(os.Stderr, "usage: engine DIRECTORY|URL|unix:///SOCKET [again]")
		os.Exit(2)
	}
	place := os.Args[1]
	var options C.kvkeep_options
	prepare(unsafe.Pointer(&options), unsafe.Sizeof(options))
	if strings.HasPrefix(place, "unix:") {
		options.connect = C.CString(place)
	} else {
		if !strings.Contains(place, "://") {
			place = "fs://" + place + "?capacity=1GiB"
		}
		urls := (**C.char)(C.malloc(C.size_t(unsafe.Sizeof(uintptr(0)))))
		*urls = C.CString(place)
		options.l1_bytes, options.backend_urls, options.backend_count = 1<<20, urls, 1
	}
	// Without a cache, the error is that of the process's last attempt to open one.
	var opened *C.kvkeep
	must(check(C.kvkeep_open(&options, &opened), C.KVKEEP_SUBJECT_CACHE, 0))
	cache = opened
	var spaceOptions C.kvkeep_space_options
	prepare(unsafe.Pointer(&spaceOptions), unsafe.Sizeof(spaceOptions))
	spaceOptions.model, spaceOptions.layout = C.CString("toy-engine@1"), C.CString("bytes layers=4 entry=32")
	spaceOptions.chunk_tokens = chunkTokens
	e := &engine{}
	must(check(C.kvkeep_open_space(cache, &spaceOptions, &e.space), C.KVKEEP_SUBJECT_CACHE, 0))
	e.openPool()
	for block := 0; block < blocks; block++ {
		e.free = append(e.free, C.int32_t(block))
	}

	var a, d, f []C.uint32_t
	for i := 0; i < 200; i++ {
		a, d, f = append(a, C.uint32_t(i*7%32000)), append(d, C.uint32_t(i*11%32000)), append(f, C.uint32_t(i*13%32000))
	}
	e.run(newRequest("A", a, 8, false))
	// B goes on otherwise behind two chunks of A; C is found whole.
	e.run(newRequest("B", append(append([]C.uint32_t{}, a[:128]...), d[128:]...), 8, false), newRequest("C", a[:192], 8, false))
	// There are blocks for the beginning of both, not for their ends.
	e.run(newRequest("D", d[:150], 60, false), newRequest("E", f[:150], 60, false))
	e.run(newRequest("F", d[:150], 2, true))

	must(check(C.kvkeep_flush(cache, waitMs), C.KVKEEP_SUBJECT_CACHE, 0))
	var stats C.kvkeep_stats
	prepare(unsafe.Pointer(&stats), unsafe.Sizeof(stats))
	must(check(C.kvkeep_query_stats(cache, &stats), C.KVKEEP_SUBJECT_CACHE, 0))
	if stats.l1_shares != 0 {
		must(errors.New("something is still held"))
	}
	fmt.Printf("%d objects loaded from below\n", stats.loads)
	must(check(C.kvkeep_close_pool(cache, e.pool), C.KVKEEP_SUBJECT_POOL, e.pool))
	must(check(C.kvkeep_close(cache), C.KVKEEP_SUBJECT_CACHE, 0))
}
