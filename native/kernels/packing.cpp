// Packing of vectors and its inverse, a vector at a time.

#include "kernels/hadamard.h"
#include "kernels/levels.h"

namespace optiq::OPTIQ_LEVEL {
namespace {

// f(d, n) for the sixteens of a row and what is left of it, n < 16 or 0 for all.
template <class F>
inline void by_sixteen(int64_t width, const F& f) {
    int64_t d = 0;
    for (; d + kLanes <= width; d += kLanes) f(d, 0);
    if (d < width) f(d, int(width - d));
}

template <class T>
inline vf load_up_to(const T* p, int n) {
    return n ? load_part(p, n) : load(p);
}

// The nearest levels of z: their numbers and themselves.
struct Nearest {
    vi index;
    vf level;
};

inline Nearest nearest(const Codebook& book, vf z) {
    if (book.spacing > 0.f) {
        const vf last = splat(float(book.count() - 1));
        const vf place = (z - splat(book.bounds[0])) * splat(1.f / book.spacing);
        const vf t = min(max(place, splat(-1.f)), last);  // in this order, so that NaN becomes the first
        vi index = __builtin_convertvector(t, vi);
        index -= t > __builtin_convertvector(index, vf);  // to above: a value on a bound takes the lower level
        index = index < 0 ? vi{} : index;
        return {index, fma(__builtin_convertvector(index, vf), splat(book.spacing), splat(float(book.levels[0])))};
    }
    vi index{};
    vf level = splat(float(book.levels[0]));
    for (int i = 0; i + 1 < book.count(); i++) {
        const auto above = z > splat(book.bounds[i]);
        index -= above;
        level += above ? splat(float(book.levels[i + 1] - book.levels[i])) : vf{};
    }
    return {index, level};
}

// Sixteen numbers below 256 as bytes.
inline void store_bytes(uint8_t* to, vi x) {
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)x));
#else
    const vh halves = low_halves(x);
    const __m256i both = (__m256i)halves;
    const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
#endif
}

// Codes of a row, a byte each, as a bit stream: eight codes take `bits` bytes.
void write_bits(const uint8_t* index, int64_t width, int bits, uint8_t* codes) {
    const uint64_t mask = 0x0101010101010101ull * ((1u << bits) - 1);
    for (int64_t d = 0; d < width; d += 8, codes += bits) {
        uint64_t eight;
        std::memcpy(&eight, index + d, 8);
        const uint64_t word = _pext_u64(eight, mask);
        std::memcpy(codes, &word, size_t(bits));
    }
}

// Codes of y, padded with zeros, in steps, and the sums over y l and l l.
struct Along {
    float across;
    float levels;
};

Along codes_of(const Codebook& book, const float* y, int64_t width, float step, uint8_t* index) {
    const vf by = splat(step > 0.f ? step : 1.f);
    vf across{}, levels{};
    for (int64_t d = 0; d < padded16(width); d += kLanes) {
        const vf v = load(y + d);
        const Nearest found = nearest(book, v / by);
        store_bytes(index + d, found.index);
        if (d + kLanes > width) {  // zeros that fill the row up have a level too
            for (int i = int(width - d); i < kLanes; i++) levels[i] -= found.level[i] * found.level[i];
        }
        across = fma(v, found.level, across);
        levels = fma(found.level, found.level, levels);
    }
    return {sum(across), sum(levels)};
}

// Of the steps that are tried, the one whose levels have the least angle to y; the first of equals.
float best_step(const Codebook& book, const float* y, int64_t width, float step) {
    alignas(64) uint8_t index[kPackedWidth];
    float best = -1.f, found = step;
    for (const float factor : kTrials) {
        const Along along = codes_of(book, y, width, step * factor, index);
        const float cosine = along.across / __builtin_sqrtf(along.levels);
        if (cosine > best) best = cosine, found = step * factor;
    }
    return found;
}

template <class T>
void pack_row(const PackForm& form, const T* x, uint8_t* codes, uint16_t* scale) {
    alignas(64) float y[kPackedWidth];
    alignas(64) uint8_t index[kPackedWidth];
    const Codebook& book = *form.book;
    const int64_t width = form.width;
    by_sixteen(width, [&](int64_t d, int n) { store(y + d, load_up_to(x + d, n) * load_up_to(form.diagonal + d, n)); });
    transform(y, width);
    vf lanes{};
    for (int64_t d = 0; d < padded16(width); d += kLanes) lanes = fma(load(y + d), load(y + d), lanes);
    const float squares = sum(lanes);
    float step = __builtin_sqrtf(squares / float(width)) * book.unit;
    if (form.scaling == Scaling::search) step = best_step(book, y, width, step);
    const Along along = codes_of(book, y, width, step, index);
    if (form.scaling != Scaling::norm) {
        const float found = form.scaling == Scaling::fit ? along.across / along.levels : squares / along.across;
        step = step > 0.f ? found : 0.f;
    }
    write_bits(index, width, book.bits, codes);
    *scale = float_to_bf16(step);
}

void pack(const PackForm& form, const void* x, Float type, uint8_t* codes, uint16_t* scale) {
    with_float(type, [&]<class T>(T*) { pack_row(form, static_cast<const T*>(x), codes, scale); });
}

inline vi widen_levels(const int8_t* p) {
#if defined(__AVX512F__)
    return (vi)_mm512_cvtepi8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
#else
    typedef int8_t vb __attribute__((vector_size(16), aligned(16), may_alias));
    return __builtin_convertvector(*reinterpret_cast<const vb*>(p), vi);
#endif
}

template <class T>
void write_row(const float* y, int64_t width, const float* factor, const float* mean, T* out) {
    by_sixteen(width, [&](int64_t d, int n) {
        vf v = load(y + d) * load_up_to(factor + d, n);
        if (mean) v += load_up_to(mean + d, n);
        n ? store_part(out + d, v, n) : store(out + d, v);
    });
}

void unpack(const Codebook& book, int64_t width, const uint8_t* codes, uint16_t scale, const float* factor, const float* mean, void* out,
            Float type) {
    alignas(64) float y[kPackedWidth];
    alignas(64) int8_t levels[kPackedWidth];
    with_code_bits(book.bits, [&](auto bits) { decode_levels<bits()>(book, codes, width, levels); });
    const vf by = splat(bf16_to_float(scale));
    for (int64_t d = 0; d < padded16(width); d += kLanes) {
        const vi wide = widen_levels(levels + d);
        store(y + d, __builtin_convertvector(wide, vf) * by);
    }
    for (int64_t d = width; d < padded16(width); d++) y[d] = 0.f;
    transform(y, width);
    with_float(type, [&]<class T>(T*) { write_row(y, width, factor, mean, static_cast<T*>(out)); });
}

}  // namespace

const Packing packing_table{pack, unpack};

}  // namespace optiq::OPTIQ_LEVEL
