// kvkeep for C++17 and later: ownership, exceptions and futures over the C ABI.
//
// kvkeep.h is the specification; this header only carries it. Every function may be called from any thread, at once
// with any other, except where one of them destroys or closes the object. A call that fails throws kvk::Error and has
// changed nothing. Statuses of single keys are returned, never thrown.
#pragma once

#include "kvkeep/pool.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace kvk {

/// A space by its number, valid until the cache is closed. Copied freely.
class Space {
public:
    Space(kvkeep* cache, std::uint64_t id) noexcept : cache_(cache), id_(id) {}

    std::uint64_t id() const noexcept { return id_; }

    /// Begins a session. A timeout of 0 is the cache's.
    Session session(const std::string& request_id = {}, std::chrono::milliseconds timeout = {}) const {
        auto options = detail::prepared<kvkeep_session_options>();
        options.request_id = detail::text_or_null(request_id);
        options.timeout_ms = detail::milliseconds(timeout);
        std::uint64_t session = 0;
        detail::check(kvkeep_begin_session(cache_, id_, &options, &session));
        return Session(cache_, session);
    }

    /// Registers an engine's pages, whose memory stays the caller's.
    Pool pool(const PoolOptions& from) const {
        auto options = detail::prepared<kvkeep_pool_options>();
        options.device = from.device;
        options.rank = from.rank;
        options.block_count = from.block_count;
        options.blocks_per_chunk = from.blocks_per_chunk;
        options.segments = from.segments.data();
        options.segment_count = from.segments.size();
        auto parts = from.parts;
        parts.resize(from.segments.size(), KVKEEP_PART_UNSAID);
        options.parts = parts.data();
        std::uint64_t pool = 0;
        detail::check(kvkeep_open_pool(cache_, id_, &options, &pool));
        return Pool(cache_, pool);
    }

    /// Marks ready keys as used now, last key first.
    std::vector<Status> touch(Span<const Key> keys) const { return each(kvkeep_touch, keys); }

    /// What L1 says of each key, at one instant; takes no shares and touches nothing.
    std::vector<KeyState> query(Span<const Key> keys) const {
        std::vector<KeyState> states(keys.size());
        detail::check(kvkeep_query_keys(cache_, id_, keys.data(), keys.size(), states.data()));
        return states;
    }

    /// Keeps keys longer: a bias of 0 to 100 for `ttl`, never a hard pin.
    std::vector<Status> retain(Span<const Key> keys, std::uint32_t priority, std::chrono::milliseconds ttl) const {
        return each(kvkeep_retain, keys, priority, detail::milliseconds(ttl));
    }

    /// Drops keys from L1 alone, written or not, whatever the policy would choose; backends keep what they have.
    std::vector<Status> evict(Span<const Key> keys) const { return each(kvkeep_evict, keys); }

    /// Deletes keys from L1 at once, and from every backend in the background. Not `delete`, which C++ keeps.
    std::vector<Status> erase(Span<const Key> keys) const { return each(kvkeep_delete, keys); }

    /// What the space takes of L1, and its quota.
    kvkeep_space_usage usage() const {
        auto usage = detail::prepared<kvkeep_space_usage>();
        detail::check(kvkeep_query_space(cache_, id_, &usage));
        return usage;
    }

    /// How lookups in it went, and why they missed keys.
    kvkeep_miss_report misses() const {
        auto report = detail::prepared<kvkeep_miss_report>();
        detail::check(kvkeep_query_misses(cache_, id_, &report));
        return report;
    }

    /// Closes it, once no session and no pool of it is left. Not to be used after that.
    void close() const { detail::check(kvkeep_close_space(cache_, id_)); }

    /// Bounds the part of L1 that its objects may take; 0: by L1 alone.
    void set_quota(std::uint64_t bytes) const { detail::check(kvkeep_set_quota(cache_, id_, bytes)); }

    /// Empties L1 of the space's objects; with `force` also hides those in use. How many went.
    std::uint64_t clear(bool force = false) const {
        std::uint64_t removed = 0;
        detail::check(kvkeep_clear(cache_, id_, force ? 1 : 0, &removed));
        return removed;
    }

    /// Forgets the space in every tier, as when its weights have changed: nothing stored before is found from now on. How many
    /// objects of L1 went; backends delete theirs in the background, which Cache::flush waits for.
    std::uint64_t forget() const {
        std::uint64_t removed = 0;
        detail::check(kvkeep_forget_space(cache_, id_, &removed));
        return removed;
    }

    /// Why a key is where it is, as JSON.
    std::string explain(const Key& key) const {
        return detail::text([&](char* buffer, std::size_t capacity, std::size_t* length) {
            return kvkeep_explain_key(cache_, id_, &key, buffer, capacity, length);
        });
    }

private:
    template <typename Function, typename... Extra>
    std::vector<Status> each(Function function, Span<const Key> keys, Extra... extra) const {
        std::vector<std::int32_t> numbers(keys.size());
        detail::check(function(cache_, id_, keys.data(), keys.size(), extra..., numbers.data()));
        return detail::statuses(numbers);
    }

    kvkeep* cache_;
    std::uint64_t id_;
};

/// One open kvkeep. Closed when destroyed, which must come after every other use of it and not in a callback.
class Cache {
public:
    /// Opens. Blocks while the backends open.
    explicit Cache(const Options& from) : log_(from.log ? std::make_unique<const Log>(from.log) : nullptr) {
        std::vector<const char*> urls;
        for (const auto& url : from.backend_urls) urls.push_back(url.c_str());
        auto options = detail::prepared<kvkeep_options>();
        options.connect = detail::text_or_null(from.connect);
        options.listen = detail::text_or_null(from.listen);
        options.l1_bytes = from.l1_bytes;
        options.flags = from.flags;
        options.numa_node = from.numa_node;
        options.eviction_policy = detail::text_or_null(from.eviction_policy);
        options.watermark_high_percent = from.watermark_high_percent;
        options.watermark_low_percent = from.watermark_low_percent;
        options.store_mode = static_cast<std::uint32_t>(from.store_mode);
        options.store_after_uses = from.store_after_uses;
        options.backend_urls = urls.empty() ? nullptr : urls.data();
        options.backend_count = urls.size();
        options.sessions_max = from.sessions_max;
        options.jobs_max = from.jobs_max;
        options.writes_pending_max = from.writes_pending_max;
        options.session_timeout_ms = detail::milliseconds(from.session_timeout);
        options.backend_timeout_ms = detail::milliseconds(from.backend_timeout);
        options.loading_bytes_max = from.loading_bytes_max;
        options.store_wait_ms = detail::milliseconds(from.store_wait);
        options.log = log_ ? detail::log : nullptr;
        // C takes userdata as void*; detail::log makes it const again.
        options.log_userdata = const_cast<Log*>(log_.get());
        options.log_level = static_cast<std::uint32_t>(from.log_level);
        options.key_callback = from.key_callback;
        options.key_userdata = from.key_userdata;
        detail::check(kvkeep_open(&options, &cache_));
    }
    Cache(Cache&& other) noexcept : log_(std::move(other.log_)), cache_(std::exchange(other.cache_, nullptr)) {}
    Cache& operator=(Cache&& other) noexcept {
        std::swap(log_, other.log_);
        std::swap(cache_, other.cache_);
        return *this;
    }
    ~Cache() {
        // Refused inside a callback: the cache then stays open, and so does what it logs to.
        if (kvkeep_close(cache_) == KVKEEP_ERR_INVALID) static_cast<void>(log_.release());
    }

    /// The C handle, for what this header has no word for. Stays the cache's.
    kvkeep* handle() const noexcept { return cache_; }

    /// Closes now, and says what went wrong. Later calls throw `closed`.
    void close() { detail::check(kvkeep_close(cache_)); }

    /// Opens a space; the same texts give the same space.
    Space space(const SpaceOptions& from) const {
        auto options = detail::prepared<kvkeep_space_options>();
        options.model = from.model.c_str();
        options.layout = detail::text_or_null(from.layout);
        options.tenant = detail::text_or_null(from.tenant);
        options.chunk_tokens = from.chunk_tokens;
        options.quota_bytes = from.quota_bytes;
        options.generation = from.generation;
        std::uint64_t space = 0;
        detail::check(kvkeep_open_space(cache_, &options, &space));
        return Space(cache_, space);
    }

    /// Adds a backend below those already there. Blocks while it opens.
    std::uint64_t add_backend(const std::string& url) const {
        std::uint64_t backend = 0;
        detail::check(kvkeep_add_backend(cache_, url.c_str(), &backend));
        return backend;
    }

    /// Adds a backend whose functions this program has; see kvkeep_backend_vtable. They must not throw.
    std::uint64_t add_backend(const kvkeep_backend_vtable& vtable, const std::string& parameters = {}) const {
        std::uint64_t backend = 0;
        detail::check(kvkeep_add_backend_vtable(cache_, &vtable, parameters.c_str(), &backend));
        return backend;
    }

    /// Lets other processes connect, where the cache was opened with `listen`. Call it when the backends are added.
    void serve_clients() const { detail::check(kvkeep_serve_clients(cache_)); }

    /// Removes a backend; what it stored stays where it is. Blocks while it closes.
    void remove_backend(std::uint64_t backend) const { detail::check(kvkeep_remove_backend(cache_, backend)); }

    /// Waits until everything committed before is written to L2 or given up; false where `timeout` passed first.
    bool flush(std::chrono::milliseconds timeout) const {
        const auto status = kvkeep_flush(cache_, detail::milliseconds(timeout));
        return status != KVKEEP_ERR_TIMEOUT && detail::check(status) == Status::ok;
    }

    /// Empties L1 of every space's objects; with `force` also hides those in use. How many went.
    std::uint64_t clear(bool force = false) const { return Space(cache_, 0).clear(force); }

    /// Forgets every space in every tier.
    std::uint64_t forget() const { return Space(cache_, 0).forget(); }

    /// Readable while `take_completions` has something to give. Owned by the library: poll it, do not read or close it.
    int event_fd() const {
        std::int32_t fd = -1;
        detail::check(kvkeep_get_event_fd(cache_, &fd));
        return fd;
    }

    /// All completions of jobs submitted with Notify::event_fd, oldest first, each once. Never blocks.
    std::vector<Completion> take_completions() const {
        std::array<kvkeep_completion, 64> batch;
        std::vector<Completion> all;
        std::size_t count = batch.size();
        while (count == batch.size()) {
            detail::check(kvkeep_take_completions(cache_, batch.data(), batch.size(), &count));
            std::transform(batch.begin(), batch.begin() + static_cast<std::ptrdiff_t>(count), std::back_inserter(all),
                           detail::copied);
        }
        return all;
    }

    /// A job by its number, as a completion has it: for all that asks nothing about single keys. For these, `key_count` is the number of
    /// keys that the job was submitted with.
    Job job(std::uint64_t number, std::size_t key_count = 0) const noexcept { return Job(cache_, number, key_count); }

    /// Up to `most` events, oldest first, from number `next` on (0: from the oldest that is kept), which then is where to
    /// go on. Where it rises by more than events came, some were lost. Never blocks.
    std::vector<kvkeep_event> read_events(std::uint64_t& next, std::size_t most = 1024) const {
        std::vector<kvkeep_event> events(most);
        std::size_t count = 0;
        detail::check(kvkeep_read_events(cache_, &next, events.data(), events.size(), &count));
        events.resize(count);
        return events;
    }

    /// The state of every backend, in the order in which they are asked.
    std::vector<kvkeep_backend_state> backends() const {
        std::vector<kvkeep_backend_state> states(KVKEEP_TIERS_MAX);
        std::size_t count = 0;
        while (detail::check(kvkeep_query_backends(cache_, states.data(), states.size(), &count)) == Status::partial)
            states.resize(count);
        states.resize(count);
        return states;
    }

    /// Where L1 lies in this process; see kvkeep_get_arena.
    std::pair<void*, std::size_t> arena() const {
        std::pair<void*, std::size_t> arena{};
        detail::check(kvkeep_get_arena(cache_, &arena.first, &arena.second));
        return arena;
    }

    /// Everything counted.
    kvkeep_stats stats() const {
        auto stats = detail::prepared<kvkeep_stats>();
        detail::check(kvkeep_query_stats(cache_, &stats));
        return stats;
    }

    /// Everything counted, as Prometheus text.
    std::string metrics() const {
        return detail::text([this](char* buffer, std::size_t capacity, std::size_t* length) {
            return kvkeep_get_metrics(cache_, buffer, capacity, length);
        });
    }

    /// What every session holds that holds something, as JSON.
    std::string explain() const {
        return detail::text([this](char* buffer, std::size_t capacity, std::size_t* length) {
            return kvkeep_explain_session(cache_, 0, buffer, capacity, length);
        });
    }

private:
    std::unique_ptr<const Log> log_;
    kvkeep* cache_ = nullptr;
};

}  // namespace kvk
