// 16-bit floats as they lie in memory. Widening is exact, narrowing rounds to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

namespace optiq {

enum class Float { f32, f16, bf16 };

inline int64_t float_bytes(Float type) { return type == Float::f32 ? 4 : 2; }

inline float bf16_to_float(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline float f16_to_float(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent == 0) return (sign ? -0x1p-24f : 0x1p-24f) * float(fraction);
    const uint32_t wide = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | fraction << 13;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline uint16_t float_to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);  // a NaN stays one
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace optiq
