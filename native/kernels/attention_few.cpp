// Attention of few query rows (a token that is generated, some drafted ones) over many keys: bound by memory.
//
// Every row runs through the same operations whatever the other rows are: scores are sums over d in one order, keys that a
// row does not see weigh exactly 0, and rows that fill a tile up are zeros.

#include "kernels/attention_few.h"
#include "kernels/attention_few_tiled.h"
#include "kernels/register.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

// kRowTile kKeyTile sums and kRowTile kWide sums in registers.
#if defined(__AVX512F__)
constexpr int kKeyTile = 4, kRowTile = 4, kWide = 4;
#else
constexpr int kKeyTile = 2, kRowTile = 4, kWide = 2;
#endif

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
