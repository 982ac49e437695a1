// The quickstart in C++: two requests that share a prefix, then a new process that finds both below L1.
//
//     quickstart_cpp DIRECTORY            the first run: computes, stores, and hits in memory
//     quickstart_cpp DIRECTORY again      a later process, also one in another language: hits on disk
//
// In place of a directory it takes the URL of another backend, or the socket of a daemon, "unix:///tmp/kvkeep.sock".
#include <kvkeep.hpp>

#include <chrono>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

constexpr std::uint32_t chunk_tokens = 256;
constexpr std::size_t chunk_bytes = 256 * 1024;
constexpr std::chrono::seconds patience{10};

// Stands for the engine's forward pass: the KV bytes of a chunk depend on all tokens up to its end, as its key does.
std::vector<std::byte> compute_chunk(const kvk::Key &key) {
    std::vector<std::byte> bytes(chunk_bytes);
    for (std::size_t i = 0; i < chunk_bytes; ++i) bytes[i] = static_cast<std::byte>(key.hash[i % 32] + i / 32);
    return bytes;
}

// What an engine does with one request.
void serve(const kvk::Space &space, const std::string &name, const std::vector<std::uint32_t> &tokens) {
    kvk::Session session = space.session(name);
    const std::size_t count = session.append_tokens(tokens);
    const std::vector<kvk::Key> keys = session.keys(0, count);

    // One job looks up every tier and loads. An engine would be told by a callback, a future or an eventfd.
    const kvk::Job job = session.prefetch(keys);
    if (!job.wait(patience)) throw kvk::Error(kvk::Status::timeout, name + " was not answered in time");
    const kvkeep_job_result result = job.query().value();
    const kvk::Span<const kvk::Key> hits(keys.data(), result.hit_chunks);
    const kvk::Span<const kvk::Key> missing(keys.data() + hits.size(), count - hits.size());

    if (!hits.empty()) {
        // The session holds a share of each hit: its bytes stay where they are until the share is returned.
        const std::vector<kvk::View> views = session.get_views(hits);
        for (std::size_t i = 0; i < views.size(); ++i) {
            const std::vector<std::byte> bytes = compute_chunk(hits[i]);
            if (!views[i].ok() || !std::equal(bytes.begin(), bytes.end(), views[i].bytes()))
                throw std::runtime_error("a chunk of " + name + " is wrong");
        }
        session.finish_read(hits);
    }
    if (!missing.empty()) {
        const auto views = session.reserve_write(missing, std::vector<std::uint64_t>(missing.size(), chunk_bytes));
        for (std::size_t i = 0; i < views.size(); ++i) {
            // A chunk without a view was stored by somebody else meanwhile, or found no room: either way, go on without.
            if (!views[i].ok()) continue;
            const std::vector<std::byte> bytes = compute_chunk(missing[i]);
            std::copy(bytes.begin(), bytes.end(), views[i].bytes());
        }
        session.finish_write(missing);
    }
    const auto below = std::accumulate(result.tier_keys + 1, result.tier_keys + KVKEEP_TIERS_MAX, 0u);
    std::cout << name << ": " << hits.size() << " of " << count << " chunks were right (" << result.tier_keys[0]
              << " from memory, " << below << " from below)" << std::endl;
}

int main(int argc, char **argv) try {
    const std::string place = argc > 1 ? argv[1] : "", word = argc > 2 ? argv[2] : "";
    if (argc < 2 || argc > 3 || (argc == 3 && word != "again")) {
        std::cerr << "usage: quickstart_cpp DIRECTORY|URL|unix:///SOCKET [again]\n";
        return 2;
    }
    kvk::Options options;
    if (place.rfind("unix:", 0) == 0) {
        options.connect = place;
    } else {
        options.l1_bytes = 64 << 20;
        const bool is_url = place.find("://") != std::string::npos;
        options.backend_urls = {is_url ? place : "fs://" + place + "?capacity=1GiB"};
    }
    kvk::Cache cache(options);
    const kvk::Space space =
        cache.space({"example-8b@main", "bf16 layers=32 heads=8 dim=128 tp=1", "", chunk_tokens, 0, 0});

    // Both prompts begin with the same 8 chunks, say a system prompt and a document; then each asks something else.
    std::vector<std::uint32_t> first(12 * chunk_tokens), second(12 * chunk_tokens);
    for (std::uint32_t i = 0; i < first.size(); ++i) {
        first[i] = i * 7 % 32000;
        second[i] = i < 8 * chunk_tokens ? first[i] : i * 11 % 32000;
    }
    serve(space, argc == 3 ? "request 3" : "request 1", first);
    serve(space, argc == 3 ? "request 4" : "request 2", second);
    cache.flush(patience);
    cache.close();
} catch (const std::exception &error) {
    std::cerr << error.what() << "\n";
    return 1;
}
