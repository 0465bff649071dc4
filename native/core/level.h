// Instruction levels: every source under kernels/ is compiled once per level, into a namespace of its own, and one level
// is chosen when the process starts. A kernel family is a struct of function pointers; see OPTIQ_FAMILY.
#pragma once

#include <string>

namespace optiq {

// In rising order; a level needs everything that the ones below it need.
enum class Level { none, avx2, avx512, vnni, amx };

// The best level that this processor and its operating system offer.
Level detect_level();

// The level in use. set_level takes effect for calls that begin afterwards; it must not exceed detect_level().
Level level();
void set_level(Level level);

const char* level_name(Level level);

// What the processor has, for a reader: "avx2 fma avx512f ...".
std::string cpu_features();

}  // namespace optiq

// Declares the accessor of a kernel family: `OPTIQ_FAMILY(Products, products)` gives `const Products& products()`, which
// answers with the table of the level in use. Each kernels/<family>.cpp defines `const Products OPTIQ_LEVEL::products_table`.
#define OPTIQ_FAMILY(Type, name)                                  \
    namespace avx2 { extern const Type name##_table; }            \
    namespace avx512 { extern const Type name##_table; }          \
    namespace vnni { extern const Type name##_table; }            \
    namespace amx { extern const Type name##_table; }             \
    inline const Type& name() {                                   \
        switch (level()) {                                        \
            case Level::amx: return amx::name##_table;            \
            case Level::vnni: return vnni::name##_table;          \
            case Level::avx512: return avx512::name##_table;      \
            default: return avx2::name##_table;                   \
        }                                                         \
    }
