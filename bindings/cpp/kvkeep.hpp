// kvkeep for C++17 and later: ownership, exceptions and futures over the C ABI.
//
// kvkeep.h is the specification; this header only carries it. Every function may be called from any thread, at once
// with any other, except where one of them destroys or closes the object. A call that fails throws kvk::Error and has
// changed nothing. Statuses of single keys are returned, never thrown.
#pragma once

#include <kvkeep.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <future>
#include <iterator>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

// Not `kvkeep`, which is the C handle's type.
namespace kvk {

enum class Status : std::int32_t {
    ok = KVKEEP_OK,
    pending = KVKEEP_PENDING,
    partial = KVKEEP_PARTIAL,
    invalid = KVKEEP_ERR_INVALID,
    closed = KVKEEP_ERR_CLOSED,
    not_found = KVKEEP_ERR_NOT_FOUND,
    exists = KVKEEP_ERR_EXISTS,
    not_held = KVKEEP_ERR_NOT_HELD,
    expired = KVKEEP_ERR_EXPIRED,
    locked = KVKEEP_ERR_LOCKED,
    no_memory = KVKEEP_ERR_NO_MEMORY,
    quota = KVKEEP_ERR_QUOTA,
    limit = KVKEEP_ERR_LIMIT,
    timeout = KVKEEP_ERR_TIMEOUT,
    cancelled = KVKEEP_ERR_CANCELLED,
    io = KVKEEP_ERR_IO,
    corrupt = KVKEEP_ERR_CORRUPT,
    unsupported = KVKEEP_ERR_UNSUPPORTED,
    version = KVKEEP_ERR_VERSION,
    permission = KVKEEP_ERR_PERMISSION,
    disconnected = KVKEEP_ERR_DISCONNECTED,
    internal = KVKEEP_ERR_INTERNAL,
    device = KVKEEP_ERR_DEVICE,
};

enum class StoreMode : std::uint32_t {
    write_through = KVKEEP_STORE_WRITE_THROUGH,
    write_back = KVKEEP_STORE_WRITE_BACK,
    after_uses = KVKEEP_STORE_AFTER_USES,
    never = KVKEEP_STORE_NEVER,
};

enum class Retention : std::uint32_t {
    keep = KVKEEP_RETENTION_KEEP,
    temporary = KVKEEP_RETENTION_TEMPORARY,
};

enum class PrefetchMode : std::uint32_t {
    prefix = KVKEEP_PREFETCH_PREFIX,
    window = KVKEEP_PREFETCH_WINDOW,
    any = KVKEEP_PREFETCH_ANY,
};

enum class PrefetchPolicy : std::uint32_t {
    best_effort = KVKEEP_POLICY_BEST_EFFORT,
    wait = KVKEEP_POLICY_WAIT,
    deadline = KVKEEP_POLICY_DEADLINE,
};

enum class Notify : std::uint32_t {
    poll = KVKEEP_NOTIFY_POLL,
    event_fd = KVKEEP_NOTIFY_EVENT_FD,
};

enum class LogLevel : std::int32_t {
    error = KVKEEP_LOG_ERROR,
    warn = KVKEEP_LOG_WARN,
    info = KVKEEP_LOG_INFO,
};

/// Name of a status as in kvkeep.h.
inline const char* name(Status status) noexcept { return kvkeep_status_name(static_cast<std::int32_t>(status)); }

/// Extra readers of an object besides the one every share count includes.
inline int extra_count(int tp_size, int world_size) noexcept { return kvkeep_extra_count(tp_size, world_size); }

/// A call failed: which status, and cause and remedy in words.
class Error : public std::runtime_error {
public:
    Error(Status status, const std::string& message) : std::runtime_error(message), status_(status) {}
    Status status() const noexcept { return status_; }

private:
    Status status_;
};

/// A pointer and a count; made from any vector, array or std::span of T. The caller's memory, for the call only.
template <typename T>
class Span {
public:
    constexpr Span() noexcept = default;
    constexpr Span(T* data, std::size_t size) noexcept : data_(data), size_(size) {}

    // An array of U passes for one of T only where they differ in const at most.
    template <typename Container,
              typename U = std::remove_pointer_t<decltype(std::data(std::declval<Container&>()))>,
              typename = std::enable_if_t<std::is_convertible_v<U (*)[], T (*)[]>>>
    constexpr Span(Container&& container) noexcept : data_(std::data(container)), size_(std::size(container)) {}

    constexpr T* data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T* begin() const noexcept { return data_; }
    constexpr T* end() const noexcept { return data_ + size_; }
    constexpr T& operator[](std::size_t index) const noexcept { return data_[index]; }

private:
    T* data_ = nullptr;
    std::size_t size_ = 0;
};

/// Names an object inside a space.
struct Key : kvkeep_key {
    Key() noexcept : kvkeep_key{} {}
    explicit Key(const std::array<std::uint8_t, 32>& digest, std::uint32_t of_rank = 0,
                 std::uint32_t of_group = 0) noexcept
        : kvkeep_key{} {
        std::copy(digest.begin(), digest.end(), hash);
        rank = of_rank;
        group = of_group;
    }
    friend bool operator==(const Key& a, const Key& b) noexcept {
        return a.rank == b.rank && a.group == b.group && std::memcmp(a.hash, b.hash, sizeof a.hash) == 0;
    }
    friend bool operator!=(const Key& a, const Key& b) noexcept { return !(a == b); }
};

/// One object's bytes in L1. They are the caller's until the shares or the staging are given back.
struct View : kvkeep_view {
    View() noexcept : kvkeep_view{} {}
    bool ok() const noexcept { return status == KVKEEP_OK; }
    Status result() const noexcept { return static_cast<Status>(status); }
    std::byte* bytes() const noexcept { return static_cast<std::byte*>(data); }
};

// Arrays of these cross the ABI as arrays of what they derive from.
static_assert(sizeof(Key) == sizeof(kvkeep_key) && std::is_standard_layout_v<Key> &&
              std::is_trivially_copyable_v<Key>);
static_assert(sizeof(View) == sizeof(kvkeep_view) && std::is_standard_layout_v<View> &&
              std::is_trivially_copyable_v<View>);

/// What became of one job.
struct Completion {
    std::uint64_t job = 0;
    std::uint64_t session = 0;
    Status status = Status::ok;
    std::uint32_t hit_chunks = 0;
    std::uint64_t loaded_bytes = 0;
    std::string message;
};

/// Runs on the library's callback thread, exactly once. May call anything but close. What it throws is dropped.
using Callback = std::function<void(const Completion&)>;

/// Told one line. May run inside opening and closing; must not call into kvkeep. What it throws is dropped.
using Log = std::function<void(LogLevel, std::string_view)>;

/// How a cache is opened; see kvkeep_options. Zero or empty means the default.
struct Options {
    std::string connect;
    std::uint64_t l1_bytes = 0;
    std::uint32_t flags = 0;
    std::uint32_t numa_node = 0;
    std::string eviction_policy;
    std::uint32_t watermark_high_percent = 0;
    std::uint32_t watermark_low_percent = 0;
    StoreMode store_mode = StoreMode::write_through;
    std::uint32_t store_after_uses = 0;
    std::vector<std::string> backend_urls;
    std::uint32_t sessions_max = 0;
    std::uint32_t jobs_max = 0;
    std::uint32_t writes_pending_max = 0;
    std::chrono::milliseconds session_timeout{0};
    std::chrono::milliseconds backend_timeout{0};
    std::uint64_t loading_bytes_max = 0;
    Log log;
    LogLevel log_level = LogLevel::warn;
};

/// How a space is opened; see kvkeep_space_options.
struct SpaceOptions {
    std::string model;
    std::string layout;
    std::string tenant;
    std::uint32_t chunk_tokens = 0;
    std::uint64_t quota_bytes = 0;
};

/// How the objects of one group count in a job.
struct GroupRule {
    std::uint32_t group = 0;
    PrefetchMode mode = PrefetchMode::prefix;
    std::uint32_t window_chunks = 0;
};

/// How a prefetch is done; see kvkeep_prefetch_options.
struct PrefetchOptions {
    std::int32_t extra_count = 0;
    std::uint32_t objects_per_chunk = 0;
    PrefetchMode mode = PrefetchMode::prefix;
    std::uint32_t window_chunks = 0;
    std::vector<GroupRule> group_rules;
    PrefetchPolicy policy = PrefetchPolicy::best_effort;
    std::chrono::milliseconds deadline{0};
    std::chrono::milliseconds lookup_timeout{0};
    std::chrono::milliseconds lookup_interval{0};
    Retention retention = Retention::keep;
    std::int32_t priority = 0;
    Notify notify = Notify::poll;
};

/// A tensor of an engine's pages in plain numbers: from data_ptr, shape and strides of whatever library.
struct Tensor {
    std::uint64_t address = 0;
    std::vector<std::uint64_t> shape;
    std::uint64_t item_bytes = 0;
    /// From one element to the next on each axis, in bytes. Empty: without gaps, the last axis innermost.
    std::vector<std::uint64_t> strides;
    /// The axis that counts the blocks.
    std::size_t block_axis = 0;
    /// The axis that counts layers, where one tensor has several; they are numbered from `layer` on.
    std::optional<std::size_t> layer_axis;
    std::uint32_t layer = 0;
    std::uint32_t group = 0;
};

/// The segments of a tensor of pages: what of a block lies in one piece is one, and where it does not (K and V in halves of
/// one tensor, heads outermost), each piece is one, in the order of the axes.
inline std::vector<kvkeep_segment> segments_of(const Tensor& tensor) {
    const std::size_t rank = tensor.shape.size();
    if (tensor.block_axis >= rank || (tensor.layer_axis && *tensor.layer_axis >= rank) ||
        tensor.layer_axis == tensor.block_axis)
        throw Error(Status::invalid, "block_axis and layer_axis must be two of the tensor's axes, counted from 0");
    if (!tensor.strides.empty() && tensor.strides.size() != rank)
        throw Error(Status::invalid, "the tensor has a stride for each axis of its shape, or none at all");
    if (std::find(tensor.shape.begin(), tensor.shape.end(), 0u) != tensor.shape.end())
        throw Error(Status::invalid, "the tensor has no elements: an axis of its shape is 0");
    auto strides = tensor.strides;
    if (strides.empty()) {
        strides.assign(rank, tensor.item_bytes);
        for (std::size_t axis = rank - 1; axis > 0; --axis) strides[axis - 1] = strides[axis] * tensor.shape[axis];
    }
    std::vector<std::size_t> axes;
    for (std::size_t axis = 0; axis < rank; ++axis) {
        if (tensor.shape[axis] > 1 && strides[axis] == 0)
            throw Error(Status::invalid, "the tensor repeats an axis: pass the tensor that owns the pages");
        if (axis != tensor.block_axis && axis != tensor.layer_axis && tensor.shape[axis] > 1) axes.push_back(axis);
    }
    // Axes join the piece, innermost first, as long as they go on where it ends.
    auto by_stride = axes;
    std::stable_sort(by_stride.begin(), by_stride.end(),
                     [&](std::size_t a, std::size_t b) { return strides[a] < strides[b]; });
    std::uint64_t piece = tensor.item_bytes;
    for (const std::size_t axis : by_stride) {
        if (strides[axis] != piece) break;
        piece *= tensor.shape[axis];
        axes.erase(std::find(axes.begin(), axes.end(), axis));
    }
    std::vector<std::uint64_t> offsets{0};
    for (const std::size_t axis : axes) {
        std::vector<std::uint64_t> further;
        for (const std::uint64_t offset : offsets)
            for (std::uint64_t i = 0; i < tensor.shape[axis]; ++i) further.push_back(offset + i * strides[axis]);
        offsets = std::move(further);
    }
    const std::uint64_t stride = tensor.shape[tensor.block_axis] > 1 ? strides[tensor.block_axis] : 0;
    const std::uint64_t layers = tensor.layer_axis ? tensor.shape[*tensor.layer_axis] : 1;
    std::vector<kvkeep_segment> segments;
    for (std::uint64_t i = 0; i < layers; ++i) {
        const std::uint64_t at = tensor.address + i * (tensor.layer_axis ? strides[*tensor.layer_axis] : 0);
        for (const std::uint64_t offset : offsets)
            segments.push_back({at + offset, piece, stride, tensor.group, tensor.layer + static_cast<std::uint32_t>(i)});
    }
    return segments;
}

/// How a pool is opened; see kvkeep_pool_options.
struct PoolOptions {
    std::int32_t device = KVKEEP_DEVICE_HOST;
    std::uint32_t rank = 0;
    std::uint32_t block_count = 0;
    std::uint32_t blocks_per_chunk = 1;
    std::vector<kvkeep_segment> segments;

    /// Adds the segments of a tensor; all of a pool have as many blocks.
    PoolOptions& add(const Tensor& tensor) {
        const auto more = segments_of(tensor);
        const auto blocks = tensor.shape[tensor.block_axis];
        if (blocks > std::numeric_limits<std::uint32_t>::max() || (block_count != 0 && block_count != blocks))
            throw Error(Status::invalid, "the tensor has " + std::to_string(blocks) + " blocks, those before it " +
                                             std::to_string(block_count) + ": open a pool for each");
        segments.insert(segments.end(), more.begin(), more.end());
        block_count = static_cast<std::uint32_t>(blocks);
        return *this;
    }
};

/// How a store or a load is done; see kvkeep_transfer_options.
struct TransferOptions {
    std::uint64_t stream = 0;
    std::uint32_t skip_first_tokens = 0;
    bool return_shares = false;
    Retention retention = Retention::keep;
    std::int32_t priority = 0;
    Notify notify = Notify::poll;
};

/// Ranks and groups whose keys a session writes.
struct KeyRange {
    std::uint32_t first_rank = 0;
    std::uint32_t rank_count = 1;
    std::uint32_t group_count = 1;
};

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
    return {from.job, from.session, static_cast<Status>(from.status), from.hit_chunks, from.loaded_bytes,
            from.message};
}

// What C calls: nothing may leave it, so a callback that throws is on its own.
inline void complete(void* userdata, const kvkeep_completion* completion) noexcept {
    const std::unique_ptr<Callback> callback(static_cast<Callback*>(userdata));
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

    /// Appends token ids; the number of full chunks so far.
    std::uint64_t append_tokens(Span<const std::uint32_t> tokens) {
        std::uint64_t chunks = 0;
        detail::check(kvkeep_append_tokens(cache_, id_, tokens.data(), tokens.size(), &chunks));
        return chunks;
    }

    /// Keys of full chunks, chunk-major.
    std::vector<Key> keys(std::uint64_t first_chunk, std::uint64_t chunk_count, KeyRange range = {}) const {
        const std::uint64_t each = std::uint64_t{range.rank_count} * range.group_count;
        if (each != 0 && chunk_count > KVKEEP_KEYS_MAX / each)
            throw Error(Status::invalid, "at most KVKEEP_KEYS_MAX keys can be asked for in one call");
        std::vector<Key> keys(static_cast<std::size_t>(chunk_count * each));
        detail::check(kvkeep_session_keys(cache_, id_, first_chunk, chunk_count, range.first_rank, range.rank_count,
                                          range.group_count, keys.data(), keys.size()));
        return keys;
    }

    /// Reserves `sizes[i]` bytes for `keys[i]`. Each batch function has this form, which allocates nothing: ok, or
    /// partial where a key failed; and one that returns a vector.
    Status reserve_write(Span<const Key> keys, Span<const std::uint64_t> sizes, Span<View> views,
                         Retention retention = Retention::keep) {
        fits(keys, sizes.size());
        fits(keys, views.size());
        return detail::check(kvkeep_reserve_write(cache_, id_, keys.data(), keys.size(), sizes.data(),
                                                  static_cast<std::uint32_t>(retention), views.data()));
    }
    std::vector<View> reserve_write(Span<const Key> keys, Span<const std::uint64_t> sizes,
                                    Retention retention = Retention::keep) {
        std::vector<View> views(keys.size());
        reserve_write(keys, sizes, views, retention);
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
        return detail::check(kvkeep_finish_write_and_reserve_read(cache_, id_, keys.data(), keys.size(), extra_count,
                                                                  views.data()));
    }
    std::vector<View> finish_write_and_reserve_read(Span<const Key> keys, std::int32_t extra_count = 0) {
        std::vector<View> views(keys.size());
        finish_write_and_reserve_read(keys, extra_count, views);
        return views;
    }

    /// Takes 1 + extra_count shares of each ready key.
    Status reserve_read(Span<const Key> keys, std::int32_t extra_count, Span<View> views) {
        fits(keys, views.size());
        return detail::check(
            kvkeep_reserve_read(cache_, id_, keys.data(), keys.size(), extra_count, views.data()));
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
    Status unsafe_read(Span<const Key> keys, Span<View> views) {
        fits(keys, views.size());
        return detail::check(kvkeep_unsafe_read(cache_, id_, keys.data(), keys.size(), views.data()));
    }
    std::vector<View> unsafe_read(Span<const Key> keys) {
        std::vector<View> views(keys.size());
        unsafe_read(keys, views);
        return views;
    }

    /// Returns the shares of the chunks wholly within [first_token, last_token); the number of keys given back.
    std::uint64_t release_tokens(std::uint64_t first_token, std::uint64_t last_token, KeyRange range = {},
                                 std::int32_t extra_count = 0) {
        std::uint64_t returned = 0;
        detail::check(kvkeep_release_tokens(cache_, id_, first_token, last_token, range.first_rank, range.rank_count,
                                            range.group_count, extra_count, &returned));
        return returned;
    }

    /// Submits a prefetch that reports as `options.notify` says.
    Job prefetch(Span<const Key> keys, const PrefetchOptions& options = {}) {
        return submit(keys, options, nullptr, nullptr);
    }

    /// Submits a prefetch whose end is told to `callback`.
    Job prefetch(Span<const Key> keys, const PrefetchOptions& options, Callback callback) {
        return detail::with(std::move(callback), [&](void* userdata) {
            return submit(keys, options, detail::complete, userdata);
        });
    }

    /// Submits a prefetch whose end fulfils a future.
    FutureJob prefetch_future(Span<const Key> keys, const PrefetchOptions& options = {}) {
        // Shared, because a std::function is copyable and a promise is not.
        auto promise = std::make_shared<std::promise<Completion>>();
        auto future = promise->get_future();
        Job job = prefetch(keys, options, [promise](const Completion& completion) { promise->set_value(completion); });
        return {job, std::move(future)};
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
            rules.push_back({rule.group, static_cast<std::uint32_t>(rule.mode), rule.window_chunks, 0});
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
        options.retention = static_cast<std::uint32_t>(from.retention);
        options.priority = from.priority;
        options.notify = static_cast<std::uint32_t>(from.notify);
        std::uint64_t job = 0;
        detail::check(kvkeep_submit_prefetch(cache_, id_, keys.data(), keys.size(), &options, &job, callback,
                                             userdata));
        return Job(cache_, job, keys.size());
    }

    kvkeep* cache_;
    std::uint64_t id_;
};

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
        return submit(kvkeep_submit_store, session, keys, blocks, options, nullptr, nullptr);
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
        return submit(kvkeep_submit_load, session, keys, blocks, options, nullptr, nullptr);
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
                    const TransferOptions& from, kvkeep_callback callback, void* userdata) const {
        auto options = detail::prepared<kvkeep_transfer_options>();
        options.stream = from.stream;
        options.skip_first_tokens = from.skip_first_tokens;
        options.return_shares = from.return_shares ? 1 : 0;
        options.retention = static_cast<std::uint32_t>(from.retention);
        options.priority = from.priority;
        options.notify = static_cast<std::uint32_t>(from.notify);
        std::uint64_t job = 0;
        detail::check(function(cache_, id_, session.id(), keys.data(), keys.size(), blocks.data(), blocks.size(),
                               &options, &job, callback, userdata));
        return Transfer(cache_, job, blocks.size());
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
        auto promise = std::make_shared<std::promise<Completion>>();
        auto future = promise->get_future();
        auto told = [promise](const Completion& completion) { promise->set_value(completion); };
        return {submit(function, session, keys, blocks, options, Callback(told)), std::move(future)};
    }

    kvkeep* cache_;
    std::uint64_t id_;
};

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
        std::uint64_t pool = 0;
        detail::check(kvkeep_open_pool(cache_, id_, &options, &pool));
        return Pool(cache_, pool);
    }

    /// Marks ready keys as used now, last key first.
    std::vector<Status> touch(Span<const Key> keys) const { return each(kvkeep_touch, keys); }

    /// Keeps keys longer: a bias of 0 to 100 for `ttl`, never a hard pin.
    std::vector<Status> retain(Span<const Key> keys, std::uint32_t priority, std::chrono::milliseconds ttl) const {
        return each(kvkeep_retain, keys, priority, detail::milliseconds(ttl));
    }

    /// Deletes keys from L1 at once, and from every backend in the background. Not `delete`, which C++ keeps.
    std::vector<Status> erase(Span<const Key> keys) const { return each(kvkeep_delete, keys); }

    /// Empties L1 of the space's objects; with `force` also hides those in use. How many went.
    std::uint64_t clear(bool force = false) const {
        std::uint64_t removed = 0;
        detail::check(kvkeep_clear(cache_, id_, force ? 1 : 0, &removed));
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
        options.log = log_ ? detail::log : nullptr;
        // C takes userdata as void*; detail::log makes it const again.
        options.log_userdata = const_cast<Log*>(log_.get());
        options.log_level = static_cast<std::uint32_t>(from.log_level);
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

    /// Removes a backend; what it stored stays where it is. Blocks while it closes.
    void remove_backend(std::uint64_t backend) const { detail::check(kvkeep_remove_backend(cache_, backend)); }

    /// Waits until everything committed before is written to L2 or given up; false where `timeout` passed first.
    bool drain_writes(std::chrono::milliseconds timeout) const {
        const auto status = kvkeep_drain_writes(cache_, detail::milliseconds(timeout));
        return status != KVKEEP_ERR_TIMEOUT && detail::check(status) == Status::ok;
    }

    /// Empties L1 of every space's objects; with `force` also hides those in use. How many went.
    std::uint64_t clear(bool force = false) const { return Space(cache_, 0).clear(force); }

    /// Readable while `drain` has something to give. Owned by the library: poll it, do not read or close it.
    int event_fd() const {
        std::int32_t fd = -1;
        detail::check(kvkeep_event_fd(cache_, &fd));
        return fd;
    }

    /// All completions of jobs submitted with Notify::event_fd, oldest first, each once. Never blocks.
    std::vector<Completion> drain() const {
        std::array<kvkeep_completion, 64> batch;
        std::vector<Completion> all;
        std::size_t count = batch.size();
        while (count == batch.size()) {
            detail::check(kvkeep_drain_completions(cache_, batch.data(), batch.size(), &count));
            std::transform(batch.begin(), batch.begin() + static_cast<std::ptrdiff_t>(count),
                           std::back_inserter(all), detail::copied);
        }
        return all;
    }

    /// Up to `most` events, oldest first, from number `next` on (0: from the oldest that is kept), which then is where to
    /// go on. Where it rises by more than events came, some were lost. Never blocks.
    std::vector<kvkeep_event> drain_events(std::uint64_t& next, std::size_t most = 1024) const {
        std::vector<kvkeep_event> events(most);
        std::size_t count = 0;
        detail::check(kvkeep_drain_events(cache_, &next, events.data(), events.size(), &count));
        events.resize(count);
        return events;
    }

    /// Everything counted.
    kvkeep_stats stats() const {
        auto stats = detail::prepared<kvkeep_stats>();
        detail::check(kvkeep_get_stats(cache_, &stats));
        return stats;
    }

    /// Everything counted, as Prometheus text.
    std::string metrics() const {
        return detail::text([this](char* buffer, std::size_t capacity, std::size_t* length) {
            return kvkeep_metrics(cache_, buffer, capacity, length);
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
