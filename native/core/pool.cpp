#include "core/pool.h"

#include <immintrin.h>
#include <pthread.h>

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

namespace optiq {
namespace {

// Between two products of one token there are a few microseconds; a sleep and a wake-up cost 10 to 50. About 60 us of
// spinning (pause takes 40 to 140 cycles by model) bridges the gaps and gives the core back when the work is over.
constexpr int kSpins = 2000;

struct Job {
    void (*call)(const void*, int64_t) = nullptr;
    const void* function = nullptr;
    int64_t tasks = 0;
};

class Pool {
  public:
    explicit Pool(int threads) : shares_(size_t(threads)) {
        for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { serve(size_t(i)); });
    }

    ~Pool() {
        stop_.store(true);
        generation_.fetch_add(1);
        generation_.notify_all();
        for (auto& worker : workers_) worker.join();
    }

    int threads() const { return int(workers_.size()) + 1; }

    // False when another caller is at work.
    bool run(const Job& job) {
        if (workers_.empty() || job.tasks < 2) return false;
        std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
        if (!lock.owns_lock()) return false;
        job_ = job;
        const int64_t count = int64_t(shares_.size());
        for (int64_t i = 0; i < count; i++) {
            shares_[size_t(i)].next.store(job.tasks * i / count, std::memory_order_relaxed);
            shares_[size_t(i)].end = job.tasks * (i + 1) / count;
        }
        gate_.store(kOpen, std::memory_order_release);
        generation_.fetch_add(1);
        if (sleeping_.load() > 0) generation_.notify_all();
        work(0);
        gate_.fetch_and(~kOpen, std::memory_order_acq_rel);
        while (gate_.load(std::memory_order_acquire) != 0) _mm_pause();
        return true;
    }

  private:
    // Tasks that follow each other, taken in their order, so that one may fetch what the next will read.
    struct alignas(64) Share {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
    };

    // The thread's own share, then what is left of the others'.
    void work(size_t thread) {
        for (size_t i = 0; i < shares_.size(); i++) {
            Share& share = shares_[(thread + i) % shares_.size()];
            for (int64_t task; (task = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) job_.call(job_.function, task);
        }
    }

    void serve(size_t thread) {
        uint32_t seen = 0;
        while (true) {
            for (int i = 0; i < kSpins && generation_.load(std::memory_order_acquire) == seen; i++) _mm_pause();
            if (generation_.load(std::memory_order_acquire) == seen) {
                sleeping_.fetch_add(1);
                generation_.wait(seen);
                sleeping_.fetch_sub(1);
            }
            const uint32_t now = generation_.load(std::memory_order_acquire);
            if (now == seen) continue;
            seen = now;
            if (stop_.load()) return;
            if (!enter()) continue;
            work(thread);
            gate_.fetch_sub(1, std::memory_order_release);
        }
    }

    // Join the job that is open, so that its caller waits for this thread; false when it is over already.
    bool enter() {
        uint32_t inside = gate_.load(std::memory_order_relaxed);
        while (inside & kOpen)
            if (gate_.compare_exchange_weak(inside, inside + 1, std::memory_order_acquire)) return true;
        return false;
    }

    static constexpr uint32_t kOpen = 1u << 31;  // the rest of the gate counts the workers inside

    std::vector<std::thread> workers_;
    std::mutex busy_;
    Job job_;
    alignas(64) std::atomic<uint32_t> generation_{0};
    std::vector<Share> shares_;
    alignas(64) std::atomic<uint32_t> gate_{0};
    std::atomic<int> sleeping_{0};
    std::atomic<bool> stop_{false};
};

// Behind a pointer that is never freed at exit: threads of MLX may still be in a product then. A forked child has no
// workers, so it starts without a pool and works alone.
std::atomic<Pool*> pool{nullptr};

void forget_pool() { pool.store(nullptr); }

}  // namespace

int pool_threads() {
    const Pool* now = pool.load();
    return now ? now->threads() : 1;
}

void set_pool_threads(int count) {
    static std::once_flag once;
    std::call_once(once, [] { pthread_atfork(nullptr, nullptr, forget_pool); });
    if (count == pool_threads()) return;
    delete pool.exchange(count > 1 ? new Pool(count) : nullptr);
}

namespace detail {

void run(int64_t tasks, void (*call)(const void*, int64_t), const void* function) {
    Pool* now = pool.load(std::memory_order_acquire);
    if (now && now->run({call, function, tasks})) return;
    for (int64_t task = 0; task < tasks; task++) call(function, task);
}

}  // namespace detail
}  // namespace optiq
