// An engine's paged memory.
#pragma once

#include "session.hpp"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace kvk {

/// An engine's paged memory, registered. Closed when destroyed, which waits for what is in flight; the pages must outlive it.
class Pool {
public:
    Pool(kvkeep* cache, std::uint64_t id) noexcept : cache_(cache), id_(id) {}
    Pool(Pool&& other) noexcept : cache_(other.cache_), id_(std::exchange(other.id_, 0)) {}
    Pool& operator=(Pool&& other) noexcept {
        std::swap(cache_, other.cache_);
        std::swap(id_, other.id_);
        return *this;
    }
    ~Pool() {
        if (id_ != 0) kvkeep_close_pool(cache_, id_);
    }

    std::uint64_t id() const noexcept { return id_; }

    /// Cancels its transfers and waits until what is in flight has landed.
    void close() { detail::check(kvkeep_close_pool(cache_, std::exchange(id_, 0))); }

    /// Stores an object for each key from its blocks, so many for each key as a chunk has. Reports as `options.notify` says,
    /// to `callback`, or by a future.
    Transfer store(const Session& session, Span<const Key> keys, Span<const std::int32_t> blocks,
                   const TransferOptions& options = {}) const {
        return submit(kvkeep_submit_store, session, keys, blocks, options);
    }
    Transfer store(const Session& session, Span<const Key> keys, Span<const std::int32_t> blocks,
                   const TransferOptions& options, Callback callback) const {
        return submit(kvkeep_submit_store, session, keys, blocks, options, std::move(callback));
    }
    FutureTransfer store_future(const Session& session, Span<const Key> keys, Span<const std::int32_t> blocks,
                                const TransferOptions& options = {}) const {
        return future(kvkeep_submit_store, session, keys, blocks, options);
    }

    /// Loads each key's object into its blocks, from whatever tier has it.
    Transfer load(const Session& session, Span<const Key> keys, Span<const std::int32_t> blocks,
                  const TransferOptions& options = {}) const {
        return submit(kvkeep_submit_load, session, keys, blocks, options);
    }
    Transfer load(const Session& session, Span<const Key> keys, Span<const std::int32_t> blocks,
                  const TransferOptions& options, Callback callback) const {
        return submit(kvkeep_submit_load, session, keys, blocks, options, std::move(callback));
    }
    FutureTransfer load_future(const Session& session, Span<const Key> keys, Span<const std::int32_t> blocks,
                               const TransferOptions& options = {}) const {
        return future(kvkeep_submit_load, session, keys, blocks, options);
    }

private:
    template <typename Function>
    Transfer submit(Function function, const Session& session, Span<const Key> keys, Span<const std::int32_t> blocks,
                    const TransferOptions& from, kvkeep_callback callback = nullptr, void* userdata = nullptr) const {
        auto options = detail::prepared<kvkeep_transfer_options>();
        options.stream = from.stream;
        options.skip_first_tokens = from.skip_first_tokens;
        options.return_shares = from.return_shares ? 1 : 0;
        options.lifetime = static_cast<std::uint32_t>(from.lifetime);
        options.priority = from.priority;
        options.notify = static_cast<std::uint32_t>(from.notify);
        std::uint64_t job = 0;
        detail::check(function(cache_, id_, session.id(), keys.data(), keys.size(), blocks.data(), blocks.size(),
                               &options, &job, callback, userdata));
        return Transfer(cache_, job, blocks.size(), callback == nullptr && from.notify == Notify::poll);
    }

    template <typename Function>
    Transfer submit(Function function, const Session& session, Span<const Key> keys, Span<const std::int32_t> blocks,
                    const TransferOptions& options, Callback callback) const {
        return detail::with(std::move(callback), [&](void* userdata) {
            return submit(function, session, keys, blocks, options, detail::complete, userdata);
        });
    }

    template <typename Function>
    FutureTransfer future(Function function, const Session& session, Span<const Key> keys,
                          Span<const std::int32_t> blocks, const TransferOptions& options) const {
        return detail::with_future<FutureTransfer>(cache_, [&](Callback callback) {
            return submit(function, session, keys, blocks, options, std::move(callback));
        });
    }

    kvkeep* cache_;
    std::uint64_t id_;
};

}  // namespace kvk
