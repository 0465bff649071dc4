// Attention of few query rows in bf16 by AMX tiles: a block of keys for sixteen rows at a time.
#pragma once

#include "kernels/attention_few.h"
#include "kernels/tile_sums.h"

#if defined(__AMX_BF16__)

namespace optiq::OPTIQ_LEVEL {

constexpr int64_t kPanel = 64;  // value columns that are interleaved at once: 256 keys of them fill 32 KiB

inline bool tiled(const Attention& a) { return a.type == Float::bf16 && a.width % 32 == 0 && a.value_width % kPanel == 0; }

// Memory of the tiled form: queries and weights of all row tiles, scores of one, interleaved values, the last keys.
struct TiledScratch {
    uint32_t* q;        // [tiles, D / 2, 16] pairs
    float* scores;      // [kFewKeys, 16]
    uint32_t* weights;  // [tiles, kFewKeys / 32, high and low part, 16 rows, 16 pairs]
    uint32_t* values;   // [kFewKeys / 2, 64] pairs
    uint16_t* keys;     // [16, D]
    float* o;           // [16, 64]
    size_t bytes;
    TiledScratch(const Attention& a, void* start) {
        const int64_t tiles = (row_count(a) + 15) / 16;
        char* at = static_cast<char*>(start);
        const auto take = [&](int64_t size) {
            char* mine = at;
            at += round_up(size, 64);
            return mine;
        };
        q = reinterpret_cast<uint32_t*>(take(tiles * a.width * 8 * 4));
        scores = reinterpret_cast<float*>(take(kFewKeys * 16 * 4));
        weights = reinterpret_cast<uint32_t*>(take(tiles * kFewKeys / 32 * 2 * 256 * 4));
        values = reinterpret_cast<uint32_t*>(take(kFewKeys / 2 * kPanel * 4));
        keys = reinterpret_cast<uint16_t*>(take(16 * a.width * 2));
        o = reinterpret_cast<float*>(take(16 * kPanel * 4));
        bytes = size_t(at - static_cast<char*>(start));
    }
};

inline void pack_queries(const Attention& a, int64_t batch, int64_t group, int64_t row, uint32_t* q) {
    for (int64_t d = 0; d < a.width; d += 32) {
        __m512i r[16];
        for (int i = 0; i < 16; i++) {
            r[i] = _mm512_setzero_si512();
            if (row + i >= row_count(a)) continue;
            const RowPlace p = place(a, group, row + i);
            r[i] = _mm512_loadu_si512(row_of<bf16>(a.q, batch, p.head, p.query) + d);
        }
        transpose(r);
        for (int i = 0; i < 16; i++) _mm512_store_si512(q + (d / 2 + i) * 16, r[i]);
    }
}

// scores[j, r] for sixteen rows and keys [first, last); rows of scores up to the next multiple of 16 are written.
inline void score_tile(const Attention& a, const bf16* k, int64_t count, const uint32_t* q, uint16_t* tail, float* scores,
                       Fetcher& fetcher) {
    const int64_t step = a.k.row * 2;
    int64_t j = 0;
    for (; j + 64 <= count; j += 64) {
        const bf16 *k0 = k + j * a.k.row, *k1 = k0 + 16 * a.k.row, *k2 = k1 + 16 * a.k.row, *k3 = k2 + 16 * a.k.row;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t d = 0; d < a.width; d += 32) {
            fetcher.more(4);
            _tile_loadd(4, q + d / 2 * 16, 64);
            _tile_loadd(5, k0 + d, step);
            _tile_dpbf16ps(0, 5, 4);
            _tile_loadd(6, k1 + d, step);
            _tile_dpbf16ps(1, 6, 4);
            _tile_loadd(7, k2 + d, step);
            _tile_dpbf16ps(2, 7, 4);
            _tile_loadd(5, k3 + d, step);
            _tile_dpbf16ps(3, 5, 4);
        }
        _tile_stored(0, scores + j * 16, 64);
        _tile_stored(1, scores + (j + 16) * 16, 64);
        _tile_stored(2, scores + (j + 32) * 16, 64);
        _tile_stored(3, scores + (j + 48) * 16, 64);
    }
    for (; j < count; j += 16) {
        const void* keys = k + j * a.k.row;
        int64_t stride = step;
        if (count - j < 16) {  // memory ends here
            std::memset(tail, 0, size_t(16 * a.width * 2));
            for (int64_t i = 0; i < count - j; i++) std::memcpy(tail + i * a.width, k + (j + i) * a.k.row, size_t(a.width) * 2);
            keys = tail;
            stride = a.width * 2;
        }
        _tile_zero(0);
        for (int64_t d = 0; d < a.width; d += 32) {
            _tile_loadd(4, q + d / 2 * 16, 64);
            _tile_loadd(5, static_cast<const char*>(keys) + d * 2, stride);
            _tile_dpbf16ps(0, 5, 4);
        }
        _tile_stored(0, scores + j * 16, 64);
    }
}

// Sixteen rows' scores become weights in two bfloat16 parts, as tiles [16 rows, 32 keys]. Lanes are rows.
inline void weigh_tile(const Attention& a, int64_t batch, int64_t group, int64_t row, int64_t first, int64_t last, float* scores,
                       uint32_t* weights, vf* m, vf* l, Fetcher& fetcher) {
    const int64_t count = last - first, padded = round_up(count, 32);
    vi from{}, to{};
    for (int i = 0; i < 16; i++) {
        if (row + i >= row_count(a)) continue;
        const RowPlace p = place(a, group, row + i);
        from[i] = int(at_least(p.first - first, 0));
        to[i] = int(at_least(0, at_most(p.last, last) - first));
    }
    vf most = splat(kNever);
    for (int64_t j = 0; j < padded; j++) {
        const vi at = vi{} + int(j);
        vf s = ((at >= from) & (at < to)) != 0 ? load(scores + j * 16) * splat(a.scale) : splat(kNever);
        store(scores + j * 16, s);
    }
    if (a.mask_kind != MaskKind::none)
        for (int64_t j = 0; j < count; j += 16) {
            const int some = int(at_most(16, count - j));
            vf bias[16]{};
            for (int i = 0; i < 16 && row + i < row_count(a); i++)
                bias[i] = mask_values(a, batch, place(a, group, row + i), first + j, some);
            transpose(bias);
            for (int i = 0; i < some; i++) store(scores + (j + i) * 16, load(scores + (j + i) * 16) + bias[i]);
        }
    for (int64_t j = 0; j < count; j++) most = max(most, load(scores + j * 16));
    const vf shift = settled(most);
    vf total{};
    for (int64_t j = 0; j < padded; j += 32, weights += 512) {
        __m512i high[16], low[16];
        for (int i = 0; i < 16; i++) {
            fetcher.more(1);
            const vf w0 = exp_below(load(scores + (j + 2 * i) * 16) - shift);
            const vf w1 = exp_below(load(scores + (j + 2 * i + 1) * 16) - shift);
            total += w0;
            total += w1;
            const vf h0 = widen_bf16(narrow_bf16(w0)), h1 = widen_bf16(narrow_bf16(w1));
            high[i] = pairs(w0, w1);
            low[i] = pairs(w0 - h0, w1 - h1);
        }
        transpose(high);
        transpose(low);
        for (int i = 0; i < 16; i++) {
            _mm512_store_si512(weights + i * 16, high[i]);
            _mm512_store_si512(weights + 256 + i * 16, low[i]);
        }
    }
    *m = most;
    *l = total;
}

// values[j / 2, d] = (v[j, d], v[j + 1, d]) for kPanel columns of keys [j, j + 32); zeros from `count` on. Columns come in the
// order that costs one instruction: of each 32 first those with d & 4 = 0, then the others. `in_order` undoes it.
inline void pack_panel(const bf16* v, int64_t v_row, int64_t j, int64_t count, uint32_t* values, Fetcher& fetcher) {
    const __m512i zero = _mm512_setzero_si512();
    values += j / 2 * kPanel;
    fetcher.more(4);
    for (const int64_t end = j + 32; j < end; j += 2, values += kPanel) {
        const bf16 *even = v + j * v_row, *odd = even + v_row;
        for (int half = 0; half < 2; half++) {
            const __m512i e = j < count ? _mm512_loadu_si512(even + 32 * half) : zero;
            const __m512i o = j + 1 < count ? _mm512_loadu_si512(odd + 32 * half) : zero;
            _mm512_store_si512(values + 32 * half, _mm512_unpacklo_epi16(e, o));
            _mm512_store_si512(values + 32 * half + 16, _mm512_unpackhi_epi16(e, o));
        }
    }
}

// 32 sums in the order of pack_panel to their own places.
inline void in_order(const float* from, float* to) {
    alignas(64) static constexpr auto order = [] {
        struct { int at[32]; } table{};
        for (int d = 0; d < 32; d++) table.at[d] = d / 8 * 4 + d % 4 + (d & 4) * 4;
        return table;
    }();
    const __m512 a = _mm512_loadu_ps(from), b = _mm512_loadu_ps(from + 16);
    _mm512_storeu_ps(to, _mm512_permutex2var_ps(a, _mm512_load_si512(&order.at[0]), b));
    _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(a, _mm512_load_si512(&order.at[16]), b));
}

inline void block_tiled(const Attention& a, int64_t batch, int64_t group, int64_t first, int64_t last, Fetcher& fetcher, float* partial,
                        void* scratch) {
    const TiledScratch t(a, scratch);
    const int64_t rows = row_count(a), stride = partial_stride(a), count = last - first, steps = (count + 31) / 32;
    const bf16 *k = row_of<bf16>(a.k, batch, group, first), *v = row_of<bf16>(a.v, batch, group, first);
    const int64_t tile_weights = kFewKeys / 32 * 512;
    const Tiles square;
    for (int64_t r = 0; r < rows; r += 16) {
        uint32_t* q = t.q + r / 16 * a.width * 8;
        pack_queries(a, batch, group, r, q);
        score_tile(a, k, count, q, t.keys, t.scores, fetcher);
        vf m, l;
        weigh_tile(a, batch, group, r, first, last, t.scores, t.weights + r / 16 * tile_weights, &m, &l, fetcher);
        for (int i = 0; i < 16 && r + i < rows; i++) partial[(r + i) * stride] = m[i], partial[(r + i) * stride + 1] = l[i];
    }
    const Tiles flat(int(at_most(rows, 16)));
    for (int64_t d = 0; d < a.value_width; d += kPanel) {
        pack_panel(v + d, a.v.row, 0, count, t.values, fetcher);
        for (int64_t r = 0; r < rows; r += 16) {
            const uint32_t *w = t.weights + r / 16 * tile_weights, *x = t.values;
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t s = 0; s < steps; s++, w += 512, x += 16 * kPanel) {
                if (r == 0 && s + 1 < steps) pack_panel(v + d, a.v.row, 32 * s + 32, count, t.values, fetcher);
                // Sums with the high and the low part of the weights alternate: a product takes 52 cycles to arrive.
                fetcher.more(4);
                _tile_loadd(4, w, 64);
                _tile_loadd(6, x, kPanel * 4);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, x + 16, kPanel * 4);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, w + 256, 64);
                _tile_dpbf16ps(0, 5, 6);
                _tile_dpbf16ps(1, 5, 7);
                _tile_loadd(6, x + 32, kPanel * 4);
                _tile_dpbf16ps(2, 4, 6);
                _tile_loadd(7, x + 48, kPanel * 4);
                _tile_dpbf16ps(3, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, t.o, kPanel * 4);
            _tile_stored(1, t.o + 16, kPanel * 4);
            _tile_stored(2, t.o + 32, kPanel * 4);
            _tile_stored(3, t.o + 48, kPanel * 4);
            for (int i = 0; i < 16 && r + i < rows; i++)
                for (int c = 0; c < kPanel; c += 32) in_order(t.o + i * kPanel + c, partial + (r + i) * stride + 2 + d + c);
        }
    }
}

}  // namespace optiq::OPTIQ_LEVEL

#endif
