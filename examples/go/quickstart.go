// The quickstart in Go: two requests that share a prefix, then a new process that finds both below L1.
//
//	quickstart DIRECTORY            the first run: computes, stores, and hits in memory
//	quickstart DIRECTORY again      a later process, also one in another language: hits on disk
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
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"
)

const (
	chunkTokens = 256
	chunkBytes  = 256 * 1024
	waitMs      = 10000
)

// must ends the program with the library's own words: the cause, then the remedy. They are the thread's: main is locked to one.
// Goroutines that are not ask by kvkeep_get_error, as engine/engine.go does.
func must(status C.kvkeep_status, what string) {
	if status < 0 {
		fmt.Fprintf(os.Stderr, "%s: %s: %s\n", what, C.GoString(C.kvkeep_status_name(C.int32_t(status))), C.GoString(C.kvkeep_last_error()))
		os.Exit(1)
	}
}

// prepare is KVKEEP_INIT, a macro that Go does not see.
func prepare(versioned unsafe.Pointer, size uintptr) {
	must(C.kvkeep_init_struct(versioned, C.size_t(size), C.KVKEEP_ABI_VERSION), "init_struct")
}

// computeChunk stands for the engine's forward pass: the KV bytes of a chunk depend on all tokens up to its end, as its key does.
func computeChunk(key C.kvkeep_key) []byte {
	chunk := make([]byte, chunkBytes)
	for i := range chunk {
		chunk[i] = byte(int(key.hash[i%32]) + i/32)
	}
	return chunk
}

func data(view C.kvkeep_view) []byte { return unsafe.Slice((*byte)(view.data), view.size) }

// serve is what an engine does with one request.
func serve(cache *C.kvkeep, space C.uint64_t, name string, tokens []C.uint32_t) {
	var options C.kvkeep_session_options
	prepare(unsafe.Pointer(&options), unsafe.Sizeof(options))
	options.request_id = C.CString(name)
	defer C.free(unsafe.Pointer(options.request_id))
	var session, job C.uint64_t
	must(C.kvkeep_begin_session(cache, space, &options, &session), "begin_session")
	var count C.size_t
	must(C.kvkeep_append_tokens(cache, session, &tokens[0], C.size_t(len(tokens)), &count), "append_tokens")
	keys := make([]C.kvkeep_key, count)
	must(C.kvkeep_get_session_keys(cache, session, 0, count, 0, 1, 1, &keys[0], count), "get_session_keys")

	// One job looks up every tier and loads. An engine would be told by a callback or an eventfd.
	must(C.kvkeep_submit_prefetch(cache, session, &keys[0], count, nil, &job, nil, nil), "submit_prefetch")
	must(C.kvkeep_wait_job(cache, job, waitMs), "wait_job")
	var result C.kvkeep_job_result
	prepare(unsafe.Pointer(&result), unsafe.Sizeof(result))
	must(C.kvkeep_query_job(cache, job, &result), "query_job")

	// The session holds a share of each hit: its bytes stay where they are until the share is returned.
	hits, views := C.size_t(result.hit_chunks), make([]C.kvkeep_view, count)
	if hits > 0 {
		must(C.kvkeep_get_views(cache, session, &keys[0], hits, &views[0]), "get_views")
		for i, view := range views[:hits] {
			if !bytes.Equal(data(view), computeChunk(keys[i])) {
				fmt.Fprintf(os.Stderr, "chunk %d of %s is wrong\n", i, name)
				os.Exit(1)
			}
		}
		must(C.kvkeep_finish_read(cache, session, &keys[0], hits, 0, nil), "finish_read")
	}
	if missing := keys[hits:]; len(missing) > 0 {
		sizes := make([]C.uint64_t, len(missing))
		for i := range sizes {
			sizes[i] = chunkBytes
		}
		must(C.kvkeep_reserve_write(cache, session, &missing[0], count-hits, &sizes[0], C.KVKEEP_LIFETIME_CACHED, &views[0]), "reserve_write")
		for i, key := range missing {
			// A chunk without a view was stored by somebody else meanwhile, or found no room: either way, go on without.
			if views[i].status == C.KVKEEP_OK {
				copy(data(views[i]), computeChunk(key))
			}
		}
		must(C.kvkeep_finish_write(cache, session, &missing[0], count-hits, nil), "finish_write")
	}
	var below C.uint32_t
	for _, keys := range result.tier_keys[1:] {
		below += keys
	}
	fmt.Printf("%s: %d of %d chunks were right (%d from memory, %d from below)\n", name, hits, count, result.tier_keys[0], below)
	must(C.kvkeep_end_session(cache, session), "end_session")
}

func main() {
	runtime.LockOSThread()
	if len(os.Args) < 2 || len(os.Args) > 3 || len(os.Args) == 3 && os.Args[2] != "again" {
		fmt.Fprintln(os.Stderr, "usage: quickstart DIRECTORY|URL|unix:///SOCKET [again]")
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
		// An array of C's own, since C must not be given pointers to Go's memory inside of it.
		urls := (**C.char)(C.malloc(C.size_t(unsafe.Sizeof(uintptr(0)))))
		*urls = C.CString(place)
		options.l1_bytes, options.backend_urls, options.backend_count = 64<<20, urls, 1
	}
	var cache *C.kvkeep
	must(C.kvkeep_open(&options, &cache), "open")
	var spaceOptions C.kvkeep_space_options
	prepare(unsafe.Pointer(&spaceOptions), unsafe.Sizeof(spaceOptions))
	spaceOptions.model = C.CString("example-8b@main")
	spaceOptions.layout = C.CString("bf16 layers=32 heads=8 dim=128 tp=1")
	spaceOptions.chunk_tokens = chunkTokens
	var space C.uint64_t
	must(C.kvkeep_open_space(cache, &spaceOptions, &space), "open_space")

	// Both prompts begin with the same 8 chunks, say a system prompt and a document; then each asks something else.
	first, second := make([]C.uint32_t, 12*chunkTokens), make([]C.uint32_t, 12*chunkTokens)
	for i := range first {
		first[i], second[i] = C.uint32_t(i*7%32000), C.uint32_t(i*11%32000)
	}
	copy(second, first[:8*chunkTokens])
	names := []string{"request 1", "request 2"}
	if len(os.Args) == 3 {
		names = []string{"request 3", "request 4"}
	}
	serve(cache, space, names[0], first)
	serve(cache, space, names[1], second)
	must(C.kvkeep_flush(cache, waitMs), "flush")
	must(C.kvkeep_close(cache), "close")
}
