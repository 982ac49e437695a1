// Prefetches and transfers under way.
#pragma once

#include "detail.hpp"
#include "options.hpp"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <future>
#include <optional>
#include <utility>
#include <vector>

namespace kvk {

/// An answer that may not be there yet: a std::optional whose `*` and value() give the answer itself where the optional is a
/// temporary, so that `for (auto status : *transfer.blocks())` reads no memory that is freed.
template <typename T>
class Answer : public std::optional<T> {
public:
    using std::optional<T>::optional;
    T& operator*() & { return std::optional<T>::operator*(); }
    const T& operator*() const& { return std::optional<T>::operator*(); }
    T operator*() && { return std::move(std::optional<T>::operator*()); }
    T& value() & { return std::optional<T>::value(); }
    const T& value() const& { return std::optional<T>::value(); }
    T value() && { return std::move(std::optional<T>::value()); }
};

/// One prefetch, by its number. It lives until its release, its session's end or its deadline; dropping the Job does
/// not end it, since it touches no page of the engine's. Any thread.
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
    std::optional<kvkeep_job_result> query() const {
        auto result = detail::prepared<kvkeep_job_result>();
        if (detail::check(kvkeep_query_job(cache_, id_, &result)) == Status::pending) return std::nullopt;
        return result;
    }

    /// Every length in chunks at which all groups could continue, the longest first; empty until the lookup is answered.
    Answer<std::vector<std::uint32_t>> prefix_lengths() const {
        std::vector<std::uint32_t> lengths(key_count_);
        std::size_t count = 0;
        const auto status = kvkeep_query_prefix_lengths(cache_, id_, lengths.data(), lengths.size(), &count);
        if (detail::check(status) == Status::pending) return std::nullopt;
        lengths.resize(count);
        return lengths;
    }

    /// For each key, whether the session holds shares of it; empty until the job is done.
    Answer<std::vector<bool>> bitmap() const {
        std::vector<std::uint8_t> bytes((key_count_ + 7) / 8);
        if (detail::check(kvkeep_query_bitmap(cache_, id_, bytes.data(), bytes.size())) == Status::pending)
            return std::nullopt;
        std::vector<bool> held(key_count_);
        for (std::size_t i = 0; i < key_count_; ++i) held[i] = (bytes[i / 8] >> (i % 8) & 1) != 0;
        return held;
    }

    /// Blocks until the job is done; false where `timeout` passed first. The job then goes on, and so does a transfer's copy: wait
    /// again, or cancel it and wait, before its pages are used anew.
    bool wait(std::chrono::milliseconds timeout) const {
        const auto status = kvkeep_wait_job(cache_, id_, detail::milliseconds(timeout));
        return status != KVKEEP_ERR_TIMEOUT && detail::check(status) == Status::ok;
    }

    /// Has a job that pauses after its lookup load what it found.
    void resume() const { detail::check(kvkeep_resume_job(cache_, id_)); }

    /// Stops what has not started; waits for nothing. The job still completes.
    void cancel() const { detail::check(kvkeep_cancel_job(cache_, id_)); }

    /// Forgets the job; its shares stay the session's.
    void release() const { detail::check(kvkeep_release_job(cache_, id_)); }

protected:
    friend class Cache;
    friend class Session;
    Job(kvkeep* cache, std::uint64_t id, std::size_t key_count) noexcept
        : cache_(cache), id_(id), key_count_(key_count) {}

    kvkeep* cache_;
    std::uint64_t id_;
    std::size_t key_count_;
};

/// One store or load. Of its result, `copied_keys` counts objects, and the status is partial where blocks have a status of
/// their own. Pages are the library's until it is done. A Transfer that tells its end neither to a callback, nor by a future, nor by
/// the event descriptor owns the copy: destroyed before it is done, by an exception or on purpose, it cancels the transfer and waits
/// until the copy has landed. The others may be dropped at any time.
class Transfer : public Job {
public:
    Transfer(Transfer&& other) noexcept
        : Job(other), block_count_(other.block_count_), owns_(std::exchange(other.owns_, false)) {}
    Transfer& operator=(Transfer&& other) noexcept {
        Job::operator=(other);
        std::swap(block_count_, other.block_count_);
        std::swap(owns_, other.owns_);
        return *this;
    }
    ~Transfer() {
        if (owns_) detail::cancel_and_wait(cache_, id_);
    }

    /// Lets the transfer go on when this is destroyed: from now on its number is waited for. Gives the number.
    std::uint64_t detach() noexcept {
        owns_ = false;
        return id_;
    }

    /// What became of each block, in the order in which they were given; empty until the transfer is done.
    Answer<std::vector<Status>> blocks() const {
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

    /// Forgets the transfer. One that is not done is cancelled, and its copy waited for, since nobody could ask later.
    void release() const {
        detail::cancel_and_wait(cache_, id_);
        Job::release();
    }

private:
    friend class Pool;
    Transfer(kvkeep* cache, std::uint64_t id, std::size_t block_count, bool owns) noexcept
        : Job(cache, id, 0), block_count_(block_count), owns_(owns) {}

    std::size_t block_count_;
    bool owns_;
};

/// The future of a completion, which comes whatever becomes of the job, also on cancel and close. One that is dropped before, by
/// an exception or on purpose, cancels its job and waits until it has ended: no page is touched after it.
class CompletionFuture {
public:
    CompletionFuture() = default;
    CompletionFuture(kvkeep* cache, std::uint64_t job, std::future<Completion> future) noexcept
        : cache_(cache), job_(job), future_(std::move(future)) {}
    CompletionFuture(CompletionFuture&&) noexcept = default;
    CompletionFuture& operator=(CompletionFuture&& other) noexcept {
        drop();
        cache_ = other.cache_;
        job_ = other.job_;
        future_ = std::move(other.future_);
        return *this;
    }
    ~CompletionFuture() { drop(); }

    /// Whether `get` was not called yet.
    bool valid() const noexcept { return future_.valid(); }
    /// Blocks until the job has ended; once.
    Completion get() { return future_.get(); }
    void wait() const { future_.wait(); }
    /// A time that passes first leaves the job running, and its copy.
    template <typename Rep, typename Period>
    std::future_status wait_for(const std::chrono::duration<Rep, Period>& time) const {
        return future_.wait_for(time);
    }
    template <typename Clock, typename Duration>
    std::future_status wait_until(const std::chrono::time_point<Clock, Duration>& time) const {
        return future_.wait_until(time);
    }

private:
    // By the library's own wait, not the future's: it may be dropped in a callback, and the next one comes when that returns.
    void drop() noexcept {
        if (future_.valid()) detail::cancel_and_wait(cache_, job_);
    }

    kvkeep* cache_ = nullptr;
    std::uint64_t job_ = 0;
    std::future<Completion> future_;
};

/// A transfer and the future of its completion.
struct FutureTransfer {
    Transfer transfer;
    CompletionFuture completion;
};

/// A job and the future of its completion.
struct FutureJob {
    Job job;
    CompletionFuture completion;
};

}  // namespace kvk
