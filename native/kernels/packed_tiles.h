// Attention over packed tokens where the processor multiplies tiles of bytes.
//
// Eight rows go together: the high bytes of their fixed-point numbers are eight lines of a tile, the low bytes eight others, so
// that one product gives both sums. Keys are the left side (16 keys of 64 coordinates), values the right one (64 tokens, four
// to a dword, of 16 coordinates). Levels live in the first-level cache between decoding and product, which run one step apart.
#pragma once

#include "kernels/packed_decode.h"
#include "kernels/packed_weights.h"

namespace optiq::OPTIQ_LEVEL {

#if defined(__AMX_INT8__)

constexpr int64_t kTileRows = 8, kTileKeys = 32, kTileColumns = 64;

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
    int8_t* keys[2];   // [kTileKeys, padded D]
    int32_t* sums[2];  // [row tiles, kTileKeys, 16]
    int32_t* scores;   // [rows, kPackedKeys]
    int8_t* weights;   // [row tiles, kPackedKeys / 64, 16, 64]
    float* steps;      // [rows]
    int8_t* values;    // [kPackedKeys / 64, kTileColumns / 16, 16, 64]
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
        for (auto& some : keys) some = reinterpret_cast<int8_t*>(take(kTileKeys * width));
        for (auto& some : sums) some = reinterpret_cast<int32_t*>(take(tiles * kTileKeys * 64));
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
    const vi below = ((fixed + 128) & 255) - 128, above = (fixed - below) >> 8;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8((__m512i)above));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8((__m512i)below));
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
        int8_t* tile = queries.tiles + r / kTileRows * queries.tile_bytes + r % kTileRows * 4;
        for (int64_t d = 0; d < width; d += 4) {
            std::memcpy(tile + d * 16, high + d, 4);
            std::memcpy(tile + d * 16 + 4 * kTileRows, low + d, 4);
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

template <int BITS>
inline void decode_keys_at(const PackedAttention& a, const PackedBlock& b, int64_t first, int8_t* out) {
    const __m512i table = level_table(*a.keys.book);
    const int64_t width = a.full.width, stride = padded64(width), step = a.keys.codes.row;
    const uint8_t* codes = a.keys.codes_of(b.batch, b.group, b.first + first);
    const int64_t count = at_most(kTileKeys, b.count - first);
    for (int64_t j = 0; j < count; j++) decode_key<BITS>(table, codes + j * step, width, out + j * stride);
}

// Sums of kTileKeys keys with all tiles of rows: [keys, 8 high and 8 low].
inline void multiply_keys(const PackedAttention& a, const TiledQueries& queries, const int8_t* keys, int32_t* sums) {
    const int64_t stride = padded64(a.full.width);
    for (int64_t t = 0; t < row_tiles(a); t++, sums += kTileKeys * 16) {
        const int8_t* q = queries.tiles + t * queries.tile_bytes;
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t d = 0; d < stride; d += 64) {
            _tile_loadd(4, q + d * 16, 64);
            _tile_loadd(2, keys + d, stride);
            _tile_dpbssd(0, 2, 4);
            _tile_loadd(3, keys + 16 * stride + d, stride);
            _tile_dpbssd(1, 3, 4);
        }
        _tile_stored(0, sums, 64);
        _tile_stored(1, sums + 256, 64);
    }
}

// Those sums as scores of rows.
inline void order_scores(const PackedAttention& a, const int32_t* sums, int64_t first, int32_t* scores) {
    for (int64_t t = 0; t < row_tiles(a); t++, scores += kTileRows * kPackedKeys)
        for (int64_t j = first; j < first + kTileKeys; j += 16, sums += 256) {
            __m512i x[16];
            for (int i = 0; i < 16; i++) x[i] = _mm512_load_si512(sums + i * 16);
            transpose(x);
            for (int64_t r = 0; r < kTileRows; r++)
                _mm512_store_si512(scores + r * kPackedKeys + j, _mm512_add_epi32(_mm512_slli_epi32(x[r], 8), x[kTileRows + r]));
        }
}

template <int BITS>
void score_tiles(const PackedAttention& a, const PackedBlock& b, const TiledQueries& queries, const TiledWork& work, CodeFetcher& fetch) {
    const int64_t steps = (b.count + kTileKeys - 1) / kTileKeys;
    const Tiles square;
    for (int64_t s = 0; s < steps + 2; s++) {
        if (s < steps) {
            fetch.keys(kTileKeys * a.keys.codes.row);
            decode_keys_at<BITS>(a, b, s * kTileKeys, work.keys[s & 1]);
        }
        if (s >= 2) order_scores(a, work.sums[s & 1], (s - 2) * kTileKeys, work.scores);
        if (s >= 1 && s <= steps) multiply_keys(a, queries, work.keys[(s - 1) & 1], work.sums[(s - 1) & 1]);
    }
}

// Where codes of values are read: in place, but for the last tokens, after which memory may end.
struct ValueCodes {
    const uint8_t *codes, *tail;
    int64_t step, tail_first, tail_step;
    ValueCodes(const PackedAttention& a, const PackedBlock& b, uint8_t* room) : codes(a.values.codes_of(b.batch, b.group, b.first)), tail(room) {
        const int64_t bytes = a.values.book->row_bytes(a.full.width);
        step = a.values.codes.row, tail_step = bytes;
        tail_first = at_least(0, (b.count - 4) / 4 * 4);
        for (int64_t j = tail_first; j < b.count; j++) std::memcpy(room + (j - tail_first) * bytes, codes + j * step, size_t(bytes));
    }
};

// Columns [d, d + columns) of tokens [first, first + 64) as right sides.
template <int BITS>
inline void decode_values_at(const PackedAttention& a, const PackedBlock& b, const ValueCodes& from, int64_t first, int64_t d, int64_t columns,
                             int8_t* out) {
    using Four = FourTokens<BITS>;
    const __m512i table = level_table(*a.values.book);
    const int64_t end = at_most(b.count, first + 64);
    for (int64_t j = first; j < end; j += 4, out += 64) {
        const bool last = j >= from.tail_first;
        const uint8_t* p = (last ? from.tail + (j - from.tail_first) * from.tail_step : from.codes + j * from.step) + d / 8 * BITS;
        for (int64_t c = 0; c < columns; c += Four::kUnit, p += Four::kBytes)
            Four::decode(table, p, last ? from.tail_step : from.step, out + c / 16 * 1024, 1024);
    }
}

// One step of 64 tokens; `both` lines of a tile of weights.
inline void multiply_values(const int8_t* weights, const int8_t* values) {
    _tile_loadd(4, weights, 64);
    _tile_loadd(6, values, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(7, values + 1024, 64);
    _tile_dpbssd(1, 4, 7);
    _tile_loadd(6, values + 2048, 64);
    _tile_dpbssd(2, 4, 6);
    _tile_loadd(7, values + 3072, 64);
    _tile_dpbssd(3, 4, 7);
}

// Writes the sums of `rows` rows, of columns [d, d + columns): high and low sums together, columns in order.
template <int BITS>
inline void write_sums(const PackedAttention& a, const TiledWork& work, int64_t row, int64_t rows, int64_t d, int64_t columns, float* partial) {
    alignas(64) static constexpr auto order = [] {
        struct { int at[32]; } table{};
        for (int i = 0; i < 32; i++) table.at[i] = i / 2 + i % 2 * 16;
        return table;
    }();
    _tile_stored(0, work.o, kTileColumns * 4);
    _tile_stored(1, work.o + 16, kTileColumns * 4);
    _tile_stored(2, work.o + 32, kTileColumns * 4);
    _tile_stored(3, work.o + 48, kTileColumns * 4);
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
    const int64_t rows = packed_rows(a), width = a.full.width, steps = (b.count + 63) / 64;
    const int64_t share = kPackedKeys * a.values.codes.row / (steps * ((width + kTileColumns - 1) / kTileColumns)) + 64;
    const ValueCodes from(a, b, work.tail);
    int set = 0;
    for (int64_t d = 0; d < width; d += kTileColumns) {
        const int64_t columns = at_most(kTileColumns, width - d);
        const auto decode = [&](int64_t s) {
            fetch.values(share);
            decode_values_at<BITS>(a, b, from, s * 64, d, columns, work.values + s * 64 * kTileColumns);
        };
        decode(0);
        for (int64_t row = 0; row < rows; row += kTileRows) {
            const int64_t here = at_most(kTileRows, rows - row);
            if (set != here) {
                static constexpr Tiles::Setting all[kTileRows] = {Tiles::of(2),  Tiles::of(4),  Tiles::of(6),  Tiles::of(8),
                                                                  Tiles::of(10), Tiles::of(12), Tiles::of(14), Tiles::of(16)};
                _tile_loadconfig(&all[here - 1]);
                set = int(here);
            }
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            const int8_t* weights = work.weights + row * kPackedKeys * 2;
            for (int64_t s = 0; s < steps; s++) {
                if (row == 0 && s + 1 < steps) decode(s + 1);
                multiply_values(weights + s * 1024, work.values + s * 64 * kTileColumns);
            }
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
    for (int64_t r = 0; r < rows; r++) {
        const int64_t tile = r / kTileRows, here = at_most(kTileRows, rows - tile * kTileRows);
        int8_t *high = work.weights + tile * kPackedKeys * 16 + r % kTileRows * 64, *low = high + here * 64;
        work.steps[r] = weigh_packed(a, b, r, queries.steps[r], work.scores + r * kPackedKeys, partial + r * packed_partial_stride(a),
                                     [&](int j, vi fixed) {
                                         const int64_t at = j / 64 * 1024 + j % 64;
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
