/* Plain BLAS and LAPACK names for MLX, forwarded to a library that exports them under a prefix.
 *
 * libmlx resolves cblas_sgemm and its kin by name when it is loaded. Loaded with RTLD_GLOBAL before MLX, this library
 * answers first and hands over the addresses of an OpenBLAS whose symbols carry a prefix (the scipy-openblas32 wheel:
 * "scipy_"; 32-bit integers, as libmlx expects). The names are indirect functions: the loader asks a resolver once and
 * then calls the target itself, so there is no signature to repeat here and no cost per call.
 *
 * Order of use: load with RTLD_LOCAL, optiq_blas_connect(path, prefix), and only if that returns NULL load again with
 * RTLD_GLOBAL. Nothing may bind to a name before the connection stands.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>

/* Every BLAS and LAPACK symbol that libmlx.so 0.32.4 leaves undefined (nm -D --undefined-only). */
#define SYMBOLS(X) \
    X(cblas_sgemm) X(cblas_dgemm) X(cblas_cgemm) \
    X(spotrf_) X(dpotrf_) X(strtri_) X(dtrtri_) X(sgetrf_) X(dgetrf_) X(sgetri_) X(dgetri_) \
    X(sgeqrf_) X(dgeqrf_) X(sorgqr_) X(dorgqr_) X(sgesdd_) X(dgesdd_) X(cgesdd_) \
    X(ssyevd_) X(dsyevd_) X(cheevd_) X(sgeev_) X(dgeev_) X(cgeev_)

typedef void (*target_t)(void);

#define SLOT(name) static target_t slot_##name;
SYMBOLS(SLOT)

#define EXPORT(name) \
    static target_t resolve_##name(void) { return slot_##name; } \
    __attribute__((visibility("default"))) void name(void) __attribute__((ifunc("resolve_" #name)));
SYMBOLS(EXPORT)

static const struct {
    const char *name;
    target_t *slot;
} table[] = {
#define ROW(name) {#name, &slot_##name},
    SYMBOLS(ROW)
};

/* Load the library at `path` and find every name under `prefix`; NULL when all are there, else what is wrong. */
__attribute__((visibility("default"))) const char *optiq_blas_connect(const char *path, const char *prefix) {
    static char problem[256];
    target_t found[sizeof table / sizeof table[0]];
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        snprintf(problem, sizeof problem, "%s", dlerror());
        return problem;
    }
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s%s", prefix, table[i].name);
        *(void **)&found[i] = dlsym(library, name);
        if (found[i] == NULL) {
            snprintf(problem, sizeof problem, "%s has no symbol %s", path, name);
            return problem;
        }
    }
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) *table[i].slot = found[i];
    return NULL;
}
