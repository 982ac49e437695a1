// A toy engine with a paged KV cache, in C++. engine.py and engine.go are the same engine: they find what it has stored, and print the
// same lines.
//
//     engine_cpp DIRECTORY            the first run: computes, stores, preempts a request and takes it up again
//     engine_cpp DIRECTORY again      a later process, also one in another language: finds below L1 what was stored
//
// In place of a directory it takes the URL of another backend, or the socket of a daemon, "unix:///tmp/kvkeep.sock".
#include <kvkeep.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <iostream>
#include <optional>
#include <string>
#include <thread>
#include <vector>

constexpr std::size_t layers = 4, blocks = 23, block_tokens = 16, chunk_blocks = 4, entry_bytes = 32;
constexpr std::size_t chunk_tokens = chunk_blocks * block_tokens;
// A real engine waits no longer than it would compute.
constexpr std::chrono::seconds patience{30};

using Tokens = std::vector<std::uint32_t>;
using Entry = std::array<std::uint8_t, entry_bytes>;

std::size_t blocks_for(std::size_t tokens) {
    return (tokens + block_tokens - 1) / block_tokens;
}

Tokens first(const Tokens &tokens, std::size_t count) {
    return {tokens.data(), tokens.data() + count};
}

// A number for each token that depends on all tokens up to it.
Tokens states(const Tokens &tokens) {
    Tokens all;
    std::uint32_t state = 2166136261u;
    for (const std::uint32_t token : tokens) all.push_back(state = (state ^ token) * 16777619u);
    return all;
}

// The K (part 0) or V (part 1) of a token in a layer.
Entry entry(std::uint32_t state, std::size_t layer, std::size_t part) {
    Entry bytes;
    for (std::size_t i = 0; i < entry_bytes; ++i)
        bytes[i] = static_cast<std::uint8_t>((state >> 8 * (i % 4)) + layer * 29 + part * 13 + i);
    return bytes;
}

struct Request {
    std::string name;
    Tokens tokens;
    std::size_t left;
    bool aborts = false;
    std::size_t prompt_tokens = tokens.size();
    std::optional<kvk::Session> session{};
    std::vector<std::int32_t> pages{};
    // Tokens whose entries are in the pages, those that the session knows, those that a preemption saved, and chunks that are stored.
    std::size_t computed = 0, named = 0, saved = 0, stored = 0;
    std::string said{};
};

class Engine {
  public:
    explicit Engine(const kvk::Space &space) : space_(space), pool_(space.pool(pool_options())) {
        for (std::size_t block = 0; block < blocks; ++block) free_.push_back(static_cast<std::int32_t>(block));
    }

    // The scheduler: admits as many requests as there are blocks for, then computes a token of each, and so on.
    void run(std::initializer_list<Request *> requests) {
        waiting_.assign(requests);
        while (!waiting_.empty() || !running_.empty()) {
            while (!waiting_.empty() && blocks_for(waiting_.front()->tokens.size()) <= free_.size()) {
                Request *request = waiting_.front();
                waiting_.pop_front();
                admit(*request);
            }
            for (Request *request : std::vector<Request *>(running_)) {
                const bool runs = std::find(running_.begin(), running_.end(), request) != running_.end();
                if (!runs || !has_room(*request)) continue;
                compute(*request);
                request->tokens.push_back(
                    sample(request->computed, [&](std::size_t i) { return *at(*request, i, i % layers, i % 2); }));
                if (--request->left == 0) finish(*request);
            }
        }
    }

  private:
    kvk::PoolOptions pool_options() {
        kvk::PoolOptions options;
        options.blocks_per_chunk = chunk_blocks;
        for (std::size_t layer = 0; layer < layers; ++layer) {
            for (std::size_t part = 0; part < 2; ++part) {
                kvk::Tensor tensor;
                tensor.address = reinterpret_cast<std::uintptr_t>(pages_[layer][part]);
                tensor.shape = {blocks, block_tokens * entry_bytes};
                tensor.item_bytes = 1;
                tensor.layer = static_cast<std::uint32_t>(layer);
                tensor.part = part == 0 ? KVKEEP_PART_KEY : KVKEEP_PART_VALUE;
                options.add(tensor);
            }
        }
        return options;
    }

    void admit(Request &request) {
        while (request.pages.size() < blocks_for(request.tokens.size())) take_block(request);
        running_.push_back(&request);
        request.session.reset();
        request.computed = request.named = request.stored = 0;
        try {
            load(request);
        } catch (const kvk::Error &error) {
            // The cache only saves work.
            std::cerr << request.name << " goes on without the cache: " << error.what() << "\n";
        }
        // Of a prompt that is found whole, the last token is computed for what comes after it.
        request.computed = std::min(request.computed, request.tokens.size() - 1);
        request.said += ", " + std::to_string(request.computed) + " cached";
    }

    // Looks the prompt up, and brings what is known of it into the pages.
    void load(Request &request) {
        kvk::Session &session = request.session.emplace(space_.session(request.name));
        const std::size_t known = request.saved ? request.saved : request.tokens.size();
        const auto count = static_cast<std::size_t>(session.append_tokens({request.tokens.data(), known}));
        request.named = known;
        std::vector<kvk::Key> keys;
        if (count > 0) keys = session.keys(0, count);
        if (request.saved % chunk_tokens) keys.push_back(session.tail_keys(request.saved % chunk_tokens)[0]);
        if (keys.empty()) return;
        kvk::PrefetchOptions options;
        options.deadline = patience;
        options.pause_after_lookup = true;
        const kvk::Job job = session.prefetch(keys, options);
        std::optional<std::uint32_t> hits;
        // A scheduler would go on with others meanwhile, or be told (notify_lookup). Then it decides whether to load at all:
        // job.cancel(), if computing is quicker.
        while (!(hits = job.lookup_hits())) std::this_thread::yield();
        job.resume();
        if (*hits == 0) return;
        // The load joins the prefetch, and returns the shares that it took.
        kvk::TransferOptions returning;
        returning.return_shares = true;
        const auto ids = blocks_of(request, *hits, 0, known);
        const kvk::Transfer load = pool_.load(session, {keys.data(), *hits}, ids, returning);
        if (!load.wait(patience)) throw kvk::Error(kvk::Status::timeout, "a load takes too long");
        const std::vector<kvk::Status> statuses = load.blocks().value();
        const auto good = std::find_if(statuses.begin(), statuses.end(),
                                       [](kvk::Status status) { return status != kvk::Status::ok; });
        const auto chunks = static_cast<std::size_t>(good - statuses.begin()) / chunk_blocks;
        request.computed = std::min(chunks * chunk_tokens, known);
        request.stored = std::min(chunks, count);
        const Tokens all = states(request.tokens);
        for (std::size_t i = 0; i < request.computed; ++i)
            for (std::size_t layer = 0; layer < layers; ++layer)
                for (std::size_t part = 0; part < 2; ++part) {
                    const Entry right = entry(all[i], layer, part);
                    if (!std::equal(right.begin(), right.end(), at(request, i, layer, part)))
                        throw std::runtime_error("token " + std::to_string(i) + " of " + request.name + " is wrong");
                }
    }

    // The blocks of `count` chunks from `first` on; those that `tokens` tokens do not reach are none.
    std::vector<std::int32_t> blocks_of(const Request &request, std::size_t count, std::size_t first,
                                        std::size_t tokens) {
        std::vector<std::int32_t> ids;
        for (std::size_t i = first * chunk_blocks; i < (first + count) * chunk_blocks; ++i)
            ids.push_back(i < blocks_for(tokens) ? request.pages[i] : KVKEEP_BLOCK_NONE);
        return ids;
    }

    // The place of token i in a layer's K or V.
    std::uint8_t *at(const Request &request, std::size_t i, std::size_t layer, std::size_t part) {
        const auto block = static_cast<std::size_t>(request.pages[i / block_tokens]);
        return &pages_[layer][part][(block * block_tokens + i % block_tokens) * entry_bytes];
    }

    // The next token, from a byte of each token's entry.
    template <typename FirstByte>
    static std::uint32_t sample(std::size_t count, FirstByte first_byte) {
        std::uint64_t sum = 0;
        for (std::size_t i = 0; i < count; ++i) sum += std::uint64_t{first_byte(i)} * (i + 1);
        return static_cast<std::uint32_t>(sum % 32000);
    }

    void take_block(Request &request) {
        request.pages.push_back(free_.back());
        free_.pop_back();
    }

    // Takes a block where one is needed. Without a free one, the request that was admitted last gives its blocks up.
    bool has_room(Request &request) {
        while (blocks_for(request.tokens.size()) > request.pages.size()) {
            if (!free_.empty()) {
                take_block(request);
                continue;
            }
            Request &victim = *running_.back();
            victim.saved = victim.computed;
            leave(victim, true);
            victim.said += ", preempted";
            waiting_.push_front(&victim);
            if (&victim == &request) return false;
        }
        return true;
    }

    // Stands for the forward pass.
    void compute(Request &request) {
        const Tokens all = states(request.tokens);
        for (; request.computed < all.size(); ++request.computed)
            for (std::size_t layer = 0; layer < layers; ++layer)
                for (std::size_t part = 0; part < 2; ++part) {
                    const Entry made = entry(all[request.computed], layer, part);
                    std::copy(made.begin(), made.end(), at(request, request.computed, layer, part));
                }
    }

    // Stores what is not stored yet, and frees the blocks, which are the library's until the store is done.
    void leave(Request &request, bool with_tail) {
        if (request.session) try {
                kvk::Session &session = *request.session;
                if (request.aborts) {
                    // Nothing of it is under way. A transfer that were, would be waited for before its pages are freed.
                    session.abort();
                } else {
                    store(request, session, with_tail);
                    session.end();
                }
            } catch (const kvk::Error &error) {
                std::cerr << request.name << " is not stored: " << error.what() << "\n";
            }
        free_.insert(free_.end(), request.pages.begin(), request.pages.end());
        request.pages.clear();
        running_.erase(std::find(running_.begin(), running_.end(), &request));
    }

    void store(Request &request, kvk::Session &session, bool with_tail) {
        if (request.computed > request.named)
            session.append_tokens({request.tokens.data() + request.named, request.computed - request.named});
        const std::size_t chunks = request.computed / chunk_tokens, tail = request.computed % chunk_tokens;
        std::vector<kvk::Key> keys;
        if (chunks > request.stored) keys = session.keys(request.stored, chunks - request.stored);
        if (with_tail && tail) keys.push_back(session.tail_keys(static_cast<std::uint32_t>(tail))[0]);
        if (keys.empty()) return;
        // Destroyed before it is done, a Transfer cancels itself and waits: no page is touched after this.
        const kvk::Transfer stored =
            pool_.store(session, keys, blocks_of(request, keys.size(), request.stored, request.computed));
        if (!stored.wait(patience)) throw kvk::Error(kvk::Status::timeout, "a store takes too long");
    }

    void finish(Request &request) {
        leave(request, false);
        Tokens expected = first(request.tokens, request.prompt_tokens);
        while (expected.size() < request.tokens.size()) {
            const Tokens all = states(expected);
            expected.push_back(sample(all.size(), [&](std::size_t i) { return entry(all[i], i % layers, i % 2)[0]; }));
        }
        const char *end = request.aborts ? "aborted" : expected == request.tokens ? "output right" : "OUTPUT WRONG";
        std::cout << request.name << ": " << request.prompt_tokens << " prompt tokens" << request.said << ", " << end
                  << std::endl;
    }

    alignas(4096) std::uint8_t pages_[layers][2][blocks * block_tokens * entry_bytes] = {};
    kvk::Space space_;
    // Closed before the pages go.
    kvk::Pool pool_;
    std::vector<std::int32_t> free_;
    std::deque<Request *> waiting_;
    std::vector<Request *> running_;
};

int main(int argc, char **argv) try {
    const std::string place = argc > 1 ? argv[1] : "", word = argc > 2 ? argv[2] : "again";
    if (argc < 2 || argc > 3 || word != "again") {
        std::cerr << "usage: engine_cpp DIRECTORY|URL|unix:///SOCKET [again]\n";
        return 2;
    }
    kvk::Options options;
    if (place.rfind("unix:", 0) == 0) {
        options.connect = place;
    } else {
        options.l1_bytes = 1 << 20;
        options.backend_urls = {place.find("://") != std::string::npos ? place : "fs://" + place + "?capacity=1GiB"};
    }
    kvk::Cache cache(options);
    {
        Engine engine(cache.space({"toy-engine@1", "bytes layers=4 entry=32", "", chunk_tokens, 0, 0}));
        Tokens a, d, e;
        for (std::uint32_t i = 0; i < 200; ++i) {
            a.push_back(i * 7 % 32000);
            d.push_back(i * 11 % 32000);
            e.push_back(i * 13 % 32000);
        }
        Tokens b = first(a, 128);
        b.insert(b.end(), d.begin() + 128, d.end());
        Request ra{"A", a, 8}, rb{"B", b, 8}, rc{"C", first(a, 192), 8};
        Request rd{"D", first(d, 150), 60}, re{"E", first(e, 150), 60}, rf{"F", first(d, 150), 2, true};
        engine.run({&ra});
        // B goes on otherwise behind two chunks of A; C is found whole.
        engine.run({&rb, &rc});
        // There are blocks for the beginning of both, not for their ends.
        engine.run({&rd, &re});
        engine.run({&rf});
    }
    cache.flush(patience);
    const kvkeep_stats stats = cache.stats();
    if (stats.l1_shares != 0) throw std::runtime_error("something is still held");
    std::cout << stats.loads << " objects loaded from below" << std::endl;
    cache.close();
} catch (const std::exception &error) {
    std::cerr << error.what() << "\n";
    return 1;
}
