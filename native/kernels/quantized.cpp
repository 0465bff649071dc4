#include "kernels/quantized.h"

#include "kernels/decode.h"
#include "kernels/quantized_exact.h"
#include "kernels/quantized_row.h"
#include "kernels/simd.h"
#include "kernels/unpack.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

constexpr float kSteps = 32639.f;  // 127 * 256 + 127: the largest sum of a signed high and a signed low byte
constexpr int64_t kAhead = 2048;   // bytes of prefetch; flat between 1 and 4 KiB

// Sixteen fixed-point numbers at column `at` of a chunk.
inline void store_fixed(int8_t* chunk, int at, vi fixed) {
#if defined(__AVX512VNNI__)
    const vi low = ((fixed + 128) & 255) - 128, high = (fixed - low) >> 8;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(chunk + at), _mm512_cvtepi32_epi8((__m512i)high));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(chunk + 64 + at), _mm512_cvtepi32_epi8((__m512i)low));
#else
    const vh halves = low_halves(fixed & 0xffff);
    std::memcpy(chunk + 2 * at, &halves, 32);
#endif
}

// Whether products with such codes are those of kernels/quantized_exact.h.
constexpr bool exact(int bits, int group, int64_t columns) {
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
    return bits == 4 && group != 32 && columns % 128 == 0;
#else
    return bits < 0 && group < 0 && columns < 0;
#endif
}

inline int whole_sum(vi x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)x);
#else
    int total = 0;
    for (int i = 0; i < kLanes; i++) total += x[i];
    return total;
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
        row.sums[g] = row.steps[g] * float(whole_sum(fixed_total));
    }
    for (int64_t g = groups; g < padded_groups(columns, group); g++) row.steps[g] = row.sums[g] = 0.f;
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
    if (exact(4, group, columns)) pair_up(row, columns);
#endif
}

void prepare(const void* x, Float type, int64_t columns, int group, float* prepared) {
    with_float(type, [&]<class T>(T*) { prepare_row(static_cast<const T*>(x), columns, group, prepared); });
}

#if defined(__AVX512VNNI__)

constexpr int kTogether = 4;  // activation rows
constexpr int kChains = 2;    // of float sums, so that one does not wait for the other
typedef vf Sums;

template <int BITS>
struct Codes {
    __m512i bytes;
    static Codes whole(const uint8_t* p) { return {unpack<BITS>(p, 64)}; }
    static Codes last(const uint8_t* p, int count) { return {unpack<BITS>(p, count)}; }

    // Adds the chunk's products; each 32-bit lane is four columns.
    template <int GROUP>
    void add(const int8_t* chunk, const float* factors, int64_t c, Sums& sums) const {
        __m512i total = _mm512_dpbusd_epi32(_mm512_setzero_si512(), bytes, _mm512_loadu_si512(chunk));
        total = _mm512_dpbusd_epi32(_mm512_slli_epi32(total, 8), bytes, _mm512_loadu_si512(chunk + 64));
        __m512 factor;
        if constexpr (GROUP == 32)
            factor = _mm512_mask_broadcastss_ps(_mm512_set1_ps(factors[2 * c]), 0xff00, _mm_load_ss(factors + 2 * c + 1));
        else
            factor = _mm512_set1_ps(factors[GROUP == 64 ? c : c / 2]);
        sums = (vf)_mm512_fmadd_ps(_mm512_cvtepi32_ps(total), factor, (__m512)sums);
    }
};

inline vf lanes(Sums sums) { return sums; }

#else

constexpr int kTogether = 2, kChains = 1;
struct Sums {
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
};

// Sixteen codes at a time as 16-bit numbers. `whole` may read up to 8 bytes beyond the chunk's codes, `last` none.
template <int BITS>
struct Codes {
    __m256i part[4];

    static __m256i sixteen(const uint8_t* p) {
        // Few bits need few bytes: what is read beyond a whole chunk must lie in the half chunk that may end the row.
        const __m128i* from = reinterpret_cast<const __m128i*>(p);
        const __m128i bytes = BITS <= 3 ? _mm_loadl_epi64(from) : _mm_loadu_si128(from);
        if constexpr (BITS == 8) return _mm256_cvtepu8_epi16(bytes);
        // The two bytes that hold a code, and the factor that moves its end to bit 16.
        struct Table {
            alignas(32) uint8_t bytes[32];
            alignas(32) uint16_t shift[16];
        };
        static constexpr Table table = [] {
            Table t{};
            for (int i = 0; i < 16; i++) {
                t.bytes[2 * i] = uint8_t(i * BITS / 8);
                t.bytes[2 * i + 1] = uint8_t(i * BITS / 8 + 1);
                t.shift[i] = uint16_t(1u << (8 - i * BITS % 8));
            }
            return t;
        }();
        const __m256i windows = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes),
                                                    _mm256_load_si256(reinterpret_cast<const __m256i*>(table.bytes)));
        const __m256i moved = _mm256_mullo_epi16(windows, _mm256_load_si256(reinterpret_cast<const __m256i*>(table.shift)));
        return _mm256_and_si256(_mm256_srli_epi16(moved, 8), _mm256_set1_epi16((1 << BITS) - 1));
    }

    static Codes whole(const uint8_t* p) {
        return {{sixteen(p), sixteen(p + 2 * BITS), sixteen(p + 4 * BITS), sixteen(p + 6 * BITS)}};
    }

    static Codes last(const uint8_t* p, int count) {
        alignas(32) uint8_t copy[80]{};
        std::memcpy(copy, p, size_t(count / 8 * BITS));
        return whole(copy);
    }

    // Adds the chunk's products; each 32-bit lane is four columns.
    template <int GROUP>
    void add(const int8_t* chunk, const float* factors, int64_t c, Sums& sums) const {
        const __m256i* x = reinterpret_cast<const __m256i*>(chunk);
        const __m256i low = _mm256_add_epi32(_mm256_madd_epi16(part[0], _mm256_loadu_si256(x)),
                                             _mm256_madd_epi16(part[1], _mm256_loadu_si256(x + 1)));
        const __m256i high = _mm256_add_epi32(_mm256_madd_epi16(part[2], _mm256_loadu_si256(x + 2)),
                                              _mm256_madd_epi16(part[3], _mm256_loadu_si256(x + 3)));
        const float* factor = factors + (GROUP == 32 ? 2 * c : GROUP == 64 ? c : c / 2);
        sums.low = _mm256_fmadd_ps(_mm256_cvtepi32_ps(low), _mm256_broadcast_ss(factor), sums.low);
        sums.high = _mm256_fmadd_ps(_mm256_cvtepi32_ps(high), _mm256_broadcast_ss(factor + (GROUP == 32)), sums.high);
    }
};

inline vf lanes(const Sums& sums) {
    vf all;
    std::memcpy(&all, &sums.low, 32);
    std::memcpy(reinterpret_cast<char*>(&all) + 32, &sums.high, 32);
    return all;
}

#endif

// One weight row with ROWS prepared rows; out[r] receives the sums.
template <int BITS, int GROUP, int ROWS>
inline void product_row(const Coded& w, int64_t o, const Row* from, vf* out, int64_t step) {
    // Local copies: vectors may alias anything, so what lies behind a pointer would be read again after every store.
    Row rows[ROWS];
    for (int r = 0; r < ROWS; r++) rows[r] = from[r];
    const int64_t columns = w.columns, groups = columns / GROUP, chunks = (columns + 63) / 64;
    const void *const scales = w.scales, *const biases = w.biases;
    const Float type = w.type;
    const uint8_t* const codes = w.codes + o * w.row_bytes();
    constexpr int64_t segment_chunks = kSegment * GROUP / 64;
    Sums sums[ROWS][kChains]{};
    vf shift[ROWS]{};
    for (int64_t start = 0; start < groups; start += kSegment) {
        alignas(64) float factors[ROWS][kSegment + 16];
        const int64_t here = groups - start < kSegment ? groups - start : kSegment;
        for (int64_t g = 0; g < here; g += kLanes) {
            const int64_t at = o * groups + start + g;
            const vf s = load_some(scales, type, at, here - g), b = load_some(biases, type, at, here - g);
            for (int r = 0; r < ROWS; r++) {
                store(factors[r] + g, s * load(rows[r].steps + start + g));
                shift[r] = fma(b, load(rows[r].sums + start + g), shift[r]);
            }
        }
        const int64_t first = start * GROUP / 64, rest = chunks - 1 - first;
        const int64_t count = rest < segment_chunks ? rest : segment_chunks;
        const uint8_t* at = codes + first * BITS * 8;
        const auto add = [&](const Codes<BITS>& some, int64_t c, int chain) {
            for (int r = 0; r < ROWS; r++)
                some.template add<GROUP>(rows[r].chunks + (first + c) * 128, factors[r], c, sums[r][chain]);
        };
        const auto add_whole = [&](int64_t c, int chain) {
            _mm_prefetch(reinterpret_cast<const char*>(at + c * BITS * 8 + kAhead), _MM_HINT_T0);
            add(Codes<BITS>::whole(at + c * BITS * 8), c, chain);
        };
        int64_t c = 0;
        for (; c + 1 < count; c += 2) {
            add_whole(c, 0);
            add_whole(c + 1, kChains - 1);
        }
        if (c < count) add_whole(c++, 0);
        // The row's last chunk may be a half, and nothing beyond it may be read.
        if (c == rest && c < segment_chunks)
            add(Codes<BITS>::last(at + c * BITS * 8, int(columns - (first + c) * 64)), c, c % 2 ? kChains - 1 : 0);
    }
    for (int r = 0; r < ROWS; r++) {
        vf total = lanes(sums[r][0]);
        if (kChains > 1) total += lanes(sums[r][kChains - 1]);
        out[r * step] = total + shift[r];
    }
}

// Which lanes of two vectors, each of 16 / WIDTH rows of WIDTH lanes, are the first and the second half of their rows.
template <int WIDTH>
struct Halves {
    alignas(64) int32_t first[kLanes] = {}, second[kLanes] = {};
    constexpr Halves() {
        constexpr int rows = kLanes / WIDTH, half = WIDTH / 2;
        for (int i = 0; i < kLanes; i++) {
            const int row = i / half;
            first[i] = (row < rows ? 0 : kLanes) + row % rows * WIDTH + i % half;
            second[i] = first[i] + half;
        }
    }
};

// Both vectors' rows in one, half as wide: each lane the sum of two.
template <int WIDTH>
inline vf halved(vf x, vf y) {
    static constexpr Halves<WIDTH> lanes;
    return __builtin_shuffle(x, y, *reinterpret_cast<const vi*>(lanes.first)) +
           __builtin_shuffle(x, y, *reinterpret_cast<const vi*>(lanes.second));
}

// Lane i is the sum of rows[i], added in the order of `sum`.
inline vf sums_of(const vf* rows) {
#if defined(__AVX512F__)
    vf all[8];
    for (int i = 0; i < 8; i++) all[i] = halved<16>(rows[2 * i], rows[2 * i + 1]);
    for (int i = 0; i < 4; i++) all[i] = halved<8>(all[2 * i], all[2 * i + 1]);
    for (int i = 0; i < 2; i++) all[i] = halved<4>(all[2 * i], all[2 * i + 1]);
    return halved<2>(all[0], all[1]);
#else
    vf all;
    for (int i = 0; i < kLanes; i++) all[i] = sum(rows[i]);
    return all;
#endif
}

// y[m, o] in elements of `stride`.
struct Result {
    void* data;
    Float type;
    int64_t stride;

    void put(vf values, int64_t count, int64_t m, int64_t o) const {
        with_float(type, [&]<class T>(T*) {
            T* to = static_cast<T*>(data) + m * stride + o;
            count == kLanes ? store(to, values) : store_part(to, values, int(count));
        });
    }
};

// Calls pass(ROWS, m) for the rows from m on, most together first.
template <class F>
inline void by_rows(int64_t count, const F& pass) {
    int64_t m = 0;
    for (; m + kTogether <= count; m += kTogether) pass(std::integral_constant<int, kTogether>{}, m);
    if (kTogether > 3 && count - m == 3) return pass(std::integral_constant<int, 3>{}, m);
    if (kTogether > 2 && count - m == 2) return pass(std::integral_constant<int, 2>{}, m);
    if (count - m >= 1) pass(std::integral_constant<int, 1>{}, m);
}

template <int BITS, int GROUP>
void product_of(const Coded& w, int64_t first, int64_t last, const Row* rows, int64_t count, const Result& y) {
    // A few activation rows pass sixteen rows of codes at a time, which stay in the first-level cache.
    for (int64_t o = first; o < last; o += kLanes) {
        const int64_t here = last - o < kLanes ? last - o : kLanes;
        by_rows(count, [&]<int ROWS>(std::integral_constant<int, ROWS>, int64_t m) {
            vf totals[ROWS * kLanes]{};
            for (int64_t i = 0; i < here; i++) product_row<BITS, GROUP, ROWS>(w, o + i, rows + m, totals + i, kLanes);
            for (int r = 0; r < ROWS; r++) y.put(sums_of(totals + r * kLanes), here, m + r, o);
        });
    }
}

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
template <int GROUP>
void exact_product_of(const Coded& w, int64_t first, int64_t last, const Row* rows, int64_t count, const Result& y) {
    for (int64_t o = first; o < last; o += kLanes) {
        const Sixteen sixteen{w, o, last - o < kLanes ? last - o : kLanes};
        by_rows(count, [&]<int ROWS>(std::integral_constant<int, ROWS>, int64_t m) {
            vf out[ROWS];
            exact_rows<GROUP, ROWS>(sixteen, rows + m, out);
            for (int r = 0; r < ROWS; r++) y.put(out[r], sixteen.here, m + r, o);
        });
    }
}
#endif

#if defined(__AMX_INT8__)
template <int GROUP, int WIDE>
void tile_product_of(const Coded& w, int64_t first, int64_t last, const Row* rows, int64_t m, int64_t count, const TileSet& set,
                     const Result& y) {
    const FewTiles<WIDE> tiles;
    for (int64_t o = first; o < last; o += kLanes) {
        const Sixteen sixteen{w, o, last - o < kLanes ? last - o : kLanes};
        vf out[WIDE];
        TileRows<GROUP, WIDE>(sixteen, rows + m, count, set).run(out);
        for (int64_t r = 0; r < count; r++) y.put(out[r], sixteen.here, m + r, o);
    }
}

// Sets of eight rows, the last one of four where that is enough: f(first row, rows, rows of the set, where it lies).
template <class F>
inline void each_set(const float* prepared, int64_t columns, int group, int64_t count, const F& f) {
    float* at = const_cast<float*>(prepared) + count * prepared_floats(columns, group);
    for (int64_t m = 0; m < count; m += 8) {
        const int64_t here = count - m < 8 ? count - m : 8, wide = here > 4 ? 8 : 4;
        f(m, here, wide, at);
        at += arranged_floats(columns, wide);
    }
}
#endif

void arrange(int64_t columns, int group, int64_t count, float* prepared) {
#if defined(__AMX_INT8__)
    if (count == 1 || !exact(4, group, columns)) return;
    Row rows[16];
    for (int64_t m = 0; m < count; m++) rows[m] = row_at(prepared, columns, group, m);
    each_set(prepared, columns, group, count, [&](int64_t m, int64_t here, int64_t wide, float* at) {
        arrange_set(rows + m, here, columns, group, wide, at);
    });
#else
    (void)columns, (void)group, (void)count, (void)prepared;
#endif
}

template <int BITS, int GROUP>
void product_by(const Coded& w, int64_t first, int64_t last, const float* prepared, int64_t count, const Result& y) {
    Row rows[16];
    for (int64_t m = 0; m < count; m++) rows[m] = row_at(prepared, w.columns, w.group, m);
    if (!exact(BITS, GROUP, w.columns)) return product_of<BITS, GROUP>(w, first, last, rows, count, y);
#if defined(__AMX_INT8__)
    if (count > 1)
        return each_set(prepared, w.columns, w.group, count, [&](int64_t m, int64_t here, int64_t wide, float* at) {
            const TileSet set = tile_set(at, w.columns, wide);
            const auto run = wide == 8 ? tile_product_of<GROUP, 8> : tile_product_of<GROUP, 4>;
            run(w, first, last, rows, m, here, set, y);
        });
#endif
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
    exact_product_of<GROUP>(w, first, last, rows, count, y);
#endif
}

void product(const Coded& w, int64_t first, int64_t last, const float* prepared, int64_t count, void* y, Float y_type,
             int64_t stride) {
    const Result result{y, y_type, stride};
    with_bits(w.bits, [&](auto bits) {
        if (w.group == 32) return product_by<bits(), 32>(w, first, last, prepared, count, result);
        if (w.group == 64) return product_by<bits(), 64>(w, first, last, prepared, count, result);
        return product_by<bits(), 128>(w, first, last, prepared, count, result);
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

const QuantizedKernels quantized_table{prepare, arrange, product, dequantize, swiglu};

}  // namespace optiq::OPTIQ_LEVEL
