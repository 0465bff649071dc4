// The derivative of attention, block of rows by block of keys; see AttentionGradient in attention.h for the formulas.

#include "kernels/attention_block.h"
#include "kernels/attention_product.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

constexpr int64_t kKeys = 128;  // keys per block

struct GradientScratch {
    float *q_columns, *q_rows, *d_columns, *d_rows;  // queries and dout, [width, kBlockRows] and [kBlockRows, width]
    float *p, *ds;                                   // [kKeys, kBlockRows]
    float *keys, *values;                            // [kKeys, width], where they are not read in place
    float* dq;                                       // [kBlockRows, width]
    size_t bytes;
    GradientScratch(const Attention& a, void* start) {
        float* at = static_cast<float*>(start);
        const auto take = [&](int64_t count) {
            float* mine = at;
            at += round_up(count, kLanes);
            return mine;
        };
        const int64_t width = padded_width(a.width), value_width = padded_width(a.value_width);
        q_columns = take(width * kBlockRows), q_rows = take(kBlockRows * width);
        d_columns = take(value_width * kBlockRows), d_rows = take(kBlockRows * value_width);
        p = take(kKeys * kBlockRows), ds = take(kKeys * kBlockRows);
        keys = take(kKeys * width), values = take(kKeys * value_width);
        dq = take(kBlockRows * width);
        bytes = size_t(at - static_cast<float*>(start)) * 4;
    }
};

// The block's rows of x as float32 rows, filled up with zeros to `to_row`; missing rows are zeros.
template <class T>
void rows_as_rows(const Block& b, const HeadRows& x, int64_t width, float* to, int64_t to_row) {
    for (int64_t r = 0; r < kBlockRows; r++, to += to_row) {
        if (r < b.rows)
            widen_rows(row_of<T>(x, b.batch, b.places[r].head, b.places[r].query), 0, 1, width, to, to_row);
        else
            std::memset(to, 0, size_t(to_row) * 4);
    }
}

// dout_i . out_i
template <class T>
float output_share(const AttentionGradient& a, int64_t batch, const RowPlace& p) {
    const T* d = row_of<T>(a.dout, batch, p.head, p.query);
    const T* o = static_cast<const T*>(a.forward.out) + out_row(a.forward, batch, p) * a.forward.value_width;
    vf total{};
    int64_t i = 0;
    for (; i + kLanes <= a.forward.value_width; i += kLanes) total = fma(load(d + i), load(o + i), total);
    if (i < a.forward.value_width) {
        const int left = int(a.forward.value_width - i);
        total = fma(load_part(d + i, left), load_part(o + i, left), total);
    }
    return sum(total);
}

// What the derivative needs to know of each row of a block.
struct RowFacts {
    vf logsumexp[kGroups];  // +infinity for rows that do not exist or that saw nothing: their weights become 0
    vf share[kGroups];      // D_i
    vf even[kGroups];       // 1 / S for rows that saw nothing and got the mean of all values, else 0
    bool blind = false;     // whether there are such rows
};

template <class T>
RowFacts facts_of(const AttentionGradient& g, const Block& b) {
    const Attention& a = g.forward;
    RowFacts f;
    for (int64_t i = 0; i < kGroups; i++) f.logsumexp[i] = splat(__builtin_inff()), f.share[i] = f.even[i] = vf{};
    for (int64_t r = 0; r < b.rows; r++) {
        const float lse = a.logsumexp[out_row(a, b.batch, b.places[r])];
        f.share[r / kLanes][r % kLanes] = output_share<T>(g, b.batch, b.places[r]);
        if (lse == kNever && a.mask_kind != MaskKind::additive) {
            f.even[r / kLanes][r % kLanes] = 1.f / float(a.keys);
            f.blind = true;
        } else {
            f.logsumexp[r / kLanes][r % kLanes] = lse;
        }
    }
    return f;
}

// Scores in s.p become weights, products dout . v in s.ds become scale dS.
void weigh(const Attention& a, const Block& b, const RowFacts& f, int64_t first, int64_t count, const GradientScratch& s) {
    for (int64_t g = 0; g < kGroups; g++) {
        const float scale = mask_scores(a, b, g, first, count, count, s.p + g * kLanes);
        for (int64_t j = 0; j < count; j++) {
            float *p = s.p + j * kBlockRows + g * kLanes, *ds = s.ds + j * kBlockRows + g * kLanes;
            const vf w = exp_below(fma(load(p), splat(scale), -f.logsumexp[g]));
            store(ds, w * (load(ds) - f.share[g]) * splat(a.scale));
            store(p, w + f.even[g]);
        }
    }
}

template <class T>
void block_of(const AttentionGradient& g, int64_t batch, int64_t group, int64_t first_row, int64_t last_row, float* dk, float* dv,
              const GradientScratch& s) {
    const Attention& a = g.forward;
    const int64_t width = padded_width(a.width), value_width = padded_width(a.value_width);
    const Block b = open_block(a, batch, group, first_row, last_row);
    const RowFacts f = facts_of<T>(g, b);
    const int64_t from = f.blind ? 0 : b.first_key, to = f.blind ? a.keys : b.last_key;
    std::memset(s.dq, 0, size_t(kBlockRows * width) * 4);
    columns_of_rows<T>(b, a.q, a.width, s.q_columns);
    columns_of_rows<T>(b, g.dout, a.value_width, s.d_columns);
    rows_as_rows<T>(b, a.q, a.width, s.q_rows, width);
    rows_as_rows<T>(b, g.dout, a.value_width, s.d_rows, value_width);
    const bool in_place = std::is_same_v<T, float>;
    for (int64_t first = from; first < to; first += kKeys) {
        const int64_t count = at_most(kKeys, to - first);
        if (!f.blind && !seen(a, b, first, count)) continue;
        const T *k = row_of<T>(a.k, batch, group, first), *v = row_of<T>(a.v, batch, group, first);
        const float *key = reinterpret_cast<const float*>(k), *value = reinterpret_cast<const float*>(v);
        int64_t key_row = a.k.row, value_row = a.v.row;
        if (!in_place || a.width % kLanes) {
            widen_rows(k, a.k.row, count, a.width, s.keys, width);
            key = s.keys, key_row = width;
        }
        if (!in_place) {
            widen_rows(v, a.v.row, count, a.value_width, s.values, value_width);
            value = s.values, value_row = value_width;
        }
        product<Singles>({key, key_row * 4, 4}, s.q_columns, kBlockRows, a.width, count, kBlockRows, s.p, kBlockRows, false);
        product<Singles>({value, value_row * 4, 4}, s.d_columns, kBlockRows, a.value_width, count, kBlockRows, s.ds, kBlockRows, false);
        weigh(a, b, f, first, count, s);
        product<Singles>({s.p, kBlockRows * 4, 4}, s.d_rows, value_width, b.rows, count, value_width, dv + first * value_width,
                         value_width, true);
        product<Singles>({s.ds, kBlockRows * 4, 4}, s.q_rows, width, b.rows, count, width, dk + first * width, width, true);
        product<Singles>({s.ds, 4, kBlockRows * 4}, key, key_row, count, b.rows, width, s.dq, width, true);
    }
    for (int64_t r = 0; r < b.rows; r++) {
        T* out = static_cast<T*>(g.dq) + out_row(a, batch, b.places[r]) * a.width;
        const float* dq = s.dq + r * width;
        int64_t d = 0;
        for (; d + kLanes <= a.width; d += kLanes) store(out + d, load(dq + d));
        for (; d < a.width; d++) narrow(dq[d], out + d);
    }
}

size_t scratch(const Attention& a) { return GradientScratch(a, nullptr).bytes; }

void block(const AttentionGradient& g, int64_t batch, int64_t group, int64_t part, int64_t parts, float* dk, float* dv,
           void* scratch) {
    const Attention& a = g.forward;
    const GradientScratch s(a, scratch);
    std::memset(dk, 0, size_t(a.keys * padded_width(a.width)) * 4);
    std::memset(dv, 0, size_t(a.keys * padded_width(a.value_width)) * 4);
    const int64_t rows = a.queries * heads_per_group(a);
    for (int64_t r = part * kBlockRows; r < rows; r += parts * kBlockRows)
        with_float(a.type, [&]<class T>(T*) { block_of<T>(g, batch, group, r, at_most(rows, r + kBlockRows), dk, dv, s); });
}

void add_parts(const float* from, int64_t parts, int64_t part_stride, int64_t rows, int64_t width, void* to, Float type) {
    const int64_t stride = padded_width(width);
    with_float(type, [&]<class T>(T*) {
        T* out = static_cast<T*>(to);
        for (int64_t i = 0; i < rows; i++, from += stride, out += width)
            for (int64_t d = 0; d < width; d += kLanes) {
                vf total = load(from + d);
                for (int64_t p = 1; p < parts; p++) total += load(from + p * part_stride + d);
                if (d + kLanes <= width)
                    store(out + d, total);
                else
                    store_part(out + d, total, int(width - d));
            }
    });
}

float sink(const AttentionGradient& g, int64_t head) {
    const Attention& a = g.forward;
    float total = 0.f;
    for (int64_t batch = 0; batch < a.batches; batch++)
        for (int64_t query = 0; query < a.queries; query++) {
            const RowPlace p{head, query, 0, 0};
            const float weight = exp_below(a.sinks[head] - a.logsumexp[out_row(a, batch, p)]);
            total -= weight * with_float(a.type, [&]<class T>(T*) { return output_share<T>(g, batch, p); });
        }
    return total;
}

}  // namespace

const GradientAttention gradient_attention_table{scratch, block, add_parts, sink};

}  // namespace optiq::OPTIQ_LEVEL
