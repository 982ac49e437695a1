#include "check.hpp"

static void a_refusal_says_why() {
    const auto empty = thrown([] { kvk::Cache cache{kvk::Options{}}; });
    CHECK(empty.status() == kvk::Status::invalid && std::strlen(empty.what()) > 10);

    auto unknown_policy = small();
    unknown_policy.eviction_policy = "best";
    const auto policy = thrown([&] { kvk::Cache cache(unknown_policy); });
    CHECK(policy.status() == kvk::Status::invalid && std::string(policy.what()).find("best") != std::string::npos);

    kvk::Cache cache(small());
    CHECK(thrown([&] { cache.add_backend("tape:///dev/st0"); }).status() == kvk::Status::invalid);
    CHECK(thrown([&] { cache.space({}); }).status() == kvk::Status::invalid);
    CHECK(std::string(name(kvk::Status::not_held)) == "KVKEEP_ERR_NOT_HELD");
}

static void bad_arguments_change_nothing() {
    kvk::Cache cache(small());
    auto session = space_of(cache).session();
    const auto keys = some_keys(2);
    CHECK(thrown([&] { session.reserve_read(keys, 128); }).status() == kvk::Status::invalid);
    CHECK(thrown([&] { session.reserve_read(keys, -1); }).status() == kvk::Status::invalid);
    CHECK(thrown([&] { session.reserve_read(std::vector<kvk::Key>{}); }).status() == kvk::Status::invalid);
    CHECK(thrown([&] { session.reserve_write(keys, std::vector<std::uint64_t>{1}); }).status() == kvk::Status::invalid);
    CHECK(thrown([&] { session.keys(0, std::uint64_t{1} << 62); }).status() == kvk::Status::invalid);
    CHECK(thrown([&] { session.keys(0, 1); }).status() == kvk::Status::invalid);
    CHECK(thrown([&] { session.tail_keys(1); }).status() == kvk::Status::invalid);
    CHECK(thrown([&] { session.tail_keys(1, {0, 1u << 31, 1u << 31}); }).status() == kvk::Status::invalid);
    CHECK(thrown([&] { cache.flush(std::chrono::milliseconds(-1)); }).status() == kvk::Status::invalid);
    CHECK(cache.stats().l1_shares == 0 && cache.stats().l1_staged == 0);
}

static void one_key_fails_alone() {
    kvk::Cache cache(small());
    auto session = space_of(cache).session();
    const auto keys = some_keys(2);
    store(session, {keys[0]}, 64);
    const auto views = session.reserve_write(keys, std::vector<std::uint64_t>{64, 64});
    CHECK(views[0].result() == kvk::Status::exists && views[0].data == nullptr && views[1].ok());
}

static void ended_things_are_refused() {
    kvk::Cache cache(small());
    auto space = space_of(cache);
    auto session = space.session();
    const auto id = session.id();
    session.end();
    kvk::Session ended(cache.handle(), id);
    CHECK(thrown([&] { ended.reserve_read(some_keys(1)); }).status() == kvk::Status::not_found);
    CHECK(thrown([&] { ended.end(); }).status() == kvk::Status::not_found);

    cache.close();
    CHECK(thrown([&] { space.session(); }).status() == kvk::Status::closed);
    CHECK(thrown([&] { cache.stats(); }).status() == kvk::Status::closed);
    CHECK(thrown([&] { cache.close(); }).status() == kvk::Status::closed);
}

static void the_log_is_told() {
    std::vector<std::string> lines;
    auto options = small();
    options.log = [&](kvk::LogLevel, std::string_view line) {
        lines.emplace_back(line);
        throw std::runtime_error("what a log throws goes nowhere");
    };
    options.log_level = kvk::LogLevel::info;
    {
        kvk::Cache cache(options);
    }
    CHECK(!lines.empty());
}

static void a_cache_moves() {
    kvk::Cache first(small());
    const auto handle = first.handle();
    kvk::Cache second(std::move(first));
    CHECK(second.handle() == handle && first.handle() == nullptr);
    CHECK(thrown([&] { first.stats(); }).status() == kvk::Status::closed);
    first = std::move(second);
    CHECK(first.stats().l1_objects == 0);
}

int main() {
    CHECK(kvk::extra_count(8, 1) == 7 && kvk::extra_count(8, 8) == 0);
    a_refusal_says_why();
    bad_arguments_change_nothing();
    one_key_fails_alone();
    ended_things_are_refused();
    the_log_is_told();
    a_cache_moves();
}
