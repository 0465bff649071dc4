// Attention of few queries over packed tokens: the form for every processor, and the combination of blocks.

#include "kernels/packed_tiles.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

constexpr int kRowsTogether = 4;

// Products of 16-bit integers, pairs of them added up in 32-bit lanes.
#if defined(__AVX512F__)
typedef __m512i wide;
constexpr int kWideLanes = 16, kKeysTogether = 4, kColumns = 4;
inline wide nothing() { return _mm512_setzero_si512(); }
inline wide load_shorts(const int16_t* p) { return _mm512_loadu_si512(p); }
inline wide widen_bytes(const int8_t* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline wide repeat(int32_t pair) { return _mm512_set1_epi32(pair); }
inline wide multiply_add(wide sums, wide x, wide y) {
#if defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(sums, x, y);
#else
    return _mm512_add_epi32(sums, _mm512_madd_epi16(x, y));
#endif
}
inline int32_t total_of(wide x) { return _mm512_reduce_add_epi32(x); }
inline vr floats(wide x) { return (vr)_mm512_cvtepi32_ps(x); }
#else
typedef __m256i wide;
constexpr int kWideLanes = 8, kKeysTogether = 2, kColumns = 2;
inline wide nothing() { return _mm256_setzero_si256(); }
inline wide load_shorts(const int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline wide widen_bytes(const int8_t* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline wide repeat(int32_t pair) { return _mm256_set1_epi32(pair); }
inline wide multiply_add(wide sums, wide x, wide y) { return _mm256_add_epi32(sums, _mm256_madd_epi16(x, y)); }
inline int32_t total_of(wide x) {
    const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    const __m128i quarter = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(quarter, _mm_shuffle_epi32(quarter, 0xb1)));
}
inline vr floats(wide x) { return (vr)_mm256_cvtepi32_ps(x); }
#endif

inline int64_t padded_rows(const PackedAttention& a) { return round_up(packed_rows(a), kRowsTogether); }

// Prepared queries: steps [rows], then numbers [rows, padded D].
struct Queries {
    float* steps;
    int16_t* numbers;
    size_t bytes;
    Queries(const PackedAttention& a, void* start) {
        const int64_t rows = padded_rows(a), first = round_up(rows * 4, 64);
        steps = static_cast<float*>(start);
        numbers = reinterpret_cast<int16_t*>(static_cast<char*>(start) + first);
        bytes = size_t(first + rows * padded64(a.full.width) * 2);
    }
};

// Memory of a block: levels of all keys, then of all values in pairs of tokens; scores, weights, steps.
struct Work {
    int8_t* levels;     // [kPackedKeys, padded D] or [kPackedKeys / 2, padded D, 2]
    int32_t* scores;    // [rows, kPackedKeys]
    int16_t* weights;   // [rows, kPackedKeys]
    float* steps;       // [rows]
    size_t bytes;
    Work(const PackedAttention& a, void* start) {
        const int64_t rows = padded_rows(a);
        char* at = static_cast<char*>(start);
        const auto take = [&](int64_t size) {
            char* mine = at;
            at += round_up(size, 64);
            return mine;
        };
        levels = reinterpret_cast<int8_t*>(take(kPackedKeys * padded64(a.full.width)));
        scores = reinterpret_cast<int32_t*>(take(rows * kPackedKeys * 4));
        weights = reinterpret_cast<int16_t*>(take(rows * kPackedKeys * 2));
        steps = reinterpret_cast<float*>(take(rows * 4));
        bytes = size_t(at - static_cast<char*>(start));
    }
};

void decode_keys(const PackedAttention& a, const PackedBlock& b, int8_t* levels) {
    const int64_t width = a.full.width, stride = padded64(width);
    const Codebook& book = *a.keys.book;
    with_code_bits(book.bits, [&](auto bits) {
        for (int64_t j = 0; j < b.count; j++)
            decode_levels<bits()>(book, a.keys.codes_of(b.batch, b.group, b.first + j), width, levels + j * stride);
    });
}

// Levels of tokens j and j + 1 side by side, column by column.
void decode_pairs(const PackedAttention& a, const PackedBlock& b, int8_t* levels) {
    const int64_t width = a.full.width, stride = padded64(width);
    const Codebook& book = *a.values.book;
    with_code_bits(book.bits, [&](auto bits) {
        for (int64_t j = 0; j < b.count; j += 2, levels += 2 * stride) {
            alignas(64) int8_t pair[2][kPackedWidth];
            for (int64_t i = 0; i < 2; i++)  // of an odd one out the weight is zero
                decode_levels<bits()>(book, a.values.codes_of(b.batch, b.group, b.first + at_most(j + i, b.count - 1)), width, pair[i]);
            for (int64_t d = 0; d < width; d += 16) {
                const __m128i x = *reinterpret_cast<const __m128i*>(pair[0] + d), y = *reinterpret_cast<const __m128i*>(pair[1] + d);
                _mm_storeu_si128(reinterpret_cast<__m128i*>(levels + 2 * d), _mm_unpacklo_epi8(x, y));
                _mm_storeu_si128(reinterpret_cast<__m128i*>(levels + 2 * d + 16), _mm_unpackhi_epi8(x, y));
            }
        }
    });
}

void score(const PackedAttention& a, const PackedBlock& b, const Queries& queries, const Work& work) {
    const int64_t stride = padded64(a.full.width), rows = padded_rows(a);
    for (int64_t j = 0; j < b.count; j += kKeysTogether) {
        const int8_t* keys[kKeysTogether];
        for (int n = 0; n < kKeysTogether; n++) keys[n] = work.levels + at_most(j + n, b.count - 1) * stride;
        for (int64_t r = 0; r < rows; r += kRowsTogether) {
            wide sums[kRowsTogether][kKeysTogether];
            for (auto& some : sums)
                for (auto& one : some) one = nothing();
            for (int64_t d = 0; d < a.full.width; d += 2 * kWideLanes) {
                wide x[kKeysTogether];
                for (int n = 0; n < kKeysTogether; n++) x[n] = widen_bytes(keys[n] + d);
                for (int i = 0; i < kRowsTogether; i++) {
                    const wide y = load_shorts(queries.numbers + (r + i) * stride + d);
                    for (int n = 0; n < kKeysTogether; n++) sums[i][n] = multiply_add(sums[i][n], x[n], y);
                }
            }
            for (int i = 0; i < kRowsTogether; i++)
                for (int n = 0; n < kKeysTogether; n++) work.scores[(r + i) * kPackedKeys + j + n] = total_of(sums[i][n]);
        }
    }
}

// o[r, d] of kRowsTogether rows and COLUMNS registers of columns.
template <int COLUMNS>
void add_values(const PackedAttention& a, const PackedBlock& b, const Work& work, int64_t r, int64_t d, float* partial) {
    const int64_t stride = padded64(a.full.width), width = a.full.width, to = packed_partial_stride(a);
    wide sums[kRowsTogether][COLUMNS];
    for (auto& some : sums)
        for (auto& one : some) one = nothing();
    const int8_t* levels = work.levels + 2 * d;
    for (int64_t j = 0; j < b.count; j += 2, levels += 2 * stride) {
        wide x[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) x[c] = widen_bytes(levels + c * 2 * kWideLanes);
        for (int i = 0; i < kRowsTogether; i++) {
            int32_t pair;
            std::memcpy(&pair, work.weights + (r + i) * kPackedKeys + j, 4);
            const wide w = repeat(pair);
            for (int c = 0; c < COLUMNS; c++) sums[i][c] = multiply_add(sums[i][c], x[c], w);
        }
    }
    for (int i = 0; i < kRowsTogether && r + i < packed_rows(a); i++)
        for (int c = 0; c < COLUMNS; c++) {
            const vr o = floats(sums[i][c]) * (work.steps[r + i] - vr{});
            const int64_t at = d + c * kWideLanes;
            float* out = partial + (r + i) * to + 2 + at;
            if (at + kWideLanes <= width)
                store_register(out, o);
            else
                for (int64_t n = 0; at + n < width; n++) out[n] = o[n];
        }
}

void block_of(const PackedAttention& a, const PackedBlock& b, const void* queries, float* partial, void* scratch) {
    const int64_t rows = packed_rows(a), width = a.full.width;
    const Work work(a, scratch);
    const Queries prepared(a, const_cast<void*>(queries));
    decode_keys(a, b, work.levels);
    score(a, b, prepared, work);
    for (int64_t r = 0; r < rows; r += kWeighRows)
        weigh_packed(a, b, r, at_most(kWeighRows, rows - r), prepared.steps, work.scores + r * kPackedKeys, work.steps, partial,
                     [&](int64_t i, int j, vi fixed) {
                         const vh low = low_halves(fixed & 0xffff);
                         std::memcpy(work.weights + (r + i) * kPackedKeys + j, &low, 32);
                     });
    std::memset(work.weights + rows * kPackedKeys, 0, size_t((padded_rows(a) - rows) * kPackedKeys * 2));
    decode_pairs(a, b, work.levels);
    for (int64_t r = 0; r < rows; r += kRowsTogether) {
        int64_t d = 0;
        for (; d + kColumns * kWideLanes <= width; d += kColumns * kWideLanes) add_values<kColumns>(a, b, work, r, d, partial);
        for (; d < width; d += kWideLanes) add_values<1>(a, b, work, r, d, partial);
    }
}

void prepare_rows(const PackedAttention& a, int64_t batch, int64_t group, void* to) {
    const Queries queries(a, to);
    const int64_t width = a.full.width, stride = padded64(width);
    std::memset(queries.numbers, 0, size_t(padded_rows(a) * stride * 2));
    for (int64_t r = 0; r < packed_rows(a); r++) {
        alignas(64) int32_t fixed[kPackedWidth];
        queries.steps[r] = rotated_query(a, batch, group, r, fixed);
        for (int64_t d = 0; d < width; d++) queries.numbers[r * stride + d] = int16_t(fixed[d]);
    }
}

size_t query_bytes(const PackedAttention& a) { return tiled(a) ? TiledQueries(a, nullptr).bytes : Queries(a, nullptr).bytes; }

void prepare(const PackedAttention& a, int64_t batch, int64_t group, void* queries) {
    tiled(a) ? prepare_tiles(a, batch, group, queries) : prepare_rows(a, batch, group, queries);
}

size_t scratch(const PackedAttention& a) { return tiled(a) ? TiledWork(a, nullptr).bytes : Work(a, nullptr).bytes; }

void block(const PackedAttention& a, int64_t batch, int64_t group, int64_t block, bool next, const void* queries, float* partial,
           void* scratch) {
    const PackedBlock b(a, batch, group, block);
    if (unseen(a, b)) {
        for (int64_t r = 0; r < packed_rows(a); r++) {
            partial[r * packed_partial_stride(a)] = kNever;
            partial[r * packed_partial_stride(a) + 1] = 0.f;
        }
        return;
    }
    if (tiled(a)) return block_tiled(a, b, next, queries, partial, scratch);
    block_of(a, b, queries, partial, scratch);
}

// The sum over some blocks with the weights exp(m - shift); those where nothing was seen hold no sums.
float add_blocks(const PackedAttention& a, int64_t blocks, int64_t rows, const float* partial, float shift, float* o) {
    const int64_t stride = packed_partial_stride(a), width = a.full.width;
    float total = 0.f;
    for (int64_t b = 0; b < blocks; b++) {
        const float* p = partial + b * rows * stride;
        if (p[1] == 0.f) continue;
        const float w = exp_below(p[0] - shift);
        total += w * p[1];
        int64_t d = 0;
        for (; d + kLanes <= width; d += kLanes) store(o + d, fma(load(p + 2 + d), splat(w), load(o + d)));
        for (; d < width; d++) o[d] = __builtin_fmaf(p[2 + d], w, o[d]);
    }
    return total;
}

void combine(const PackedAttention& a, int64_t batch, int64_t group, int64_t row, const float* partial) {
    const int64_t rows = packed_rows(a), stride = packed_partial_stride(a), width = a.full.width;
    const int64_t ours = packed_blocks(a), theirs = full_blocks(a);
    alignas(64) float packed[kPackedWidth], full[kPackedWidth];
    for (int64_t d = 0; d < padded16(width); d++) packed[d] = full[d] = 0.f;
    float most = kNever;
    for (int64_t b = 0; b < ours + theirs; b++) {
        const float m = partial[(b * rows + row) * stride];
        most = m > most ? m : most;
    }
    const float shift = most == kNever ? 0.f : most;
    const float mass = add_blocks(a, ours, rows, partial + row * stride, shift, packed);
    const float rest = add_blocks(a, theirs, rows, partial + (ours * rows + row) * stride, shift, full);
    transform(packed, width);
    const vf by = splat(1.f / (mass + rest)), share = splat(mass);
    const float *undo = a.value_undo + group * width, *mean = a.mean ? a.mean + group * width : nullptr;
    with_float(a.full.type, [&]<class T>(T*) {
        T* out = static_cast<T*>(a.full.out) + out_row(a.full, batch, place(a.full, group, row)) * width;
        for (int64_t d = 0; d < width; d += kLanes) {
            const int n = int(at_most(kLanes, width - d));
            const auto some = [&](const float* p) { return n == kLanes ? load(p + d) : load_part(p + d, n); };
            vf x = fma(load(packed + d), some(undo), load(full + d));
            if (mean) x = fma(share, some(mean), x);
            n == kLanes ? store(out + d, x * by) : store_part(out + d, x * by, n);
        }
    });
}

}  // namespace

const PackedFew packed_few_table{query_bytes, prepare, scratch, block, combine};

}  // namespace optiq::OPTIQ_LEVEL
