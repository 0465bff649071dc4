#include "core/level.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace optiq {
namespace {

struct Features {
    bool avx2 = false, fma = false, f16c = false, bmi2 = false;
    bool avx512f = false, avx512bw = false, avx512dq = false, avx512vl = false, avx512vbmi = false;
    bool avx512vnni = false, avx512bf16 = false;
    bool amx_tile = false, amx_int8 = false, amx_bf16 = false;
};

uint64_t extended_control_register() {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t(high) << 32) | low;
}

// Linux gives the tile registers to a process that asks: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
bool ask_for_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

Features read_features() {
    Features f;
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return f;
    const uint64_t saved = extended_control_register();
    const bool ymm = (saved & 0x6) == 0x6, zmm = (saved & 0xe6) == 0xe6, tiles = (saved & 0x60000) == 0x60000;
    f.fma = ymm && (c & bit_FMA);
    f.f16c = ymm && (c & bit_F16C);
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        f.avx2 = ymm && (b & bit_AVX2);
        f.bmi2 = b & bit_BMI2;
        f.avx512f = zmm && (b & bit_AVX512F);
        f.avx512bw = zmm && (b & bit_AVX512BW);
        f.avx512dq = zmm && (b & bit_AVX512DQ);
        f.avx512vl = zmm && (b & bit_AVX512VL);
        f.avx512vbmi = zmm && (c & bit_AVX512VBMI);
        f.avx512vnni = zmm && (c & bit_AVX512VNNI);
        f.amx_bf16 = tiles && (d & (1u << 22));
        f.amx_tile = tiles && (d & (1u << 24));
        f.amx_int8 = tiles && (d & (1u << 25));
    }
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) f.avx512bf16 = zmm && (a & (1u << 5));
    return f;
}

const Features& features() {
    static const Features found = read_features();
    return found;
}

std::atomic<Level>& chosen() {
    static std::atomic<Level> value{detect_level()};
    return value;
}

}  // namespace

Level detect_level() {
    static const Level best = [] {
        const Features& f = features();
        if (!(f.avx2 && f.fma && f.f16c && f.bmi2)) return Level::none;
        if (!(f.avx512f && f.avx512bw && f.avx512dq && f.avx512vl)) return Level::avx2;
        if (!(f.avx512vnni && f.avx512vbmi && f.avx512bf16)) return Level::avx512;
        if (!(f.amx_tile && f.amx_int8 && f.amx_bf16 && ask_for_tiles())) return Level::vnni;
        return Level::amx;
    }();
    return best;
}

Level level() { return chosen().load(std::memory_order_relaxed); }

void set_level(Level level) { chosen().store(level, std::memory_order_relaxed); }

const char* level_name(Level level) {
    switch (level) {
        case Level::amx: return "amx";
        case Level::vnni: return "avx512-vnni";
        case Level::avx512: return "avx512";
        case Level::avx2: return "avx2";
        default: return "none";
    }
}

std::string cpu_features() {
    const Features& f = features();
    std::string text;
    const auto add = [&](bool have, const char* name) {
        if (have) text += (text.empty() ? "" : " ") + std::string(name);
    };
    add(f.avx2, "avx2");
    add(f.fma, "fma");
    add(f.f16c, "f16c");
    add(f.bmi2, "bmi2");
    add(f.avx512f, "avx512f");
    add(f.avx512bw, "avx512bw");
    add(f.avx512vbmi, "avx512vbmi");
    add(f.avx512vnni, "avx512vnni");
    add(f.avx512bf16, "avx512bf16");
    add(f.amx_int8, "amx-int8");
    add(f.amx_bf16, "amx-bf16");
    return text;
}

}  // namespace optiq
