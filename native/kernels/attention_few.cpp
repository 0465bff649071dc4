// Attention of few query rows (a token that is generated, some drafted ones) over many keys: bound by memory.
//
// Every row runs through the same operations whatever the other rows are: scores are sums over d in one order, keys that a
// row does not see weigh exactly 0, and rows that fill a tile up are zeros.

#include "kernels/attention_rows.h"
#include "kernels/register.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

// kRowTile kKeyTile sums and kRowTile kWide sums in registers.
#if defined(__AVX512F__)
constexpr int kKeyTile = 4, kRowTile = 4, kWide = 4;
#else
constexpr int kKeyTile = 2, kRowTile = 4, kWide = 2;
#endif

inline int64_t row_count(const Attention& a) { return a.queries * heads_per_group(a); }
inline int64_t partial_stride(const Attention& a) { return a.value_width + 2; }

// Brings to the second cache what comes next, a few rows at a time: the values of a block while its keys are met, the keys of
// the next block while its values are. Tiles read sixteen rows at a time, which the processor's own prefetch does not follow.
class Fetcher {
  public:
    Fetcher(const Attention& a, int64_t batch, int64_t group, int64_t first, int64_t count, int64_t next) {
        const int64_t size = float_bytes(a.type);
        const auto rows_of = [&](const HeadRows& x, int64_t width, int64_t from, int64_t rows) -> Rows {
            return {static_cast<const char*>(x.data) + (batch * x.batch + group * x.head + from * x.row) * size, x.row * size,
                    round_up(width * size, 64), rows};
        };
        now_ = rows_of(a.v, a.value_width, first, count);
        then_ = rows_of(a.k, a.width, first + count, next);
    }

    void more(int rows) {
        for (; rows > 0 && now_.count > 0; rows--) {
            for (int64_t at = 0; at < now_.bytes; at += 64) _mm_prefetch(now_.start + at, _MM_HINT_T1);
            now_.start += now_.step;
            if (--now_.count == 0) {
                now_ = then_;
                then_.count = 0;
            }
        }
    }

  private:
    struct Rows {
        const char* start = nullptr;
        int64_t step = 0, bytes = 0, count = 0;
    };
    Rows now_, then_;
};

// Scores of kRowTile rows of q [rows, padded width] with keys [first, last), times scale, to scores[row * kFewKeys + j].
template <class T>
void score_rows(const Attention& a, int64_t batch, int64_t group, int64_t first, int64_t last, const float* q, int64_t q_stride,
                float* scores, Fetcher& fetcher) {
    const int64_t whole = a.width / kRegister * kRegister;
    const int part = int(a.width - whole);
    for (int64_t j = first; j < last; j += kKeyTile) {
        fetcher.more(kKeyTile);
        const T* k[kKeyTile];
        for (int n = 0; n < kKeyTile; n++) k[n] = row_of<T>(a.k, batch, group, at_most(j + n, last - 1));
        vr total[kRowTile * kKeyTile]{};
        for (int64_t d = 0; d < whole; d += kRegister) {
            vr x[kKeyTile];
            for (int n = 0; n < kKeyTile; n++) x[n] = load_register(k[n] + d);
            for (int r = 0; r < kRowTile; r++) {
                const vr y = load_register(q + r * q_stride + d);
                for (int n = 0; n < kKeyTile; n++) total[r * kKeyTile + n] += x[n] * y;
            }
        }
        if (part)
            for (int n = 0; n < kKeyTile; n++) {
                const vr x = load_register_part(k[n] + whole, part);
                for (int r = 0; r < kRowTile; r++) total[r * kKeyTile + n] += x * load_register(q + r * q_stride + whole);
            }
        float* to = scores + j - first;
#if defined(__AVX512F__)
        const vf s = sums(total);
        for (int r = 0; r < kRowTile; r++)
            for (int n = 0; n < kKeyTile; n++) to[r * kFewKeys + n] = s[r * kKeyTile + n];
#else
        for (int r = 0; r < kRowTile; r++)
            for (int n = 0; n < kKeyTile; n++) to[r * kFewKeys + n] = sum_register(total[r * kKeyTile + n]);
#endif
    }
}

// Scores of one row become weights exp(s - m); keys [first, last), `scores` padded to kFewKeys. Returns m and l.
void weigh_row(const Attention& a, int64_t batch, const RowPlace& p, int64_t first, int64_t last, float* scores, float* m, float* l) {
    vf most = splat(kNever);
    vi lane;
    for (int i = 0; i < kLanes; i++) lane[i] = i;
    const int count = int(last - first);
    const int from = int(at_least(p.first - first, 0)), to = int(at_least(0, at_most(p.last, last) - first));
    for (int j = 0; j < kFewKeys; j += kLanes) {
        vf s = load(scores + j) * splat(a.scale);
        if (a.mask_kind != MaskKind::none && j < count) s += mask_values(a, batch, p, first + j, count - j);
        const vi at = lane + j;
        s = ((at >= from) & (at < to)) != 0 ? s : splat(kNever);
        store(scores + j, s);
        most = max(most, s);
    }
    const float top = largest(most);
    const vf shift = splat(top == kNever ? 0.f : top);
    vf total{};
    for (int j = 0; j < kFewKeys; j += kLanes) {
        const vf w = exp_below(load(scores + j) - shift);
        store(scores + j, w);
        total += w;
    }
    *m = top;
    *l = sum(total);
}

// o[r, d] = sum_j weights[r, j] v[j, d] for kRowTile rows and WIDE registers of d, or the first `part` columns of one.
template <class T, int WIDE, bool PART>
inline void value_columns(const T* v, int64_t v_row, int64_t count, const float* weights, float* o, int64_t o_stride, int rows,
                          int part, Fetcher& fetcher) {
    vr total[kRowTile][WIDE]{};
    for (int64_t j = 0; j < count; j++, v += v_row) {
        if (j % 4 == 0) fetcher.more(1);
        vr x[WIDE];
        for (int c = 0; c < WIDE; c++) x[c] = PART ? load_register_part(v, part) : load_register(v + c * kRegister);
        for (int r = 0; r < kRowTile; r++) {
            const vr w = weights[r * kFewKeys + j] - vr{};
            for (int c = 0; c < WIDE; c++) total[r][c] += w * x[c];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < WIDE; c++) {
            if (PART)
                for (int i = 0; i < part; i++) o[r * o_stride + i] = total[r][c][i];
            else
                store_register(o + r * o_stride + c * kRegister, total[r][c]);
        }
}

template <class T>
void block_of(const Attention& a, int64_t batch, int64_t group, int64_t first, int64_t last, Fetcher& fetcher, float* partial,
              void* scratch) {
    const int64_t rows = row_count(a), stride = partial_stride(a), q_stride = round_up(a.width, kLanes);
    float* q = static_cast<float*>(scratch);
    float* scores = q + kRowTile * q_stride;
    const T* v = row_of<T>(a.v, batch, group, first);
    for (int64_t r = 0; r < rows; r += kRowTile) {
        const int here = int(at_most(kRowTile, rows - r));
        for (int64_t i = 0; i < kRowTile * q_stride; i++) q[i] = 0.f;
        for (int i = 0; i < here; i++) {
            const RowPlace p = place(a, group, r + i);
            const T* from = row_of<T>(a.q, batch, p.head, p.query);
            for (int64_t d = 0; d < a.width; d++) q[i * q_stride + d] = widen(from[d]);
        }
        score_rows<T>(a, batch, group, first, last, q, q_stride, scores, fetcher);
        for (int i = 0; i < here; i++) {
            float* to = partial + (r + i) * stride;
            weigh_row(a, batch, place(a, group, r + i), first, last, scores + i * kFewKeys, to, to + 1);
        }
        float* o = partial + r * stride + 2;
        int64_t d = 0;
        for (; d + kWide * kRegister <= a.value_width; d += kWide * kRegister)
            value_columns<T, kWide, false>(v + d, a.v.row, last - first, scores, o + d, stride, here, 0, fetcher);
        for (; d + kRegister <= a.value_width; d += kRegister)
            value_columns<T, 1, false>(v + d, a.v.row, last - first, scores, o + d, stride, here, 0, fetcher);
        if (d < a.value_width)
            value_columns<T, 1, true>(v + d, a.v.row, last - first, scores, o + d, stride, here, int(a.value_width - d),
                                      fetcher);
    }
}

#if defined(__AMX_BF16__)

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

void pack_queries(const Attention& a, int64_t batch, int64_t group, int64_t row, uint32_t* q) {
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
void score_tile(const Attention& a, const bf16* k, int64_t count, const uint32_t* q, uint16_t* tail, float* scores,
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
void weigh_tile(const Attention& a, int64_t batch, int64_t group, int64_t row, int64_t first, int64_t last, float* scores,
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
void pack_panel(const bf16* v, int64_t v_row, int64_t j, int64_t count, uint32_t* values, Fetcher& fetcher) {
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
void in_order(const float* from, float* to) {
    alignas(64) static constexpr auto order = [] {
        struct { int at[32]; } table{};
        for (int d = 0; d < 32; d++) table.at[d] = d / 8 * 4 + d % 4 + (d & 4) * 4;
        return table;
    }();
    const __m512 a = _mm512_loadu_ps(from), b = _mm512_loadu_ps(from + 16);
    _mm512_storeu_ps(to, _mm512_permutex2var_ps(a, _mm512_load_si512(&order.at[0]), b));
    _mm512_storeu_ps(to + 16, _mm512_permutex2var_ps(a, _mm512_load_si512(&order.at[16]), b));
}

void block_tiled(const Attention& a, int64_t batch, int64_t group, int64_t first, int64_t last, Fetcher& fetcher, float* partial,
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

#endif

size_t scratch(const Attention& a) {
#if defined(__AMX_BF16__)
    if (tiled(a)) return TiledScratch(a, nullptr).bytes;
#endif
    return size_t(kRowTile * (round_up(a.width, kLanes) + kFewKeys) + kKeyTile) * 4;
}

void block(const Attention& a, int64_t batch, int64_t group, int64_t block, bool next, float* partial, void* scratch) {
    const int64_t first = block * kFewKeys, last = at_most(a.keys, first + kFewKeys);
    Fetcher fetcher(a, batch, group, first, last - first, next ? at_most(a.keys - last, kFewKeys) : 0);
#if defined(__AMX_BF16__)
    if (tiled(a)) return block_tiled(a, batch, group, first, last, fetcher, partial, scratch);
#endif
    with_float(a.type, [&]<class T>(T*) { block_of<T>(a, batch, group, first, last, fetcher, partial, scratch); });
}

void combine(const Attention& a, int64_t batch, int64_t group, int64_t blocks, const float* partial) {
    const int64_t rows = row_count(a), stride = partial_stride(a), width = a.value_width;
    for (int64_t r = 0; r < rows; r++) {
        const auto at = [&](int64_t b) { return const_cast<float*>(partial) + (b * rows + r) * stride; };
        float most = kNever;
        for (int64_t b = 0; b < blocks; b++) most = at(b)[0] > most ? at(b)[0] : most;
        const float shift = most == kNever ? 0.f : most;
        float *sum_of = at(0), total = 0.f;
        for (int64_t b = 0; b < blocks; b++) {
            const float *p = at(b), w = exp_below(p[0] - shift);
            total += w * p[1];
            // Into the first block's place, whose own values are read before they are replaced.
            const vf by = splat(w);
            int64_t d = 0;
            for (; d + kLanes <= width; d += kLanes)
                store(sum_of + 2 + d, fma(load(p + 2 + d), by, b ? load(sum_of + 2 + d) : vf{}));
            for (; d < width; d++) sum_of[2 + d] = p[2 + d] * w + (b ? sum_of[2 + d] : 0.f);
        }
        finish_row(a, batch, group, place(a, group, r), most, total, sum_of + 2);
    }
}

}  // namespace

const FewAttention few_attention_table{scratch, block, combine};

}  // namespace optiq::OPTIQ_LEVEL
