// Tests of prompt_cache.hpp on a real kvkeep, without an engine: a state that says of every byte whether it is right.
#include "prompt_cache.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

using prompt_cache::Counts;
using prompt_cache::EngineState;
using prompt_cache::PromptCache;
using prompt_cache::Range;
using prompt_cache::Token;

static void check_at(bool holds, const char *what, int line) {
    if (holds) return;
    std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, line, what);
    std::abort();
}
#define CHECK(condition) check_at(static_cast<bool>(condition), #condition, __LINE__)

static constexpr std::size_t chunk = 16;
// Far beyond what anything here needs: a watchdog, not an expectation.
static constexpr std::chrono::seconds watchdog{60};

static std::uint64_t mixed(std::uint64_t hash, std::uint64_t value) {
    hash = (hash ^ value) * 0x9E3779B97F4A7C15u;
    return hash ^ (hash >> 29);
}

/// A state whose parts alternate: one that is kept for each token, then, with `windows`, a snapshot. The bytes of a token say the
/// token and depend on all before it, as keys and values do; a snapshot depends on all tokens. Their lengths vary.
class FakeState : public EngineState {
  public:
    FakeState(std::size_t contexts, bool windows, std::size_t token_bytes = 16)
        : windows_(windows), token_bytes_(token_bytes), held_(contexts), window_(contexts) {}

    std::vector<bool> snapshots() const override {
        std::vector<bool> each;
        for (std::size_t i = 0; i < held_.size(); ++i) {
            each.push_back(false);
            if (windows_) each.push_back(true);
        }
        return each;
    }

    std::size_t size(std::size_t part, Range range) override {
        return is_snapshot(part) ? 8 + range.last % 40 : (range.last - range.first) * token_bytes_ + part;
    }

    bool save(std::size_t part, Range range, std::byte *to, std::size_t bytes) override {
        saves += 1;
        CHECK(bytes == size(part, range));
        const auto &tokens = held_[context(part)];
        CHECK(range.last <= tokens.size());
        std::memset(to, 0x5A, bytes);
        if (is_snapshot(part)) {
            CHECK(range.last == tokens.size());
            put(to, hash_of(tokens, tokens.size()));
            return true;
        }
        for (std::size_t i = range.first; i < range.last; ++i) {
            put(to + (i - range.first) * token_bytes_, static_cast<std::uint64_t>(tokens[i]));
            put(to + (i - range.first) * token_bytes_ + 8, hash_of(tokens, i + 1));
        }
        return true;
    }

    bool load(std::size_t part, Range range, const std::byte *from, std::size_t bytes) override {
        loads += 1;
        if (range.first == refused_from) return false;
        CHECK(bytes == size(part, range));
        auto &tokens = held_[context(part)];
        if (is_snapshot(part)) {
            CHECK(range.last == tokens.size());
            window_[context(part)] = taken(from);
            return true;
        }
        CHECK(range.first == tokens.size());
        for (std::size_t i = range.first; i < range.last; ++i) {
            tokens.push_back(static_cast<Token>(taken(from + (i - range.first) * token_bytes_)));
            CHECK(taken(from + (i - range.first) * token_bytes_ + 8) == hash_of(tokens, i + 1));
        }
        return true;
    }

    bool complete(std::size_t count) override {
        for (std::size_t i = 0; i < held_.size(); ++i)
            if (held_[i].size() != count || (windows_ && window_[i] != hash_of(held_[i], count))) return false;
        return true;
    }

    void clear() override {
        for (auto &tokens : held_) tokens.clear();
        for (auto &hash : window_) hash = 0;
    }

    /// What an engine does with tokens that it has not: it computes them.
    void compute(prompt_cache::Tokens tokens) {
        for (auto &held : held_) held.insert(held.end(), tokens.begin(), tokens.end());
    }
    const std::vector<Token> &tokens() const { return held_.front(); }

    std::size_t saves = 0, loads = 0;
    /// Tokens from here on are not taken.
    std::size_t refused_from = SIZE_MAX;

  private:
    bool is_snapshot(std::size_t part) const { return windows_ && part % 2 == 1; }
    std::size_t context(std::size_t part) const { return windows_ ? part / 2 : part; }
    static std::uint64_t hash_of(const std::vector<Token> &tokens, std::size_t count) {
        std::uint64_t hash = 7;
        for (std::size_t i = 0; i < count; ++i) hash = mixed(hash, static_cast<std::uint64_t>(tokens[i]));
        return hash;
    }
    static void put(std::byte *to, std::uint64_t value) { std::memcpy(to, &value, sizeof value); }
    static std::uint64_t taken(const std::byte *from) {
        std::uint64_t value;
        std::memcpy(&value, from, sizeof value);
        return value;
    }

    bool windows_;
    std::size_t token_bytes_;
    std::vector<std::vector<Token>> held_;
    std::vector<std::uint64_t> window_;
};

/// An empty directory that goes when the test ends well.
class Directory {
  public:
    Directory() {
        std::string pattern = (std::filesystem::temp_directory_path() / "prompt-cache-XXXXXX").string();
        CHECK(mkdtemp(pattern.data()) != nullptr);
        path = pattern;
    }
    Directory(const Directory &) = delete;
    Directory &operator=(const Directory &) = delete;
    ~Directory() { std::filesystem::remove_all(path); }
    std::string url() const { return "fs://" + path.string() + "?capacity=64MiB"; }
    std::filesystem::path path;
};

static prompt_cache::Options options_of(const std::vector<std::string> &urls = {}) {
    prompt_cache::Options options;
    options.cache.l1_bytes = 4 << 20;
    options.cache.backend_urls = urls;
    options.model = "model";
    options.layout = "fake";
    options.chunk_tokens = chunk;
    options.load_wait = watchdog;
    return options;
}

/// `count` tokens, of which the first `shared` are those of every prompt.
static std::vector<Token> prompt(std::size_t shared, std::size_t count, Token salt) {
    std::vector<Token> tokens;
    for (std::size_t i = 0; i < count; ++i)
        tokens.push_back(static_cast<Token>(i * 7 % 1000) + (i < shared ? 0 : salt));
    return tokens;
}

/// An engine's whole request. Returns how many tokens it had not to compute.
static std::size_t serve(PromptCache &cache, FakeState &state, const std::vector<Token> &tokens) {
    const std::size_t known = cache.restore(state, tokens);
    CHECK(known == state.tokens().size() && known < tokens.size() && known % chunk == 0);
    for (std::size_t at = known; at < tokens.size();) {
        const std::size_t stop = cache.next_stop(at, tokens.size());
        state.compute({tokens.data() + at, stop - at});
        at = stop;
        cache.snapshot(state, {tokens.data(), at}, tokens.size());
    }
    CHECK(state.tokens() == tokens && (known == 0 || state.loads > 0));
    cache.store(state, tokens, known);
    return known;
}

static std::size_t serve(PromptCache &cache, std::size_t contexts, bool windows, const std::vector<Token> &tokens) {
    FakeState state(contexts, windows);
    return serve(cache, state, tokens);
}

static void the_longest_prefix_is_found() {
    PromptCache cache(options_of());
    for (const bool draft : {false, true}) {
        const std::size_t contexts = draft ? 2 : 1;
        const Token salt = draft ? 5000 : 1000;
        // With a draft there are more parts, so that nothing that the target alone stored is enough.
        const auto first = prompt(0, 10 * chunk + 5, salt);
        CHECK(serve(cache, contexts, false, first) == 0);
        CHECK(serve(cache, contexts, false, first) == 10 * chunk);
        auto second = first;
        for (std::size_t i = 6 * chunk + 7; i < second.size(); ++i) second[i] += 1;
        CHECK(serve(cache, contexts, false, second) == 6 * chunk);
        // Now both branches are there.
        CHECK(serve(cache, contexts, false, second) == 10 * chunk);
        CHECK(serve(cache, contexts, false, first) == 10 * chunk);
    }
    const auto counts = cache.counts();
    CHECK(counts.restores == 10 && counts.failures == 0 && counts.rejected_objects == 0 && counts.refused_objects == 0);
    CHECK(counts.restored_tokens == 2 * 36 * chunk);
    // 10 chunks, then the 4 that differ: of one part, then of two.
    CHECK(counts.stored_objects == 3 * 14);
}

static void the_last_token_is_left_to_compute() {
    PromptCache cache(options_of());
    const auto tokens = prompt(0, 3 * chunk, 1);
    CHECK(serve(cache, 1, false, tokens) == 0);
    CHECK(serve(cache, 1, false, tokens) == 2 * chunk);
    FakeState state(1, false);
    CHECK(cache.restore(state, prompt(0, chunk, 1)) == 0);
    CHECK(cache.restore(state, prompt(0, 1, 1)) == 0);
    CHECK(cache.restore(state, {}) == 0);
    CHECK(cache.restore(state, prompt(0, chunk + 1, 1)) == chunk);
}

static void a_window_continues_at_a_snapshot_only() {
    PromptCache cache(options_of());
    const auto first = prompt(0, 11 * chunk + 3, 1);
    for (const std::size_t contexts : {1u, 2u}) {
        CHECK(serve(cache, contexts, true, first) == 0);
        // Snapshots: after chunks 4 and 8, and after the 11th, the prompt's last.
        CHECK(serve(cache, contexts, true, first) == 11 * chunk);
        auto second = first;
        for (std::size_t i = 10 * chunk; i < second.size(); ++i) second[i] += 1;
        CHECK(serve(cache, contexts, true, second) == 8 * chunk);
        auto third = first;
        for (std::size_t i = 3 * chunk; i < third.size(); ++i) third[i] += 2;
        CHECK(serve(cache, contexts, true, third) == 0);
    }
    CHECK(cache.counts().failures == 0);
}

static void it_survives_a_restart() {
    const Directory directory;
    const auto tokens = prompt(0, 9 * chunk + 1, 1);
    {
        PromptCache cache(options_of({directory.url()}));
        CHECK(serve(cache, 2, true, tokens) == 0);
        CHECK(cache.flush(watchdog));
    }
    PromptCache cache(options_of({directory.url()}));
    CHECK(serve(cache, 2, true, tokens) == 9 * chunk);
    auto other = options_of({directory.url()});
    other.tenant = "another";
    PromptCache of_other(other);
    CHECK(serve(of_other, 2, true, tokens) == 0);
}

static void another_process_shares_a_directory() {
    const Directory directory;
    const auto tokens = prompt(6 * chunk, 5 * chunk + 1, 1), reply = prompt(5 * chunk, 9 * chunk, 1);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        {
            PromptCache cache(options_of({directory.url()}));
            CHECK(serve(cache, 1, true, tokens) == 0);
            CHECK(cache.flush(watchdog));
        }
        _exit(0);
    }
    PromptCache cache(options_of({directory.url()}));
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    // What was stored after this one was opened is found, too.
    CHECK(serve(cache, 1, true, tokens) == 5 * chunk);
    CHECK(serve(cache, 1, true, reply) == 5 * chunk);
}

static void another_process_shares_the_memory() {
    const Directory directory;
    const std::string socket = "unix://" + (directory.path / "s").string();
    auto host = options_of();
    host.cache.listen = socket;
    PromptCache of_host(host);
    of_host.cache().serve_clients();
    auto guest = options_of();
    guest.cache = {};
    guest.cache.connect = socket + "?patience_ms=60000";
    PromptCache of_guest(guest);
    const auto tokens = prompt(0, 6 * chunk + 2, 1);
    CHECK(serve(of_guest, 1, true, tokens) == 0);
    CHECK(serve(of_host, 1, true, tokens) == 6 * chunk);
    CHECK(of_host.cache().stats().l1_objects == 8 && of_host.cache().stats().l1_shares == 0);
}

/// The files of objects: kvkeep's header and what was stored. Others are the directory's own.
static std::vector<std::filesystem::path> objects_in(const std::filesystem::path &directory) {
    std::vector<std::filesystem::path> objects;
    for (const auto &entry : std::filesystem::recursive_directory_iterator(directory))
        if (entry.is_regular_file() && entry.file_size() >= KVKEEP_OBJECT_HEADER_BYTES + 64)
            objects.push_back(entry.path());
    return objects;
}

static std::filesystem::path smallest_object(const std::filesystem::path &directory) {
    const auto objects = objects_in(directory);
    return *std::min_element(objects.begin(), objects.end(), [](const auto &a, const auto &b) {
        return std::filesystem::file_size(a) < std::filesystem::file_size(b);
    });
}

static void flip_last_byte(const std::filesystem::path &path) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(-1, std::ios::end);
    const char last = static_cast<char>(file.get());
    file.seekp(-1, std::ios::end);
    file.put(static_cast<char>(last ^ 1));
    CHECK(file.good());
}

static void corrupt_files_are_computed_again() {
    const Directory directory;
    const auto tokens = prompt(0, 8 * chunk + 1, 1);
    {
        PromptCache cache(options_of({directory.url()}));
        CHECK(serve(cache, 1, true, tokens) == 0);
        CHECK(cache.flush(watchdog));
    }
    const auto objects = objects_in(directory.path);
    CHECK(objects.size() == 10);
    for (const auto &path : objects) flip_last_byte(path);
    PromptCache cache(options_of({directory.url()}));
    CHECK(serve(cache, 1, true, tokens) == 0);
    CHECK(cache.cache().stats().corruptions > 0);
    CHECK(serve(cache, 1, true, tokens) == 8 * chunk);
}

static void a_corrupt_snapshot_leaves_the_one_before() {
    const Directory directory;
    const auto tokens = prompt(0, 8 * chunk + 1, 1);
    {
        PromptCache cache(options_of({directory.url()}));
        CHECK(serve(cache, 1, true, tokens) == 0);
        CHECK(cache.flush(watchdog));
    }
    // Of all states, the snapshot after chunk 8 is the smallest.
    const auto path = smallest_object(directory.path);
    flip_last_byte(path);
    PromptCache cache(options_of({directory.url()}));
    CHECK(serve(cache, 1, true, tokens) == 4 * chunk);
    CHECK(cache.cache().stats().corruptions == 1 && cache.counts().failures == 0);
    CHECK(serve(cache, 1, true, tokens) == 8 * chunk);
}

/// Commits `bytes` zeroes as chunk `index` of `tokens`, which kvkeep has no objection to.
static void plant(const PromptCache &cache, const std::vector<Token> &tokens, std::size_t index, std::uint64_t bytes) {
    kvk::SpaceOptions options;
    options.model = "model";
    options.layout = "fake";
    options.chunk_tokens = chunk;
    auto session = cache.cache().space(options).session();
    session.append_tokens(std::vector<std::uint32_t>(tokens.begin(), tokens.end()));
    const auto keys = session.keys(index, 1);
    const auto views = session.reserve_write(keys, std::vector<std::uint64_t>{bytes});
    CHECK(views[0].ok());
    std::memset(views[0].data, 0, bytes);
    CHECK(session.finish_write(keys)[0] == kvk::Status::ok);
}

static void a_foreign_object_never_reaches_the_engine() {
    const auto tokens = prompt(0, 6 * chunk + 1, 1);
    // Too short for a header, and as long as a real one.
    for (const std::uint64_t bytes : {std::uint64_t{1}, std::uint64_t{chunk * 16 + 96}}) {
        PromptCache cache(options_of());
        plant(cache, tokens, 3, bytes);
        CHECK(serve(cache, 1, false, tokens) == 0);
        FakeState state(1, false);
        // The chunks before it are verified anew and loaded; of the first attempt the engine saw nothing.
        CHECK(cache.restore(state, tokens) == 3 * chunk);
        CHECK(state.loads == 3 && cache.counts().rejected_objects == 1);
        CHECK(serve(cache, 1, false, tokens) == 3 * chunk);
        CHECK(serve(cache, 1, false, tokens) == 6 * chunk);
    }
}

static void what_the_engine_refuses_is_deleted() {
    PromptCache cache(options_of());
    const auto tokens = prompt(0, 6 * chunk + 1, 1);
    CHECK(serve(cache, 1, false, tokens) == 0);
    FakeState state(1, false);
    state.refused_from = 4 * chunk;
    CHECK(cache.restore(state, tokens) == 4 * chunk);
    CHECK(state.tokens().size() == 4 * chunk && cache.counts().rejected_objects == 1);
    CHECK(serve(cache, 1, false, tokens) == 4 * chunk);
    state.refused_from = 0;
    CHECK(cache.restore(state, tokens) == 0);
    CHECK(state.tokens().empty());
}

static void memory_is_reserved_before_a_byte_is_written() {
    auto options = options_of();
    options.cache.l1_bytes = 64 << 10;
    std::vector<std::string> lines;
    options.log = [&](const std::string &line) { lines.push_back(line); };
    PromptCache cache(options);
    // A chunk is more than all of L1: it is refused, and the engine is not asked for it.
    FakeState large(1, false, 8 << 10);
    CHECK(serve(cache, large, prompt(0, 2 * chunk + 1, 1)) == 0);
    CHECK(large.saves == 0 && cache.counts().refused_objects == 1 && cache.counts().stored_objects == 0);
    CHECK(lines.size() == 1 && lines[0].find("no room for a state of 131200 bytes") == 0);
    CHECK(cache.cache().stats().l1_used_bytes == 0);
    // Many small ones take each other's place.
    for (Token salt = 2; salt < 100; ++salt) {
        CHECK(serve(cache, 1, false, prompt(0, 8 * chunk + 1, salt)) == 0);
        CHECK(cache.cache().stats().l1_used_bytes <= 64 << 10);
    }
    CHECK(serve(cache, 1, false, prompt(0, 8 * chunk + 1, 99)) == 8 * chunk);
    CHECK(cache.counts().refused_objects == 1 && cache.cache().stats().evictions > 0);
}

static void the_engine_goes_on_without_a_cache() {
    auto options = options_of();
    options.cache.sessions_max = 1;
    std::vector<std::string> lines;
    options.log = [&](const std::string &line) { lines.push_back(line); };
    PromptCache cache(options);
    const auto tokens = prompt(0, 4 * chunk + 1, 1);
    CHECK(serve(cache, 1, false, tokens) == 0);
    {
        kvk::SpaceOptions of_test;
        of_test.model = "test";
        const auto session = cache.cache().space(of_test).session();
        CHECK(serve(cache, 1, false, tokens) == 0);
    }
    // To restore failed, and then to store.
    CHECK(cache.counts().failures == 2 && lines.size() == 2);
    CHECK(lines[0].find("restore: KVKEEP_ERR_LIMIT: ") == 0 && lines[1].find("store: KVKEEP_ERR_LIMIT: ") == 0);
    CHECK(serve(cache, 1, false, tokens) == 4 * chunk);
}

static void threads_share_it() {
    PromptCache cache(options_of());
    std::vector<std::thread> threads;
    for (unsigned number = 0; number < 4; ++number)
        threads.emplace_back([&cache, number] {
            for (unsigned i = 0; i < 50; ++i) {
                const std::size_t shared = (i * 5 + number) % 12 * chunk + i;
                serve(cache, 1, true, prompt(shared, shared + 3 * chunk + i, static_cast<Token>(i % 5 + 1)));
            }
        });
    for (auto &thread : threads) thread.join();
    const auto counts = cache.counts();
    CHECK(counts.restores == 200 && counts.failures == 0 && counts.rejected_objects == 0);
    CHECK(counts.restored_tokens > 0 && cache.cache().stats().l1_shares == 0);
}

int main() {
    // First, while this process has no other thread.
    another_process_shares_a_directory();
    the_longest_prefix_is_found();
    the_last_token_is_left_to_compute();
    a_window_continues_at_a_snapshot_only();
    it_survives_a_restart();
    another_process_shares_the_memory();
    corrupt_files_are_computed_again();
    a_corrupt_snapshot_leaves_the_one_before();
    a_foreign_object_never_reaches_the_engine();
    what_the_engine_refuses_is_deleted();
    memory_is_reserved_before_a_byte_is_written();
    the_engine_goes_on_without_a_cache();
    threads_share_it();
}
