// A block of query rows and what every form does with it: who sees which keys, masks over scores, rows as float32.
//
// Scores of a block lie as [keys, kBlockRows]: a vector holds one key's scores for sixteen rows.
#pragma once

#include "kernels/attention_rows.h"

namespace optiq::OPTIQ_LEVEL {

constexpr int64_t kGroups = kBlockRows / kLanes;

// A block of rows in work.
struct Block {
    int64_t batch, group, first, rows;
    RowPlace places[kBlockRows];
    vf from[kGroups], to[kGroups];  // visible keys of each row, as floats (exact below 2^24)
    vf most[kGroups], total[kGroups];
    int64_t first_key, last_key;  // of all rows together
};

inline Block open_block(const Attention& a, int64_t batch, int64_t group, int64_t first, int64_t last) {
    Block b;
    b.batch = batch, b.group = group, b.first = first, b.rows = last - first;
    b.first_key = a.keys, b.last_key = 0;
    for (int64_t r = 0; r < kBlockRows; r++) {
        const int64_t g = r / kLanes;
        if (r % kLanes == 0) b.most[g] = splat(kNever), b.total[g] = b.from[g] = b.to[g] = vf{};
        if (r >= b.rows) continue;
        const RowPlace p = b.places[r] = place(a, group, first + r);
        b.from[g][r % kLanes] = float(p.first);
        b.to[g][r % kLanes] = float(p.last);
        b.first_key = at_most(b.first_key, p.first);
        b.last_key = at_least(b.last_key, p.last);
    }
    return b;
}

// Whether an array mask lets any row see one of these keys; a block that nobody sees is passed over.
inline bool seen(const Attention& a, const Block& b, int64_t first, int64_t count) {
    if (a.mask_kind != MaskKind::boolean) return true;
    for (int64_t r = 0; r < b.rows; r++) {
        if (r && a.mask.head == 0 && b.places[r].query == b.places[r - 1].query) continue;
        const uint8_t* bytes = row_of<uint8_t>(a.mask, b.batch, b.places[r].head, b.places[r].query) + first;
        uint8_t any = 0;
        for (int64_t j = 0; j < count; j++) any |= bytes[j];
        if (any) return true;
    }
    return false;
}

// Scores of 16 rows, [keys, kBlockRows] from `scores` on, are scaled and masked in place where that is needed. Returns the
// factor that is still to be applied: 1 or a.scale.
inline float mask_scores(const Attention& a, const Block& b, int64_t g, int64_t first, int64_t count, int64_t padded, float* scores) {
    bool hidden = padded > count;
    for (int64_t r = g * kLanes; r < at_most(b.rows, (g + 1) * kLanes); r++)
        hidden |= b.places[r].first > first || b.places[r].last < first + count;
    if (!hidden && a.mask_kind == MaskKind::none) return a.scale;
    for (int64_t j = 0; j < padded; j++) {
        const vf key = splat(float(first + j));
        const vi visible = (key >= b.from[g]) & (key < b.to[g]) & (key < splat(float(first + count)));
        store(scores + j * kBlockRows, visible != 0 ? load(scores + j * kBlockRows) * splat(a.scale) : splat(kNever));
    }
    if (a.mask_kind == MaskKind::none) return 1.f;
    for (int64_t j = 0; j < count; j += kLanes) {
        const int some = int(at_most(kLanes, count - j));
        vf bias[kLanes]{};
        for (int64_t i = 0; i < kLanes && g * kLanes + i < b.rows; i++)
            bias[i] = mask_values(a, b.batch, b.places[g * kLanes + i], first + j, some);
        transpose(bias);
        for (int i = 0; i < some; i++) store(scores + (j + i) * kBlockRows, load(scores + (j + i) * kBlockRows) + bias[i]);
    }
    return 1.f;
}

// `count` rows of `width` values as float32, rows `to_row` apart and filled up with zeros.
template <class T>
inline void widen_rows(const T* from, int64_t from_row, int64_t count, int64_t width, float* to, int64_t to_row) {
    for (int64_t i = 0; i < count; i++, from += from_row, to += to_row) {
        int64_t d = 0;
        for (; d + kLanes <= width; d += kLanes) store(to + d, load(from + d));
        for (; d < width; d++) to[d] = widen(from[d]);
        for (; d < to_row; d++) to[d] = 0.f;
    }
}

// The block's rows of x as columns: to[d, row], kBlockRows apart; rows beyond the block are zeros.
template <class T>
inline void columns_of_rows(const Block& b, const HeadRows& x, int64_t width, float* to) {
    for (int64_t g = 0; g < kGroups; g++)
        for (int64_t d = 0; d < width; d += kLanes) {
            const int some = int(at_most(kLanes, width - d));
            vf r[kLanes]{};
            for (int64_t i = 0; i < kLanes && g * kLanes + i < b.rows; i++) {
                const RowPlace& p = b.places[g * kLanes + i];
                const T* from = row_of<T>(x, b.batch, p.head, p.query) + d;
                r[i] = some == kLanes ? load(from) : load_part(from, some);
            }
            transpose(r);
            for (int i = 0; i < some; i++) store(to + (d + i) * kBlockRows + g * kLanes, r[i]);
        }
}

}  // namespace optiq::OPTIQ_LEVEL
