// How things are opened and asked, with the defaults of kvkeep.h.
#pragma once

#include "types.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace kvk {

/// How a cache is opened; see kvkeep_options. Zero or empty means the default.
struct Options {
    std::string connect;
    std::string listen;
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
    std::chrono::milliseconds store_wait{0};
    Log log;
    LogLevel log_level = LogLevel::warn;
    /// Gives the keys of backends whose URL has "key_from="; see kvkeep_key_callback. Must not throw.
    kvkeep_key_callback key_callback = nullptr;
    void* key_userdata = nullptr;
};

/// How a space is opened; see kvkeep_space_options.
struct SpaceOptions {
    std::string model;
    std::string layout;
    std::string tenant;
    std::uint32_t chunk_tokens = 0;
    std::uint64_t quota_bytes = 0;
    std::uint64_t generation = 0;
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
    Lifetime lifetime = Lifetime::cached;
    std::int32_t priority = 0;
    Notify notify = Notify::poll;
    /// A callback, or the event descriptor, gets the lookup's answer too: a Completion of JobKind::lookup.
    bool notify_lookup = false;
    /// Nothing is loaded before Job::resume.
    bool pause_after_lookup = false;
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
    /// Which tensor of its layer it is: a kvkeep_part, or a number of the engine's own.
    std::uint32_t part = KVKEEP_PART_UNSAID;
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
            segments.push_back(
                {at + offset, piece, stride, tensor.group, tensor.layer + static_cast<std::uint32_t>(i), {}});
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
    /// What each segment is, a kvkeep_part; those that are missing are unsaid.
    std::vector<std::uint32_t> parts;

    /// Adds the segments of a tensor; all of a pool have as many blocks.
    PoolOptions& add(const Tensor& tensor) {
        const auto more = segments_of(tensor);
        const auto blocks = tensor.shape[tensor.block_axis];
        if (blocks > std::numeric_limits<std::uint32_t>::max() || (block_count != 0 && block_count != blocks))
            throw Error(Status::invalid, "the tensor has " + std::to_string(blocks) + " blocks, those before it " +
                                             std::to_string(block_count) + ": open a pool for each");
        parts.resize(segments.size(), KVKEEP_PART_UNSAID);
        parts.insert(parts.end(), more.size(), tensor.part);
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
    Lifetime lifetime = Lifetime::cached;
    std::int32_t priority = 0;
    Notify notify = Notify::poll;
};

/// Ranks and groups whose keys a session writes.
struct KeyRange {
    std::uint32_t first_rank = 0;
    std::uint32_t rank_count = 1;
    std::uint32_t group_count = 1;
};

}  // namespace kvk
