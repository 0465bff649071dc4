// Products with 4-bit codes in groups of 64 or 128 columns, from sums that are exact: of the high bytes and of the low bytes of 64
// columns each, as integers,
//
//     high = sum over chunks c, in order, of  fma(float(sum_k q_k high_k), s_c 256 step_c, high),   low likewise with s_c step_c,
//     y = (high + low) + shift,               shift = sum over groups g, in order, of  fma(b_g, sum_g, shift).
//
// Since an integer sum has one value however it is made, a row has the same bits whether it comes alone, by VNNI, or with others,
// by AMX tiles. Sixteen weight rows go together, and their factors lie by group. On two cores of a Sapphire Rapids: one row 28 GB/s
// of codes, two to four rows 23, eight 19, sixteen 10.
#pragma once

#include "kernels/quantized_row.h"
#include "kernels/square.h"
#include "kernels/tile_sums.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)

namespace optiq::OPTIQ_LEVEL {

// A byte of codes is an even column and the odd one after it: 64 bytes meet 64 even and 64 odd columns, whole, where the natural
// order would ask for two unpacked halves.
inline void pair_up(const Row& row, int64_t columns) {
    alignas(64) static constexpr auto even = [] {
        struct { uint8_t at[64]; } table{};
        for (int j = 0; j < 64; j++) table.at[j] = uint8_t(2 * j);
        return table;
    }();
    const __m512i evens = _mm512_load_si512(&even), odds = _mm512_or_si512(evens, _mm512_set1_epi8(1));
    for (int64_t p = 0; p < columns / 128; p++)
        for (int low = 0; low < 2; low++) {
            const int8_t* from = row.chunks + p * 256 + low * 64;
            const __m512i a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(from + 128);
            _mm512_storeu_si512(row.pairs + p * 256 + low * 128, _mm512_permutex2var_epi8(a, evens, b));
            _mm512_storeu_si512(row.pairs + p * 256 + low * 128 + 64, _mm512_permutex2var_epi8(a, odds, b));
        }
}

// Sixteen weight rows from `o` on, of which the first `here` exist and the last of these stands for the others.
struct Sixteen {
    const Coded& w;
    int64_t o;
    int64_t here;

    int64_t row(int i) const { return o + (i < here ? i : here - 1); }
    const uint8_t* codes(int i) const { return w.codes + row(i) * w.row_bytes(); }
};

// Line by line the sixteen rows after `codes`, which are contiguous, into the second-level cache: read in the order in which they
// lie, they wake the processor's own prefetcher, which has more requests under way than a core's misses (25 GB/s instead of 21).
// And a little ahead in the row itself into the first.
// Always inline: GCC 12 takes a function that only prefetches for one without effect, and drops its calls.
__attribute__((always_inline)) inline void prefetch(const uint8_t* codes, int64_t row_bytes, int64_t line, const uint8_t* at) {
    _mm_prefetch(reinterpret_cast<const char*>(codes + 16 * row_bytes + 64 * line), _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char*>(at + 256), _MM_HINT_T0);
}

// The scales of groups [start, start + count), by group, and what their biases add to the results of `rows` activation rows.
inline void by_group(const Sixteen& rows, int64_t start, int64_t count, const Row* x, int64_t x_rows, float (*scales)[16], vf* shift) {
    const int64_t groups = rows.w.groups();
    with_float(rows.w.type, [&]<class S>(S*) {
        const auto load_groups = [&](const void* from, int64_t g, vf* to) {
            for (int i = 0; i < 16; i++) {
                const S* at = static_cast<const S*>(from) + rows.row(i) * groups + start + g;
                _mm_prefetch(reinterpret_cast<const char*>(at + 16 * groups), _MM_HINT_T0);
                to[i] = load_some(at, count - g);
            }
            transpose(to);
        };
        for (int64_t g = 0; g < count; g += 16) {
            const int64_t some = count - g < 16 ? count - g : 16;
            vf all[16];
            load_groups(rows.w.scales, g, all);
            for (int64_t k = 0; k < some; k++) store(scales[g + k], all[k]);
            load_groups(rows.w.biases, g, all);
            for (int64_t r = 0; r < x_rows; r++)
                for (int64_t k = 0; k < some; k++) shift[r] = fma(all[k], splat(x[r].sums[start + g + k]), shift[r]);
        }
    });
}

// Per 128-bit lane the sums of four vectors' four lanes.
inline __m512i fours(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

// Of four vectors of `fours`, which are sixteen rows, the sums of the first eight lanes and of the others.
inline void halves(const __m512i* y, __m512i* sums) {
    __m512i both[2];
    for (int i = 0; i < 2; i++)
        both[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(y[2 * i], y[2 * i + 1], 0x88), _mm512_shuffle_i32x4(y[2 * i], y[2 * i + 1], 0xdd));
    sums[0] = _mm512_shuffle_i32x4(both[0], both[1], 0x88);
    sums[1] = _mm512_shuffle_i32x4(both[0], both[1], 0xdd);
}

// The sums of ROWS activation rows over two chunks, for sixteen weight rows: sums[r][high or low][chunk].
template <int ROWS>
inline void pair_sums(const Sixteen& rows, int64_t p, const Row* x, __m512i (*sums)[2][2]) {
    const __m512i mask = _mm512_set1_epi8(15);
    const int64_t row_bytes = rows.w.row_bytes();
    const uint8_t* const codes = rows.codes(0);
    const uint8_t *at = codes + p * 64, *const last = rows.codes(15) + p * 64;
    __m512i y[ROWS][2][4];
#pragma GCC unroll 4
    for (int quad = 0; quad < 4; quad++) {
        __m512i even[4], odd[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            prefetch(codes, row_bytes, 16 * p + 4 * quad + i, at);
            const __m512i both = _mm512_loadu_si512(at);
            at = at == last ? last : at + row_bytes;
            even[i] = _mm512_and_si512(both, mask);
            odd[i] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
            for (int part = 0; part < 2; part++) {
                const int8_t* with = x[r].pairs + p * 256 + part * 128;
                const __m512i evens = _mm512_loadu_si512(with), odds = _mm512_loadu_si512(with + 64);
                __m512i v[4];
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++)
                    v[i] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), even[i], evens), odd[i], odds);
                y[r][part][quad] = fours(v[0], v[1], v[2], v[3]);
            }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
        for (int part = 0; part < 2; part++) halves(y[r][part], sums[r][part]);
}

// out[r] of ROWS activation rows, by VNNI.
template <int GROUP, int ROWS>
inline void exact_rows(const Sixteen& rows, const Row* from, vf* out) {
    Row x[ROWS];
    for (int r = 0; r < ROWS; r++) x[r] = from[r];
    const int64_t groups = rows.w.groups();
    vf high[ROWS]{}, low[ROWS]{}, shift[ROWS]{};
    for (int64_t start = 0; start < groups; start += kSegment) {
        alignas(64) float scales[kSegment][16];
        const int64_t here = groups - start < kSegment ? groups - start : kSegment;
        by_group(rows, start, here, x, ROWS, scales, shift);
        const int64_t first = start * GROUP / 128, count = here * GROUP / 128;
        for (int64_t p = 0; p < count; p++) {
            __m512i sums[ROWS][2][2];
            pair_sums<ROWS>(rows, first + p, x, sums);
            for (int half = 0; half < 2; half++) {
                const int64_t g = GROUP == 64 ? 2 * p + half : p;
                const vf s = load(scales[g]);
                for (int r = 0; r < ROWS; r++) {
                    const float step = x[r].steps[start + g];
                    high[r] = fma((vf)_mm512_cvtepi32_ps(sums[r][0][half]), s * splat(256.f * step), high[r]);
                    low[r] = fma((vf)_mm512_cvtepi32_ps(sums[r][1][half]), s * splat(step), low[r]);
                }
            }
        }
    }
    for (int r = 0; r < ROWS; r++) out[r] = (high[r] + low[r]) + shift[r];
}

#if defined(__AMX_INT8__)

// Up to eight activation rows as the right sides of tiles, WIDE = 4 or 8 of them, of which those beyond the last are zeros: per
// chunk 16 quads of columns (of even ones, then of odd ones) of 2 WIDE quads of bytes: the high ones of each row, the low ones.
// Then per chunk 2 WIDE steps likewise.
struct TileSet {
    int8_t* sides;
    float* steps;
};

inline TileSet tile_set(float* arranged, int64_t columns, int64_t wide) {
    return {reinterpret_cast<int8_t*>(arranged), arranged + columns / 64 * 32 * wide};
}

inline void arrange_set(const Row* rows, int64_t count, int64_t columns, int group, int64_t wide, float* arranged) {
    const TileSet set = tile_set(arranged, columns, wide);
    for (int64_t c = 0; c < columns / 64; c++) {
        alignas(64) vu quads[16]{};
        for (int64_t r = 0; r < count; r++)
            for (int64_t part = 0; part < 2; part++) {
                const int8_t* from = rows[r].pairs + c / 2 * 256 + part * 128 + c % 2 * 32;
                std::memcpy(&quads[part * wide + r], from, 32);
                std::memcpy(reinterpret_cast<char*>(&quads[part * wide + r]) + 32, from + 64, 32);
                const float step = rows[r].steps[c * 64 / group];
                set.steps[(2 * c + part) * wide + r] = part ? step : 256.f * step;
            }
        for (int64_t r = count; r < wide; r++) set.steps[2 * c * wide + r] = set.steps[(2 * c + 1) * wide + r] = 0.f;
        transpose(quads);
        for (int64_t q = 0; q < 16; q++) std::memcpy(set.sides + (c * 16 + q) * 8 * wide, &quads[q], size_t(8 * wide));
    }
}

// Tiles 4 and 5 hold codes, 6 and 7 right sides and 0 to 3 sums of 2 WIDE columns; until the end of the scope.
template <int WIDE>
struct FewTiles {
    FewTiles() {
        constexpr uint16_t n = 8 * WIDE;
        static constexpr Tiles::Setting setting{1, 0, {}, {n, n, n, n, 64, 64, n, n}, {16, 16, 16, 16, 16, 16, 16, 16}};
        _tile_loadconfig(&setting);
    }
    ~FewTiles() { _tile_release(); }
};

// out[r] of up to WIDE activation rows, by tiles.
template <int GROUP, int WIDE>
class TileRows {
  public:
    TileRows(const Sixteen& rows, const Row* x, int64_t x_rows, const TileSet& set)
        : rows_(rows), x_(x), x_rows_(x_rows), set_(set), row_bytes_(rows.w.row_bytes()) {
        for (int i = 0; i < 16; i++) codes_[i] = rows.codes(i);
    }

    void run(vf* out) {
        const int64_t groups = rows_.w.groups();
        vf shift[WIDE]{}, totals[kVectors]{};
        for (int64_t start = 0; start < groups; start += kSegment) {
            const int64_t here = groups - start < kSegment ? groups - start : kSegment;
            by_group(rows_, start, here, x_, x_rows_, scales_, shift);
            const int64_t first = start * GROUP / 128, end = first + here * GROUP / 128;
            // While tiles multiply one pair of chunks, vectors unpack the next and add up the one before.
            unpack(first);
            for (int64_t p = first; p < end; p++) {
                if (p + 1 < end) unpack(p + 1);
                p % 2 ? multiply<1>(p) : multiply<0>(p);
                if (p > first) add(p - 1, first, totals);
            }
            add(end - 1, first, totals);
        }
        finish(totals, shift, out);
    }

  private:
    static constexpr int kVectors = 2 * WIDE;  // of totals: sixteen weight rows by the high and low sums of each activation row

    // Codes of the chunks of pair p as left sides: the low halves of 32 bytes, then the high ones.
    __attribute__((always_inline)) void unpack(int64_t p) {
        const __m512i mask = _mm512_set1_epi8(15), fours = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            const uint8_t* at = codes_[i] + p * 64;
            prefetch(codes_[0], row_bytes_, 16 * p + i, at);
#pragma GCC unroll 2
            for (int c = 0; c < 2; c++) {
                const __m512i both = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32 * c)));
                _mm512_store_si512(left_[p % 2][c][i], _mm512_and_si512(_mm512_srlv_epi16(both, fours), mask));
            }
        }
    }

    // Names of tiles must be literal; two sets of them take turns.
    template <int TURN>
    __attribute__((always_inline)) void multiply(int64_t p) {
        const int8_t* right = set_.sides + p * 2 * kSide;
        auto& left = left_[p % 2];
        auto& sums = sums_[p % 2];
        written();
        _tile_loadd(6, right, 8 * WIDE);
        _tile_loadd(7, right + kSide, 8 * WIDE);
        _tile_loadd(4, left[0], 64);
        _tile_loadd(5, left[1], 64);
        if constexpr (TURN == 0) {
            _tile_zero(0);
            _tile_dpbusd(0, 4, 6);
            _tile_zero(1);
            _tile_dpbusd(1, 5, 7);
            _tile_stored(0, sums[0], 8 * WIDE);
            _tile_stored(1, sums[1], 8 * WIDE);
        } else {
            _tile_zero(2);
            _tile_dpbusd(2, 4, 6);
            _tile_zero(3);
            _tile_dpbusd(3, 5, 7);
            _tile_stored(2, sums[0], 8 * WIDE);
            _tile_stored(3, sums[1], 8 * WIDE);
        }
        written();
    }

    __attribute__((always_inline)) void add(int64_t p, int64_t first, vf* totals) {
#pragma GCC unroll 2
        for (int c = 0; c < 2; c++) {
            const float* scales = scales_[GROUP == 64 ? 2 * (p - first) + c : p - first];
            const float* steps = set_.steps + (2 * p + c) * 2 * WIDE;
            const __m512 step = WIDE == 8 ? _mm512_loadu_ps(steps) : _mm512_broadcast_f32x8(_mm256_loadu_ps(steps));
#pragma GCC unroll 16
            for (int j = 0; j < kVectors; j++) {
                __m512 s = _mm512_set1_ps(scales[WIDE == 8 ? j : 2 * j]);
                if constexpr (WIDE == 4) s = _mm512_mask_broadcastss_ps(s, 0xff00, _mm_load_ss(scales + 2 * j + 1));
                totals[j] = fma((vf)_mm512_cvtepi32_ps(_mm512_load_si512(sums_[p % 2][c] + 16 * j)), (vf)_mm512_mul_ps(s, step), totals[j]);
            }
        }
    }

    static void finish(const vf* totals, const vf* shift, vf* out) {
        const float* all = reinterpret_cast<const float*>(totals);
        vf columns[16];
        for (int i = 0; i < 16; i++) columns[i] = WIDE == 8 ? load(all + 16 * i) : load_part(all + 8 * i, 8);
        transpose(columns);
        for (int r = 0; r < WIDE; r++) out[r] = (columns[r] + columns[WIDE + r]) + shift[r];
    }

    static constexpr int64_t kSide = 16 * 8 * WIDE;

    const Sixteen& rows_;
    const Row* x_;
    const int64_t x_rows_;
    const TileSet set_;
    const int64_t row_bytes_;
    const uint8_t* codes_[16];
    alignas(64) uint8_t left_[2][2][16][64];
    alignas(64) int32_t sums_[2][2][16 * 2 * WIDE];
    alignas(64) float scales_[kSegment][16];
};

#endif

}  // namespace optiq::OPTIQ_LEVEL

#endif
