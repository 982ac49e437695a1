// Prefetches and transfers under way.
#pragma once

#include "detail.hpp"
#include "options.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <future>
#include <optional>
#include <vector>

namespace kvk {

/// One prefetch, by its number. It lives until its release, its session's end or its deadline; dropping the Job does
/// not end it. Any thread.
class Job {
public:
    std::uint64_t id() const noexcept { return id_; }

    /// Chunks that will be hit, known before any byte is loaded; empty until then.
    std::optional<std::uint32_t> lookup_hits() const {
        std::uint32_t chunks = 0;
        if (detail::check(kvkeep_query_lookup_hits(cache_, id_, &chunks)) == Status::pending) return std::nullopt;
        return chunks;
    }

    /// The result, whatever its status; empty until the job is done.
    std::optional<kvkeep_prefetch_result> query() const {
        auto result = detail::prepared<kvkeep_prefetch_result>();
        if (detail::check(kvkeep_query_prefetch(cache_, id_, &result)) == Status::pending) return std::nullopt;
        return result;
    }

    /// For each key, whether the session holds shares of it; empty until the job is done.
    std::optional<std::vector<bool>> bitmap() const {
        std::vector<std::uint8_t> bytes((key_count_ + 7) / 8);
        if (detail::check(kvkeep_query_bitmap(cache_, id_, bytes.data(), bytes.size())) == Status::pending)
            return std::nullopt;
        std::vector<bool> held(key_count_);
        for (std::size_t i = 0; i < key_count_; ++i) held[i] = (bytes[i / 8] >> (i % 8) & 1) != 0;
        return held;
    }

    /// Blocks until the job is done; false where `timeout` passed first.
    bool wait(std::chrono::milliseconds timeout) const {
        const auto status = kvkeep_wait(cache_, id_, detail::milliseconds(timeout));
        return status != KVKEEP_ERR_TIMEOUT && detail::check(status) == Status::ok;
    }

    /// Stops what has not started; waits for nothing. The job still completes.
    void cancel() const { detail::check(kvkeep_cancel(cache_, id_)); }

    /// Forgets the job; its shares stay the session's.
    void release() const { detail::check(kvkeep_release_job(cache_, id_)); }

protected:
    friend class Session;
    Job(kvkeep* cache, std::uint64_t id, std::size_t key_count) noexcept
        : cache_(cache), id_(id), key_count_(key_count) {}

    kvkeep* cache_;
    std::uint64_t id_;
    std::size_t key_count_;
};

/// One store or load. Of its result, `hit_chunks` counts objects, and the status is partial where blocks have a status of
/// their own.
class Transfer : public Job {
public:
    /// What became of each block, in the order in which they were given; empty until the transfer is done.
    std::optional<std::vector<Status>> blocks() const {
        std::vector<std::int32_t> numbers(block_count_);
        const auto status = kvkeep_query_blocks(cache_, id_, numbers.data(), numbers.size());
        if (detail::check(status) == Status::pending) return std::nullopt;
        return detail::statuses(numbers);
    }

    /// Blocks until every page of `layer` is copied: ok, partial where some objects could not be had, or timeout.
    Status wait_layer(std::uint32_t layer, std::chrono::milliseconds timeout) const {
        const auto status = kvkeep_wait_layer(cache_, id_, layer, detail::milliseconds(timeout));
        return status == KVKEEP_ERR_TIMEOUT ? Status::timeout : detail::check(status);
    }

    /// Makes a CUDA stream (0 on the host) wait until every page of `layer` is copied. Blocks only until the copies are queued.
    Status stream_wait_layer(std::uint32_t layer, std::uint64_t stream, std::chrono::milliseconds timeout) const {
        const auto status = kvkeep_stream_wait_layer(cache_, id_, layer, stream, detail::milliseconds(timeout));
        return status == KVKEEP_ERR_TIMEOUT ? Status::timeout : detail::check(status);
    }

private:
    friend class Pool;
    Transfer(kvkeep* cache, std::uint64_t id, std::size_t block_count) noexcept
        : Job(cache, id, 0), block_count_(block_count) {}

    std::size_t block_count_;
};

/// A transfer and the future of its completion.
struct FutureTransfer {
    Transfer transfer;
    std::future<Completion> completion;
};

/// A job and the future of its completion, which is fulfilled whatever becomes of the job, also on cancel and close.
struct FutureJob {
    Job job;
    std::future<Completion> completion;
};

}  // namespace kvk
