// The state of a llama.cpp sequence, for prompt_cache.hpp, by llama.cpp's public functions alone.
#pragma once

#include "prompt_cache.hpp"

#include <llama.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace prompt_cache {

/// Sequence 0 of a target's context and, if there is one, a draft's. A range of tokens is given and taken through sequence 1, which
/// must be unused: in a unified cache, copying a range from one sequence to another only marks its cells. Of a model with sliding
/// windows, a range has what all layers keep for each token, and a snapshot has the windows.
class LlamaState : public EngineState {
  public:
    /// Throws where a context cannot be kept. The contexts stay the caller's.
    explicit LlamaState(const std::vector<llama_context *> &contexts) {
        for (auto *context : contexts) {
            const auto *model = llama_get_model(context);
            if (llama_n_seq_max(context) < 2)
                throw std::runtime_error(
                    "the context needs n_seq_max = 2 and kv_unified = true: a second sequence is for the cache");
            // Their state is not kept for each token.
            if (llama_model_is_recurrent(model) || llama_model_is_hybrid(model))
                throw std::runtime_error("models with state layers cannot be kept in chunks");
            parts_.push_back({context, false});
            if (llama_model_n_swa(model) > 0) parts_.push_back({context, true});
        }
    }

    std::vector<bool> snapshots() const override {
        std::vector<bool> each;
        for (const auto &part : parts_) each.push_back(part.is_window);
        return each;
    }

    std::size_t size(std::size_t part, Range range) override {
        const Marked marked(parts_[part], range);
        return llama_state_seq_get_size_ext(parts_[part].context, marked.sequence, marked.flags);
    }

    bool save(std::size_t part, Range range, std::byte *to, std::size_t bytes) override {
        const Marked marked(parts_[part], range);
        return llama_state_seq_get_data_ext(parts_[part].context, reinterpret_cast<std::uint8_t *>(to), bytes,
                                            marked.sequence, marked.flags) == bytes;
    }

    bool load(std::size_t part, Range range, const std::byte *from, std::size_t bytes) override {
        const auto &[context, is_window] = parts_[part];
        auto *memory = llama_get_memory(context);
        const llama_seq_id to = is_window ? kept : passing;
        const llama_state_seq_flags flags = is_window ? LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY : LLAMA_STATE_SEQ_FLAGS_NONE;
        const auto taken =
            llama_state_seq_set_data_ext(context, reinterpret_cast<const std::uint8_t *>(from), bytes, to, flags);
        if (!is_window) {
            llama_memory_seq_cp(memory, passing, kept, position(range.first), position(range.last));
            llama_memory_seq_rm(memory, passing, -1, -1);
        }
        return taken == bytes;
    }

    bool complete(std::size_t count) override {
        for (const auto &part : parts_) {
            auto *memory = llama_get_memory(part.context);
            const auto first = llama_memory_seq_pos_min(memory, kept);
            // Of windows, those before the first position are not needed any more.
            const auto window = static_cast<std::size_t>(llama_model_n_swa(llama_get_model(part.context)));
            const std::size_t needed = window == 0 || count < window ? 0 : count - window + 1;
            if (first < 0 || first > position(needed) || llama_memory_seq_pos_max(memory, kept) != position(count) - 1)
                return false;
        }
        return true;
    }

    void clear() override {
        for (const auto &part : parts_) llama_memory_clear(llama_get_memory(part.context), false);
    }

  private:
    static constexpr llama_seq_id kept = 0, passing = 1;

    struct Part {
        llama_context *context;
        bool is_window;
    };

    static llama_pos position(std::size_t token) { return static_cast<llama_pos>(token); }

    /// The sequence that has a range and nothing else, as long as this lives.
    struct Marked {
        Marked(const Part &part, Range range)
            : memory(llama_get_memory(part.context)), sequence(part.is_window ? kept : passing),
              flags(part.is_window ? LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY : LLAMA_STATE_SEQ_FLAGS_NONE) {
            if (!part.is_window)
                llama_memory_seq_cp(memory, kept, passing, position(range.first), position(range.last));
        }
        Marked(const Marked &) = delete;
        Marked &operator=(const Marked &) = delete;
        ~Marked() {
            if (sequence == passing) llama_memory_seq_rm(memory, passing, -1, -1);
        }
        llama_memory_t memory;
        llama_seq_id sequence;
        llama_state_seq_flags flags;
    };

    std::vector<Part> parts_;
};

} // namespace prompt_cache
