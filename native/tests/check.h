// The smallest test frame: named cases, registered where they are written, run by main.cpp.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "core/level.h"

namespace optiq::test {

struct Case {
    const char* name;
    std::function<void()> run;
};

inline std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

struct Register {
    Register(const char* name, std::function<void()> run) { cases().push_back({name, std::move(run)}); }
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
    std::printf("%s:%d (%s): %s\n", file, line, level_name(level()), what.c_str());
    std::exit(1);
}

// Reproducible numbers in [-1, 1).
struct Random {
    uint64_t state;
    explicit Random(uint64_t seed) : state(seed * 2654435761u + 88172645463325252ull) {}
    uint64_t bits() {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return state;
    }
    float value() { return float(int64_t(bits()) >> 40) / float(1 << 23); }
    std::vector<float> values(size_t count) {
        std::vector<float> all(count);
        for (auto& x : all) x = value();
        return all;
    }
};

// Runs `body` at every instruction level of this processor.
template <class F>
void each_level(const F& body) {
    const Level before = level();
    for (int i = int(Level::avx2); i <= int(detect_level()); i++) {
        set_level(Level(i));
        body();
    }
    set_level(before);
}

}  // namespace optiq::test

#define TEST(name)                                                    \
    static void name();                                               \
    static const optiq::test::Register register_##name(#name, &name); \
    static void name()

#define CHECK(condition) \
    if (!(condition)) optiq::test::fail(__FILE__, __LINE__, #condition)
