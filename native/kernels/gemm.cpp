#include "kernels/gemm.h"

#include "kernels/decode.h"
#include "kernels/simd.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

// A step is four bytes of the depth: one float32, or two bfloat16. kSteps steps make a block, so that two panels of P
// (32 KiB) stay in the first-level cache while the rows of A pass by.
constexpr int64_t kSteps = 256;
constexpr int64_t kRowSteps = kSteps + 16;  // of a row of the A block; not a power of two, so that rows do not share cache sets

// How numbers are represented: float32 as it is (0 parts), or as so many bfloat16 parts.
template <int PARTS>
struct Form {
    static constexpr int parts = PARTS, planes = PARTS ? PARTS : 1, per_step = PARTS ? 2 : 1;
    static constexpr int64_t depth = kSteps * per_step;
};

template <class F>
inline auto with_form(Float type, F&& f) {
#if defined(__AMX_BF16__)
    if (type == Float::bf16) return f(Form<1>{});
    if (type == Float::f16) return f(Form<2>{});
    return f(Form<3>{});
#elif defined(__AVX512BF16__)
    if (type == Float::bf16) return f(Form<1>{});
    return f(Form<0>{});
#else
    (void)type;
    return f(Form<0>{});
#endif
}

// The parts of x as float32 numbers whose low halves are zero. Of three, all are cut off, which loses nothing and does not
// overflow; two are rounded, so that the second is small.
template <int PARTS>
inline void split(vf x, vu* parts) {
    for (int i = 0; i < PARTS; i++) {
        parts[i] = PARTS == 3 ? (vu)x & 0xffff0000u : (vu)widen_bf16(narrow_bf16(x));
        x -= (vf)parts[i];
    }
}

// The high halves of 32 numbers' bits: bfloat16, in order.
inline vu high_halves(vu low, vu high) {
#if defined(__AVX512BW__)
    alignas(64) static constexpr auto odd = [] {
        struct { uint16_t at[32]; } table{};
        for (int i = 0; i < 32; i++) table.at[i] = uint16_t(2 * i + 1);
        return table;
    }();
    return (vu)_mm512_permutex2var_epi16((__m512i)low, _mm512_load_si512(&odd), (__m512i)high);
#else
    vu all;
    const vh a = __builtin_convertvector(low >> 16, vh), b = __builtin_convertvector(high >> 16, vh);
    std::memcpy(&all, &a, 32);
    std::memcpy(reinterpret_cast<char*>(&all) + 32, &b, 32);
    return all;
#endif
}

template <class T>
inline vf load_up_to(const T* p, int64_t n) {
    if (n >= kLanes) return load(p);
    return n > 0 ? load_part(p, int(n)) : vf{};
}

// Sixteen steps of one vector, numbers p[0 .. n), zero beyond.
template <class F, class T>
inline void load_along(const T* p, int64_t n, vu* out) {
    if constexpr (F::parts == 0) {
        out[0] = (vu)load_up_to(p, n);
    } else if constexpr (F::parts == 1 && std::is_same_v<T, bf16>) {
        if (n >= 32) {
            std::memcpy(out, p, 64);
        } else {
            out[0] = vu{};
            if (n > 0) std::memcpy(out, p, size_t(n) * 2);
        }
    } else {
        vu low[F::parts], high[F::parts];
        split<F::parts>(load_up_to(p, n), low);
        split<F::parts>(load_up_to(p + kLanes, n - kLanes), high);
        for (int i = 0; i < F::parts; i++) out[i] = high_halves(low[i], high[i]);
    }
}

// One step of sixteen vectors that lie side by side; numbers (k, i) with k < depth and i < n exist.
template <class F, class T>
inline void load_across(const T* p, int64_t stride, int64_t depth, int64_t n, vu* out) {
    if constexpr (F::parts == 0) {
        out[0] = depth > 0 ? (vu)load_up_to(p, n) : vu{};
    } else {
        vu even[F::parts], odd[F::parts];
        split<F::parts>(depth > 0 ? load_up_to(p, n) : vf{}, even);
        split<F::parts>(depth > 1 ? load_up_to(p + stride, n) : vf{}, odd);
        for (int i = 0; i < F::parts; i++) out[i] = (even[i] >> 16) | odd[i];
    }
}

// Sixteen vectors of sixteen 32-bit numbers, rows to columns.
inline void transpose(vu* r) {
#if defined(__AVX512F__)
    __m512i t[16], u[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32((__m512i)r[i], (__m512i)r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32((__m512i)r[i], (__m512i)r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int j = 0; j < 4; j++) {
        const __m512i a = _mm512_shuffle_i32x4(u[j], u[4 + j], 0x88), b = _mm512_shuffle_i32x4(u[j], u[4 + j], 0xdd);
        const __m512i c = _mm512_shuffle_i32x4(u[8 + j], u[12 + j], 0x88), d = _mm512_shuffle_i32x4(u[8 + j], u[12 + j], 0xdd);
        r[j] = (vu)_mm512_shuffle_i32x4(a, c, 0x88);
        r[8 + j] = (vu)_mm512_shuffle_i32x4(a, c, 0xdd);
        r[4 + j] = (vu)_mm512_shuffle_i32x4(b, d, 0x88);
        r[12 + j] = (vu)_mm512_shuffle_i32x4(b, d, 0xdd);
    }
#else
    alignas(64) uint32_t from[256], to[256];
    std::memcpy(from, r, sizeof from);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) to[j * 16 + i] = from[i * 16 + j];
    std::memcpy(r, to, sizeof to);
#endif
}

inline void put(uint32_t* p, vu x) { *reinterpret_cast<vu*>(p) = x; }

inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Steps of a block that is n numbers deep, in whole vectors.
template <class F>
inline int64_t steps_of(int64_t n) { return round_up((n + F::per_step - 1) / F::per_step, kLanes); }

template <class F, class T>
void pack_panel(const Side& side, const T* data, int64_t panel, int64_t block, uint32_t* out) {
    const int64_t start = block * F::depth, depth = side.depth - start < F::depth ? side.depth - start : F::depth;
    const int64_t first = panel * kPanel, count = side.count - first < kPanel ? side.count - first : kPanel;
    const int64_t steps = steps_of<F>(depth);
    if (side.across) {
        for (int64_t s = 0; s < steps; s++) {
            const int64_t k = s * F::per_step;
            vu parts[F::planes];
            load_across<F>(data + (start + k) * side.stride + first, side.stride, depth - k, count, parts);
            for (int i = 0; i < F::planes; i++) put(out + i * kSteps * kPanel + s * kPanel, parts[i]);
        }
        return;
    }
    for (int64_t s = 0; s < steps; s += kLanes) {
        const int64_t k = s * F::per_step;
        vu rows[F::planes][kPanel];
        for (int64_t r = 0; r < kPanel; r++) {
            vu parts[F::planes]{};
            if (r < count) load_along<F>(data + (first + r) * side.stride + start + k, depth - k, parts);
            for (int i = 0; i < F::planes; i++) rows[i][r] = parts[i];
        }
        for (int i = 0; i < F::planes; i++) {
            transpose(rows[i]);
            for (int64_t r = 0; r < kPanel; r++) put(out + i * kSteps * kPanel + (s + r) * kPanel, rows[i][r]);
        }
    }
}

// Rows of a block of A, [plane][row][step].
template <class F>
inline uint32_t* block_row(uint32_t* block, int64_t rows, int plane, int64_t row) {
    return block + (plane * rows + row) * kRowSteps;
}

template <class F, class T>
inline void fill_row(const T* data, int64_t depth, uint32_t* block, int64_t rows, int64_t row, int64_t ahead = 0) {
    const int64_t steps = steps_of<F>(depth);
    for (int64_t s = 0; s < steps; s += kLanes) {
        // A block's row is a short stretch of memory: the processor's own prefetch would start too late.
        if (ahead) _mm_prefetch(reinterpret_cast<const char*>(data + ahead + s * F::per_step), _MM_HINT_T0);
        vu parts[F::planes];
        load_along<F>(data + s * F::per_step, depth - s * F::per_step, parts);
        for (int i = 0; i < F::planes; i++) put(block_row<F>(block, rows, i, row) + s, parts[i]);
    }
}

template <class F>
inline void fill_zero(int64_t depth, uint32_t* block, int64_t rows, int64_t row) {
    for (int i = 0; i < F::planes; i++) std::memset(block_row<F>(block, rows, i, row), 0, size_t(steps_of<F>(depth)) * 4);
}

// Sixteen numbers' steps [k, k + 16 steps) of rows [row, row + 16), which lie side by side at data.
template <class F, class T>
inline void fill_square(const T* data, int64_t stride, int64_t depth, int64_t count, uint32_t* block, int64_t rows, int64_t row,
                        int64_t step) {
    vu square[F::planes][kLanes];
    for (int64_t s = 0; s < kLanes; s++) {
        vu parts[F::planes];
        load_across<F>(data + s * F::per_step * stride, stride, depth - s * F::per_step, count, parts);
        for (int i = 0; i < F::planes; i++) square[i][s] = parts[i];
    }
    for (int i = 0; i < F::planes; i++) {
        transpose(square[i]);
        for (int64_t r = 0; r < kLanes; r++) put(block_row<F>(block, rows, i, row + r) + step, square[i][r]);
    }
}

// Vectors [first, first + count) of A, numbers [start, start + depth), as rows; rows up to `rows` are zero.
template <class F>
void fill(const Side& a, int64_t first, int64_t count, int64_t start, int64_t depth, uint32_t* block, int64_t rows) {
    for (int64_t r = count; r < rows; r++) fill_zero<F>(depth, block, rows, r);
    if (a.coded && !a.across) {
        alignas(64) float values[F::depth];
        for (int64_t r = 0; r < count; r++) {
            if constexpr (F::parts == 1) {
                bf16* out = reinterpret_cast<bf16*>(block_row<F>(block, rows, 0, r));
                decode(*a.coded, first + r, start, depth, out);
            } else {
                decode(*a.coded, first + r, start, depth, values);
                fill_row<F>(values, depth, block, rows, r);
            }
        }
        return;
    }
    if (a.coded) {
        constexpr int64_t deep = kLanes * F::per_step, most = 128;
        static_assert(most % 32 == 0);
        alignas(64) float values[deep * most];
        for (int64_t k = 0; k < depth; k += deep) {
            const int64_t left = depth - k < deep ? depth - k : deep;
            for (int64_t j = 0; j < left; j++) decode(*a.coded, start + k + j, first, count, values + j * most);
            for (int64_t r = 0; r < rows; r += kLanes)
                if (r < count) fill_square<F>(values + r, most, left, count - r, block, rows, r, k / F::per_step);
        }
        return;
    }
    with_float(a.type, [&]<class T>(T*) {
        const T* data = static_cast<const T*>(a.data);
        if (!a.across) {
            for (int64_t r = 0; r < count; r++)
                fill_row<F>(data + (first + r) * a.stride + start, depth, block, rows, r, 4 * a.stride);
            return;
        }
        for (int64_t k = 0; k < steps_of<F>(depth); k += kLanes)
            for (int64_t r = 0; r < count; r += kLanes)
                fill_square<F>(data + (start + k * F::per_step) * a.stride + first + r, a.stride, depth - k * F::per_step,
                               count - r, block, rows, r, k);
    });
}

#if defined(__AMX_BF16__)

struct TileConfig {
    uint8_t palette = 1, start = 0, reserved[14]{};
    uint16_t bytes[16]{};
    uint8_t rows[16]{};
};

inline void load_tile_config() {
    alignas(64) TileConfig config;
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
}

// Two strips of 16 rows with one or two panels, sums in tiles 0 to 3.
template <class F, int PANELS>
inline void tiles(const uint32_t* a, int64_t rows, const uint32_t* p, int64_t panel, int64_t steps, float* c, int64_t c_panel,
                  bool fresh) {
    constexpr int64_t row = kRowSteps * 4;
    const int64_t strip = 16 * kRowSteps;
    // The tile intrinsics are statements with literal numbers.
    if (fresh) {
        _tile_zero(0);
        _tile_zero(1);
        if (PANELS > 1) {
            _tile_zero(2);
            _tile_zero(3);
        }
    } else {
        _tile_loadd(0, c, 64);
        _tile_loadd(1, c + 256, 64);
        if (PANELS > 1) {
            _tile_loadd(2, c + c_panel, 64);
            _tile_loadd(3, c + c_panel + 256, 64);
        }
    }
    const auto load_a = [&](int plane, int64_t s) {
        const uint32_t* at = a + plane * rows * kRowSteps + s;
        _tile_loadd(4, at, row);
        _tile_loadd(5, at + strip, row);
    };
    const auto load_p = [&](int plane, int64_t s) {
        const uint32_t* at = p + plane * kSteps * kPanel + s * kPanel;
        _tile_loadd(6, at, 64);
        if (PANELS > 1) _tile_loadd(7, at + panel, 64);
    };
    const auto multiply = [&] {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
        if (PANELS > 1) {
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    };
    for (int64_t s = 0; s < steps; s += kLanes) {
        if constexpr (F::parts == 3) {
            load_a(0, s), load_p(2, s), multiply();
            load_p(1, s), multiply();
            load_a(1, s), multiply();
            load_p(0, s), multiply();
            load_a(2, s), multiply();
            load_a(0, s), multiply();
        } else if constexpr (F::parts == 2) {
            load_a(0, s), load_p(1, s), multiply();
            load_p(0, s), multiply();
            load_a(1, s), multiply();
        } else {
            load_a(0, s), load_p(0, s), multiply();
        }
    }
    _tile_stored(0, c, 64);
    _tile_stored(1, c + 256, 64);
    if (PANELS > 1) {
        _tile_stored(2, c + c_panel, 64);
        _tile_stored(3, c + c_panel + 256, 64);
    }
}

constexpr int64_t kWidth = 128;
constexpr int kTogether = 2;  // panels

template <class F>
inline void strips(const uint32_t* a, int64_t rows, const uint32_t* p, int64_t panel, int panels, int64_t steps, float* c,
                   int64_t c_panel, bool fresh) {
    for (int64_t r = 0; r < rows; r += 32) {
        if (panels == 2)
            tiles<F, 2>(a + r * kRowSteps, rows, p, panel, steps, c + r * 16, c_panel, fresh);
        else
            tiles<F, 1>(a + r * kRowSteps, rows, p, panel, steps, c + r * 16, c_panel, fresh);
    }
}

constexpr int64_t kStrip = 32;
inline void begin() { load_tile_config(); }
inline void end() { _tile_release(); }
// The tile intrinsics do not tell the compiler what they read.
inline void fence() { __asm__ volatile("" ::: "memory"); }

#else

#if defined(__AVX512F__)
typedef vf reg;
constexpr int kTogether = 2, kRegs = 1;
constexpr int64_t kStrip = 12;
#else
typedef float reg __attribute__((vector_size(32), aligned(32), may_alias));
constexpr int kTogether = 1, kRegs = 2;
constexpr int64_t kStrip = 6;
#endif
constexpr int64_t kWidth = 96;

template <class F>
inline reg multiply_add(uint32_t a, reg p, reg c) {
#if defined(__AVX512BF16__)
    if constexpr (F::parts) return (reg)_mm512_dpbf16_ps((__m512)c, (__m512bh)_mm512_set1_epi32(int(a)), (__m512bh)p);
#endif
    float x;
    std::memcpy(&x, &a, 4);
#if defined(__AVX512F__)
    return (reg)_mm512_fmadd_ps(_mm512_set1_ps(x), (__m512)p, (__m512)c);
#else
    return (reg)_mm256_fmadd_ps(_mm256_set1_ps(x), (__m256)p, (__m256)c);
#endif
}

// kStrip rows with PANELS panels.
template <class F, int PANELS>
inline void strip(const uint32_t* a, const uint32_t* p, int64_t panel, int64_t steps, float* c, int64_t c_panel, bool fresh) {
    constexpr int n = PANELS * kRegs, lanes = kLanes / kRegs;
    const auto c_at = [&](int64_t r, int v) {
        return reinterpret_cast<reg*>(c + v / kRegs * c_panel + r * 16 + v % kRegs * lanes);
    };
    reg sums[kStrip][n];
    for (int r = 0; r < kStrip; r++)
        for (int v = 0; v < n; v++) sums[r][v] = fresh ? reg{} : *c_at(r, v);
    for (int64_t s = 0; s < steps; s++) {
        reg x[n];
        for (int v = 0; v < n; v++)
            x[v] = *reinterpret_cast<const reg*>(p + v / kRegs * panel + s * kPanel + v % kRegs * lanes);
#pragma GCC unroll 12
        for (int r = 0; r < kStrip; r++)
#pragma GCC unroll 2
            for (int v = 0; v < n; v++) sums[r][v] = multiply_add<F>(a[r * kRowSteps + s], x[v], sums[r][v]);
    }
    for (int r = 0; r < kStrip; r++)
        for (int v = 0; v < n; v++) *c_at(r, v) = sums[r][v];
}

template <class F>
inline void strips(const uint32_t* a, int64_t rows, const uint32_t* p, int64_t panel, int panels, int64_t steps, float* c,
                   int64_t c_panel, bool fresh) {
    for (int64_t r = 0; r < rows; r += kStrip) {
        if (panels == kTogether)
            strip<F, kTogether>(a + r * kRowSteps, p, panel, steps, c + r * 16, c_panel, fresh);
        else
            strip<F, 1>(a + r * kRowSteps, p, panel, steps, c + r * 16, c_panel, fresh);
    }
}

inline void begin() {}
inline void end() {}
inline void fence() {}

#endif

static_assert(kWidth % 32 == 0 && kWidth % kStrip == 0);

// Sums [row][16 of the panel] to C, whose rows are the panel's vectors.
template <class T>
void finish(const float* sums, int64_t count, T* c, int64_t stride, int64_t panel_count) {
    for (int64_t r = 0; r < count; r += kLanes) {
        vu square[kLanes];
        for (int64_t i = 0; i < kLanes; i++) square[i] = *reinterpret_cast<const vu*>(sums + (r + i) * 16);
        transpose(square);
        const int64_t left = count - r;
        for (int64_t i = 0; i < panel_count; i++) {
            if (left >= kLanes)
                store(c + i * stride + r, (vf)square[i]);
            else
                store_part(c + i * stride + r, (vf)square[i], int(left));
        }
    }
}

template <class F>
void task_of(const Side& a, int64_t first, int64_t count, const Side& p, const void* packed, int64_t first_panel, int64_t panels,
             void* c, Float c_type, int64_t stride, void* scratch) {
    constexpr int64_t panel_steps = F::planes * kSteps * kPanel;
    const int64_t all_panels = (p.count + kPanel - 1) / kPanel;
    const int64_t rows = round_up(count, kStrip), c_panel = round_up(rows, 16) * 16;
    uint32_t* block = static_cast<uint32_t*>(scratch);
    float* sums = reinterpret_cast<float*>(block + F::planes * kWidth * kRowSteps);
    const int64_t blocks = (a.depth + F::depth - 1) / F::depth;
    begin();
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t depth = a.depth - b * F::depth < F::depth ? a.depth - b * F::depth : F::depth;
        fence();
        fill<F>(a, first, count, b * F::depth, depth, block, rows);
        fence();
        for (int64_t i = 0; i < panels; i += kTogether) {
            const int together = panels - i < kTogether ? 1 : kTogether;
            const uint32_t* at = static_cast<const uint32_t*>(packed) + (b * all_panels + first_panel + i) * panel_steps;
            float* here = sums + (blocks > 1 ? i * c_panel : 0);
            strips<F>(block, rows, at, panel_steps, together, steps_of<F>(depth), here, c_panel, b == 0);
            if (b + 1 < blocks) continue;
            fence();
            for (int j = 0; j < together; j++) {
                const int64_t row = (first_panel + i + j) * kPanel;
                with_float(c_type, [&]<class T>(T*) {
                    finish(here + j * c_panel, count, static_cast<T*>(c) + row * stride + first, stride,
                           p.count - row < kPanel ? p.count - row : kPanel);
                });
            }
        }
    }
    end();
}

int64_t depth(Float type) {
    return with_form(type, [](auto form) { return decltype(form)::depth; });
}

int64_t width(Float) { return kWidth; }

int64_t panel_bytes(Float type) {
    return with_form(type, [](auto form) { return decltype(form)::planes * kSteps * kPanel * 4; });
}

int64_t scratch_bytes(Float type) {
    return with_form(type, [](auto form) {
        return (decltype(form)::planes * kWidth * kRowSteps + kTaskPanels * kWidth * kPanel) * 4;
    });
}

void pack(const Side& p, Float type, int64_t panel, int64_t block, void* out) {
    with_form(type, [&](auto form) {
        with_float(p.type, [&]<class T>(T*) {
            pack_panel<decltype(form)>(p, static_cast<const T*>(p.data), panel, block, static_cast<uint32_t*>(out));
        });
    });
}

void task(const Side& a, Float type, int64_t first, int64_t count, const Side& p, const void* packed, int64_t first_panel,
          int64_t panels, void* c, Float c_type, int64_t stride, void* scratch) {
    with_form(type, [&](auto form) {
        task_of<decltype(form)>(a, first, count, p, packed, first_panel, panels, c, c_type, stride, scratch);
    });
}

// ROWS rows of A by COLUMNS vectors of P. Each sum has sixteen lanes in the order of k, so that its bits depend on its own
// row and vector alone.
template <int ROWS, int COLUMNS, class T, class C>
inline void dots(const T* a, int64_t stride, int64_t depth, const float* p, C* c, int64_t c_stride) {
    vf sums[ROWS][COLUMNS]{};
    const auto add = [&](int64_t k, auto get) {
        vf x[COLUMNS];
        for (int m = 0; m < COLUMNS; m++) x[m] = get(p + m * depth + k);
        for (int r = 0; r < ROWS; r++) {
            const vf w = get(a + r * stride + k);
            for (int m = 0; m < COLUMNS; m++) sums[r][m] = fma(w, x[m], sums[r][m]);
        }
    };
    int64_t k = 0;
    for (; k + kLanes <= depth; k += kLanes) {
        for (int r = 0; r < ROWS; r++) _mm_prefetch(reinterpret_cast<const char*>(a + r * stride + k) + 1024, _MM_HINT_T0);
        add(k, [](const auto* at) { return load(at); });
    }
    if (k < depth) add(k, [&](const auto* at) { return load_part(at, int(depth - k)); });
    for (int r = 0; r < ROWS; r++)
        for (int m = 0; m < COLUMNS; m++) narrow(sum(sums[r][m]), c + m * c_stride + r);
}

template <int ROWS, class T, class C>
inline void dots_of(const T* a, int64_t stride, int64_t depth, const float* p, int64_t count, C* c, int64_t c_stride) {
    int64_t m = 0;
    for (; m + 4 <= count; m += 4) dots<ROWS, 4>(a, stride, depth, p + m * depth, c + m * c_stride, c_stride);
    if (count - m >= 2) dots<ROWS, 2>(a, stride, depth, p + m * depth, c + m * c_stride, c_stride), m += 2;
    if (count - m >= 1) dots<ROWS, 1>(a, stride, depth, p + m * depth, c + m * c_stride, c_stride);
}

void few(const Side& a, int64_t first, int64_t last, const float* p, int64_t count, void* c, Float c_type, int64_t stride) {
    with_float(a.type, [&]<class T>(T*) {
        with_float(c_type, [&]<class C>(C*) {
            const T* rows = static_cast<const T*>(a.data);
            int64_t q = first;
            for (; q + 4 <= last; q += 4)
                dots_of<4>(rows + q * a.stride, a.stride, a.depth, p, count, static_cast<C*>(c) + q, stride);
            for (; q < last; q++) dots_of<1>(rows + q * a.stride, a.stride, a.depth, p, count, static_cast<C*>(c) + q, stride);
        });
    });
}

void widen_all(const void* x, Float type, int64_t count, float* out) {
    with_float(type, [&]<class T>(T*) {
        const T* from = static_cast<const T*>(x);
        int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes) store(out + i, load(from + i));
        for (; i < count; i++) out[i] = widen(from[i]);
    });
}

}  // namespace

const GemmKernels gemm_table{depth, width, panel_bytes, scratch_bytes, pack, task, few, widen_all};

}  // namespace optiq::OPTIQ_LEVEL
