#include "core/pool.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "core/scratch.h"
#include "tests/check.h"

using namespace optiq;

TEST(pool_runs_every_task_once) {
    for (const int threads : {1, 2, 5}) {
        set_pool_threads(threads);
        CHECK(pool_threads() == threads);
        for (const int64_t tasks : {0, 1, 2, 7, 1000}) {
            std::vector<int> seen(size_t(tasks), 0);
            parallel(tasks, [&](int64_t task) { seen[size_t(task)]++; });
            for (const int count : seen) CHECK(count == 1);
        }
    }
    set_pool_threads(1);
}

TEST(pool_serves_several_callers) {
    set_pool_threads(3);
    std::vector<std::thread> callers;
    std::atomic<int64_t> total{0};
    for (int caller = 0; caller < 4; caller++)
        callers.emplace_back([&] {
            for (int round = 0; round < 300; round++) {
                int64_t partial[16] = {};
                parallel(16, [&](int64_t task) { partial[task] = task; });
                for (const int64_t value : partial) total += value;
            }
        });
    for (auto& caller : callers) caller.join();
    CHECK(total == 4 * 300 * 120);
    set_pool_threads(1);
}

TEST(pool_wakes_up_after_a_pause) {
    set_pool_threads(2);
    for (int round = 0; round < 5; round++) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
        std::vector<int> seen(64, 0);
        parallel(64, [&](int64_t task) { seen[size_t(task)] = 1; });
        for (const int one : seen) CHECK(one == 1);
    }
    set_pool_threads(1);
}

TEST(pool_work_may_nest) {
    set_pool_threads(2);
    std::atomic<int> count{0};
    parallel(8, [&](int64_t) { parallel(8, [&](int64_t) { count++; }); });
    CHECK(count == 64);
    set_pool_threads(1);
}

TEST(scratch_keeps_small_buffers_and_nests) {
    Scratch outer(1000);
    outer.as<char>()[999] = 1;
    {
        Scratch inner(5000);
        inner.as<char>()[4999] = 2;
        CHECK(static_cast<void*>(inner.as<char>()) != outer.as<char>());
    }
    Scratch large(Scratch::kKeep + 1);
    large.as<char>()[Scratch::kKeep] = 3;
    CHECK(outer.as<char>()[999] == 1);
}
