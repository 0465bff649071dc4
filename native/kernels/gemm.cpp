#include "kernels/gemm.h"

#include "kernels/gemm_few.h"
#include "kernels/gemm_layout.h"
#include "kernels/gemm_sums.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

// Up to sixteen neighbours of C.
template <class T>
inline void put(T* c, vf x, int64_t count) {
    if (count >= kLanes)
        store(c, x);
    else
        store_part(c, x, int(count));
}

// Sums [row][16 of the panel] to C, where a panel's vectors lie side by side.
template <class T>
inline void finish_along(const float* sums, int64_t count, T* c, int64_t step, int64_t panel_count) {
    for (int64_t r = 0; r < count; r++) put(c + r * step, load(sums + r * kPanel), panel_count);
}

// The same where rows of A do.
template <class T>
inline void finish_across(const float* sums, int64_t count, T* c, int64_t step, int64_t panel_count) {
    for (int64_t r = 0; r < count; r += kLanes) {
        vu square[kLanes];
        for (int64_t i = 0; i < kLanes; i++) square[i] = *reinterpret_cast<const vu*>(sums + (r + i) * kPanel);
        transpose(square);
        for (int64_t i = 0; i < panel_count; i++) put(c + i * step + r, (vf)square[i], count - r);
    }
}

// C[p, q] for the panel's vectors p, `panel_count` from `panel` on, and `count` rows q of A from `first` on.
inline void finish(const float* sums, const Target& c, int64_t panel, int64_t panel_count, int64_t first, int64_t count) {
    with_float(c.type, [&]<class T>(T*) {
        T* to = static_cast<T*>(c.data) + panel * c.p_step + first * c.a_step;
        if (c.p_step == 1)
            finish_along(sums, count, to, c.a_step, panel_count);
        else
            finish_across(sums, count, to, c.p_step, panel_count);
    });
}

// Rows of A that meet all panels before the next rows do. One strip's rows of bfloat16 stay in the first-level cache while the
// panels stream past them; what does not fit there streams itself, and a pair of panels stays. A coded matrix whose columns are
// asked for is decoded along its rows, so more of it at a time.
template <class F>
inline int64_t band(const Side& a) {
    return streams<F> && !(a.coded && a.across) ? kStrip : kWidth;
}

// The memory of a task: rows of a block of A, sums of a band with all panels, and with the panels in hand.
template <class F>
struct Work {
    static constexpr int64_t block_steps = F::planes * kWidth * kRowSteps, sums_floats = kTaskPanels * kWidth * kPanel;
    static constexpr int64_t bytes = (block_steps + sums_floats + kTogether * kWidth * kPanel) * 4;
    uint32_t* block;
    float *sums, *last;
    explicit Work(void* start)
        : block(static_cast<uint32_t*>(start)), sums(reinterpret_cast<float*>(block + block_steps)), last(sums + sums_floats) {}
};

// The panels of a task.
struct Panels {
    const Side& p;
    const uint32_t* packed;  // [block][panel of all]
    int64_t first, count;

    template <class F>
    const uint32_t* at(int64_t block, int64_t i) const {
        return packed + (block * ((p.count + kPanel - 1) / kPanel) + first + i) * panel_steps<F>;
    }
    int64_t row(int64_t i) const { return (first + i) * kPanel; }
    int64_t rows(int64_t i) const { return p.count - row(i) < kPanel ? p.count - row(i) : kPanel; }
};

// C[p, first + q] for q < count <= band and the vectors p of the panels.
template <class F>
void band_of(const Side& a, int64_t first, int64_t count, const Panels& p, const Work<F>& work, const Target& c) {
    const int64_t blocks = (a.depth + F::depth - 1) / F::depth;
    const int64_t rows = round_up(count, kStrip), c_panel = round_up(rows, kLanes) * kPanel;
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t depth = a.depth - b * F::depth < F::depth ? a.depth - b * F::depth : F::depth;
        fence();
        fill<F>(a, first, count, b * F::depth, depth, work.block, rows);
        fence();
        for (int64_t i = 0; i < p.count; i += kTogether) {
            const int together = p.count - i < kTogether ? 1 : kTogether;
            float* const kept = work.sums + i * c_panel;
            const Sums sums{b ? kept : nullptr, b + 1 < blocks ? kept : work.last, c_panel};
            add_products<F>(work.block, rows, p.at<F>(b, i), together, steps_of<F>(depth), sums);
            if (b + 1 < blocks) continue;
            fence();
            for (int j = 0; j < together; j++)
                finish(work.last + j * c_panel, c, p.row(i + j), p.rows(i + j), first, count);
        }
    }
}

int64_t depth(Float type) {
    return with_form(type, [](auto form) { return decltype(form)::depth; });
}

int64_t width(Float) { return kWidth; }

int64_t panel_bytes(Float type) {
    return with_form(type, [](auto form) { return panel_steps<decltype(form)> * 4; });
}

bool commutes(Float type) {
    return with_form(type, [](auto form) { return decltype(form)::parts <= 1; });
}

int64_t scratch_bytes(Float type) {
    return with_form(type, [](auto form) { return Work<decltype(form)>::bytes; });
}

void pack(const Side& p, Float type, int64_t panel, int64_t block, void* out) {
    with_form(type, [&](auto form) {
        with_float(p.type, [&]<class T>(T*) {
            pack_panel<decltype(form)>(p, static_cast<const T*>(p.data), panel, block, static_cast<uint32_t*>(out));
        });
    });
}

void task(const Side& a, Float type, int64_t first, int64_t count, const Side& p, const void* packed, int64_t first_panel,
          int64_t panels, const Target& c, void* scratch) {
    with_form(type, [&](auto form) {
        using F = decltype(form);
        const Panels some{p, static_cast<const uint32_t*>(packed), first_panel, panels};
        const Arithmetic ready;
        for (int64_t r = 0; r < count; r += band<F>(a)) {
            const int64_t here = count - r < band<F>(a) ? count - r : band<F>(a);
            band_of<F>(a, first + r, here, some, Work<F>(scratch), c);
        }
    });
}

}  // namespace

const GemmKernels gemm_table{depth, width, panel_bytes, commutes, scratch_bytes, pack, task, few, widen_all};

}  // namespace optiq::OPTIQ_LEVEL
