// Attention of query rows over packed tokens, for mx.fast.metal_kernel (src/optiq/kernels/packed_metal.py); the part before the
// line `// body` is its header. Also compiled as C++ through a shim of the Metal types: tests/kernels/test_packed_metal.py.
//
// Grid (32, rows, parts), threadgroup (32, 1, 1): a simdgroup has one row of queries and the tokens part, part + parts, .., from
// the row's start on; a lane has D / 32 neighbouring coordinates. Everything stays in the rotated basis.
//
// Template  D, KEY_BITS, VALUE_BITS
// Inputs    query float [B, H, L, D], rotated and times the scale; key_codes, value_codes uint8 [B, G, P, D bits / 8];
//           key_scales, value_scales bfloat16 [B, G, P]; key_levels, value_levels float [2^bits]; starts int32 [B]
// Outputs   sums float [B, H, L, parts, D] = sum_j exp(s_j - m) v_j, most [B, H, L, parts] = m, mass = sum_j exp(s_j - m)

// Code `place` of a little-endian bit stream; the byte after its first one is read only if it reaches there.
template <int BITS>
inline uint code_at(const device uint8_t* codes, int place) {
    const int bit = place * BITS, first = bit / 8, shift = bit % 8;
    uint word = codes[first];
    if (shift + BITS > 8) word |= uint(codes[first + 1]) << 8;
    return (word >> shift) & ((1u << BITS) - 1u);
}

// body
constexpr int EACH = D / 32;
const int place = int(thread_position_in_threadgroup.x) * EACH, row = int(threadgroup_position_in_grid.y);
const int part = int(threadgroup_position_in_grid.z), parts = int(threadgroups_per_grid.z);
const int heads = query_shape[1], length = query_shape[2], groups = key_codes_shape[1], tokens = key_codes_shape[2];
const int batch = row / (heads * length), group = row / length % heads / (heads / groups);
const device uint8_t* keys = key_codes + batch * key_codes_strides[0] + group * key_codes_strides[1];
const device uint8_t* values = value_codes + batch * value_codes_strides[0] + group * value_codes_strides[1];
const device bfloat16_t* of_keys = key_scales + batch * key_scales_strides[0] + group * key_scales_strides[1];
const device bfloat16_t* of_values = value_scales + batch * value_scales_strides[0] + group * value_scales_strides[1];

float q[EACH], o[EACH];
for (int i = 0; i < EACH; i++) {
    q[i] = query[row * D + place + i];
    o[i] = 0.0f;
}
float top = -INFINITY, total = 0.0f;
for (int j = starts[batch] + part; j < tokens; j += parts) {
    const device uint8_t* key = keys + j * key_codes_strides[2];
    const device uint8_t* value = values + j * value_codes_strides[2];
    float score = 0.0f;
    for (int i = 0; i < EACH; i++) score += q[i] * key_levels[code_at<KEY_BITS>(key, place + i)];
    score = simd_sum(score) * float(of_keys[j * key_scales_strides[2]]);
    const float now = metal::max(top, score), old = metal::exp(top - now), weight = metal::exp(score - now);
    const float by = weight * float(of_values[j * value_scales_strides[2]]);
    for (int i = 0; i < EACH; i++) o[i] = o[i] * old + by * value_levels[code_at<VALUE_BITS>(value, place + i)];
    total = total * old + weight;
    top = now;
}
for (int i = 0; i < EACH; i++) sums[(row * parts + part) * D + place + i] = o[i];
if (place == 0) {
    most[row * parts + part] = top;
    mass[row * parts + part] = total;
}
