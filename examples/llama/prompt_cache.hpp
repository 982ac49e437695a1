// A prompt cache over kvkeep: the states of an engine's sequences, found again by their token ids.
//
// A sequence is kept in chunks. Each chunk of `chunk_tokens` tokens is an object of each part that the engine's state has; two
// prompts that begin alike share the objects of what they share. A part is kept for each token (the keys and values of full
// attention), or it is a snapshot: what the engine holds at one length (a sliding window), of which only the last one of a prefix is
// read. A draft model's context is further parts. A prefix can be restored at the longest length at which every part has what it needs.
//
// Nothing here throws because the cache fails: the engine computes what it cannot have.
#pragma once

#include <kvkeep.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace prompt_cache {

using Token = std::int32_t;
using Tokens = kvk::Span<const Token>;

/// The tokens [first, last) of a sequence, or the state after `last` tokens for a snapshot.
struct Range {
    std::size_t first = 0;
    std::size_t last = 0;
};

/// The state of one sequence of an engine. The cache calls it inside its own calls only, from their thread.
class EngineState {
  public:
    EngineState() = default;
    EngineState(const EngineState &) = delete;
    EngineState &operator=(const EngineState &) = delete;
    virtual ~EngineState() = default;

    /// For each part, whether it is a snapshot. The same for the engine's life; at least one is none.
    virtual std::vector<bool> snapshots() const = 0;
    /// Bytes that `save` writes. 0: the part cannot be saved now.
    virtual std::size_t size(std::size_t part, Range range) = 0;
    /// Writes exactly `bytes` bytes to `to`, which is memory of the cache. False: it failed.
    virtual bool save(std::size_t part, Range range, std::byte *to, std::size_t bytes) = 0;
    /// Takes over what `save` wrote. Ranges come in order, snapshots after all others. False: it failed.
    virtual bool load(std::size_t part, Range range, const std::byte *from, std::size_t bytes) = 0;
    /// Whether the sequence has the tokens [0, count) now, and could continue. Asked when all is loaded.
    virtual bool complete(std::size_t count) = 0;
    /// Empties the sequence.
    virtual void clear() = 0;
};

/// How a cache is opened.
struct Options {
    /// kvkeep's own: L1 in this process over backends, or `connect` to a daemon. It is what bounds the cache: L1 by `l1_bytes`,
    /// and each backend by its `capacity`. No byte is written before its memory is reserved there.
    kvk::Options cache;
    /// Which weights: a name and revision, or a hash of the file.
    std::string model;
    /// All else that the bytes of a state depend on.
    std::string layout;
    /// Keeps tenants apart.
    std::string tenant;
    /// Tokens of a chunk: a prefix is found in steps of so many.
    std::uint32_t chunk_tokens = 256;
    /// A snapshot is kept at the end of every n-th chunk (and where `snapshot` is told that the prompt ends).
    std::size_t snapshot_chunks = 4;
    /// The longest that `restore` waits for backends.
    std::chrono::milliseconds load_wait{10'000};
    /// Told of what failed, one line each.
    std::function<void(const std::string &)> log;
};

/// What a cache did.
struct Counts {
    std::uint64_t restores = 0;
    /// Tokens that were restored, and those asked for.
    std::uint64_t restored_tokens = 0, asked_tokens = 0;
    std::uint64_t stored_objects = 0;
    /// Objects that were not stored for want of memory.
    std::uint64_t refused_objects = 0;
    /// Objects that did not say what they should, or that the engine did not take. They were deleted.
    std::uint64_t rejected_objects = 0;
    /// Calls that kvkeep could not carry out.
    std::uint64_t failures = 0;
};

namespace detail {

/// Before the bytes of a state. It says whose they are; kvkeep verifies that they are as they were written.
struct Header {
    char magic[8];
    std::uint32_t part;
    std::uint32_t token_count;
    std::uint64_t last;
    std::uint64_t bytes;
};
static_assert(sizeof(Header) == 32);

inline constexpr char magic[8] = {'k', 'v', 'p', 'r', 'o', 'm', 'p', '1'};

/// Where the state begins in an object: behind the header and the ids of the chunk's tokens, aligned for vector loads.
inline std::size_t state_offset(std::size_t chunk_tokens) {
    return (sizeof(Header) + chunk_tokens * sizeof(Token) + 63) / 64 * 64;
}

inline void write_header(std::byte *to, std::size_t part, Range range, Tokens tokens, std::size_t bytes) {
    Header header{};
    std::memcpy(header.magic, magic, sizeof magic);
    header.part = static_cast<std::uint32_t>(part);
    header.token_count = static_cast<std::uint32_t>(range.last - range.first);
    header.last = range.last;
    header.bytes = bytes;
    const std::size_t ids = header.token_count * sizeof(Token);
    std::memcpy(to, &header, sizeof header);
    std::memcpy(to + sizeof header, tokens.data() + range.first, ids);
    // The gap is written too: an object's bytes depend on nothing but the state.
    std::memset(to + sizeof header + ids, 0, state_offset(header.token_count) - sizeof header - ids);
}

/// Whether an object is the one of this part and these tokens, and whole.
inline bool is_object_of(const kvk::View &view, std::size_t part, Range range, Tokens tokens) {
    const std::size_t count = range.last - range.first;
    if (!view.ok() || view.size <= state_offset(count)) return false;
    Header header;
    std::memcpy(&header, view.data, sizeof header);
    return std::memcmp(header.magic, magic, sizeof magic) == 0 && header.part == part && header.token_count == count &&
           header.last == range.last && header.bytes == view.size - state_offset(count) &&
           std::memcmp(view.bytes() + sizeof header, tokens.data() + range.first, count * sizeof(Token)) == 0;
}

} // namespace detail

/// Any number of threads may use it, each with a state of its own.
class PromptCache {
  public:
    /// Opens. Throws kvk::Error where kvkeep cannot be opened. Blocks while the backends open.
    explicit PromptCache(Options options) : options_(std::move(options)), cache_(options_.cache), space_(open_space()) {
        options_.snapshot_chunks = std::max<std::size_t>(options_.snapshot_chunks, 1);
    }

    std::size_t chunk_tokens() const noexcept { return options_.chunk_tokens; }
    const kvk::Cache &cache() const noexcept { return cache_; }

    Counts counts() const {
        const std::lock_guard<std::mutex> lock(mutex_);
        return counts_;
    }

    /// Makes `state` hold the longest prefix of `tokens` that is known, in whole chunks and short of the last token, which the
    /// engine needs to compute. Returns its length; 0 leaves the state empty.
    std::size_t restore(EngineState &state, Tokens tokens) {
        state.clear();
        std::size_t restored = 0;
        // Each round that finds a bad object asks for less, so that this ends.
        std::size_t chunks = tokens.empty() ? 0 : (tokens.size() - 1) / options_.chunk_tokens;
        while (chunks > 0) {
            const auto outcome = guarded("restore", Outcome{}, [&] { return try_restore(state, tokens, chunks); });
            restored = outcome.restored;
            if (restored > 0 || outcome.usable_chunks == 0) break;
            chunks = std::min(chunks - 1, outcome.usable_chunks);
        }
        if (restored == 0) state.clear();
        count([&](Counts &counts) {
            counts.restores += 1;
            counts.asked_tokens += tokens.size();
            counts.restored_tokens += restored;
        });
        return restored;
    }

    /// The length at which to decode up to and then call `snapshot`: the end of the chunk that `position` is in, at most `count`.
    std::size_t next_stop(std::size_t position, std::size_t count) const noexcept {
        return std::min(count, (position / options_.chunk_tokens + 1) * options_.chunk_tokens);
    }

    /// Keeps the snapshots of a state that holds `tokens` and no more, where that is the end of a chunk. `prompt_count` tokens are the
    /// prompt: its last chunk's end always has snapshots, those before only each `snapshot_chunks`.
    void snapshot(EngineState &state, Tokens tokens, std::size_t prompt_count) {
        const std::size_t chunk = options_.chunk_tokens;
        if (tokens.empty() || tokens.size() % chunk != 0) return;
        const std::size_t chunks = tokens.size() / chunk;
        const bool is_last = prompt_count > 0 && chunks == (prompt_count - 1) / chunk;
        if (!is_last && chunks % options_.snapshot_chunks != 0) return;
        const auto snapshots = state.snapshots();
        if (std::find(snapshots.begin(), snapshots.end(), true) == snapshots.end()) return;
        guarded("snapshot", 0, [&] {
            auto work = begin(tokens, chunks, snapshots.size());
            for (std::size_t part = 0; part < snapshots.size(); ++part)
                if (snapshots[part]) store_object(work, state, tokens, part, chunks - 1);
            return 0;
        });
    }

    /// Keeps the whole chunks of `tokens`, which `state` holds, from token `known` on: what `restore` returned, as it need not be
    /// kept again.
    void store(EngineState &state, Tokens tokens, std::size_t known = 0) {
        const std::size_t chunks = tokens.size() / options_.chunk_tokens;
        const std::size_t first = known / options_.chunk_tokens;
        if (chunks <= first) return;
        guarded("store", 0, [&] {
            const auto snapshots = state.snapshots();
            auto work = begin(tokens, chunks, snapshots.size());
            for (std::size_t chunk = first; chunk < chunks; ++chunk)
                for (std::size_t part = 0; part < snapshots.size(); ++part)
                    // A prefix with a hole is useless: the first that is refused ends it.
                    if (!snapshots[part] && !store_object(work, state, tokens, part, chunk)) return 0;
            return 0;
        });
    }

    /// Waits until all that was kept is in the backends; false where `timeout` passed first.
    bool flush(std::chrono::milliseconds timeout) {
        return guarded("flush", false, [&] { return cache_.flush(timeout); });
    }

  private:
    struct Outcome {
        std::size_t restored = 0;
        /// Where nothing was restored because of a bad object: the chunks to ask for in its place.
        std::size_t usable_chunks = 0;
    };

    /// A session and the keys of its chunks, chunk after chunk, part after part.
    struct Work {
        kvk::Session session;
        std::vector<kvk::Key> keys;
        std::size_t parts;
        const kvk::Key &key(std::size_t chunk, std::size_t part) const { return keys[chunk * parts + part]; }
    };

    kvk::Space open_space() const {
        kvk::SpaceOptions from;
        from.model = options_.model;
        from.layout = options_.layout;
        from.tenant = options_.tenant;
        from.chunk_tokens = options_.chunk_tokens;
        return cache_.space(from);
    }

    Work begin(Tokens tokens, std::size_t chunks, std::size_t parts) const {
        auto session = space_.session("prompt");
        const std::vector<std::uint32_t> ids(tokens.begin(), tokens.begin() + chunks * options_.chunk_tokens);
        session.append_tokens(ids);
        kvk::KeyRange range;
        range.group_count = static_cast<std::uint32_t>(parts);
        auto keys = session.keys(0, chunks, range);
        return {std::move(session), std::move(keys), parts};
    }

    Range range_of(std::size_t chunk) const noexcept {
        return {chunk * options_.chunk_tokens, (chunk + 1) * options_.chunk_tokens};
    }

    Outcome try_restore(EngineState &state, Tokens tokens, std::size_t chunks) {
        const auto snapshots = state.snapshots();
        auto work = begin(tokens, chunks, snapshots.size());
        kvk::PrefetchOptions how;
        how.objects_per_chunk = static_cast<std::uint32_t>(snapshots.size());
        how.deadline = options_.load_wait;
        for (std::size_t part = 0; part < snapshots.size(); ++part)
            if (snapshots[part])
                how.group_rules.push_back({static_cast<std::uint32_t>(part), kvk::PrefetchMode::window, 1});
        const auto job = work.session.prefetch(work.keys, how);
        // The job keeps its own deadline; a little longer is for a machine that is busy.
        if (!job.wait(options_.load_wait + options_.load_wait)) return {};
        const auto result = job.query();
        if (!result) return {};
        const std::size_t hits = result->hit_chunks;
        if (result->failed_keys > 0 && result->status == KVKEEP_OK) {
            // An object could not be loaded, or was corrupt. A snapshot before it was not asked for, and may still be there.
            const auto lengths = job.prefix_lengths();
            if (lengths && !lengths->empty() && lengths->front() > hits) return {0, lengths->front()};
        }
        if (hits == 0) return {};

        // Everything is verified before the engine sees the first byte.
        struct Piece {
            std::size_t part, chunk;
            kvk::View view;
        };
        std::vector<Piece> pieces;
        for (const bool snapshot : {false, true})
            for (std::size_t chunk = snapshot ? hits - 1 : 0; chunk < hits; ++chunk)
                for (std::size_t part = 0; part < snapshots.size(); ++part)
                    if (snapshots[part] == snapshot) pieces.push_back({part, chunk, {}});
        std::vector<kvk::Key> keys;
        for (const auto &piece : pieces) keys.push_back(work.key(piece.chunk, piece.part));
        const auto views = work.session.get_views(keys);
        for (std::size_t i = 0; i < pieces.size(); ++i) {
            pieces[i].view = views[i];
            if (!detail::is_object_of(views[i], pieces[i].part, range_of(pieces[i].chunk), tokens))
                return reject(std::move(work), pieces[i].part, pieces[i].chunk, "is not what its key says");
        }
        const std::size_t offset = detail::state_offset(options_.chunk_tokens);
        for (const auto &piece : pieces)
            if (!state.load(piece.part, range_of(piece.chunk), piece.view.bytes() + offset, piece.view.size - offset)) {
                state.clear();
                return reject(std::move(work), piece.part, piece.chunk, "was not taken by the engine");
            }
        const std::size_t count = hits * options_.chunk_tokens;
        if (!state.complete(count)) {
            state.clear();
            return reject(std::move(work), pieces.back().part, pieces.back().chunk,
                          "left the engine's sequence incomplete");
        }
        return {count, 0};
    }

    Outcome reject(Work work, std::size_t part, std::size_t chunk, const char *why) {
        const auto key = work.key(chunk, part);
        // While shares of it are held it cannot be deleted.
        work.session.end();
        count([](Counts &counts) { counts.rejected_objects += 1; });
        log("chunk " + std::to_string(chunk) + ", part " + std::to_string(part) + " " + why + ": it is deleted");
        space_.erase(kvk::Span<const kvk::Key>(&key, 1));
        return {0, chunk};
    }

    /// False: there was no memory, or the engine could not give its state.
    bool store_object(Work &work, EngineState &state, Tokens tokens, std::size_t part, std::size_t chunk) {
        const auto range = range_of(chunk);
        const kvk::Span<const kvk::Key> key(&work.key(chunk, part), 1);
        const std::size_t offset = detail::state_offset(options_.chunk_tokens);
        const std::size_t bytes = state.size(part, range);
        if (bytes == 0) return false;
        const std::uint64_t size = offset + bytes;
        const auto view = work.session.reserve_write(key, kvk::Span<const std::uint64_t>(&size, 1)).front();
        if (view.result() == kvk::Status::exists) return true;
        if (!view.ok()) {
            count([](Counts &counts) { counts.refused_objects += 1; });
            log(std::string("no room for a state of ") + std::to_string(size) + " bytes: " + kvkeep_last_error());
            return false;
        }
        detail::write_header(view.bytes(), part, range, tokens, bytes);
        if (!state.save(part, range, view.bytes() + offset, bytes)) {
            work.session.abort_write(key);
            log("the engine did not give its state of part " + std::to_string(part));
            return false;
        }
        if (work.session.finish_write(key).front() != kvk::Status::ok) return false;
        count([](Counts &counts) { counts.stored_objects += 1; });
        return true;
    }

    /// What `call` returns; or `otherwise`, where kvkeep could not carry it out.
    template <typename Result, typename Call>
    Result guarded(const char *what, Result otherwise, Call &&call) {
        try {
            return call();
        } catch (const kvk::Error &error) {
            count([](Counts &counts) { counts.failures += 1; });
            log(std::string(what) + ": " + kvk::name(error.status()) + ": " + error.what());
            return otherwise;
        }
    }

    template <typename Change>
    void count(Change &&change) {
        const std::lock_guard<std::mutex> lock(mutex_);
        change(counts_);
    }

    void log(const std::string &line) const {
        if (options_.log) options_.log(line);
    }

    Options options_;
    kvk::Cache cache_;
    kvk::Space space_;
    mutable std::mutex mutex_;
    Counts counts_;
};

} // namespace prompt_cache
