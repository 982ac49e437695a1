// One request's hold on the cache.
#pragma once

#include "job.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace kvk {

/// One request's hold on the cache. Ends when destroyed; `release` lets it live on under its number.
class Session {
public:
    /// Takes over a session by its number.
    Session(kvkeep* cache, std::uint64_t id) noexcept : cache_(cache), id_(id) {}
    Session(Session&& other) noexcept : cache_(other.cache_), id_(std::exchange(other.id_, 0)) {}
    Session& operator=(Session&& other) noexcept {
        std::swap(cache_, other.cache_);
        std::swap(id_, other.id_);
        return *this;
    }
    ~Session() {
        if (id_ != 0) kvkeep_end_session(cache_, id_);
    }

    std::uint64_t id() const noexcept { return id_; }
    std::uint64_t release() noexcept { return std::exchange(id_, 0); }

    /// Returns what is left and touches every key the session used.
    void end() { detail::check(kvkeep_end_session(cache_, release())); }
    /// Returns what is left and touches nothing.
    void abort() { detail::check(kvkeep_abort_session(cache_, release())); }

    /// What it holds now. Renews no deadline.
    kvkeep_session_state state() const {
        auto state = detail::prepared<kvkeep_session_state>();
        detail::check(kvkeep_query_session(cache_, id_, &state));
        return state;
    }

    /// Renews the deadline, and does nothing else.
    void renew() { detail::check(kvkeep_renew_session(cache_, id_)); }

    /// Appends token ids; the number of full chunks so far.
    std::uint64_t append_tokens(Span<const std::uint32_t> tokens) {
        std::size_t chunks = 0;
        detail::check(kvkeep_append_tokens(cache_, id_, tokens.data(), tokens.size(), &chunks));
        return chunks;
    }

    /// Keys of full chunks, chunk-major.
    std::vector<Key> keys(std::uint64_t first_chunk, std::uint64_t chunk_count, KeyRange range = {}) const {
        const std::uint64_t each = std::uint64_t{range.rank_count} * range.group_count;
        if (each != 0 && chunk_count > KVKEEP_KEYS_MAX / each)
            throw Error(Status::invalid, "at most KVKEEP_KEYS_MAX keys can be asked for in one call");
        std::vector<Key> keys(static_cast<std::size_t>(chunk_count * each));
        detail::check(kvkeep_get_session_keys(cache_, id_, first_chunk, chunk_count, range.first_rank, range.rank_count,
                                              range.group_count, keys.data(), keys.size()));
        return keys;
    }

    /// Keys of the last chunk, which is not full, cut after its first `tail_tokens` tokens; see kvkeep_get_tail_keys.
    std::vector<Key> tail_keys(std::uint32_t tail_tokens, KeyRange range = {}) const {
        const std::uint64_t count = std::uint64_t{range.rank_count} * range.group_count;
        if (count > KVKEEP_KEYS_MAX)
            throw Error(Status::invalid, "at most KVKEEP_KEYS_MAX keys can be asked for in one call");
        std::vector<Key> keys(static_cast<std::size_t>(count));
        detail::check(kvkeep_get_tail_keys(cache_, id_, tail_tokens, range.first_rank, range.rank_count,
                                           range.group_count, keys.data(), keys.size()));
        return keys;
    }

    /// Reserves `sizes[i]` bytes for `keys[i]`. Each batch function has this form, which allocates nothing: ok, or
    /// partial where a key failed; and one that returns a vector.
    Status reserve_write(Span<const Key> keys, Span<const std::uint64_t> sizes, Span<View> views,
                         Lifetime lifetime = Lifetime::cached) {
        fits(keys, sizes.size());
        fits(keys, views.size());
        return detail::check(kvkeep_reserve_write(cache_, id_, keys.data(), keys.size(), sizes.data(),
                                                  static_cast<std::uint32_t>(lifetime), views.data()));
    }
    std::vector<View> reserve_write(Span<const Key> keys, Span<const std::uint64_t> sizes,
                                    Lifetime lifetime = Lifetime::cached) {
        std::vector<View> views(keys.size());
        reserve_write(keys, sizes, views, lifetime);
        return views;
    }

    /// Commits staged keys: from now on every session can read them.
    Status finish_write(Span<const Key> keys, Span<std::int32_t> statuses) {
        return batch(kvkeep_finish_write, keys, statuses);
    }
    std::vector<Status> finish_write(Span<const Key> keys) { return each(kvkeep_finish_write, keys); }

    /// Gives staged keys back unwritten.
    Status abort_write(Span<const Key> keys, Span<std::int32_t> statuses) {
        return batch(kvkeep_abort_write, keys, statuses);
    }
    std::vector<Status> abort_write(Span<const Key> keys) { return each(kvkeep_abort_write, keys); }

    /// Commits staged keys and takes 1 + extra_count shares of each in one step.
    Status finish_write_and_reserve_read(Span<const Key> keys, std::int32_t extra_count, Span<View> views) {
        fits(keys, views.size());
        return detail::check(
            kvkeep_finish_write_and_reserve_read(cache_, id_, keys.data(), keys.size(), extra_count, views.data()));
    }
    std::vector<View> finish_write_and_reserve_read(Span<const Key> keys, std::int32_t extra_count = 0) {
        std::vector<View> views(keys.size());
        finish_write_and_reserve_read(keys, extra_count, views);
        return views;
    }

    /// Takes 1 + extra_count shares of each ready key.
    Status reserve_read(Span<const Key> keys, std::int32_t extra_count, Span<View> views) {
        fits(keys, views.size());
        return detail::check(kvkeep_reserve_read(cache_, id_, keys.data(), keys.size(), extra_count, views.data()));
    }
    std::vector<View> reserve_read(Span<const Key> keys, std::int32_t extra_count = 0) {
        std::vector<View> views(keys.size());
        reserve_read(keys, extra_count, views);
        return views;
    }

    /// Returns 1 + extra_count shares of each key.
    Status finish_read(Span<const Key> keys, std::int32_t extra_count, Span<std::int32_t> statuses) {
        return batch(kvkeep_finish_read, keys, statuses, extra_count);
    }
    std::vector<Status> finish_read(Span<const Key> keys, std::int32_t extra_count = 0) {
        return each(kvkeep_finish_read, keys, extra_count);
    }

    /// Views again, for keys whose shares the session holds; takes none.
    Status get_views(Span<const Key> keys, Span<View> views) {
        fits(keys, views.size());
        return detail::check(kvkeep_get_views(cache_, id_, keys.data(), keys.size(), views.data()));
    }
    std::vector<View> get_views(Span<const Key> keys) {
        std::vector<View> views(keys.size());
        get_views(keys, views);
        return views;
    }

    /// Returns the shares of the chunks wholly within [first_token, last_token); the number of keys given back.
    std::uint64_t finish_read_tokens(std::uint64_t first_token, std::uint64_t last_token, KeyRange range = {},
                                     std::int32_t extra_count = 0) {
        std::uint64_t returned = 0;
        detail::check(kvkeep_finish_read_tokens(cache_, id_, first_token, last_token, range.first_rank,
                                                range.rank_count, range.group_count, extra_count, &returned));
        return returned;
    }

    /// Submits a prefetch that reports as `options.notify` says.
    Job prefetch(Span<const Key> keys, const PrefetchOptions& options = {}) {
        return submit(keys, options, nullptr, nullptr);
    }

    /// Submits a prefetch whose end is told to `callback`.
    Job prefetch(Span<const Key> keys, const PrefetchOptions& options, Callback callback) {
        return detail::with(std::move(callback),
                            [&](void* userdata) { return submit(keys, options, detail::complete, userdata); });
    }

    /// Submits a prefetch whose end fulfils a future.
    FutureJob prefetch_future(Span<const Key> keys, const PrefetchOptions& options = {}) {
        return detail::with_future<FutureJob>(
            cache_, [&](Callback callback) { return prefetch(keys, options, std::move(callback)); });
    }

    /// What the session holds, as JSON.
    std::string explain() const {
        return detail::text([this](char* buffer, std::size_t capacity, std::size_t* length) {
            return kvkeep_explain_session(cache_, id_, buffer, capacity, length);
        });
    }

private:
    template <typename T>
    static void fits(Span<T> keys, std::size_t size) {
        if (keys.size() != size)
            throw Error(Status::invalid, "the call has " + std::to_string(keys.size()) + " keys, but an array of " +
                                             std::to_string(size));
    }

    template <typename Function, typename... Extra>
    Status batch(Function function, Span<const Key> keys, Span<std::int32_t> statuses, Extra... extra) {
        fits(keys, statuses.size());
        return detail::check(function(cache_, id_, keys.data(), keys.size(), extra..., statuses.data()));
    }

    template <typename Function, typename... Extra>
    std::vector<Status> each(Function function, Span<const Key> keys, Extra... extra) {
        std::vector<std::int32_t> numbers(keys.size());
        batch(function, keys, numbers, extra...);
        return detail::statuses(numbers);
    }

    Job submit(Span<const Key> keys, const PrefetchOptions& from, kvkeep_callback callback, void* userdata) {
        std::vector<kvkeep_group_rule> rules;
        for (const auto& rule : from.group_rules)
            rules.push_back({rule.group, static_cast<std::uint32_t>(rule.mode), rule.window_chunks, {}});
        auto options = detail::prepared<kvkeep_prefetch_options>();
        options.extra_count = from.extra_count;
        options.objects_per_chunk = from.objects_per_chunk;
        options.mode = static_cast<std::uint32_t>(from.mode);
        options.window_chunks = from.window_chunks;
        options.group_rules = rules.empty() ? nullptr : rules.data();
        options.group_rule_count = rules.size();
        options.policy = static_cast<std::uint32_t>(from.policy);
        options.deadline_ms = detail::milliseconds(from.deadline);
        options.lookup_timeout_ms = detail::milliseconds(from.lookup_timeout);
        options.lookup_interval_ms = detail::milliseconds(from.lookup_interval);
        options.lifetime = static_cast<std::uint32_t>(from.lifetime);
        options.priority = from.priority;
        options.notify = static_cast<std::uint32_t>(from.notify);
        options.notify_lookup = from.notify_lookup ? 1 : 0;
        options.pause_after_lookup = from.pause_after_lookup ? 1 : 0;
        std::uint64_t job = 0;
        detail::check(
            kvkeep_submit_prefetch(cache_, id_, keys.data(), keys.size(), &options, &job, callback, userdata));
        return Job(cache_, job, keys.size());
    }

    kvkeep* cache_;
    std::uint64_t id_;
};

}  // namespace kvk
