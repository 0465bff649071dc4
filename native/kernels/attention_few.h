// What the forms of attention of few query rows share: how much there is of a block, and what is fetched ahead of it.
#pragma once

#include "kernels/attention_rows.h"

namespace optiq::OPTIQ_LEVEL {

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

}  // namespace optiq::OPTIQ_LEVEL
