// What the forms of attention over packed tokens share: fixed-point numbers, and scores that become weights.
#pragma once

#include "kernels/attention_rows.h"
#include "kernels/hadamard.h"
#include "kernels/levels.h"
#include "kernels/packed.h"

namespace optiq::OPTIQ_LEVEL {

constexpr float kFixedSteps = 32639.f;  // 127 * 256 + 127: the largest sum of a signed high and a signed low byte

inline int64_t packed_partial_stride(const PackedAttention& a) { return a.full.width + 2; }

// The factor that makes x[0, count) fixed-point numbers and the step that undoes it; `plain` is any sum that is not finite where
// a value is not: it must not vanish in the integers, so the step carries it.
struct FixedPoint {
    float factor, step;
    FixedPoint(float most, float plain)
        : factor(most > 0.f ? kFixedSteps / most : 0.f), step(plain - plain == 0.f ? most / kFixedSteps : plain) {}

    vi of(vf x) const {
        const vf magic = splat(12582912.f);
        return (vi)fma(x, splat(factor), magic) - (vi)magic;  // rounds, see exp
    }
};

// fixed[d] of the rotated query of a row, and its step. `fixed` has room for a multiple of 16.
inline float rotated_query(const PackedAttention& a, int64_t batch, int64_t group, int64_t row, int32_t* fixed) {
    alignas(64) float y[kPackedWidth];
    const int64_t width = a.full.width;
    const RowPlace p = place(a.full, group, row);
    with_float(a.full.type, [&]<class T>(T*) {
        const T* from = row_of<T>(a.full.q, batch, p.head, p.query);
        const float* undo = a.key_undo + group * width;
        int64_t d = 0;
        for (; d + kLanes <= width; d += kLanes) store(y + d, load(from + d) * load(undo + d));
        if (d < width) store(y + d, load_part(from + d, int(width - d)) * load_part(undo + d, int(width - d)));
    });
    transform(y, width);
    vf most{}, total{};
    for (int64_t d = 0; d < padded16(width); d += kLanes) {
        const vf v = load(y + d);
        most = max(most, max(v, -v));
        total += v;
    }
    const FixedPoint point(largest(most), sum(total));
    for (int64_t d = 0; d < width; d += kLanes) *reinterpret_cast<vi*>(fixed + d) = point.of(load(y + d));
    return point.step;
}

// The scales of a block's tokens, zeros up to kPackedKeys.
inline void load_scales(const PackedRows& x, int64_t batch, int64_t group, int64_t first, int64_t count, float* out) {
    const uint16_t* from = x.scale_of(batch, group, first);
    int64_t j = 0;
    if (x.scales.row == 1)
        for (; j + kLanes <= count; j += kLanes) store(out + j, load(reinterpret_cast<const bf16*>(from + j)));
    for (; j < count; j++) out[j] = bf16_to_float(from[j * x.scales.row]);
    for (; j < kPackedKeys; j++) out[j] = 0.f;
}

// One block of packed tokens as one group meets it.
struct PackedBlock {
    int64_t batch, group, first, count;
    alignas(64) float key_scales[kPackedKeys];
    alignas(64) float value_scales[kPackedKeys];

    PackedBlock(const PackedAttention& a, int64_t batch, int64_t group, int64_t block)
        : batch(batch), group(group), first(block * kPackedKeys), count(at_most(kPackedKeys, a.tokens - first)) {
        load_scales(a.keys, batch, group, first, count, key_scales);
        load_scales(a.values, batch, group, first, count, value_scales);
    }
};

// Which of the block's tokens a row sees, masks aside: from its start, and none beyond its own position.
struct Seen {
    int from, to;
    Seen(const PackedAttention& a, const PackedBlock& b, int64_t query) {
        const int64_t start = a.starts ? a.starts[b.batch] : 0;
        const int64_t end = a.full.mask_kind == MaskKind::none ? a.tokens + a.full.keys - a.full.queries + query + 1 : a.tokens;
        from = int(at_most(at_least(start - b.first, 0), kPackedKeys));
        to = int(at_least(0, at_most(end - b.first, b.count)));
    }
};

// True where no row of the group sees anything of the block.
inline bool unseen(const PackedAttention& a, const PackedBlock& b) {
    const Seen last(a, b, a.full.queries - 1);
    return last.from >= last.to;
}

// A score's mask, in place of what is not seen; the numbers of the lanes are j, j + 1, ..
inline vf masked_score(const PackedAttention& a, const PackedBlock& b, const RowPlace& p, const Seen& seen, int j, vf s) {
    alignas(64) static constexpr int32_t lane[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    if (a.full.mask_kind != MaskKind::none) {
        Attention masked = a.full;
        masked.mask = a.mask;
        if (j < b.count) s += mask_values(masked, b.batch, p, b.first + j, int(at_most(kLanes, b.count - j)));
    }
    const vi at = *reinterpret_cast<const vi*>(lane) + j;
    return ((at >= seen.from) & (at < seen.to)) != 0 ? s : splat(kNever);
}

constexpr int64_t kWeighRows = 8;

// Integer scores [rows, kPackedKeys] of `count` rows, at most kWeighRows, become weights w = exp(s - m) times the values' scales, as
// fixed-point numbers: put(row, j, sixteen of them). Writes m and l to `partial`,
// and the numbers' steps. Three passes over all of them, so that rows do not wait for one another's sums.
template <class F>
inline void weigh_packed(const PackedAttention& a, const PackedBlock& b, int64_t row, int64_t count, const float* query_steps,
                         int32_t* scores, float* steps, float* partial, const F& put) {
    const int64_t stride = packed_partial_stride(a);
    const int padded = int(round_up(b.count, kLanes));
    vf most[kWeighRows], total[kWeighRows];
    for (int64_t r = 0; r < count; r++) {
        const RowPlace p = place(a.full, b.group, row + r);
        const Seen seen(a, b, p.query);
        const bool all = a.full.mask_kind == MaskKind::none && seen.from == 0 && seen.to == padded;
        const vf by = splat(query_steps[row + r] * a.full.scale);
        int32_t* from = scores + r * kPackedKeys;
        vf top = splat(kNever);
        for (int j = 0; j < padded; j += kLanes) {
            vf s = __builtin_convertvector(*reinterpret_cast<const vi*>(from + j), vf) * by * load(b.key_scales + j);
            if (!all) s = masked_score(a, b, p, seen, j, s);
            store(reinterpret_cast<float*>(from + j), s);
            top = max(top, s);
        }
        most[r] = top;
    }
    for (int64_t r = 0; r < count; r++) {
        float* weights = reinterpret_cast<float*>(scores + r * kPackedKeys);
        const float top = largest(most[r]);
        const vf shift = splat(top == kNever ? 0.f : top);
        vf sums{}, plain{}, largest_product{};
        for (int j = 0; j < padded; j += kLanes) {
            const vf w = exp_below(load(weights + j) - shift), product = w * load(b.value_scales + j);
            store(weights + j, product);
            sums += w;
            plain += product;
            largest_product = max(largest_product, max(product, -product));
        }
        partial[(row + r) * stride] = top;
        partial[(row + r) * stride + 1] = sum(sums);
        most[r] = largest_product, total[r] = plain;
    }
    for (int64_t r = 0; r < count; r++) {
        const float* weights = reinterpret_cast<const float*>(scores + r * kPackedKeys);
        const FixedPoint point(largest(most[r]), sum(total[r]));
        for (int j = 0; j < padded; j += kLanes) put(r, j, point.of(load(weights + j)));
        for (int j = padded; j < kPackedKeys; j += kLanes) put(r, j, vi{});
        steps[row + r] = point.step;
    }
}

}  // namespace optiq::OPTIQ_LEVEL
