#include "check.hpp"

static void bytes_come_back_where_they_were_written() {
    kvk::Cache cache(small());
    auto space = space_of(cache);
    const auto keys = some_keys(8);
    auto writer = space.session("writer");
    store(writer, keys, 4096);

    auto reader = space.session("reader");
    const auto views = reader.reserve_read(keys, 1);
    for (std::size_t i = 0; i < keys.size(); ++i) check_content(views[i], i, 4096);
    const auto again = reader.get_views(keys);
    CHECK(again[3].data == views[3].data);

    // Two shares a key: one for each of two readers.
    for (const auto status : reader.finish_read(keys)) CHECK(status == kvk::Status::ok);
    for (const auto status : reader.finish_read(keys)) CHECK(status == kvk::Status::ok);
    for (const auto status : reader.finish_read(keys)) CHECK(status == kvk::Status::not_held);
    CHECK(cache.stats().l1_shares == 0);
}

static void the_forms_that_allocate_nothing_agree() {
    kvk::Cache cache(small());
    auto session = space_of(cache).session();
    const auto keys = some_keys(2);
    std::array<kvk::View, 2> views;
    std::array<std::int32_t, 2> statuses{};
    CHECK(session.reserve_write(keys, std::array<std::uint64_t, 2>{100, 200}, views) == kvk::Status::ok);
    CHECK(views[1].size == 200);
    CHECK(session.finish_write(keys, statuses) == kvk::Status::ok);
    CHECK(session.finish_write(keys, statuses) == kvk::Status::partial);
    CHECK(statuses[0] == KVKEEP_ERR_NOT_FOUND);
    CHECK(session.reserve_read(keys, 0, views) == kvk::Status::ok);
    CHECK(session.finish_read(keys, 0, statuses) == kvk::Status::ok);
}

static void staging_is_given_back() {
    kvk::Cache cache(small());
    auto session = space_of(cache).session();
    const auto keys = some_keys(2);
    session.reserve_write(keys, std::vector<std::uint64_t>{64, 64});
    for (const auto status : session.abort_write(keys)) CHECK(status == kvk::Status::ok);
    for (const auto& view : session.reserve_read(keys)) CHECK(view.result() == kvk::Status::not_found);

    session.reserve_write(keys, std::vector<std::uint64_t>{64, 64}, kvk::Lifetime::temporary);
    for (const auto& view : session.finish_write_and_reserve_read(keys)) CHECK(view.ok());
    session.finish_read(keys);
    for (const auto& view : session.reserve_read(keys)) CHECK(view.result() == kvk::Status::not_found);
}

static void tokens_become_keys() {
    kvk::Cache cache(small());
    auto session = space_of(cache).session();
    CHECK(session.append_tokens(std::vector<std::uint32_t>(40, 7)) == 2);
    kvk::KeyRange two_ranks;
    two_ranks.rank_count = 2;
    const auto keys = session.keys(0, 2, two_ranks);
    CHECK(keys.size() == 4 && keys[1].rank == 1 && keys[0] != keys[2]);
    const auto tail = session.tail_keys(8, two_ranks);
    CHECK(tail.size() == 2 && tail[1].rank == 1 && tail[0] != session.tail_keys(7)[0] && tail[0] != keys[2]);
    store(session, keys, 512);
    session.reserve_read(keys);
    CHECK(session.finish_read_tokens(16, 32, two_ranks) == 2);
    CHECK(session.finish_read(keys)[0] == kvk::Status::ok);
}

static void a_session_ends_with_its_object() {
    kvk::Cache cache(small());
    auto space = space_of(cache);
    const auto keys = some_keys(3);
    {
        auto session = space.session();
        store(session, keys, 128);
        session.reserve_read(keys);
        CHECK(cache.stats().l1_shares == 3);
        auto moved = std::move(session);
        CHECK(moved.explain().find("\"") != std::string::npos);
    }
    CHECK(cache.stats().l1_shares == 0 && cache.stats().sessions == 0);

    auto session = space.session();
    const auto id = session.release();
    kvk::Session taken_over(cache.handle(), id);
    taken_over.abort();
    CHECK(cache.stats().sessions == 0);
}

static void a_space_rules_its_keys() {
    kvk::Cache cache(small());
    auto space = space_of(cache);
    const auto keys = some_keys(2);
    auto session = space.session("who");
    store(session, keys, 128);
    CHECK(space.touch(keys)[1] == kvk::Status::ok);
    CHECK(space.retain(keys, 100, std::chrono::seconds(1))[0] == kvk::Status::ok);
    session.reserve_read(keys);
    const auto states = space.query(std::vector<kvk::Key>{keys[0], kvk::Key(std::array<std::uint8_t, 32>{9})});
    CHECK(states[0].ready() && states[0].size == 128 && states[0].shares == 1 && !states[0].evictable());
    CHECK(!states[0].temporary() && !states[0].stored() && !states[0].storing());
    CHECK(!states[1].ready() && states[1].size == 0);
    CHECK(space.usage().objects == 2 && space.usage().used_bytes == 256 && space.usage().quota_bytes == 0);
    CHECK(space.erase(keys)[0] == kvk::Status::locked);
    CHECK(space.evict(keys)[0] == kvk::Status::locked);
    CHECK(space.explain(keys[0]).find("who") != std::string::npos);
    CHECK(cache.explain().find("who") != std::string::npos);
    session.finish_read(keys);
    CHECK(space.evict({keys.data(), 1})[0] == kvk::Status::ok);
    CHECK(cache.stats().evictions == 1);
    CHECK(space.clear() == 1);
    store(session, keys, 128);
    CHECK(space.forget() == 2 && cache.forget() == 0);
    kvk::SpaceOptions next;
    next.model = "model-1";
    next.layout = "fp16";
    next.chunk_tokens = 16;
    CHECK(cache.space(next).id() == space.id());
    next.generation = 1;
    CHECK(cache.space(next).id() != space.id());
    CHECK(cache.metrics().find("# TYPE") != std::string::npos);
}

static void events_are_told_to_any_reader() {
    kvk::Cache cache(small());
    std::uint64_t next = 0;
    CHECK(cache.read_events(next).empty() && next == 1);
    auto space = space_of(cache);
    auto session = space.session();
    const auto keys = some_keys(2);
    store(session, keys, 128);
    space.clear();
    const auto first = cache.read_events(next, 3);
    CHECK(first.size() == 3 && next == 4);
    CHECK(first[0].sequence == 1 && first[0].kind == KVKEEP_EVENT_STORED && first[0].space == space.id());
    CHECK(first[0].key.hash[0] == keys[0].hash[0] && first[0].size == 128 && first[0].tier == 0);
    CHECK(first[2].kind == KVKEEP_EVENT_REMOVED);
    CHECK(cache.read_events(next).size() == 1 && next == 5);
    next = 9;
    CHECK(thrown([&] { cache.read_events(next); }).status() == kvk::Status::invalid);
}

int main() {
    bytes_come_back_where_they_were_written();
    the_forms_that_allocate_nothing_agree();
    staging_is_given_back();
    tokens_become_keys();
    a_session_ends_with_its_object();
    a_space_rules_its_keys();
    events_are_told_to_any_reader();
}
