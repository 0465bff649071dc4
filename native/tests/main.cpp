// Runs every case; built with OPTIQ_TESTS, usually under AddressSanitizer or ThreadSanitizer.

#include "tests/check.h"

int main() {
    if (optiq::detect_level() == optiq::Level::none) {
        std::printf("skipped: this processor has no AVX2\n");
        return 0;
    }
    for (const auto& one : optiq::test::cases()) {
        one.run();
        std::printf("ok %s\n", one.name);
    }
    std::printf("%zu passed\n", optiq::test::cases().size());
}
