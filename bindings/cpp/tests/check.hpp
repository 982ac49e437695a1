// What the tests say things with: a failed check names its line and ends the program.
#pragma once

#include <kvkeep.hpp>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <unistd.h>
#include <vector>

inline void check_at(bool holds, const char* what, const char* file, int line) {
    if (holds) return;
    std::fprintf(stderr, "%s:%d: not so: %s\n", file, line, what);
    std::abort();
}

#define CHECK(condition) check_at(static_cast<bool>(condition), #condition, __FILE__, __LINE__)

/// The status and message of what `call` throws.
template <typename Call>
kvk::Error thrown(Call&& call) {
    try {
        call();
    } catch (const kvk::Error& error) {
        return error;
    }
    std::fprintf(stderr, "nothing was thrown\n");
    std::abort();
}

// Far beyond what any job here needs: a watchdog, not an expectation.
constexpr std::chrono::seconds watchdog{60};

inline kvk::Options small() {
    kvk::Options options;
    options.l1_bytes = 4 << 20;
    return options;
}

inline kvk::Space space_of(const kvk::Cache& cache) {
    kvk::SpaceOptions options;
    options.model = "model-1";
    options.layout = "fp16";
    options.chunk_tokens = 16;
    return cache.space(options);
}

inline std::vector<kvk::Key> some_keys(std::size_t count, std::uint8_t salt = 0) {
    std::vector<kvk::Key> keys;
    for (std::size_t i = 0; i < count; ++i) {
        std::array<std::uint8_t, 32> digest{};
        digest[0] = static_cast<std::uint8_t>(i);
        digest[1] = static_cast<std::uint8_t>(i >> 8);
        digest[31] = salt;
        keys.emplace_back(digest);
    }
    return keys;
}

inline std::byte content(std::size_t index) { return static_cast<std::byte>(index * 7 + 1); }

/// Commits each key with bytes of its own.
inline void store(kvk::Session& session, const std::vector<kvk::Key>& keys, std::uint64_t size) {
    const auto views = session.reserve_write(keys, std::vector<std::uint64_t>(keys.size(), size));
    for (std::size_t i = 0; i < keys.size(); ++i) {
        CHECK(views[i].ok());
        std::memset(views[i].data, static_cast<int>(content(i)), views[i].size);
    }
    for (const auto status : session.finish_write(keys)) CHECK(status == kvk::Status::ok);
}

inline void check_content(const kvk::View& view, std::size_t index, std::uint64_t size) {
    CHECK(view.ok() && view.size == size);
    for (std::uint64_t i = 0; i < size; ++i) CHECK(view.bytes()[i] == content(index));
}

/// An empty directory that goes when the test ends well.
class Directory {
public:
    Directory() {
        std::string pattern = (std::filesystem::temp_directory_path() / "kvkeep-XXXXXX").string();
        CHECK(mkdtemp(pattern.data()) != nullptr);
        path_ = pattern;
    }
    Directory(const Directory&) = delete;
    Directory& operator=(const Directory&) = delete;
    ~Directory() { std::filesystem::remove_all(path_); }
    std::string url() const { return "fs://" + path_.string() + "?capacity=64MiB"; }

private:
    std::filesystem::path path_;
};
