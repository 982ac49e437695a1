// What calls are told and what they tell: statuses, choices, errors, keys, views, completions.
#pragma once

#include <kvkeep.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

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

enum class Lifetime : std::uint32_t {
    cached = KVKEEP_LIFETIME_CACHED,
    temporary = KVKEEP_LIFETIME_TEMPORARY,
};

enum class PrefetchMode : std::uint32_t {
    prefix = KVKEEP_PREFETCH_PREFIX,
    window = KVKEEP_PREFETCH_WINDOW,
    each = KVKEEP_PREFETCH_EACH,
};

enum class PrefetchPolicy : std::uint32_t {
    best_effort = KVKEEP_PREFETCH_POLICY_BEST_EFFORT,
    wait = KVKEEP_PREFETCH_POLICY_WAIT,
    deadline = KVKEEP_PREFETCH_POLICY_DEADLINE,
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
    template <typename Container, typename U = std::remove_pointer_t<decltype(std::data(std::declval<Container&>()))>,
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

/// What L1 says of one key.
struct KeyState : kvkeep_key_state {
    KeyState() noexcept : kvkeep_key_state{} {}
    bool ready() const noexcept { return state == KVKEEP_OBJECT_READY; }
    bool temporary() const noexcept { return (flags & KVKEEP_KEY_TEMPORARY) != 0; }
    bool evictable() const noexcept { return (flags & KVKEEP_KEY_EVICTABLE) != 0; }
    bool stored() const noexcept { return (flags & KVKEEP_KEY_STORED) != 0; }
    bool storing() const noexcept { return (flags & KVKEEP_KEY_STORING) != 0; }
};

// Arrays of these cross the ABI as arrays of what they derive from.
static_assert(sizeof(Key) == sizeof(kvkeep_key) && std::is_standard_layout_v<Key> && std::is_trivially_copyable_v<Key>);
static_assert(sizeof(KeyState) == sizeof(kvkeep_key_state) && std::is_standard_layout_v<KeyState> &&
              std::is_trivially_copyable_v<KeyState>);
static_assert(sizeof(View) == sizeof(kvkeep_view) && std::is_standard_layout_v<View> &&
              std::is_trivially_copyable_v<View>);

enum class JobKind : std::uint32_t {
    prefetch = KVKEEP_JOB_PREFETCH,
    load = KVKEEP_JOB_LOAD,
    store = KVKEEP_JOB_STORE,
    /// No end: the answer of a prefetch's lookup (PrefetchOptions::notify_lookup).
    lookup = KVKEEP_JOB_LOOKUP,
};

/// What became of one job. Fields of the other kind of job are 0.
struct Completion {
    std::uint64_t job = 0;
    std::uint64_t session = 0;
    Status status = Status::ok;
    std::uint32_t hit_chunks = 0;
    std::uint64_t loaded_bytes = 0;
    std::string message;
    JobKind kind = JobKind::prefetch;
    std::uint32_t copied_keys = 0;
    std::uint64_t copied_bytes = 0;
};

/// Runs on the library's callback thread, exactly once. May call anything but close. What it throws is dropped.
using Callback = std::function<void(const Completion&)>;

/// Told one line. May run inside opening and closing; must not call into kvkeep. What it throws is dropped.
using Log = std::function<void(LogLevel, std::string_view)>;

}  // namespace kvk
