// Attention over packed tokens where the processor multiplies tiles of bytes.
//
// Eight rows go together: the high bytes of their fixed-point numbers are eight lines of a tile, the low bytes eight others, so
// that one product gives both sums. Keys are the left side (16 keys of 64 coordinates), values the right one (64 tokens, four
// to a dword, of 16 coordinates). Levels stay in the caches between decoding and product, which run one step apart and
// alternate: tiles multiply while the vector units decode.
#pragma once

#include "kernels/packed_decode.h"
#include "kernels/packed_weights.h"
#include "kernels/tile_sums.h"

namespace optiq::OPTIQ_LEVEL {

#if defined(__AMX_INT8__)

constexpr int64_t kTileRows = 8, kTileColumns = 64;
constexpr int64_t kKeyStep = 32, kStep = 64;  // keys and values that are decoded at a time

inline bool tiled(const PackedAttention& a) {
    const auto dense = [&](const PackedRows& x) { return x.codes.row >= x.book->row_bytes(a.full.width); };
    return a.full.width % 32 == 0 && dense(a.keys) && dense(a.values);
}

inline int64_t row_tiles(const PackedAttention& a) { return (packed_rows(a) + kTileRows - 1) / kTileRows; }

// Prepared queries: steps, then per tile of rows and 64 coordinates a right side.
struct TiledQueries {
    float* steps;
    int8_t* tiles;
    int64_t tile_bytes;  // of a tile of rows
    size_t bytes;
    TiledQueries(const PackedAttention& a, void* start) {
        const int64_t rows = row_tiles(a), first = round_up(rows * kTileRows * 4, 64);
        steps = static_cast<float*>(start);
        tiles = static_cast<int8_t*>(start) + first;
        tile_bytes = padded64(a.full.width) * 16;
        bytes = size_t(first + rows * tile_bytes);
    }
};

// Memory of a block.
struct TiledWork {
    int8_t* keys[2];   // [kKeyStep, padded D]
    int32_t* sums[2];  // [row tiles, kKeyStep, 16]
    int32_t* scores;   // [rows, kPackedKeys]
    int8_t* weights;   // [row tiles, kPackedKeys / kStep, 16, 64]
    float* steps;      // [rows]
    int8_t* values;    // [kPackedKeys / kStep, kTileColumns / 16, 16, 64]
    uint8_t* tail;     // codes of the last tokens and some bytes
    int32_t* o;        // [16, kTileColumns]
    size_t bytes;
    TiledWork(const PackedAttention& a, void* start) {
        const int64_t tiles = row_tiles(a), width = padded64(a.full.width);
        char* at = static_cast<char*>(start);
        const auto take = [&](int64_t size) {
            char* mine = at;
            at += round_up(size, 64);
            return mine;
        };
        for (auto& some : keys) some = reinterpret_cast<int8_t*>(take(kKeyStep * width));
        for (auto& some : sums) some = reinterpret_cast<int32_t*>(take(tiles * kKeyStep * 64));
        scores = reinterpret_cast<int32_t*>(take(tiles * kTileRows * kPackedKeys * 4));
        weights = reinterpret_cast<int8_t*>(take(tiles * kPackedKeys * 16));
        steps = reinterpret_cast<float*>(take(tiles * kTileRows * 4));
        values = reinterpret_cast<int8_t*>(take(kPackedKeys * kTileColumns));
        tail = reinterpret_cast<uint8_t*>(take(8 * a.full.width + 64));
        o = reinterpret_cast<int32_t*>(take(16 * kTileColumns * 4));
        bytes = size_t(at - static_cast<char*>(start));
    }
};

// Sixteen fixed-point numbers as high and low signed bytes.
inline void split(vi fixed, int8_t* high, int8_t* low) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8((__m512i)((fixed + 128) >> 8)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8((__m512i)fixed));
}

inline void prepare_tiles(const PackedAttention& a, int64_t batch, int64_t group, void* to) {
    const TiledQueries queries(a, to);
    const int64_t width = a.full.width, rows = packed_rows(a);
    const bool pairs = paired(a.keys.book->bits, width);
    std::memset(to, 0, queries.bytes);
    for (int64_t r = 0; r < rows; r++) {
        alignas(64) int32_t fixed[kPackedWidth], ordered[kPackedWidth];
        alignas(64) int8_t high[kPackedWidth], low[kPackedWidth];
        queries.steps[r] = rotated_query(a, batch, group, r, fixed);
        for (int64_t d = 0; d < width; d++) ordered[d] = fixed[coordinate(pairs, d)];
        for (int64_t d = 0; d < width; d += kLanes) split(*reinterpret_cast<const vi*>(ordered + d), high + d, low + d);
        // Columns: high parts of four rows, their low parts, then four other rows.
        int8_t* tile = queries.tiles + r / kTileRows * queries.tile_bytes + (r % kTileRows / 4 * 8 + r % 4) * 4;
        for (int64_t d = 0; d < width; d += 4) {
            std::memcpy(tile + d * 16, high + d, 4);
            std::memcpy(tile + d * 16 + 16, low + d, 4);
        }
    }
}

// Brings the codes of the next block to the second cache, a share of them at each step of this one.
class CodeFetcher {
  public:
    CodeFetcher(const PackedAttention& a, const PackedBlock& b, bool next) {
        const int64_t first = b.first + kPackedKeys, count = next ? at_most(a.tokens - first, kPackedKeys) : 0;
        const auto region = [&](const PackedRows& x) -> Region {
            const char* start = reinterpret_cast<const char*>(x.codes_of(b.batch, b.group, first));
            return {start, start + count * x.codes.row};
        };
        keys_ = region(a.keys), values_ = region(a.values);
    }
    void keys(int64_t bytes) { more(keys_, bytes); }
    void values(int64_t bytes) { more(values_, bytes); }

  private:
    struct Region {
        const char *at, *end;
    };
    static void more(Region& r, int64_t bytes) {
        for (const char* stop = r.end - r.at < bytes ? r.end : r.at + bytes; r.at < stop; r.at += 64) _mm_prefetch(r.at, _MM_HINT_T1);
    }
    Region keys_, values_;
};

// `columns` (64, or 128 in pairs) coordinates from d on of sixteen keys.
template <int BITS>
inline void decode_keys_at(const PackedAttention& a, const PackedBlock& b, bool pairs, int64_t first, int64_t d, int8_t* out) {
    const __m512i table = level_table(*a.keys.book);
    const int64_t width = a.full.width, stride = padded64(width), step = a.keys.codes.row, count = at_most(16, b.count - first);
    const uint8_t* codes = a.keys.codes_of(b.batch, b.group, b.first + first) + d / 8 * BITS;
    out += d;
    if (BITS <= 4 && pairs) {
        constexpr int some = BITS <= 4 ? BITS : 4;
        // 64 bytes can be read where enough keys follow.
        const int64_t short_of = 64 / a.keys.book->row_bytes(width) + 1, whole = at_most(at_least(b.count - first - short_of, 0), count);
        for (int64_t j = 0; j < whole; j++) decode_paired<some>(table, _mm512_loadu_si512(codes + j * step), out + j * stride);
        for (int64_t j = whole; j < count; j++) decode_paired<some>(table, first_bytes(codes + j * step, 16 * some), out + j * stride);
    } else {
        for (int64_t j = 0; j < count; j++)
            _mm512_store_si512(out + j * stride, sixty_four<BITS>(table, codes + j * step, (width - d) * BITS / 8));
    }
}

// Adds the products of 64 coordinates from d on: tile T are sums of the keys [16 T, 16 T + 16).
template <int T>
inline void multiply_keys(const int8_t* q, const int8_t* keys, int64_t stride, int64_t d) {
    written();
    if constexpr (T == 0) {
        _tile_loadd(4, q + d * 16, 64);
        _tile_loadd(6, keys + d, stride);
        _tile_dpbssd(0, 6, 4);
    } else {
        _tile_loadd(5, q + d * 16, 64);
        _tile_loadd(7, keys + 16 * stride + d, stride);
        _tile_dpbssd(1, 7, 5);
    }
}

inline void take_sums(int32_t* sums) {
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    _tile_zero(0);
    _tile_zero(1);
}

// Sums of sixteen keys [16, 16] as scores of `rows` rows, at most eight.
inline void order_scores(const int32_t* sums, int64_t rows, int32_t* scores) {
    alignas(64) static constexpr auto lanes = [] {
        struct { int high[16], low[16]; } table{};
        for (int i = 0; i < 16; i++) {
            table.high[i] = i / 8 * 8 + i % 4 + i / 4 % 2 * 16;
            table.low[i] = table.high[i] + 4;
        }
        return table;
    }();
    const __m512i take_high = _mm512_load_si512(lanes.high), take_low = _mm512_load_si512(lanes.low);
    for (int64_t r = 0; r < rows; r += 4, sums += 8, scores += 4 * kPackedKeys) {
        __m512i x[8], y[8];  // keys i and i + 8: high and low sums of four rows each
        for (int i = 0; i < 8; i++) {
            const __m256i* at = reinterpret_cast<const __m256i*>(sums + i * 16);
            x[i] = _mm512_mask_broadcast_i64x4(_mm512_castsi256_si512(_mm256_load_si256(at)), 0xf0, _mm256_load_si256(at + 16));
        }
        for (int i = 0; i < 8; i += 2) {
            y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
            y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
        }
        for (int i = 0; i < 4; i++) {
            const auto four = [&](int at) {
                const __m512i p = y[at + i / 2], q = y[at + 2 + i / 2];
                return i % 2 ? _mm512_unpackhi_epi64(p, q) : _mm512_unpacklo_epi64(p, q);
            };
            const __m512i p = four(0), q = four(4);
            const __m512i high = _mm512_permutex2var_epi32(p, take_high, q), low = _mm512_permutex2var_epi32(p, take_low, q);
            _mm512_store_si512(scores + i * kPackedKeys, _mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
        }
    }
}

template <int BITS>
void score_tiles(const PackedAttention& a, const PackedBlock& b, const TiledQueries& queries, const TiledWork& work, CodeFetcher& fetch) {
    const int64_t steps = (b.count + kKeyStep - 1) / kKeyStep, width = a.full.width, stride = padded64(width), rows = packed_rows(a);
    const bool pairs = paired(BITS, width);
    const int64_t columns = pairs ? 128 : 64;
    const Tiles square;
    _tile_zero(0);
    _tile_zero(1);
    // Step s is decoded while step s - 1 is multiplied and the sums of step s - 2 are put in order.
    for (int64_t s = 0; s < steps + 2; s++) {
        const int8_t* done = work.keys[(s + 1) & 1];
        int32_t* sums = work.sums[(s + 1) & 1];
        const bool decodes = s < steps, multiplies = s >= 1 && s <= steps;
        const auto both = [&](auto t, int64_t d) {
            if (decodes) {
                fetch.keys(16 * columns * BITS / 8);
                decode_keys_at<BITS>(a, b, pairs, s * kKeyStep + 16 * t(), d, work.keys[s & 1] + 16 * t() * stride);
            }
            if (s >= 2 && d == 0)
                order_scores(work.sums[s & 1] + t() * 256, at_most(rows, kTileRows), work.scores + (s - 2) * kKeyStep + 16 * t());
            if (multiplies)
                for (int64_t c = d; c < d + columns; c += 64) multiply_keys<t()>(queries.tiles, done, stride, c);
        };
        for (int64_t d = 0; d < width; d += columns) {
            both(std::integral_constant<int, 0>{}, d);
            both(std::integral_constant<int, 1>{}, d);
        }
        if (multiplies) take_sums(sums);
        for (int64_t tile = 1; tile < row_tiles(a); tile++) {
            const int64_t row = tile * kTileRows;
            if (multiplies) {
                for (int64_t d = 0; d < stride; d += 64) {
                    multiply_keys<0>(queries.tiles + tile * queries.tile_bytes, done, stride, d);
                    multiply_keys<1>(queries.tiles + tile * queries.tile_bytes, done, stride, d);
                }
                take_sums(sums + tile * kKeyStep * 16);
            }
            if (s >= 2)
                for (int64_t j = 0; j < kKeyStep; j += 16)
                    order_scores(work.sums[s & 1] + tile * kKeyStep * 16 + j * 16, at_most(rows - row, kTileRows),
                                 work.scores + row * kPackedKeys + (s - 2) * kKeyStep + j);
        }
    }
}

// Where codes of values are read: in place, but for the last tokens, after which memory may end.
struct ValueCodes {
    const uint8_t *codes, *tail;
    int64_t step, tail_first, tail_step;
    ValueCodes(const PackedAttention& a, const PackedBlock& b, uint8_t* room)
        : codes(a.values.codes_of(b.batch, b.group, b.first)), tail(room) {
        const int64_t bytes = a.values.book->row_bytes(a.full.width);
        step = a.values.codes.row, tail_step = bytes;
        tail_first = at_least(0, (b.count - 4) / 4 * 4);
        for (int64_t j = tail_first; j < b.count; j++) std::memcpy(room + (j - tail_first) * bytes, codes + j * step, size_t(bytes));
    }
};

// Columns [d, d + columns) of tokens [first, first + 16) as lines of right sides.
template <int BITS>
inline void decode_values_at(const PackedAttention& a, const PackedBlock& b, const ValueCodes& from, int64_t first, int64_t d,
                             int64_t columns, int8_t* out) {
    using Four = FourTokens<BITS>;
    const __m512i table = level_table(*a.values.book);
    const int64_t end = at_most(b.count, first + 16);
    for (int64_t j = first; j < end; j += 4, out += 64) {
        const bool last = j >= from.tail_first;
        const uint8_t* p = (last ? from.tail + (j - from.tail_first) * from.tail_step : from.codes + j * from.step) + d / 8 * BITS;
        for (int64_t c = 0; c < columns; c += Four::kUnit, p += Four::kBytes)
            Four::decode(table, p, last ? from.tail_step : from.step, out + c / 16 * 1024, 1024);
    }
}

// Adds the products of one step with the sixteen columns T.
template <int T>
inline void multiply_values(const int8_t* weights, const int8_t* values) {
    values += T * 1024;
    written();
    if constexpr (T == 0) _tile_loadd(4, weights, 64);
    if constexpr (T % 2 == 0) _tile_loadd(6, values, 64);
    if constexpr (T % 2 == 1) _tile_loadd(7, values, 64);
    if constexpr (T == 0) _tile_dpbssd(0, 4, 6);
    if constexpr (T == 1) _tile_dpbssd(1, 4, 7);
    if constexpr (T == 2) _tile_dpbssd(2, 4, 6);
    if constexpr (T == 3) _tile_dpbssd(3, 4, 7);
}

// Writes the sums of `rows` rows, of columns [d, d + columns): high and low sums together, columns in order.
template <int BITS>
inline void write_sums(const PackedAttention& a, const TiledWork& work, int64_t row, int64_t rows, int64_t d, int64_t columns,
                       float* partial) {
    alignas(64) static constexpr auto order = [] {
        struct { int at[32]; } table{};
        for (int i = 0; i < 32; i++) table.at[i] = i / 2 + i % 2 * 16;
        return table;
    }();
    each_tile([&](auto t) { store_sums<t()>(work.o + 16 * t(), kTileColumns * 4); });
    for (int64_t r = 0; r < rows; r++) {
        const vf step = splat(work.steps[row + r]);
        const int32_t *high = work.o + r * kTileColumns, *low = high + rows * kTileColumns;
        float* out = partial + (row + r) * packed_partial_stride(a) + 2 + d;
        for (int64_t c = 0; c < columns; c += 32) {
            const auto sum_at = [&](int64_t at) {
                const __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(_mm512_load_si512(high + at), 8), _mm512_load_si512(low + at));
                return _mm512_mul_ps(_mm512_cvtepi32_ps(whole), (__m512)step);
            };
            const __m512 x = sum_at(c), y = sum_at(c + 16);
            if constexpr (FourTokens<BITS>::kVectors == 1) {
                store(out + c, (vf)x), store(out + c + 16, (vf)y);
            } else {
                store(out + c, (vf)_mm512_permutex2var_ps(x, _mm512_load_si512(&order.at[0]), y));
                store(out + c + 16, (vf)_mm512_permutex2var_ps(x, _mm512_load_si512(&order.at[16]), y));
            }
        }
    }
}

template <int BITS>
void sum_tiles(const PackedAttention& a, const PackedBlock& b, const TiledWork& work, CodeFetcher& fetch, float* partial) {
    const int64_t rows = packed_rows(a), width = a.full.width, steps = (b.count + kStep - 1) / kStep;
    const int64_t share = kPackedKeys * a.values.codes.row / (4 * steps * ((width + kTileColumns - 1) / kTileColumns)) + 64;
    const ValueCodes from(a, b, work.tail);
    int set = 0;
    for (int64_t d = 0; d < width; d += kTileColumns) {
        const int64_t columns = at_most(kTileColumns, width - d);
        for (int64_t row = 0; row < rows; row += kTileRows) {
            const int64_t here = at_most(kTileRows, rows - row);
            if (set != here) {
                static constexpr Tiles::Setting all[kTileRows] = {Tiles::of(2),  Tiles::of(4),  Tiles::of(6),  Tiles::of(8),
                                                                  Tiles::of(10), Tiles::of(12), Tiles::of(14), Tiles::of(16)};
                _tile_loadconfig(&all[here - 1]);
                set = int(here);
            }
            each_tile([](auto t) { clear_sums<t()>(); });
            const int8_t* weights = work.weights + row * kPackedKeys * 2;
            // The first rows come with the decoding, one step behind it; what was decoded serves the others, if there are any.
            const auto values = [&](int64_t s) { return work.values + (rows > kTileRows ? s : s & 1) * kStep * kTileColumns; };
            if (row == 0)
                for (int64_t s = 0; s <= steps; s++)
                    each_tile([&](auto t) {
                        if (s < steps) {
                            fetch.values(share);
                            decode_values_at<BITS>(a, b, from, s * kStep + 16 * t(), d, columns, values(s) + 256 * t());
                        }
                        if (s > 0) multiply_values<t()>(weights + (s - 1) * 1024, values(s - 1));
                    });
            else
                for (int64_t s = 0; s < steps; s++) each_tile([&](auto t) { multiply_values<t()>(weights + s * 1024, values(s)); });
            write_sums<BITS>(a, work, row, here, d, columns, partial);
        }
    }
    _tile_release();
}

inline void block_tiled(const PackedAttention& a, const PackedBlock& b, bool next, const void* prepared, float* partial, void* scratch) {
    const TiledWork work(a, scratch);
    const TiledQueries queries(a, const_cast<void*>(prepared));
    CodeFetcher fetch(a, b, next);
    with_code_bits(a.keys.book->bits, [&](auto bits) { score_tiles<bits()>(a, b, queries, work, fetch); });
    const int64_t rows = packed_rows(a);
    for (int64_t r = 0; r < rows; r += kTileRows) {
        const int64_t here = at_most(kTileRows, rows - r);
        int8_t *high = work.weights + r * kPackedKeys * 2, *low = high + here * 64;
        weigh_packed(a, b, r, here, queries.steps, work.scores + r * kPackedKeys, work.steps, partial, [&](int64_t i, int j, vi fixed) {
            const int64_t at = i * 64 + j / 64 * 1024 + j % 64;
            split(fixed, high + at, low + at);
        });
    }
    with_code_bits(a.values.book->bits, [&](auto bits) { sum_tiles<bits()>(a, b, work, fetch, partial); });
}

#else

inline bool tiled(const PackedAttention&) { return false; }
struct TiledQueries {
    size_t bytes = 0;
    TiledQueries(const PackedAttention&, void*) {}
};
struct TiledWork {
    size_t bytes = 0;
    TiledWork(const PackedAttention&, void*) {}
};
inline void prepare_tiles(const PackedAttention&, int64_t, int64_t, void*) {}
inline void block_tiled(const PackedAttention&, const PackedBlock&, bool, const void*, float*, void*) {}

#endif

}  // namespace optiq::OPTIQ_LEVEL
