#include "check.hpp"

// Two layers, K and V in halves of one tensor, 12 blocks of 64 bytes.
struct Pages {
    static constexpr std::size_t layers = 2, blocks = 12, block_bytes = 64;
    std::vector<std::byte> memory = std::vector<std::byte>(layers * 2 * blocks * block_bytes);
    std::vector<std::byte> before;

    Pages() {
        for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<std::byte>(i * 7 % 251);
        before = memory;
    }

    kvk::Tensor layer(std::size_t layer) const {
        kvk::Tensor tensor;
        tensor.address = reinterpret_cast<std::uintptr_t>(memory.data()) + layer * 2 * blocks * block_bytes;
        tensor.shape = {2, blocks, 4, 8};
        tensor.item_bytes = 2;
        tensor.block_axis = 1;
        tensor.layer = static_cast<std::uint32_t>(layer);
        return tensor;
    }

    kvk::PoolOptions options() const {
        kvk::PoolOptions options;
        options.blocks_per_chunk = 2;
        options.add(layer(0)).add(layer(1));
        return options;
    }

    bool same(std::size_t to, std::size_t from) const {
        for (std::size_t part = 0; part < layers * 2; ++part) {
            const auto at = [&](std::size_t block) { return (part * blocks + block) * block_bytes; };
            if (std::memcmp(&memory[at(to)], &before[at(from)], block_bytes) != 0) return false;
        }
        return true;
    }
};

static bool are(const std::vector<kvkeep_segment>& segments, std::uint64_t address,
                const std::vector<std::uint64_t>& begins, std::uint64_t bytes, std::uint64_t stride) {
    if (segments.size() != begins.size()) return false;
    for (std::size_t i = 0; i < begins.size(); ++i) {
        const auto& segment = segments[i];
        if (segment.address != address + begins[i] || segment.block_bytes != bytes || segment.block_stride != stride)
            return false;
    }
    return true;
}

static void segments_are_read_off_axes() {
    kvk::Tensor tensor;
    tensor.address = 4096;
    tensor.item_bytes = 4;
    // Blocks first, K and V fused.
    tensor.shape = {5, 2, 4, 3};
    CHECK(are(kvk::segments_of(tensor), 4096, {0}, 96, 96));
    // All layers of a block in one tensor, taken apart.
    tensor.layer_axis = 1;
    tensor.layer = 10;
    const auto layers = kvk::segments_of(tensor);
    CHECK(are(layers, 4096, {0, 48}, 48, 96) && layers[0].layer == 10 && layers[1].layer == 11);
    tensor.layer_axis.reset();
    // K and V in halves, heads outermost too, and one block, whose halves are one piece.
    tensor.block_axis = 1;
    tensor.shape = {2, 5, 4, 3};
    CHECK(are(kvk::segments_of(tensor), 4096, {0, 240}, 48, 48));
    tensor.shape = {2, 1, 6};
    CHECK(are(kvk::segments_of(tensor), 4096, {0}, 48, 0));
    tensor.block_axis = 2;
    tensor.shape = {2, 3, 5, 4};
    CHECK(are(kvk::segments_of(tensor), 4096, {0, 80, 160, 240, 320, 400}, 16, 16));
    // Bytes as they lie, whatever the order of the axes; and with room behind each block.
    tensor.block_axis = 0;
    tensor.shape = {5, 3, 4};
    tensor.strides = {64, 4, 12};
    CHECK(are(kvk::segments_of(tensor), 4096, {0}, 48, 64));
}

static void tensors_of_a_layer_are_told_apart_by_their_parts() {
    kvk::Tensor tensor;
    tensor.shape = {2, 5, 4};
    tensor.item_bytes = 4;
    tensor.block_axis = 1;
    kvk::PoolOptions options;
    options.segments.push_back({4096, 16, 16, 0, 0, {}});
    tensor.part = KVKEEP_PART_VALUE;
    options.add(tensor);
    CHECK((options.parts == std::vector<std::uint32_t>{KVKEEP_PART_UNSAID, KVKEEP_PART_VALUE, KVKEEP_PART_VALUE}));
}

static void what_is_no_tensor_of_pages_is_refused() {
    kvk::Tensor tensor;
    tensor.shape = {5, 4};
    tensor.item_bytes = 4;
    const auto refused = [&](const char* words) {
        const auto error = thrown([&] { kvk::segments_of(tensor); });
        CHECK(error.status() == kvk::Status::invalid && std::strstr(error.what(), words) != nullptr);
    };
    tensor.block_axis = 2;
    refused("block_axis");
    tensor.block_axis = 0;
    tensor.layer_axis = 0;
    refused("layer_axis");
    tensor.layer_axis.reset();
    tensor.strides = {16};
    refused("stride");
    tensor.strides = {0, 4};
    refused("repeats");
    tensor.strides = {};
    tensor.shape = {0, 4};
    refused("no elements");
    kvk::PoolOptions options;
    tensor.shape = {5, 4};
    options.add(tensor);
    tensor.shape = {6, 4};
    const auto error = thrown([&] { options.add(tensor); });
    CHECK(error.status() == kvk::Status::invalid && options.block_count == 5);
}

static void blocks_go_and_come_back_elsewhere() {
    Pages pages;
    kvk::Cache cache(small());
    const auto space = space_of(cache);
    const auto session = space.session();
    const auto pool = space.pool(pages.options());
    const auto keys = some_keys(3);
    auto stored = pool.store_future(session, keys, std::vector<std::int32_t>{0, 1, 2, 3, 4, 5});
    CHECK(stored.completion.wait_for(watchdog) == std::future_status::ready);
    const auto completion = stored.completion.get();
    CHECK(completion.status == kvk::Status::ok && completion.copied_keys == 3);
    CHECK(completion.copied_bytes == 6 * 4 * Pages::block_bytes && completion.job == stored.transfer.id());
    kvk::TransferOptions options;
    options.skip_first_tokens = 8;
    const auto load = pool.load(session, keys, std::vector<std::int32_t>{11, 10, 9, 8, 7, 6}, options);
    CHECK(load.wait_layer(1, watchdog) == kvk::Status::ok);
    CHECK(load.stream_wait_layer(0, 0, watchdog) == kvk::Status::ok);
    CHECK(load.wait(watchdog));
    CHECK((load.blocks().value() == std::vector<kvk::Status>(6, kvk::Status::ok)));
    CHECK(pages.same(11, 11));
    for (std::size_t block = 1; block < 6; ++block) CHECK(pages.same(11 - block, block));
    load.release();
    CHECK(thrown([&] { load.blocks(); }).status() == kvk::Status::not_found);
}

static void a_block_that_is_nowhere_says_so() {
    Pages pages;
    kvk::Cache cache(small());
    const auto space = space_of(cache);
    const auto session = space.session();
    const auto pool = space.pool(pages.options());
    std::promise<kvk::Completion> told;
    const auto load = pool.load(session, some_keys(1), std::vector<std::int32_t>{0, KVKEEP_BLOCK_NONE}, {},
                                [&](const kvk::Completion& completion) { told.set_value(completion); });
    CHECK(told.get_future().get().status == kvk::Status::partial);
    CHECK((load.blocks().value() == std::vector<kvk::Status>{kvk::Status::not_found, kvk::Status::ok}));
    CHECK(load.query().value().failed_keys == 1);
}

static void closing_a_pool_cancels_its_loads() {
    auto options = small();
    options.backend_urls = {"fault:memory:?capacity=1MiB&fault.lookup_hang=1"};
    Pages pages;
    kvk::Cache cache(options);
    const auto space = space_of(cache);
    const auto session = space.session();
    std::optional<kvk::FutureTransfer> load;
    {
        auto pool = space.pool(pages.options());
        load = pool.load_future(session, some_keys(1), std::vector<std::int32_t>{0, 1});
        CHECK(load->transfer.wait_layer(0, std::chrono::milliseconds(1)) == kvk::Status::timeout);
        CHECK(!load->transfer.blocks());
        auto moved = std::move(pool);
        CHECK(moved.id() != 0 && pool.id() == 0);
    }
    CHECK(load->completion.wait_for(watchdog) == std::future_status::ready);
    CHECK(load->completion.get().status == kvk::Status::cancelled);
    CHECK(thrown([&] { load->transfer.wait_layer(0, watchdog); }).status() == kvk::Status::cancelled);
}

static void a_refused_transfer_frees_its_callback() {
    Pages pages;
    kvk::Cache cache(small());
    const auto space = space_of(cache);
    const auto session = space.session();
    auto pool = space.pool(pages.options());
    auto held = std::make_shared<int>(0);
    const auto error = thrown([&] {
        pool.store(session, some_keys(1), std::vector<std::int32_t>{0, 12}, {},
                   [held](const kvk::Completion&) { std::abort(); });
    });
    CHECK(error.status() == kvk::Status::invalid && held.use_count() == 1);
    pool.close();
    CHECK(thrown([&] { pool.load(session, some_keys(1), std::vector<std::int32_t>{0, 1}); }).status() ==
          kvk::Status::not_found);
    auto options = pages.options();
    options.device = 0;
    // Where there is a driver, these are no pages of a GPU's.
    const auto refused = thrown([&] { space.pool(options); }).status();
    CHECK(refused == kvk::Status::unsupported || refused == kvk::Status::invalid);
}

// Pages so large that a copy is under way when its holder goes, and a load of all of them.
struct Landing {
    static constexpr std::size_t blocks = 16, block_bytes = 4 << 20;
    std::vector<std::byte> memory = std::vector<std::byte>(2 * blocks * block_bytes);
    std::vector<kvk::Key> keys = some_keys(blocks);
    std::vector<std::int32_t> ids;
    kvk::Cache cache{[] {
        kvk::Options options;
        options.l1_bytes = 160 << 20;
        return options;
    }()};
    kvk::Space space = space_of(cache);
    kvk::Session session = space.session();
    kvk::Pool pool = space.pool([this] {
        kvk::PoolOptions options;
        options.block_count = 2 * blocks;
        options.segments.push_back({reinterpret_cast<std::uintptr_t>(memory.data()), block_bytes, 0, 0, 0, {}});
        return options;
    }());

    Landing() {
        for (std::size_t i = 0; i < blocks; ++i) ids.push_back(static_cast<std::int32_t>(i));
        CHECK(pool.store_future(session, keys, ids).completion.get().status == kvk::Status::ok);
        for (auto& id : ids) id += blocks;
    }

    // Whether no page is touched any more.
    bool over(std::uint64_t job) const { return kvkeep_wait_job(cache.handle(), job, 0) == KVKEEP_OK; }
    kvk::Status status(std::uint64_t job) const {
        auto result = kvk::detail::prepared<kvkeep_job_result>();
        kvk::detail::check(kvkeep_query_job(cache.handle(), job, &result));
        return static_cast<kvk::Status>(result.status);
    }
};

static void a_future_that_is_dropped_leaves_no_copy() {
    Landing test;
    std::uint64_t job = 0;
    {
        const auto load = test.pool.load_future(test.session, test.keys, test.ids);
        job = load.transfer.id();
    }
    CHECK(test.over(job));
    try {
        const auto completion = [&] {
            auto load = test.pool.load_future(test.session, test.keys, test.ids);
            job = load.transfer.id();
            return std::move(load.completion);
        }();
        CHECK(completion.valid());
        throw std::runtime_error("between submit and get");
    } catch (const std::runtime_error&) {
        CHECK(test.over(job));
    }
    // One in whose place another is put is dropped as well.
    auto completion = test.pool.load_future(test.session, test.keys, test.ids).completion;
    completion = test.pool.load_future(test.session, test.keys, test.ids).completion;
    CHECK(completion.get().status == kvk::Status::ok && !completion.valid());
}

static void a_transfer_that_is_dropped_leaves_no_copy() {
    Landing test;
    std::uint64_t job = 0;
    try {
        const auto load = test.pool.load(test.session, test.keys, test.ids);
        job = load.id();
        throw std::runtime_error("between submit and wait");
    } catch (const std::runtime_error&) {
        CHECK(test.over(job));
    }
    {
        const auto load = test.pool.load(test.session, test.keys, test.ids);
        load.release();
        CHECK(test.cache.stats().l1_shares == 0);
        CHECK(thrown([&] { load.query(); }).status() == kvk::Status::not_found);
    }
    // Moved, it goes with what it was moved to; detached, or told by a callback, it goes on.
    {
        std::optional<kvk::Transfer> kept;
        {
            auto load = test.pool.load(test.session, test.keys, test.ids);
            kept.emplace(std::move(load));
        }
        CHECK(kept->wait(watchdog) && test.status(kept->id()) == kvk::Status::ok);
    }
    job = test.pool.load(test.session, test.keys, test.ids).detach();
    CHECK(kvkeep_wait_job(test.cache.handle(), job, 60000) == KVKEEP_OK && test.status(job) == kvk::Status::ok);
    std::promise<kvk::Completion> told;
    test.pool.load(test.session, test.keys, test.ids, {},
                   [&](const kvk::Completion& completion) { told.set_value(completion); });
    CHECK(told.get_future().get().status == kvk::Status::ok);
}

static void a_future_may_be_dropped_in_a_callback() {
    Landing test;
    std::promise<bool> over;
    auto load = std::make_shared<kvk::FutureTransfer>(test.pool.load_future(test.session, test.keys, test.ids));
    test.session.prefetch(some_keys(1, 9), {}, [&, load](const kvk::Completion&) mutable {
        const auto job = load->transfer.id();
        load->completion = {};
        over.set_value(test.over(job));
    });
    CHECK(over.get_future().get());
}

static void a_prefetch_future_that_is_dropped_is_cancelled() {
    auto options = small();
    options.backend_urls = {"fault:memory:?capacity=1MiB&fault.lookup_hang=1"};
    kvk::Cache cache(options);
    auto session = space_of(cache).session();
    const auto job = session.prefetch_future(some_keys(1)).job;
    CHECK(static_cast<kvk::Status>(job.query().value().status) == kvk::Status::cancelled);
}

int main() {
    a_future_that_is_dropped_leaves_no_copy();
    a_transfer_that_is_dropped_leaves_no_copy();
    a_future_may_be_dropped_in_a_callback();
    a_prefetch_future_that_is_dropped_is_cancelled();
    segments_are_read_off_axes();
    tensors_of_a_layer_are_told_apart_by_their_parts();
    what_is_no_tensor_of_pages_is_refused();
    blocks_go_and_come_back_elsewhere();
    a_block_that_is_nowhere_says_so();
    closing_a_pool_cancels_its_loads();
    a_refused_transfer_frees_its_callback();
}
