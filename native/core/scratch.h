// Working memory of an operation. Each thread keeps its last buffer, so that a token's hundred products do not ask the
// system for pages again; what is larger than kKeep goes back at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace optiq {

class Scratch {
  public:
    static constexpr size_t kKeep = 16u << 20;

    // At least `bytes` bytes at a cache line's start, content undefined.
    explicit Scratch(size_t bytes) {
        if (kept().size >= bytes) {
            block_ = kept();
            kept() = Block{};
            return;
        }
        const size_t rounded = (bytes + 4095) / 4096 * 4096;
        block_ = {std::aligned_alloc(64, rounded), rounded};
        if (!block_.start) throw std::bad_alloc();
    }

    ~Scratch() {
        if (block_.size > kKeep || block_.size <= kept().size) {
            std::free(block_.start);
            return;
        }
        std::free(kept().start);
        kept() = block_;
    }

    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    template <class T>
    T* as() {
        return static_cast<T*>(block_.start);
    }

  private:
    struct Block {
        void* start = nullptr;
        size_t size = 0;
    };
    struct Keeper : Block {
        ~Keeper() { std::free(start); }
        Keeper& operator=(const Block& other) { return static_cast<Block&>(*this) = other, *this; }
    };
    static Keeper& kept() {
        static thread_local Keeper block;
        return block;
    }

    Block block_;
};

}  // namespace optiq
