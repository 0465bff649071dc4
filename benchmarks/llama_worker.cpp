// llama.cpp as one side of a comparison, in a process that waits while the others are measured.
//
//     llama_worker MODEL.gguf THREADS [KEY_TYPE VALUE_TYPE]        types as ggml names them: f16, q4_0, q8_0
//
// One JSON request per line on stdin, one JSON reply per line on stdout:
//
//     {"do": "fill", "depth": N}      -> {"state_bytes": ...}  a context with so many random tokens in its cache
//     {"do": "decode", "tokens": N}   -> {"seconds": ...}      one token after the other from there on, the same each time
//
// Of a long context the first kMostRead tokens are read, and their cells stand in the cache as often as it takes: what attention
// costs does not depend on their content, and reading 32,768 tokens over 4-bit caches takes a quarter of an hour.
//
// The likeliest token is looked for as a generation would. Flash attention is on where cache types are given.

#include <algorithm>
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "ggml-cpu.h"
#include "llama.h"

namespace {

constexpr int kBatch = 512, kVocabulary = 4000, kMostRead = 4096;

ggml_type type_named(const std::string& name) {
    for (int i = 0; i < GGML_TYPE_COUNT; i++)
        if (ggml_type_name(ggml_type(i)) && name == ggml_type_name(ggml_type(i))) return ggml_type(i);
    throw std::runtime_error("unknown cache type " + name);
}

void run(llama_context* context, std::vector<llama_token>& tokens) {
    if (llama_decode(context, llama_batch_get_one(tokens.data(), int(tokens.size())))) throw std::runtime_error("llama_decode failed");
}

class Side {
  public:
    Side(int count, char** words) : threads_(std::stoi(words[2])) {
        llama_backend_init();
        model_ = llama_model_load_from_file(words[1], llama_model_default_params());
        if (!model_) throw std::runtime_error(std::string("cannot load ") + words[1]);
        ggml_threadpool_params pool = ggml_threadpool_params_default(threads_);
        pool_ = ggml_threadpool_new(&pool);
        if (count > 4) k_ = type_named(words[3]), v_ = type_named(words[4]), flash_ = true;
    }

    nlohmann::json fill(int depth) {
        if (context_) llama_free(context_);
        const int copies = std::max(1, depth / kMostRead);
        if (depth > kMostRead && depth % kMostRead) throw std::runtime_error("a long depth is a multiple of 4096");
        llama_context_params params = llama_context_default_params();
        params.n_seq_max = uint32_t(copies);
        params.kv_unified = true;
        params.n_ctx = depth + kBatch;
        params.n_batch = params.n_ubatch = kBatch;
        params.n_threads = params.n_threads_batch = threads_;
        params.type_k = k_, params.type_v = v_;
        params.no_perf = true;
        if (flash_) params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
        context_ = llama_init_from_model(model_, params);
        if (!context_) throw std::runtime_error("no context");
        llama_attach_threadpool(context_, pool_, pool_);
        read(std::min(depth, kMostRead));
        repeat(copies);
        state_.resize(llama_state_get_size(context_));
        llama_state_get_data(context_, state_.data(), state_.size());
        return {{"state_bytes", state_.size()}};
    }

    nlohmann::json decode(int count) {
        llama_state_set_data(context_, state_.data(), state_.size());
        const int width = llama_vocab_n_tokens(llama_model_get_vocab(model_));
        std::vector<llama_token> token{1};
        run(context_, token);  // warm again after the wait
        const auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < count; i++) {
            const float* logits = llama_get_logits_ith(context_, -1);
            token[0] = llama_token(std::max_element(logits, logits + width) - logits);
            run(context_, token);
        }
        llama_get_logits_ith(context_, -1);
        return {{"seconds", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()}};
    }

  private:
    void read(int depth) {
        std::mt19937 random(0);
        for (int at = 0; at < depth; at += kBatch) {
            std::vector<llama_token> tokens(std::min(kBatch, depth - at));
            for (auto& token : tokens) token = llama_token(random() % kVocabulary);
            run(context_, tokens);
        }
        llama_synchronize(context_);
    }

    // The cells of sequence 0 once more for each further copy, as its own.
    void repeat(int copies) {
        std::vector<uint8_t> one(llama_state_seq_get_size(context_, 0));
        llama_state_seq_get_data(context_, one.data(), one.size(), 0);
        for (int copy = 1; copy < copies; copy++) {
            if (!llama_state_seq_set_data(context_, one.data(), one.size(), copy)) throw std::runtime_error("the cache is full");
            llama_memory_seq_cp(llama_get_memory(context_), copy, 0, -1, -1);
        }
    }

    int threads_;
    bool flash_ = false;
    ggml_type k_ = GGML_TYPE_F16, v_ = GGML_TYPE_F16;
    ggml_threadpool* pool_ = nullptr;
    llama_model* model_ = nullptr;
    llama_context* context_ = nullptr;
    std::vector<uint8_t> state_;
};

}  // namespace

int main(int count, char** words) try {
    if (count != 3 && count != 5) throw std::runtime_error("usage: llama_worker MODEL.gguf THREADS [KEY_TYPE VALUE_TYPE]");
    Side side(count, words);
    for (std::string line; std::getline(std::cin, line);) {
        const auto request = nlohmann::json::parse(line);
        const bool fill = request.at("do") == "fill";
        std::cout << (fill ? side.fill(request.at("depth")) : side.decode(request.at("tokens"))) << std::endl;
    }
} catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
}
