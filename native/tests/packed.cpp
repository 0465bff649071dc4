#include "kernels/packed.h"

#include <cmath>

#include "core/pool.h"
#include "kernels/packed_run.h"
#include "tests/check.h"

using namespace optiq;

namespace {

// Levels in rising order, not equally spaced; memory of exactly the size that is needed, so that a read beyond it is seen.
Codebook book_of(int bits) {
    Codebook book;
    book.bits = bits;
    const int count = book.count();
    for (int i = 0; i < count; i++) {
        const int signed_place = 2 * i + 1 - count, size = std::abs(signed_place);
        book.levels[i] = int8_t(bits == 8 ? i - 128 : signed_place * 127 * (count + size) / (count - 1) / (2 * count));
        if (i) book.bounds[i - 1] = (float(book.levels[i]) + float(book.levels[i - 1])) / 2.f;
    }
    for (int64_t i = count; i < kTableLevels; i++) book.levels[i] = book.levels[i % count];
    book.unit = 3.f / 127.f;
    return book;
}

struct Example {
    Codebook books[2];
    int64_t groups, width;
    std::vector<float> q, full[2], factors, mean, out;
    std::vector<uint8_t> codes[2];
    std::vector<uint16_t> scales[2];
    std::vector<int32_t> starts{5};
    PackedAttention a;

    Example(int key_bits, int value_bits, int64_t share, int64_t queries, int64_t tokens, int64_t keys, int64_t width)
        : books{book_of(key_bits), book_of(value_bits)}, groups(2), width(width), out(size_t(groups * share * queries * width)) {
        test::Random random(uint64_t(tokens + width));
        q = random.values(out.size());
        factors = std::vector<float>(size_t(groups * width), 1.f);
        mean = random.values(size_t(groups * width));
        a.full.batches = 1, a.full.heads = groups * share, a.full.groups = groups, a.full.queries = queries, a.full.keys = keys;
        a.full.width = a.full.value_width = width, a.full.scale = 0.2f, a.full.causal = true;
        a.full.q = {q.data(), 0, queries * width, width};
        a.tokens = tokens;
        for (int i = 0; i < 2; i++) {
            full[i] = random.values(size_t(groups * keys * width));
            const int64_t bytes = books[i].row_bytes(width);
            codes[i].resize(size_t(groups * tokens * bytes)), scales[i].resize(size_t(groups * tokens));
            const PackForm form{&books[i], width, factors.data(), i == 0 ? Scaling::fit : Scaling::search};
            const std::vector<float> x = random.values(size_t(groups * tokens * width));
            for (int64_t j = 0; j < groups * tokens; j++)
                packing().pack(form, &x[size_t(j * width)], Float::f32, &codes[i][size_t(j * bytes)], &scales[i][size_t(j)]);
            (i ? a.full.v : a.full.k) = {full[i].data(), 0, keys * width, width};
            (i ? a.values : a.keys) = {&books[i], {codes[i].data(), 0, tokens * bytes, bytes}, {scales[i].data(), 0, tokens, 1}};
        }
        a.key_undo = a.value_undo = factors.data(), a.mean = mean.data(), a.starts = starts.data();
        a.full.out = out.data();
    }

    // All keys or values of a group as vectors: packed ones by the kernel that unpacks, then the others.
    std::vector<float> vectors(int which, int64_t group) const {
        std::vector<float> all(size_t((a.tokens + a.full.keys) * width));
        const PackedRows& rows = which ? a.values : a.keys;
        for (int64_t j = 0; j < a.tokens; j++)
            packing().unpack(books[which], width, rows.codes_of(0, group, j), *rows.scale_of(0, group, j), factors.data(),
                             which ? &mean[size_t(group * width)] : nullptr, &all[size_t(j * width)], Float::f32);
        const size_t rest = size_t(a.full.keys * width);
        for (size_t i = 0; i < rest; i++) all[size_t(a.tokens * width) + i] = full[which][size_t(group) * rest + i];
        return all;
    }

    double worst() const {
        const int64_t share = a.full.heads / groups, all = a.tokens + a.full.keys;
        double most = 0;
        for (int64_t h = 0; h < a.full.heads; h++) {
            const auto k = vectors(0, h / share), v = vectors(1, h / share);
            for (int64_t l = 0; l < a.full.queries; l++) {
                std::vector<double> w(size_t(all), 0.), sum(size_t(width), 0.);
                const size_t row = size_t((h * a.full.queries + l) * width);
                double total = 0;
                for (int64_t j = 0; j < all; j++) {
                    if (j > all - a.full.queries + l || (j < starts[0] && j < a.tokens)) continue;
                    double s = 0;
                    for (int64_t d = 0; d < width; d++) s += double(q[row + size_t(d)]) * k[size_t(j * width + d)];
                    total += w[size_t(j)] = std::exp(0.2 * s);
                }
                for (int64_t j = 0; j < all; j++)
                    for (int64_t d = 0; d < width; d++) sum[size_t(d)] += w[size_t(j)] / total * v[size_t(j * width + d)];
                for (int64_t d = 0; d < width; d++) most = std::max(most, std::fabs(sum[size_t(d)] - out[row + size_t(d)]));
            }
        }
        return most;
    }
};

}  // namespace

TEST(attention_over_packed_tokens_is_that_over_their_vectors_and_does_not_depend_on_threads) {
    const int bits[] = {1, 2, 3, 4, 5, 6, 8};
    test::each_level([&] {
        for (const int64_t width : {24, 64, 80, 96, 256})
            for (int i = 0; i < 7; i++)
                for (const int64_t tokens : {9, 323}) {
                    const int64_t share = 1 + i % 4, queries = tokens == 9 ? 1 : 5;
                    Example one(bits[i], bits[(i + 3) % 7], share, queries, tokens, 7, width);
                    Example other(bits[i], bits[(i + 3) % 7], share, queries, tokens, 7, width);
                    set_pool_threads(1);
                    run_packed_attention(one.a);
                    set_pool_threads(3);
                    run_packed_attention(other.a);
                    CHECK(one.out == other.out);
                    CHECK(one.worst() <= 1e-4);
                }
    });
    set_pool_threads(1);
}
