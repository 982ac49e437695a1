// What stands between these classes and C; not for use by others.
#pragma once

#include "types.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <future>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace kvk {

class CompletionFuture;

namespace detail {

// Throws for an error; a status that is none passes through.
inline Status check(kvkeep_status status) {
    if (status < 0) throw Error(static_cast<Status>(status), kvkeep_last_error());
    return static_cast<Status>(status);
}

template <typename T>
T prepared() noexcept {
    T options;
    std::memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.abi_version = KVKEEP_ABI_VERSION;
    return options;
}

inline std::uint32_t milliseconds(std::chrono::milliseconds time) {
    if (time.count() < 0 || time.count() > std::numeric_limits<std::uint32_t>::max())
        throw Error(Status::invalid, "a time is 0 to 2^32 - 1 milliseconds, not " + std::to_string(time.count()));
    return static_cast<std::uint32_t>(time.count());
}

inline const char* text_or_null(const std::string& text) noexcept { return text.empty() ? nullptr : text.c_str(); }

inline Completion copied(const kvkeep_completion& from) {
    return {from.job,          from.session, static_cast<Status>(from.status), from.hit_chunks,
            from.loaded_bytes, from.message, static_cast<JobKind>(from.kind),  from.copied_keys,
            from.copied_bytes};
}

// What C calls: nothing may leave it, so a callback that throws is on its own.
inline void complete(void* userdata, const kvkeep_completion* completion) noexcept {
    auto* const callback = static_cast<Callback*>(userdata);
    const std::unique_ptr<Callback> ended(completion->kind == KVKEEP_JOB_LOOKUP ? nullptr : callback);
    try {
        (*callback)(copied(*completion));
    } catch (...) {
    }
}

// Calls `submit` with the userdata that makes `callback` be called.
template <typename Submit>
auto with(Callback callback, Submit&& submit) {
    auto box = std::make_unique<Callback>(std::move(callback));
    // The callback may run, and free the box, before submit returns.
    Callback* const handed_over = box.release();
    try {
        return submit(static_cast<void*>(handed_over));
    } catch (...) {
        delete handed_over;
        throw;
    }
}

// Calls `submit` with a callback that fulfils the future of the result, a FutureJob or a FutureTransfer.
template <typename Result, typename Submit>
Result with_future(kvkeep* cache, Submit&& submit) {
    // Shared, because a std::function is copyable and a promise is not.
    auto promise = std::make_shared<std::promise<Completion>>();
    auto future = promise->get_future();
    auto job = submit(Callback([promise](const Completion& completion) {
        if (completion.kind != JobKind::lookup) promise->set_value(completion);
    }));
    const std::uint64_t id = job.id();
    return {std::move(job), CompletionFuture(cache, id, std::move(future))};
}

// Cancels a job and blocks until it has ended: of a transfer, until no page is touched any more. A job that is gone has ended.
inline void cancel_and_wait(kvkeep* cache, std::uint64_t job) noexcept {
    if (kvkeep_wait_job(cache, job, 0) != KVKEEP_ERR_TIMEOUT) return;
    kvkeep_cancel_job(cache, job);
    while (kvkeep_wait_job(cache, job, std::numeric_limits<std::uint32_t>::max()) == KVKEEP_ERR_TIMEOUT) {
    }
}

inline void log(void* userdata, std::int32_t level, const char* message) noexcept {
    try {
        (*static_cast<const Log*>(userdata))(static_cast<LogLevel>(level), message);
    } catch (...) {
    }
}

inline std::vector<Status> statuses(const std::vector<std::int32_t>& numbers) {
    std::vector<Status> statuses(numbers.size());
    std::transform(numbers.begin(), numbers.end(), statuses.begin(),
                   [](std::int32_t number) { return static_cast<Status>(number); });
    return statuses;
}

template <typename Write>
std::string text(Write&& write) {
    std::string text(1024, '\0');
    std::size_t length = 0;
    while (check(write(text.data(), text.size(), &length)) == Status::partial) text.resize(length + 1);
    text.resize(length);
    return text;
}

}  // namespace detail

}  // namespace kvk
