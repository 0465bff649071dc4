// One pool of threads for the process. The caller works too; helpers wait by spinning for some microseconds, then sleep.
//
// Work is cut into numbered tasks that write to disjoint places, so results do not depend on who runs which. Each thread takes
// a share of tasks that follow each other, then what is left of the others'. A caller that finds the pool in use (another MLX
// stream) runs its tasks itself.
#pragma once

#include <cstdint>
#include <type_traits>

namespace optiq {

// The number of threads that work at once, the caller included. Changing it joins the old threads.
int pool_threads();
void set_pool_threads(int count);

namespace detail {
void run(int64_t tasks, void (*call)(const void*, int64_t), const void* function);
}

// Call function(task) for every task in [0, tasks) and return when all are done. `function` must not throw.
template <class F>
void parallel(int64_t tasks, const F& function) {
    static_assert(std::is_invocable_v<const F&, int64_t>);
    if (tasks <= 0) return;
    detail::run(
        tasks, [](const void* f, int64_t task) { (*static_cast<const F*>(f))(task); }, static_cast<const void*>(&function));
}

}  // namespace optiq
