#include "kernels/quantized.h"

#include "kernels/decode.h"
#include "kernels/simd.h"
#include "kernels/unpack.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

constexpr float kSteps = 32639.f;  // 127 * 256 + 127: the largest sum of a signed high and a signed low byte
constexpr int kSegment = 64;       // groups whose factors lie on the stack at once
constexpr int64_t kAhead = 2048;   // bytes of prefetch; flat between 1 and 4 KiB

// Where the parts of a prepared row lie.
struct Row {
    int8_t* chunks;  // per 64 columns 128 bytes: high and low bytes, or 16-bit numbers
    float* steps;
    float* sums;
};

inline int64_t padded_groups(int64_t columns, int group) { return (columns / group + 15) / 16 * 16 + 16; }

inline Row row_at(const float* prepared, int64_t columns, int group, int64_t index) {
    float* base = const_cast<float*>(prepared) + index * prepared_floats(columns, group);
    float* steps = base + (columns + 63) / 64 * 32;
    return {reinterpret_cast<int8_t*>(base), steps, steps + padded_groups(columns, group)};
}

// Sixteen fixed-point numbers at column `at` of a chunk.
inline void store_fixed(int8_t* chunk, int at, vi fixed) {
#if defined(__AVX512VNNI__)
    typedef int8_t vb __attribute__((vector_size(16), aligned(1), may_alias));
    const vi low = ((fixed + 128) & 255) - 128;
    *reinterpret_cast<vb*>(chunk + at) = __builtin_convertvector((fixed - low) >> 8, vb);
    *reinterpret_cast<vb*>(chunk + 64 + at) = __builtin_convertvector(low, vb);
#else
    typedef int16_t vs __attribute__((vector_size(32), aligned(2), may_alias));
    *reinterpret_cast<vs*>(chunk + 2 * at) = __builtin_convertvector(fixed, vs);
#endif
}

template <class T>
void prepare_row(const T* x, int64_t columns, int group, float* prepared) {
    const Row row = row_at(prepared, columns, group, 0);
    if (columns % 64) std::memset(row.chunks + columns / 64 * 128, 0, 128);
    const int64_t groups = columns / group;
    for (int64_t g = 0; g < groups; g++, x += group) {
        vf most{}, total{};
        for (int k = 0; k < group; k += kLanes) {
            const vf v = load(x + k);
            most = max(most, max(v, -v));
            total += v;
        }
        const float top = largest(most);
        const float plain = sum(total);
        // A value that is not finite must not vanish in the integers: the step carries it.
        row.steps[g] = plain - plain == 0.f ? top / kSteps : plain;
        vi fixed_total{};
        const vf scale = splat(top > 0.f ? kSteps / top : 0.f), magic = splat(12582912.f);  // rounds, see exp
        for (int k = 0; k < group; k += kLanes) {
            const vf scaled = min(max(load(x + k) * scale, splat(-kSteps)), splat(kSteps));
            const int64_t column = g * group + k;
            const vi fixed = (vi)(scaled + magic) - (vi)magic;
            fixed_total += fixed;
            store_fixed(row.chunks + column / 64 * 128, int(column % 64), fixed);
        }
        int whole = 0;
        for (int i = 0; i < kLanes; i++) whole += fixed_total[i];
        row.sums[g] = row.steps[g] * float(whole);
    }
    for (int64_t g = groups; g < padded_groups(columns, group); g++) row.steps[g] = row.sums[g] = 0.f;
}

void prepare(const void* x, Float type, int64_t columns, int group, float* prepared) {
    with_float(type, [&]<class T>(T*) { prepare_row(static_cast<const T*>(x), columns, group, prepared); });
}

inline vf load_some(const void* p, Float type, int64_t at, int64_t count) {
    return with_float(type, [&]<class T>(T*) {
        const T* values = static_cast<const T*>(p) + at;
        return count >= kLanes ? load(values) : load_part(values, int(count));
    });
}

// The factor of each 32-bit lane of chunk c, a lane being four columns.
template <int GROUP>
inline vf factor(const float* factors, int64_t c) {
    if constexpr (GROUP == 32) {
        vf both;
        for (int i = 0; i < kLanes; i++) both[i] = factors[2 * c + i / 8];
        return both;
    } else {
        return splat(factors[GROUP == 64 ? c : c / 2]);
    }
}

#if defined(__AVX512VNNI__)

template <int BITS>
struct Codes {
    __m512i bytes;
    Codes(const uint8_t* p, int count) : bytes(unpack<BITS>(p, count)) {}
    vf dot(const int8_t* chunk) const {
        __m512i total = _mm512_dpbusd_epi32(_mm512_setzero_si512(), bytes, _mm512_loadu_si512(chunk));
        total = _mm512_dpbusd_epi32(_mm512_slli_epi32(total, 8), bytes, _mm512_loadu_si512(chunk + 64));
        return (vf)_mm512_cvtepi32_ps(total);
    }
};

#else

template <int BITS>
struct Codes {
    alignas(64) uint8_t bytes[64];
    Codes(const uint8_t* p, int count) { unpack<BITS>(p, count, bytes); }
    // The same sums per four columns as above, from products of 16-bit numbers.
    vf dot(const int8_t* chunk) const {
        vi total;
        for (int part = 0; part < 4; part++) {
            const __m256i codes = _mm256_cvtepu8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes + 16 * part)));
            const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(chunk + 32 * part));
            const __m256i pairs = _mm256_madd_epi16(codes, x);
            const __m256i fours = _mm256_hadd_epi32(pairs, pairs);  // lanes 0 1 . . 4 5 . .
            const __m128i four = _mm_unpacklo_epi64(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
            std::memcpy(reinterpret_cast<char*>(&total) + 16 * part, &four, 16);
        }
        return __builtin_convertvector(total, vf);
    }
};

#endif

// One weight row with ROWS prepared rows; out[r] receives the sums.
template <int BITS, int GROUP, int ROWS>
inline void product_row(const Coded& w, int64_t o, const Row* rows, float* out) {
    const uint8_t* codes = w.codes + o * w.row_bytes();
    const int64_t groups = w.columns / GROUP, chunks = (w.columns + 63) / 64;
    constexpr int64_t segment_chunks = kSegment * GROUP / 64;
    vf even[ROWS]{}, odd[ROWS]{}, shift[ROWS]{};
    for (int64_t start = 0; start < groups; start += kSegment) {
        alignas(64) float factors[ROWS][kSegment + 16];
        const int64_t here = groups - start < kSegment ? groups - start : kSegment;
        for (int64_t g = 0; g < here; g += kLanes) {
            const int64_t at = o * groups + start + g;
            const vf s = load_some(w.scales, w.type, at, here - g), b = load_some(w.biases, w.type, at, here - g);
            for (int r = 0; r < ROWS; r++) {
                store(factors[r] + g, s * load(rows[r].steps + start + g));
                shift[r] = fma(b, load(rows[r].sums + start + g), shift[r]);
            }
        }
        const int64_t first = start * GROUP / 64;
        const int64_t end = first + segment_chunks < chunks ? first + segment_chunks : chunks;
        const auto add = [&](int64_t c, vf* total) {
            const int64_t left = w.columns - c * 64;
            _mm_prefetch(reinterpret_cast<const char*>(codes + c * BITS * 8 + kAhead), _MM_HINT_T0);
            const Codes<BITS> some(codes + c * BITS * 8, left >= 64 ? 64 : int(left));
            for (int r = 0; r < ROWS; r++)
                total[r] = fma(some.dot(rows[r].chunks + c * 128), factor<GROUP>(factors[r], c - first), total[r]);
        };
        int64_t c = first;
        for (; c + 1 < end; c += 2) {
            add(c, even);
            add(c + 1, odd);
        }
        if (c < end) add(c, even);
    }
    for (int r = 0; r < ROWS; r++) out[r] = sum(even[r] + odd[r] + shift[r]);
}

inline void put(float value, void* y, Float type, int64_t at) {
    with_float(type, [&]<class T>(T*) { narrow(value, static_cast<T*>(y) + at); });
}

template <int BITS, int GROUP>
void product_of(const Coded& w, int64_t first, int64_t last, const float* prepared, int64_t count, void* y, Float y_type,
                int64_t stride) {
    Row rows[16];
    for (int64_t m = 0; m < count; m++) rows[m] = row_at(prepared, w.columns, w.group, m);
    for (int64_t o = first; o < last; o++) {
        float out[16];
        int64_t m = 0;
        for (; m + 4 <= count; m += 4) product_row<BITS, GROUP, 4>(w, o, rows + m, out + m);
        if (count - m >= 2) product_row<BITS, GROUP, 2>(w, o, rows + m, out + m), m += 2;
        if (count - m >= 1) product_row<BITS, GROUP, 1>(w, o, rows + m, out + m);
        for (int64_t r = 0; r < count; r++) put(out[r], y, y_type, r * stride + o);
    }
}

void product(const Coded& w, int64_t first, int64_t last, const float* prepared, int64_t count, void* y, Float y_type,
             int64_t stride) {
    with_bits(w.bits, [&](auto bits) {
        if (w.group == 32) return product_of<bits(), 32>(w, first, last, prepared, count, y, y_type, stride);
        if (w.group == 64) return product_of<bits(), 64>(w, first, last, prepared, count, y, y_type, stride);
        return product_of<bits(), 128>(w, first, last, prepared, count, y, y_type, stride);
    });
}

void dequantize(const Coded& w, int64_t row, void* out, Float type) {
    with_float(type, [&]<class T>(T*) { decode(w, row, 0, w.columns, static_cast<T*>(out)); });
}

void swiglu(float* gate, const float* up, int64_t count) {
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) store(gate + k, silu(load(gate + k)) * load(up + k));
    if (const int rest = int(count - k)) store_part(gate + k, silu(load_part(gate + k, rest)) * load_part(up + k, rest), rest);
}

}  // namespace

const QuantizedKernels quantized_table{prepare, product, dequantize, swiglu};

}  // namespace optiq::OPTIQ_LEVEL
