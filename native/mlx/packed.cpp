// Packed vectors as MLX operations on the CPU: packing, writing into a buffer, unpacking, attention.

#include "kernels/packed.h"

#include <cstring>
#include <optional>

#include "kernels/packed_run.h"
#include "mlx/bind.h"
#include "mlx/heads.h"
#include "mlx/view.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace optiq {
namespace {

using Optional = std::optional<mx::array>;
using Book = Held<const Codebook>;

void check(bool good, const char* what) {
    if (!good) throw std::invalid_argument(std::string("packed: ") + what);
}

Book codebook(int bits, const std::vector<int>& levels, float unit) {
    check(bits >= 1 && bits <= 8 && bits != 7, "expected 1, 2, 3, 4, 5, 6 or 8 bits");
    auto book = std::make_shared<Codebook>();
    const int count = 1 << bits;
    check(int(levels.size()) == count, "expected 2^bits levels");
    book->bits = bits, book->unit = unit;
    for (int i = 0; i < count; i++) {
        check(levels[size_t(i)] >= -128 && levels[size_t(i)] <= 127 && (i == 0 || levels[size_t(i)] > levels[size_t(i) - 1]),
              "levels must be signed bytes in rising order");
        book->levels[i] = int8_t(levels[size_t(i)]);
        if (i) book->bounds[i - 1] = float(levels[size_t(i)] + levels[size_t(i) - 1]) / 2.f;
    }
    for (int64_t i = count; i < kTableLevels; i++) book->levels[i] = book->levels[i % count];
    const int step = levels[1] - levels[0];
    bool even = true;
    for (int i = 1; i < count; i++) even = even && levels[size_t(i)] - levels[size_t(i) - 1] == step;
    book->spacing = even ? float(step) : 0.f;
    return {book};
}

Scaling scaling_of(const std::string& name) {
    const std::string names[] = {"norm", "fit", "exact", "search"};  // in the order of Scaling
    for (int i = 0; i < 4; i++)
        if (name == names[i]) return Scaling(i);
    throw std::invalid_argument("unknown scaling " + name);
}

void check_width(int64_t width) { check(width % 8 == 0 && width > 0 && width <= kPackedWidth, "expected a width of 8, 16, ..., 512"); }

PackedRows rows_of(const Codebook* book, const Rows4& codes, const mx::array& scales) {
    const auto& step = scales.strides();
    return {book, codes.view(), {data(scales), step[0], step[1], step[2]}};
}

// Packs x [B, G, L, D] into tokens from `start` on of codes [B, G, C, bytes] and scales [B, G, C], both dense.
void pack_into(const mx::array& x, const mx::array& diagonal, const Codebook& book, Scaling scaling, mx::array& codes, mx::array& scales,
               int64_t start) {
    const Rows4 rows(x);
    const Floats diagonals(diagonal);
    const HeadRows view = rows.view();
    const Float type = float_of(x);
    const int64_t groups = x.shape(1), length = x.shape(2), width = x.shape(3), room = codes.shape(2), item = float_bytes(type);
    const Packing& kernels = packing();
    run_packing(x.shape(0) * groups * length, width, [&](int64_t i) {
        const int64_t pair = i / length, token = i % length, group = pair % groups, at = pair * room + start + token;
        const PackForm form{&book, width, diagonals.start() + group * width, scaling};
        const int64_t from = pair / groups * view.batch + group * view.head + token * view.row;
        kernels.pack(form, static_cast<const char*>(view.data) + from * item, type, data<uint8_t>(codes) + at * book.row_bytes(width),
                     data<uint16_t>(scales) + at);
    });
}

void check_vectors(const mx::array& x, const mx::array& diagonal) {
    check(x.ndim() == 4 && x.size() > 0, "expected vectors [B, G, L, D]");
    check(diagonal.ndim() == 2 && diagonal.shape(0) == x.shape(1) && diagonal.shape(1) == x.shape(3), "expected a diagonal [G, D]");
    check_width(x.shape(3));
    float_of(x), float_of(diagonal);
}

Arrays pack(const mx::array& x, const mx::array& diagonal, const Book& book, const std::string& scaling) {
    check_vectors(x, diagonal);
    const auto run = [book, scaling = scaling_of(scaling)](const Arrays& in, Arrays& out) { pack_into(in[0], in[1], *book, scaling, out[0], out[1], 0); };
    const int bytes = int(book->row_bytes(x.shape(3)));
    return make({{x.shape(0), x.shape(1), x.shape(2), bytes}, {x.shape(0), x.shape(1), x.shape(2)}}, {mx::uint8, mx::bfloat16},
                std::make_shared<Op>(cpu_stream(), "OptiqPack", run), {x, diagonal});
}

// As Append (mlx/cache.cpp): the outputs are the buffers of the first two inputs.
class Store : public Op {
  public:
    Store(mx::Stream stream, Book book, Scaling scaling, int64_t start)
        : Op(stream, "OptiqStore", {}), book_(std::move(book)), scaling_(scaling), start_(start) {}

    void eval_cpu(const Arrays& inputs, Arrays& outputs) override {
        auto& encoder = mx::cpu::get_command_encoder(stream());
        for (size_t i = 0; i < 2; i++) outputs[i].copy_shared_buffer(inputs[i]);
        auto codes = mx::array::unsafe_weak_copy(outputs[0]), scales = mx::array::unsafe_weak_copy(outputs[1]);
        auto x = mx::array::unsafe_weak_copy(inputs[2]), diagonal = mx::array::unsafe_weak_copy(inputs[3]);
        encoder.dispatch([codes, scales, x, diagonal, book = book_, scaling = scaling_, start = start_]() mutable {
            pack_into(x, diagonal, *book, scaling, codes, scales, start);
        });
    }

  private:
    Book book_;
    Scaling scaling_;
    int64_t start_;
};

Arrays store(const mx::array& codes, const mx::array& scales, const mx::array& x, const mx::array& diagonal, int64_t start,
             const Book& book, const std::string& scaling) {
    check_vectors(x, diagonal);
    check(codes.ndim() == 4 && scales.ndim() == 3 && codes.dtype() == mx::uint8 && scales.dtype() == mx::bfloat16,
          "expected codes uint8 [B, G, C, D bits / 8] and scales bfloat16 [B, G, C]");
    for (int i = 0; i < 3; i++)
        check(codes.shape(i) == scales.shape(i) && (i == 2 || codes.shape(i) == x.shape(i)), "the vectors do not fit the buffer");
    check(codes.shape(3) == book->row_bytes(x.shape(3)) && start >= 0 && start + x.shape(2) <= codes.shape(2),
          "the vectors do not fit the buffer");
    return make({codes.shape(), scales.shape()}, {mx::uint8, mx::bfloat16}, std::make_shared<Store>(cpu_stream(), book, scaling_of(scaling), start),
                {dense(codes), dense(scales), x, diagonal});
}

void check_packed(const mx::array& codes, const mx::array& scales, const Codebook& book, int64_t width) {
    check(codes.ndim() == 4 && scales.ndim() == 3 && codes.dtype() == mx::uint8 && scales.dtype() == mx::bfloat16,
          "expected codes uint8 [B, G, P, D bits / 8] and scales bfloat16 [B, G, P]");
    for (int i = 0; i < 3; i++) check(codes.shape(i) == scales.shape(i), "codes and scales do not fit");
    check(codes.shape(3) == book.row_bytes(width), "codes do not fit the width");
}

// Inputs: codes, scales, factor, then the mean and the rows that follow, where there are some.
void run_unpack(const Codebook& book, bool shifted, const Arrays& in, mx::array& out) {
    const Rows4 codes(in[0]);
    const Floats factor(in[2]);
    std::optional<Floats> mean;
    if (shifted) mean.emplace(in[3]);
    const PackedRows rows = rows_of(&book, codes, in[1]);
    const int64_t groups = out.shape(1), length = in[0].shape(2), all = out.shape(2), width = out.shape(3);
    const Float type = float_of(out);
    const int64_t bytes = width * float_bytes(type);
    const Packing& kernels = packing();
    std::optional<Rows4> tail;
    if (all > length) tail.emplace(in.back());
    run_packing(out.shape(0) * groups * all, width, [&](int64_t i) {
        const int64_t pair = i / all, token = i % all, batch = pair / groups, group = pair % groups;
        char* to = data<char>(out) + i * bytes;
        if (token < length)
            return kernels.unpack(book, width, rows.codes_of(batch, group, token), *rows.scale_of(batch, group, token),
                                  factor.start() + group * width, mean ? mean->start() + group * width : nullptr, to, type);
        const HeadRows& from = tail->view();
        std::memcpy(to, static_cast<const char*>(from.data) +
                            (batch * from.batch + group * from.head + (token - length) * from.row) * float_bytes(type),
                    size_t(bytes));
    });
}

mx::array unpack(const mx::array& codes, const mx::array& scales, const mx::array& factor, const Book& book, const Optional& mean,
                 const Optional& tail, mx::Dtype type) {
    check(factor.ndim() == 2, "expected a factor [G, D]");
    const int width = factor.shape(1);
    check_width(width);
    check_packed(codes, scales, *book, width);
    check(factor.shape(0) == codes.shape(1) && (!mean || mean->shape() == factor.shape()), "factor and mean must be [G, D]");
    Arrays inputs{codes, scales, factor};
    if (mean) inputs.push_back(*mean);
    int all = codes.shape(2);
    if (tail) {
        check(tail->ndim() == 4 && tail->shape(0) == codes.shape(0) && tail->shape(1) == codes.shape(1) && tail->shape(3) == width &&
                  tail->dtype() == type,
              "the rows that follow do not fit");
        all += tail->shape(2);
        inputs.push_back(*tail);
    }
    const auto run = [book, shifted = mean.has_value()](const Arrays& in, Arrays& out) { run_unpack(*book, shifted, in, out[0]); };
    return make_one({codes.shape(0), codes.shape(1), all, width}, type, std::make_shared<Op>(cpu_stream(), "OptiqUnpack", run), inputs);
}

struct Setting {
    Book key_book, value_book;
    float scale;
    bool shifted, started, masked;
};

// Inputs: q, k, v, codes and scales of keys and of values, what undoes keys and values, then mean, starts and mask.
void run_attend(const Setting& s, const Arrays& in, mx::array& out) {
    const Rows4 q(in[0]), k(in[1]), v(in[2]), key_codes(in[3]), value_codes(in[5]);
    const Floats key_undo(in[7]), value_undo(in[8]);
    std::optional<Floats> mean;
    std::optional<Rows4> mask;
    size_t next = 9;
    PackedAttention a;
    Attention& full = a.full;
    full.type = float_of(in[0]);
    full.batches = in[0].shape(0), full.heads = in[0].shape(1), full.groups = in[1].shape(1);
    full.queries = in[0].shape(2), full.keys = in[1].shape(2), full.width = full.value_width = in[0].shape(3);
    full.scale = s.scale, full.causal = !s.masked;
    full.q = q.view(), full.k = k.view(), full.v = v.view();
    full.out = data(out);
    a.tokens = in[3].shape(2);
    a.keys = rows_of(s.key_book.get(), key_codes, in[4]);
    a.values = rows_of(s.value_book.get(), value_codes, in[6]);
    a.key_undo = key_undo.start(), a.value_undo = value_undo.start();
    if (s.shifted) a.mean = mean.emplace(in[next++]).start();
    if (s.started) a.starts = data<int32_t>(in[next++]);
    if (s.masked) {
        full.mask_kind = MaskKind::boolean;
        a.mask = full.mask = mask.emplace(in[next]).view();
        full.mask.data = static_cast<const char*>(a.mask.data) + a.tokens;
    }
    run_packed_attention(a);
}

mx::array attend(const mx::array& q, const mx::array& k, const mx::array& v, const std::pair<mx::array, mx::array>& keys,
                 const std::pair<mx::array, mx::array>& values, const mx::array& key_undo, const mx::array& value_undo,
                 const Book& key_book, const Book& value_book, float scale, const Optional& mean, const Optional& starts,
                 const Optional& mask) {
    check(q.ndim() == 4 && k.ndim() == 4 && v.ndim() == 4 && q.size(), "expected q [B, H, L, D], k and v [B, G, F, D]");
    check(k.shape() == v.shape() && k.shape(0) == q.shape(0) && k.shape(3) == q.shape(3) && k.shape(1) > 0 &&
              q.shape(1) % k.shape(1) == 0 && k.dtype() == q.dtype() && v.dtype() == q.dtype(),
          "q, k and v do not fit");
    float_of(q);
    check_width(q.shape(3));
    check_packed(keys.first, keys.second, *key_book, q.shape(3));
    check_packed(values.first, values.second, *value_book, q.shape(3));
    const mx::Shape each{k.shape(1), k.shape(3)};
    check(keys.second.shape() == values.second.shape() && keys.first.shape(0) == k.shape(0) && keys.first.shape(1) == k.shape(1),
          "packed keys and values do not fit");
    check(key_undo.shape() == each && value_undo.shape() == each && (!mean || mean->shape() == each), "expected factors [G, D]");
    const int seen = keys.first.shape(2) + k.shape(2);
    check(seen > 0, "expected at least one token");
    Arrays inputs{q, k, v, keys.first, keys.second, values.first, values.second, key_undo, value_undo};
    if (mean) inputs.push_back(*mean);
    if (starts && !mask) {
        check(starts->ndim() == 1 && starts->shape(0) == q.shape(0), "expected starts [B]");
        inputs.push_back(dense(*starts, mx::int32));
    }
    if (mask) {
        check(mask->dtype() == mx::bool_, "expected a boolean mask");
        inputs.push_back(mx::broadcast_to(*mask, {q.shape(0), q.shape(1), q.shape(2), seen}, cpu_stream()));
    }
    const Setting setting{key_book, value_book, scale, mean.has_value(), starts && !mask, mask.has_value()};
    const auto run = [setting](const Arrays& in, Arrays& out) { run_attend(setting, in, out[0]); };
    return make_one(q.shape(), q.dtype(), std::make_shared<Op>(cpu_stream(), "OptiqPackedAttention", run), inputs);
}

}  // namespace

void bind_packed(nb::module_& m) {
    nb::class_<Book>(m, "Codebook");
    m.def("codebook", &codebook, "bits"_a, "levels"_a, "unit"_a, "What the functions below take for a codebook.");
    m.def("pack", &pack, "x"_a, "diagonal"_a, "book"_a, "scaling"_a, "Codes and scales of x [B, G, L, D]; see optiq.kernels.packed.");
    m.def("store", &store, "codes"_a, "scales"_a, "x"_a, "diagonal"_a, "start"_a, "book"_a, "scaling"_a,
          "The same, written into buffers from token `start` on; the results take the buffers over.");
    m.def("unpack", &unpack, "codes"_a, "scales"_a, "factor"_a, "book"_a, "mean"_a.none(), "tail"_a.none(), "dtype"_a,
          "factor H y' + mean of packed vectors [B, G, P, D], followed by the rows of `tail`.");
    m.def("attend", &attend, "q"_a, "k"_a, "v"_a, "keys"_a, "values"_a, "key_undo"_a, "value_undo"_a, "key_book"_a, "value_book"_a,
          "scale"_a, "mean"_a.none(), "starts"_a.none(), "mask"_a.none(), "Attention over packed, then full-precision tokens.");
}

}  // namespace optiq
