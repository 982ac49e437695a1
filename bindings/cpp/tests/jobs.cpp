#include "check.hpp"

#include <type_traits>

#include <poll.h>

static void a_future_is_fulfilled() {
    kvk::Cache cache(small());
    auto session = space_of(cache).session();
    const auto keys = some_keys(4);
    store(session, {keys[0], keys[1]}, 256);

    auto submitted = session.prefetch_future(keys);
    CHECK(submitted.completion.wait_for(watchdog) == std::future_status::ready);
    const auto completion = submitted.completion.get();
    CHECK(completion.status == kvk::Status::ok && completion.hit_chunks == 2 && completion.message.empty());
    CHECK(completion.job == submitted.job.id() && completion.session == session.id());

    CHECK(submitted.job.wait(watchdog));
    CHECK(submitted.job.lookup_hits().value() == 2);
    CHECK(submitted.job.query().value().tier_keys[0] == 2);
    CHECK((submitted.job.bitmap().value() == std::vector<bool>{true, true, false, false}));
    std::size_t held = 0;
    for (const bool one : *submitted.job.bitmap()) held += one;
    CHECK(held == 2);
    static_assert(!std::is_reference_v<decltype(*submitted.job.bitmap())>, "a loop would read an answer that is gone");
    const kvk::Job by_number = cache.job(completion.job, keys.size());
    CHECK(by_number.query().value().hit_chunks == 2 && by_number.bitmap().value()[1]);
    submitted.job.release();
    CHECK(thrown([&] { submitted.job.query(); }).status() == kvk::Status::not_found);
    CHECK(session.finish_read({keys.data(), 2})[1] == kvk::Status::ok);
}

static void a_callback_gets_the_answer_of_a_lookup_and_then_the_end() {
    auto below = small();
    below.backend_urls = {"memory:"};
    kvk::Cache cache(below);
    const auto space = space_of(cache);
    const auto keys = some_keys(2);
    auto writer = space.session();
    store(writer, keys, 256);
    writer.end();
    CHECK(cache.flush(watchdog));
    space.clear();
    auto session = space.session();
    kvk::PrefetchOptions options;
    options.notify_lookup = options.pause_after_lookup = true;
    std::vector<kvk::JobKind> kinds;
    std::promise<void> ended;
    const auto job = session.prefetch(keys, options, [&](const kvk::Completion& completion) {
        kinds.push_back(completion.kind);
        CHECK(completion.hit_chunks == 2);
        if (completion.kind != kvk::JobKind::lookup) ended.set_value();
    });
    job.resume();
    CHECK(ended.get_future().wait_for(watchdog) == std::future_status::ready);
    CHECK((kinds == std::vector<kvk::JobKind>{kvk::JobKind::lookup, kvk::JobKind::prefetch}));
    CHECK(session.prefetch_future(keys, options).completion.get().kind == kvk::JobKind::prefetch);
}

static void what_a_callback_throws_stays_inside() {
    kvk::Cache cache(small());
    auto session = space_of(cache).session();
    std::promise<void> called;
    session.prefetch(some_keys(1), {}, [&](const kvk::Completion&) {
        called.set_value();
        throw std::runtime_error("dropped");
    });
    CHECK(called.get_future().wait_for(watchdog) == std::future_status::ready);
    CHECK(session.prefetch_future(some_keys(1)).completion.get().status == kvk::Status::ok);
}

static void a_refused_job_frees_its_callback() {
    kvk::Cache cache(small());
    auto session = space_of(cache).session();
    auto held = std::make_shared<int>(0);
    kvk::PrefetchOptions bad;
    bad.extra_count = 128;
    const auto error =
        thrown([&] { session.prefetch(some_keys(1), bad, [held](const kvk::Completion&) { std::abort(); }); });
    CHECK(error.status() == kvk::Status::invalid && held.use_count() == 1);
}

static void the_descriptor_tells_of_many() {
    kvk::Cache cache(small());
    auto session = space_of(cache).session();
    kvk::PrefetchOptions options;
    options.notify = kvk::Notify::event_fd;
    std::vector<std::uint64_t> submitted;
    std::vector<std::uint64_t> drained;
    for (int i = 0; i < 100; ++i) submitted.push_back(session.prefetch(some_keys(3), options).id());
    while (drained.size() < submitted.size()) {
        pollfd ready{cache.event_fd(), POLLIN, 0};
        CHECK(poll(&ready, 1, static_cast<int>(std::chrono::milliseconds(watchdog).count())) == 1);
        for (const auto& completion : cache.take_completions()) drained.push_back(completion.job);
    }
    std::sort(drained.begin(), drained.end());
    CHECK(drained == submitted && cache.take_completions().empty());
}

static void a_hung_lookup_is_cancelled() {
    auto options = small();
    options.backend_urls = {"fault:memory:?capacity=1MiB&fault.lookup_hang=1"};
    kvk::Cache cache(options);
    auto session = space_of(cache).session();
    auto submitted = session.prefetch_future(some_keys(1));
    submitted.job.cancel();
    CHECK(submitted.completion.wait_for(watchdog) == std::future_status::ready);
    const auto completion = submitted.completion.get();
    CHECK(completion.status == kvk::Status::cancelled && !completion.message.empty());
}

static void close_fulfils_what_is_pending() {
    auto options = small();
    options.backend_urls = {"fault:memory:?capacity=1MiB&fault.lookup_hang=1"};
    kvk::FutureJob submitted = [&] {
        kvk::Cache cache(options);
        return space_of(cache).session().prefetch_future(some_keys(1));
    }();
    CHECK(submitted.completion.wait_for(std::chrono::seconds(0)) == std::future_status::ready);
    CHECK(submitted.completion.get().status == kvk::Status::cancelled);
}

static void a_new_cache_finds_what_an_old_one_wrote() {
    const Directory directory;
    auto options = small();
    options.backend_urls = {directory.url()};
    const auto keys = some_keys(6);
    {
        kvk::Cache cache(options);
        auto session = space_of(cache).session();
        store(session, keys, 8192);
        CHECK(cache.flush(watchdog));
    }
    kvk::Cache cache(options);
    auto session = space_of(cache).session();
    auto submitted = session.prefetch_future(keys);
    CHECK(submitted.completion.get().hit_chunks == 6);
    CHECK(submitted.job.query().value().tier_keys[1] == 6);
    const auto views = session.get_views(keys);
    for (std::size_t i = 0; i < keys.size(); ++i) check_content(views[i], i, 8192);
}

int main() {
    a_future_is_fulfilled();
    a_callback_gets_the_answer_of_a_lookup_and_then_the_end();
    what_a_callback_throws_stays_inside();
    a_refused_job_frees_its_callback();
    the_descriptor_tells_of_many();
    a_hung_lookup_is_cancelled();
    close_fulfils_what_is_pending();
    a_new_cache_finds_what_an_old_one_wrote();
}
