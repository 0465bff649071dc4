// Attention of many query rows: blocks of kBlockRows rows of a group against blocks of keys, bound by arithmetic.
//
// Scores are computed as keys times queries, so that a vector holds one key's scores for sixteen rows: the largest score,
// the sum and the exponentials need no sums across lanes, and keys are read where they lie.

#include "kernels/attention_block.h"
#include "kernels/attention_product.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

constexpr int64_t kMostKeys = 256;  // keys per block of pairs; half of them for singles, which are twice as wide

inline bool paired(const Attention& a) {
#if defined(__AVX512BF16__)
    return a.type == Float::bf16;
#else
    (void)a;
    return false;
#endif
}

// Strides of the prepared forms, in elements. The odd cache line keeps rows of a tile out of each other's way.
inline int64_t pair_stride(const Attention& a) { return round_up(a.value_width, 32) + 16; }  // 32-bit pairs
inline int64_t key_stride(const Attention& a) { return round_up(a.width, 32); }
inline int64_t o_stride(const Attention& a) { return round_up(a.value_width, 32) + 16; }
inline bool keys_padded(const Attention& a) { return a.width % 32 != 0; }
inline int64_t values_bytes(const Attention& a) { return round_up(a.keys, 32) / 2 * pair_stride(a) * 4; }

// The new largest score of 16 rows, and by what their sums have to shrink.
vf raise(Block& b, int64_t g, int64_t padded, const float* scores, float scale) {
    vf most = b.most[g], other = splat(kNever);
    for (int64_t j = 0; j < padded; j += 2) {
        most = max(most, load(scores + j * kBlockRows) * splat(scale));
        other = max(other, load(scores + (j + 1) * kBlockRows) * splat(scale));
    }
    most = max(most, other);
    const vf shrink = exp_below(b.most[g] - settled(most));
    b.most[g] = most;
    b.total[g] *= shrink;
    return shrink;
}

void shrink_rows(float* o, int64_t stride, int64_t columns, vf shrink) {
    for (int i = 0; i < kLanes; i++, o += stride) {
        if (shrink[i] == 1.f) continue;
        const vf by = splat(shrink[i]);
        for (int64_t d = 0; d < columns; d += kLanes) store(o + d, load(o + d) * by);
    }
}

void close_block(const Attention& a, const Block& b, const float* o) {
    for (int64_t r = 0; r < b.rows; r++)
        finish_row(a, b.batch, b.group, b.places[r], b.most[r / kLanes][r % kLanes], b.total[r / kLanes][r % kLanes],
                   o + r * o_stride(a));
}

// ---- single floats --------------------------------------------------------------------------------------------------

struct SingleScratch {
    float *q, *scores, *o, *keys, *values;
    size_t bytes;
    SingleScratch(const Attention& a, void* start) {
        float* at = static_cast<float*>(start);
        const auto take = [&](int64_t count) {
            float* mine = at;
            at += round_up(count, 16);
            return mine;
        };
        q = take(a.width * kBlockRows);
        scores = take(kMostKeys / 2 * kBlockRows);
        o = take(kBlockRows * o_stride(a));
        keys = take(kMostKeys / 2 * a.width);
        values = take(kMostKeys / 2 * round_up(a.value_width, kLanes));
        bytes = size_t(at - static_cast<float*>(start)) * 4;
    }
};

template <class T>
void rows_single(const Attention& a, Block& b, void* scratch) {
    const SingleScratch s(a, scratch);
    const int64_t columns = round_up(a.value_width, kLanes), stride = o_stride(a);
    columns_of_rows<T>(b, a.q, a.width, s.q);
    std::memset(s.o, 0, size_t(kBlockRows * stride) * 4);
    for (int64_t first = b.first_key; first < b.last_key; first += kMostKeys / 2) {
        const int64_t count = at_most(kMostKeys / 2, b.last_key - first), padded = round_up(count, 2);
        if (!seen(a, b, first, count)) continue;
        const T *k = row_of<T>(a.k, b.batch, b.group, first), *v = row_of<T>(a.v, b.batch, b.group, first);
        Left keys{k, a.k.row * 4, 4};
        const float* values = reinterpret_cast<const float*>(v);
        int64_t values_row = a.v.row;
        if (!std::is_same_v<T, float>) {
            widen_rows(k, a.k.row, count, a.width, s.keys, a.width);
            keys = {s.keys, a.width * 4, 4};
        }
        if (!std::is_same_v<T, float> || a.value_width % kLanes) {
            widen_rows(v, a.v.row, count, a.value_width, s.values, columns);
            values = s.values, values_row = columns;
        }
        product<Singles>(keys, s.q, kBlockRows, a.width, count, kBlockRows, s.scores, kBlockRows, false);
        for (int64_t g = 0; g * kLanes < b.rows; g++) {
            float* scores = s.scores + g * kLanes;
            const float scale = mask_scores(a, b, g, first, count, padded, scores);
            shrink_rows(s.o + g * kLanes * stride, stride, columns, raise(b, g, padded, scores, scale));
            const vf shift = settled(b.most[g]);
            vf total = b.total[g];
            for (int64_t j = 0; j < count; j++) {
                const vf w = exp_below(fma(load(scores + j * kBlockRows), splat(scale), -shift));
                total += w;
                store(scores + j * kBlockRows, w);
            }
            b.total[g] = total;
        }
        product<Singles>({s.scores, 4, kBlockRows * 4}, values, values_row, count, b.rows, columns, s.o, stride, true);
    }
    close_block(a, b, s.o);
}

// ---- pairs of bfloat16 ----------------------------------------------------------------------------------------------

#if defined(__AVX512BF16__)

struct PairScratch {
    uint32_t* q;        // [D / 2, kBlockRows]
    float* scores;      // [kMostKeys, kBlockRows]
    uint32_t* weights;  // pairs of keys: [kMostKeys / 2, kBlockRows], or tiles [kGroups, kMostKeys / 32, 16, 16]
    float* o;
    uint16_t* keys;  // [32, D]: the last keys, where a tile would reach beyond the end of memory
    size_t bytes;
    PairScratch(const Attention& a, void* start) {
        char* at = static_cast<char*>(start);
        const auto take = [&](int64_t size) {
            char* mine = at;
            at += round_up(size, 64);
            return mine;
        };
        q = reinterpret_cast<uint32_t*>(take(key_stride(a) / 2 * kBlockRows * 4));
        scores = reinterpret_cast<float*>(take(kMostKeys * kBlockRows * 4));
        weights = reinterpret_cast<uint32_t*>(take(kMostKeys / 2 * kBlockRows * 4));
        o = reinterpret_cast<float*>(take(kBlockRows * o_stride(a) * 4));
        keys = reinterpret_cast<uint16_t*>(take(32 * key_stride(a) * 2));
        bytes = size_t(at - static_cast<char*>(start));
    }
};

// 32 bfloat16, or the `left` ones that are there and zeros.
inline __m512i load_pairs(const bf16* p, int64_t left) {
    if (left >= 32) return _mm512_loadu_si512(p);
    return _mm512_maskz_loadu_epi16(left <= 0 ? 0 : __mmask32((uint64_t(1) << left) - 1), p);
}

void pack_pair_queries(const Attention& a, const Block& b, uint32_t* q) {
    for (int64_t g = 0; g < kGroups; g++)
        for (int64_t d = 0; d < key_stride(a); d += 32) {
            __m512i r[16];
            for (int64_t i = 0; i < 16; i++) {
                r[i] = _mm512_setzero_si512();
                if (g * 16 + i >= b.rows) continue;
                const RowPlace& p = b.places[g * 16 + i];
                r[i] = load_pairs(row_of<bf16>(a.q, b.batch, p.head, p.query) + d, a.width - d);
            }
            transpose(r);
            for (int i = 0; i < 16; i++) _mm512_store_si512(q + (d / 2 + i) * kBlockRows + g * 16, r[i]);
        }
}

// values[j / 2, d] = (v[j, d], v[j + 1, d]) for keys [first, last), first even; zeros beyond the last key and column.
void pack_values(const Attention& a, int64_t batch, int64_t group, int64_t first, int64_t last, uint32_t* values) {
    const int64_t stride = pair_stride(a);
    for (int64_t j = first; j < last; j += 2) {
        const bf16 *even = row_of<bf16>(a.v, batch, group, j), *odd = even + a.v.row;
        for (int64_t d = 0; d < round_up(a.value_width, 32); d += 32) {
            const int64_t left = a.value_width - d;
            const __m512i e = j < a.keys ? load_pairs(even + d, left) : _mm512_setzero_si512();
            const __m512i o = j + 1 < a.keys ? load_pairs(odd + d, left) : _mm512_setzero_si512();
            __m512i low, high;
            interleave(e, o, low, high);
            _mm512_storeu_si512(values + j / 2 * stride + d, low);
            _mm512_storeu_si512(values + j / 2 * stride + d + 16, high);
        }
    }
}

#if defined(__AMX_BF16__)

// scores[j, row] for 32 keys.
inline void score_tiles(const char* k, int64_t k_row, const uint32_t* q, int64_t width, float* scores) {
    for (int64_t half = 0; half < kBlockRows; half += 32) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t d = 0; d < width; d += 32) {
            const uint32_t* x = q + d / 2 * kBlockRows + half;
            _tile_loadd(4, k + d * 2, k_row);
            _tile_loadd(6, x, kBlockRows * 4);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(5, k + 16 * k_row + d * 2, k_row);
            _tile_dpbf16ps(2, 5, 6);
            _tile_loadd(7, x + 16, kBlockRows * 4);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, scores + half, kBlockRows * 4);
        _tile_stored(1, scores + half + 16, kBlockRows * 4);
        _tile_stored(2, scores + 16 * kBlockRows + half, kBlockRows * 4);
        _tile_stored(3, scores + 16 * kBlockRows + half + 16, kBlockRows * 4);
    }
}

// o += weights values for `steps` times 32 keys.
void add_values(const Attention& a, const uint32_t* weights, const uint32_t* values, int64_t steps, float* o) {
    const int64_t from = pair_stride(a), to = o_stride(a), tile_row = kMostKeys / 32 * 256;
    for (int64_t d = 0; d < round_up(a.value_width, 32); d += 32)
        for (int64_t g = 0; g < kGroups; g += 2) {
            float *low = o + g * 16 * to + d, *high = low + 16 * to;
            _tile_loadd(0, low, to * 4);
            _tile_loadd(1, low + 16, to * 4);
            _tile_loadd(2, high, to * 4);
            _tile_loadd(3, high + 16, to * 4);
            const uint32_t *w = weights + g * tile_row, *x = values + d;
            for (int64_t s = 0; s < steps; s++, w += 256, x += 16 * from) {
                _tile_loadd(4, w, 64);
                _tile_loadd(6, x, from * 4);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(5, w + tile_row, 64);
                _tile_dpbf16ps(2, 5, 6);
                _tile_loadd(7, x + 16, from * 4);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, low, to * 4);
            _tile_stored(1, low + 16, to * 4);
            _tile_stored(2, high, to * 4);
            _tile_stored(3, high + 16, to * 4);
        }
}

#endif

// Scores of 16 rows become weights; they are added to `total` before they are rounded.
void weigh_pairs(Block& b, int64_t g, int64_t padded, const float* scores, float scale, uint32_t* weights) {
    const vf shift = settled(b.most[g]);
    vf even = b.total[g], odd{};
    for (int64_t j = 0; j < padded; j += 32) {
        __m512i r[16];
        for (int i = 0; i < 16; i++) {
            const vf w0 = exp_below(fma(load(scores + (j + 2 * i) * kBlockRows), splat(scale), -shift));
            const vf w1 = exp_below(fma(load(scores + (j + 2 * i + 1) * kBlockRows), splat(scale), -shift));
            even += w0;
            odd += w1;
            r[i] = pairs(w0, w1);
        }
#if defined(__AMX_BF16__)
        transpose(r);
        for (int i = 0; i < 16; i++) _mm512_store_si512(weights + (g * kMostKeys / 32 + j / 32) * 256 + i * 16, r[i]);
#else
        for (int i = 0; i < 16; i++) _mm512_store_si512(weights + (j / 2 + i) * kBlockRows + g * 16, r[i]);
#endif
    }
    b.total[g] = even + odd;
}

void score_pairs(const Attention& a, const bf16* k, int64_t k_row, int64_t count, const PairScratch& s) {
    const int64_t width = key_stride(a);
#if defined(__AMX_BF16__)
    for (int64_t j = 0; j < count; j += 32) {
        const bf16* keys = k + j * k_row;
        int64_t stride = k_row * 2;
        if (count - j < 32) {
            std::memset(s.keys, 0, size_t(32 * width) * 2);
            for (int64_t i = 0; i < count - j; i++) std::memcpy(s.keys + i * width, keys + i * k_row, size_t(width) * 2);
            keys = reinterpret_cast<const bf16*>(s.keys);
            stride = width * 2;
        }
        score_tiles(reinterpret_cast<const char*>(keys), stride, s.q, width, s.scores + j * kBlockRows);
    }
#else
    product<Pairs>({k, k_row * 2, 4}, reinterpret_cast<const float*>(s.q), kBlockRows, width / 2, count, kBlockRows, s.scores,
                   kBlockRows, false);
#endif
}

void rows_pairs(const Attention& a, Block& b, const void* packed, void* scratch) {
#if defined(__AMX_BF16__)
    const Tiles tiles;
#endif
    const PairScratch s(a, scratch);
    const int64_t columns = round_up(a.value_width, 32), stride = o_stride(a);
    const uint32_t* values = static_cast<const uint32_t*>(packed);
    pack_pair_queries(a, b, s.q);
    std::memset(s.o, 0, size_t(kBlockRows * stride) * 4);
    for (int64_t first = b.first_key / 32 * 32; first < b.last_key; first += kMostKeys) {
        const int64_t count = at_most(kMostKeys, b.last_key - first), padded = round_up(count, 32);
        if (!seen(a, b, first, count)) continue;
        const bf16* k = row_of<bf16>(a.k, b.batch, b.group, first);
        int64_t k_row = a.k.row;
        if (keys_padded(a)) {
            k_row = key_stride(a);
            k = reinterpret_cast<const bf16*>(static_cast<const char*>(packed) + values_bytes(a)) + first * k_row;
        }
        score_pairs(a, k, k_row, count, s);
        for (int64_t g = 0; g < kGroups; g++) {
            float* scores = s.scores + g * 16;
            const float scale = mask_scores(a, b, g, first, count, padded, scores);
            shrink_rows(s.o + g * 16 * stride, stride, columns, raise(b, g, padded, scores, scale));
            weigh_pairs(b, g, padded, scores, scale, s.weights);
        }
        const uint32_t* block_values = values + first / 2 * pair_stride(a);
#if defined(__AMX_BF16__)
        add_values(a, s.weights, block_values, padded / 32, s.o);
#else
        product<Pairs>({s.weights, 4, kBlockRows * 4}, reinterpret_cast<const float*>(block_values), pair_stride(a), padded / 2,
                       b.rows, columns, s.o, stride, true);
#endif
    }
    close_block(a, b, s.o);
}

#endif

size_t packed_bytes(const Attention& a) {
    if (!paired(a)) return 0;
    return size_t(round_up(values_bytes(a) + (keys_padded(a) ? a.keys * key_stride(a) * 2 : 0), 64));
}

void pack(const Attention& a, int64_t batch, int64_t group, int64_t first, int64_t last, void* packed) {
#if defined(__AVX512BF16__)
    pack_values(a, batch, group, first, round_up(last, 32), static_cast<uint32_t*>(packed));
    if (!keys_padded(a)) return;
    bf16* keys = reinterpret_cast<bf16*>(static_cast<char*>(packed) + values_bytes(a));
    for (int64_t j = first; j < last; j++)
        for (int64_t d = 0; d < key_stride(a); d += 32)
            _mm512_storeu_si512(keys + j * key_stride(a) + d,
                                load_pairs(row_of<bf16>(a.k, batch, group, j) + d, a.width - d));
#else
    (void)a, (void)batch, (void)group, (void)first, (void)last, (void)packed;
#endif
}

size_t scratch(const Attention& a) {
#if defined(__AVX512BF16__)
    if (paired(a)) return PairScratch(a, nullptr).bytes;
#endif
    return SingleScratch(a, nullptr).bytes;
}

void rows(const Attention& a, int64_t batch, int64_t group, int64_t first, int64_t last, const void* packed, void* scratch) {
    Block b = open_block(a, batch, group, first, last);
#if defined(__AVX512BF16__)
    if (paired(a)) return rows_pairs(a, b, packed, scratch);
#endif
    (void)packed;
    with_float(a.type, [&]<class T>(T*) { rows_single<T>(a, b, scratch); });
}

}  // namespace

const ManyAttention many_attention_table{packed_bytes, pack, scratch, rows};

}  // namespace optiq::OPTIQ_LEVEL
