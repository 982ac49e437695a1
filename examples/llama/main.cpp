// kvkeep-llama: completes prompts with llama.cpp, the states of their beginnings kept in kvkeep.
//
//     kvkeep-llama --model FILE.gguf --cache fs:///var/cache/kvkeep?capacity=50GiB --prompt 'Once upon a time'
//
// Tokens are chosen greedily, so that the same prompt has the same answer with and without a cache.
#include "llama_state.hpp"
#include "prompt_cache.hpp"

#include <ggml-backend.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

using prompt_cache::PromptCache;
using prompt_cache::Token;
using Clock = std::chrono::steady_clock;

namespace {

constexpr const char *usage =
    "usage: kvkeep-llama --model FILE (--prompt TEXT | --prompts FILE) [options]\n"
    "  --prompts FILE    one prompt a line\n"
    "  --cache URL       a backend of kvkeep (fs:///directory?capacity=50GiB), or a daemon (unix:///run/kvkeep.sock)\n"
    "  --l1 BYTES        memory of the cache, but for a daemon's; at least a prompt's state (default 1 GiB)\n"
    "  --chunk N         tokens of a chunk (default 256)\n"
    "  --draft FILE      a smaller model of the same vocabulary, which proposes tokens\n"
    "  --tenant TEXT     keeps apart what tenants store\n"
    "  --context N       tokens of the context (default 4096)\n"
    "  --predict N       tokens of an answer (default 64)\n"
    "  --threads N       (default 4)\n"
    "  --json            an object for each prompt: its numbers and the answer's tokens\n"
    "  --verbose         llama.cpp's log\n";

struct Arguments {
    std::string model, draft, cache, tenant, prompt, prompts;
    std::uint64_t l1_bytes = 1 << 30;
    std::uint32_t chunk = 256, context = 4096;
    std::size_t predict = 64;
    int threads = 4;
    bool json = false, verbose = false;
};

[[noreturn]] void fail(const std::string &why) {
    std::fprintf(stderr, "kvkeep-llama: %s\n", why.c_str());
    std::exit(1);
}

[[noreturn]] void misuse(const std::string &why) {
    std::fprintf(stderr, "kvkeep-llama: %s\n%s", why.c_str(), usage);
    std::exit(2);
}

std::uint64_t number(const std::string &name, const std::string &text, std::uint64_t most) {
    char *end = nullptr;
    const auto value = std::strtoull(text.c_str(), &end, 10);
    if (text.empty() || text[0] == '-' || *end != 0 || value == 0 || value > most)
        misuse(name + " is a number from 1 to " + std::to_string(most) + ", not \"" + text + "\"");
    return value;
}

Arguments parse(int argc, char **argv) {
    Arguments result;
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        if (name == "--json" || name == "--verbose") {
            (name == "--json" ? result.json : result.verbose) = true;
            continue;
        }
        if (i + 1 == argc) misuse(name + " needs a value, or is unknown");
        const std::string value = argv[++i];
        if (name == "--model") result.model = value;
        else if (name == "--draft") result.draft = value;
        else if (name == "--cache") result.cache = value;
        else if (name == "--tenant") result.tenant = value;
        else if (name == "--prompt") result.prompt = value;
        else if (name == "--prompts") result.prompts = value;
        else if (name == "--l1") result.l1_bytes = number(name, value, UINT64_MAX);
        else if (name == "--chunk") result.chunk = static_cast<std::uint32_t>(number(name, value, 1 << 16));
        else if (name == "--context") result.context = static_cast<std::uint32_t>(number(name, value, 1 << 24));
        else if (name == "--predict") result.predict = number(name, value, 1 << 20);
        else if (name == "--threads") result.threads = static_cast<int>(number(name, value, 1024));
        else misuse("unknown option " + name);
    }
    if (result.model.empty()) misuse("--model is missing");
    if (result.prompt.empty() == result.prompts.empty()) misuse("give either --prompt or --prompts");
    return result;
}

/// A fingerprint of a file's bytes: two files of weights are told apart though their names and sizes are the same. It is no
/// protection against somebody who makes a file on purpose.
std::string fingerprint(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) fail("cannot read " + path);
    std::uint64_t lanes[4] = {1, 2, 3, 4}, length = 0;
    std::vector<std::uint64_t> block(1 << 17);
    while (file) {
        std::fill(block.begin(), block.end(), 0);
        file.read(reinterpret_cast<char *>(block.data()), static_cast<std::streamsize>(block.size() * sizeof block[0]));
        length += static_cast<std::uint64_t>(file.gcount());
        for (std::size_t i = 0; i < block.size(); ++i) {
            auto &lane = lanes[i % 4];
            lane = (lane ^ block[i]) * 0x9E3779B97F4A7C15u;
            lane ^= lane >> 32;
        }
    }
    char text[64];
    std::snprintf(text, sizeof text, "%016llx%016llx-%llu", static_cast<unsigned long long>(lanes[0] ^ lanes[1] * 3),
                  static_cast<unsigned long long>(lanes[2] ^ lanes[3] * 3), static_cast<unsigned long long>(length));
    return text;
}

struct FreeModel {
    void operator()(llama_model *model) const { llama_model_free(model); }
};
struct FreeContext {
    void operator()(llama_context *context) const { llama_free(context); }
};

/// A model and its context.
class Engine {
  public:
    Engine(const std::string &path, const Arguments &arguments) {
        auto of_model = llama_model_default_params();
        of_model.n_gpu_layers = 0;
        model_.reset(llama_model_load_from_file(path.c_str(), of_model));
        if (!model_) fail("cannot load " + path + "; --verbose has llama.cpp's reasons");
        auto params = llama_context_default_params();
        params.n_ctx = arguments.context;
        params.n_batch = params.n_ubatch = arguments.chunk;
        params.n_threads = params.n_threads_batch = arguments.threads;
        // The cache hands ranges through a second sequence, in the same cells.
        params.n_seq_max = 2;
        params.kv_unified = true;
        // Said, since it decides how values lie in memory.
        params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        context_.reset(llama_init_from_model(model_.get(), params));
        if (!context_) fail("cannot make a context of " + std::to_string(arguments.context) + " tokens for " + path);
    }

    llama_context *context() const { return context_.get(); }
    const llama_vocab *vocab() const { return llama_model_get_vocab(model_.get()); }
    bool has_windows() const { return llama_model_n_swa(model_.get()) > 0; }

    /// Computes tokens whose first is at `position`. Logits are there for all of them, or for the last.
    void decode(prompt_cache::Tokens tokens, std::size_t position, bool all_logits) {
        auto batch = llama_batch_init(static_cast<std::int32_t>(tokens.size()), 0, 1);
        batch.n_tokens = static_cast<std::int32_t>(tokens.size());
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            batch.token[i] = tokens[i];
            batch.pos[i] = static_cast<llama_pos>(position + i);
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = all_logits || i + 1 == tokens.size();
        }
        const auto status = llama_decode(context(), batch);
        llama_batch_free(batch);
        if (status != 0) fail("llama_decode: " + std::to_string(status) + "; --context may be too small");
    }

    /// The most likely token after the `index`-th of the last batch (-1: after its last).
    Token choice(int index) const {
        const float *logits = llama_get_logits_ith(context(), index);
        const auto count = llama_vocab_n_tokens(vocab());
        return static_cast<Token>(std::max_element(logits, logits + count) - logits);
    }

    /// Takes back all from `position` on.
    void rewind(std::size_t position) {
        llama_memory_seq_rm(llama_get_memory(context()), 0, static_cast<llama_pos>(position), -1);
    }

    std::vector<Token> tokens_of(const std::string &text) const {
        const auto length = static_cast<std::int32_t>(text.size());
        // Asked without room, it says how many there are, below 0.
        const auto count = -llama_tokenize(vocab(), text.data(), length, nullptr, 0, true, true);
        if (count <= 0) fail("the prompt has no tokens");
        std::vector<Token> tokens(static_cast<std::size_t>(count));
        llama_tokenize(vocab(), text.data(), length, tokens.data(), count, true, true);
        return tokens;
    }

    std::string text_of(const std::vector<Token> &tokens) const {
        std::string text;
        for (const auto token : tokens) {
            char piece[256];
            const auto length = llama_token_to_piece(vocab(), token, piece, sizeof piece, 0, false);
            if (length > 0) text.append(piece, static_cast<std::size_t>(length));
        }
        return text;
    }

  private:
    std::unique_ptr<llama_model, FreeModel> model_;
    std::unique_ptr<llama_context, FreeContext> context_;
};

struct Answer {
    std::size_t prompt_tokens = 0, restored_tokens = 0;
    double first_token_ms = 0;
    std::vector<Token> tokens;
};

/// One request at a time, over a cache or without one.
class Completer {
  public:
    Completer(Engine &target, Engine *draft, PromptCache *cache, std::size_t batch)
        : target_(target), draft_(draft), cache_(cache), batch_(batch),
          state_(draft ? std::vector<llama_context *>{target.context(), draft->context()}
                       : std::vector<llama_context *>{target.context()}) {}

    Answer complete(const std::vector<Token> &prompt, std::size_t predict) {
        const auto begin = Clock::now();
        Answer answer;
        answer.prompt_tokens = prompt.size();
        held_.clear();
        if (cache_) {
            answer.restored_tokens = cache_->restore(state_, prompt);
        } else {
            state_.clear();
        }
        held_.assign(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(answer.restored_tokens));
        // Batches end where chunks do, with and without a cache: the same sums in the same order.
        while (held_.size() < prompt.size()) {
            const std::size_t stop = std::min(prompt.size(), (held_.size() / batch_ + 1) * batch_);
            compute({prompt.data() + held_.size(), stop - held_.size()}, prompt.size());
        }
        Token next = target_.choice(-1);
        answer.first_token_ms = std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
        answer.tokens.push_back(next);
        while (answer.tokens.size() < predict && !llama_vocab_is_eog(target_.vocab(), next)) {
            if (draft_) {
                next = speculate(next, answer.tokens, predict);
            } else {
                compute({&next, 1}, prompt.size());
                next = target_.choice(-1);
                answer.tokens.push_back(next);
            }
        }
        return answer;
    }

    /// Keeps what the last request computed. Apart from `complete`, so that nobody waits for it.
    void keep(const Answer &answer) {
        if (cache_) cache_->store(state_, held_, answer.restored_tokens);
    }

  private:
    static constexpr std::size_t proposals_max = 4;

    void compute(prompt_cache::Tokens tokens, std::size_t prompt_size) {
        target_.decode(tokens, held_.size(), false);
        if (draft_) draft_->decode(tokens, held_.size(), false);
        held_.insert(held_.end(), tokens.begin(), tokens.end());
        if (cache_) cache_->snapshot(state_, held_, prompt_size);
    }

    /// The draft proposes what follows `next`; the target computes all of it at once and keeps what it would have chosen itself.
    Token speculate(Token next, std::vector<Token> &answer, std::size_t predict) {
        std::vector<Token> batch{next};
        while (batch.size() <= proposals_max) {
            const std::size_t last = batch.size() - 1;
            draft_->decode({&batch[last], 1}, held_.size() + last, false);
            batch.push_back(draft_->choice(-1));
        }
        batch.pop_back();
        target_.decode(batch, held_.size(), true);
        std::size_t accepted = 0;
        for (;;) {
            next = target_.choice(static_cast<int>(accepted));
            accepted += 1;
            answer.push_back(next);
            if (accepted == batch.size() || next != batch[accepted] || answer.size() == predict ||
                llama_vocab_is_eog(target_.vocab(), next))
                break;
        }
        held_.insert(held_.end(), batch.begin(), batch.begin() + static_cast<std::ptrdiff_t>(accepted));
        target_.rewind(held_.size());
        draft_->rewind(held_.size());
        return next;
    }

    Engine &target_;
    Engine *draft_;
    PromptCache *cache_;
    std::size_t batch_;
    prompt_cache::LlamaState state_;
    /// The tokens that the contexts hold.
    std::vector<Token> held_;
};

std::unique_ptr<PromptCache> open_cache(const Arguments &arguments) {
    prompt_cache::Options options;
    if (arguments.cache.rfind("unix:", 0) == 0) {
        options.cache.connect = arguments.cache;
    } else {
        options.cache.l1_bytes = arguments.l1_bytes;
        options.cache.backend_urls = {arguments.cache};
        // Rather than that L1 drops what is not written yet.
        options.cache.store_wait = std::chrono::seconds(5);
    }
    options.model = fingerprint(arguments.model);
    options.layout = "llama.cpp state " + std::to_string(LLAMA_STATE_SEQ_VERSION) + " k=f16 v=f16 flash";
    if (!arguments.draft.empty()) options.layout += " draft=" + fingerprint(arguments.draft);
    options.tenant = arguments.tenant;
    options.chunk_tokens = arguments.chunk;
    options.log = [](const std::string &line) { std::fprintf(stderr, "kvkeep-llama: %s\n", line.c_str()); };
    options.cache.log = [](kvk::LogLevel, std::string_view line) {
        std::fprintf(stderr, "kvkeep: %.*s\n", static_cast<int>(line.size()), line.data());
    };
    try {
        return std::make_unique<PromptCache>(std::move(options));
    } catch (const kvk::Error &error) {
        fail(std::string("cannot open the cache: ") + error.what());
    }
}

void print(const Engine &engine, const Answer &answer, bool as_json) {
    if (!as_json) {
        std::printf("%s\n", engine.text_of(answer.tokens).c_str());
        std::fprintf(stderr, "kvkeep-llama: %zu of %zu prompt tokens restored, first token after %.1f ms\n",
                     answer.restored_tokens, answer.prompt_tokens, answer.first_token_ms);
        return;
    }
    std::printf("{\"prompt_tokens\": %zu, \"restored_tokens\": %zu, \"first_token_ms\": %.3f, \"tokens\": [",
                answer.prompt_tokens, answer.restored_tokens, answer.first_token_ms);
    for (std::size_t i = 0; i < answer.tokens.size(); ++i) std::printf("%s%d", i == 0 ? "" : ", ", answer.tokens[i]);
    std::printf("]}\n");
    std::fflush(stdout);
}

void silent(ggml_log_level, const char *, void *) {
}

} // namespace

int main(int argc, char **argv) {
    const auto arguments = parse(argc, argv);
    if (!arguments.verbose) llama_log_set(silent, nullptr);
    // Where llama.cpp was built with its backends as libraries of their own.
    ggml_backend_load_all();
    llama_backend_init();
    std::vector<std::string> prompts{arguments.prompt};
    if (!arguments.prompts.empty()) {
        prompts.clear();
        std::ifstream file(arguments.prompts);
        if (!file) fail("cannot read " + arguments.prompts);
        for (std::string line; std::getline(file, line);) prompts.push_back(line);
    }
    const auto cache = arguments.cache.empty() ? nullptr : open_cache(arguments);
    Engine target(arguments.model, arguments);
    std::optional<Engine> draft;
    if (!arguments.draft.empty()) {
        draft.emplace(arguments.draft, arguments);
        // What was proposed and not taken is removed again, which windows that have moved on do not allow.
        if (target.has_windows() || draft->has_windows())
            fail("--draft does not go with models that have sliding windows");
        if (llama_vocab_n_tokens(target.vocab()) != llama_vocab_n_tokens(draft->vocab()))
            fail("the draft has another vocabulary than the model");
    }
    try {
        Completer completer(target, draft ? &*draft : nullptr, cache.get(), arguments.chunk);
        for (const auto &text : prompts) {
            const auto answer = completer.complete(target.tokens_of(text), arguments.predict);
            print(target, answer, arguments.json);
            completer.keep(answer);
        }
    } catch (const std::runtime_error &error) {
        fail(error.what());
    }
    // Written already by a daemon, or when the cache closes; here, so that it is said if it is not.
    if (cache && !cache->flush(std::chrono::seconds(60))) fail("the cache could not be written in a minute");
    return 0;
}
