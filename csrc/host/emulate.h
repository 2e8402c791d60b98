// device.cuh's ground on a CPU, for tests: the threads of a block as fibers that switch at barriers.
//
// Between two barriers they run in forward, reversed or shuffled order, so that a missing barrier changes the result.
// Every access is checked: bounds, alignment, shared memory read before it was written, and two threads at one place of
// shared memory without a barrier between them. A failed check raises from the launch and names thread and place.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "half.h"

#define GANKERN_DEVICE inline
#define GANKERN_KERNEL(...) void
#define __host__
#define __device__

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace gankern {

// -- threads -----------------------------------------------------------------------------------------------------------

namespace emulate {

enum Order { FORWARD, REVERSED, SHUFFLED };

inline Order order = FORWARD;
inline unsigned seed = 0;
inline bool races = true;  // whether shared memory is watched for missing barriers and unwritten values

constexpr int WARP = 32;
constexpr size_t STACK = 128 * 1024;

[[noreturn]] inline void fail(const std::string& what) {
    const auto place = [](dim3 d) {
        return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
    };
    throw std::runtime_error("CUDA emulation: block " + place(blockIdx) + " thread " + place(threadIdx) + ": " + what);
}

// Who last touched a place of shared memory, and between which barriers.
struct Touched {
    uint32_t written = 0, writer = 0, read = 0, reader = 0;
};

class Machine {
public:
    static Machine& here() {
        static thread_local Machine machine;
        return machine;
    }

    void run(const std::function<void()>& kernel, dim3 blocks, dim3 threads, size_t shared) {
        const size_t count = static_cast<size_t>(threads.x) * threads.y * threads.z;
        if (count == 0 || count > 1024) throw std::runtime_error("CUDA emulation: a block of " + std::to_string(count));
        if (shared > 227 * 1024) throw std::runtime_error("CUDA emulation: " + std::to_string(shared) + " bytes shared");
        random_.seed(seed), job_ = &kernel, gridDim = blocks, blockDim = threads;
        while (fibers_.size() < count) fibers_.push_back(std::make_unique<Fiber>());
        count_ = count;
        memory_.assign(shared + VECTOR_ALIGN, 0xff), touched_.assign(shared / GRAIN + 1, Touched());
        std::vector<uint64_t> sequence(static_cast<uint64_t>(blocks.x) * blocks.y * blocks.z);
        std::iota(sequence.begin(), sequence.end(), 0);
        arrange(sequence);
        for (uint64_t b : sequence) {
            blockIdx = dim3(b % blocks.x, b / blocks.x % blocks.y, b / blocks.x / blocks.y);
            run_block();
        }
    }

    enum State { READY, AT_BARRIER, AT_WARP, DONE };

    void wait(State at) {
        Fiber& me = *fibers_[current_];
        me.state = at;
        if (_setjmp(me.at) == 0) _longjmp(scheduler_, 1);
    }

    // The value that `lane` of this thread's warp passes to the same shuffle.
    template <typename A>
    A exchange(A mine, int lane) {
        static_assert(sizeof(A) <= sizeof(Fiber::passed));
        std::memcpy(fibers_[current_]->passed, &mine, sizeof(A));
        wait(AT_WARP);
        const size_t other = current_ / WARP * WARP + lane;
        if (lane < 0 || lane >= WARP || other >= count_) fail("shuffle with lane " + std::to_string(lane));
        A theirs;
        std::memcpy(&theirs, fibers_[other]->passed, sizeof(A));
        wait(AT_WARP);
        return theirs;
    }

    int lane() const { return static_cast<int>(current_ % WARP); }

    unsigned char* memory(size_t offset, size_t bytes) {
        const size_t have = memory_.size() - VECTOR_ALIGN;
        if (offset % VECTOR_ALIGN || offset + bytes > have)
            fail("shared memory of " + std::to_string(bytes) + " bytes at " + std::to_string(offset) + " of " +
                 std::to_string(have));
        return base() + offset;
    }

    void touch(const void* place, size_t bytes, bool writes) {
        if (!races) return;
        const size_t first = static_cast<const unsigned char*>(place) - base();
        const uint32_t me = static_cast<uint32_t>(current_);
        for (size_t i = first / GRAIN; i <= (first + bytes - 1) / GRAIN; i++) {
            Touched& t = touched_[i];
            if (!writes && t.written == 0) fail("shared memory read at byte " + std::to_string(first) + " before a write");
            if (t.written == epoch_ && t.writer != me) race(first, t.writer);
            if (writes && t.read == epoch_ && t.reader != me) race(first, t.reader);
            if (writes) t.written = epoch_, t.writer = me;
            else t.reader = t.read == epoch_ && t.reader != me ? MANY : me, t.read = epoch_;
        }
    }

private:
    static constexpr size_t GRAIN = 2, VECTOR_ALIGN = 16;
    static constexpr uint32_t MANY = ~0u;

    struct Fiber {
        std::unique_ptr<char[]> stack{new char[STACK]};
        jmp_buf at;
        bool begun = false;
        State state = DONE;
        alignas(16) unsigned char passed[16];
    };

    unsigned char* base() {
        const auto at = reinterpret_cast<uintptr_t>(memory_.data());
        return memory_.data() + (VECTOR_ALIGN - at % VECTOR_ALIGN) % VECTOR_ALIGN;
    }

    [[noreturn]] void race(size_t byte, uint32_t other) {
        fail("shared memory at byte " + std::to_string(byte) + " is also touched by " +
             (other == MANY ? "other threads" : "thread " + std::to_string(other)) + ", with no barrier between");
    }

    template <typename I>
    void arrange(std::vector<I>& sequence) {
        if (order == REVERSED) std::reverse(sequence.begin(), sequence.end());
        if (order == SHUFFLED) std::shuffle(sequence.begin(), sequence.end(), random_);
    }

    void run_block() {
        for (size_t i = 0; i < count_; i++) fibers_[i]->state = READY;
        std::fill(touched_.begin(), touched_.end(), Touched());
        std::fill(memory_.begin(), memory_.end(), 0xff);
        epoch_ = 1;
        std::vector<size_t> sequence(count_);
        for (;;) {
            std::iota(sequence.begin(), sequence.end(), 0);
            arrange(sequence);
            for (size_t i : sequence)
                if (fibers_[i]->state == READY) resume(i);
            if (failure_) {
                fibers_.clear();  // those that stand in the middle of a kernel can't go on
                std::exception_ptr failure = nullptr;
                std::swap(failure, failure_);
                std::rethrow_exception(failure);
            }
            if (!release()) return;
        }
    }

    // Lets go on whoever waits for nobody any more; false once all are done.
    bool release() {
        size_t done = 0, waiting = 0;
        bool any = false;
        for (size_t w = 0; w < count_; w += WARP) {
            const size_t end = std::min(w + WARP, count_);
            size_t here = 0;
            for (size_t i = w; i < end; i++) {
                done += fibers_[i]->state == DONE, waiting += fibers_[i]->state == AT_BARRIER;
                here += fibers_[i]->state == AT_WARP;
            }
            if (here != end - w) continue;
            for (size_t i = w; i < end; i++) fibers_[i]->state = READY;
            any = true;
        }
        if (any || done == count_) return any;
        if (waiting != count_) {
            fibers_.clear();
            throw std::runtime_error("CUDA emulation: a barrier or shuffle that not all threads reach");
        }
        for (size_t i = 0; i < count_; i++) fibers_[i]->state = READY;
        epoch_++;
        return true;
    }

    void resume(size_t i) {
        current_ = i;
        const unsigned x = blockDim.x, y = blockDim.y;
        threadIdx = dim3(i % x, i / x % y, i / x / y);
        if (_setjmp(scheduler_) != 0) return;
        Fiber& fiber = *fibers_[i];
        if (fiber.begun) _longjmp(fiber.at, 1);
        fiber.begun = true;
        ucontext_t start;
        getcontext(&start);
        start.uc_stack.ss_sp = fiber.stack.get(), start.uc_stack.ss_size = STACK, start.uc_link = nullptr;
        makecontext(&start, &Machine::enter, 0);
        setcontext(&start);
    }

    static void enter() {
        for (;;) here().work();
    }

    void work() {
        try {
            (*job_)();
        } catch (...) {
            if (!failure_) failure_ = std::current_exception();
        }
        wait(DONE);
    }

    std::vector<std::unique_ptr<Fiber>> fibers_;
    std::vector<unsigned char> memory_;
    std::vector<Touched> touched_;
    std::mt19937 random_;
    std::exception_ptr failure_;
    const std::function<void()>* job_ = nullptr;
    jmp_buf scheduler_;
    size_t current_ = 0, count_ = 0;
    uint32_t epoch_ = 1;
};

template <typename T>
void check_access(int64_t i, int count, int64_t size, const T* at, const char* what) {
    if (i < 0 || i + count > size)
        fail(std::string(what) + " of " + std::to_string(count) + " at element " + std::to_string(i) + " of " +
             std::to_string(size));
    if (reinterpret_cast<uintptr_t>(at) % (sizeof(T) * count)) fail(std::string(what) + " that isn't aligned");
}

}  // namespace emulate

// -- what device.cuh asks for ------------------------------------------------------------------------------------------

template <typename T>
struct View {
    T* data;
    int64_t size;
    explicit operator bool() const { return data != nullptr; }
    const T* read(int64_t i, int count) const {
        emulate::check_access(i, count, size, data + i, "read");
        return data + i;
    }
    T* write(int64_t i, int count) const {
        emulate::check_access(i, count, size, data + i, "write");
        return data + i;
    }
};

template <typename T>
struct Shared {
    T* data;
    int size;
    const T* read(int i, int count) const {
        emulate::check_access(i, count, size, data + i, "shared read");
        emulate::Machine::here().touch(data + i, sizeof(T) * count, false);
        return data + i;
    }
    T* write(int i, int count) const {
        emulate::check_access(i, count, size, data + i, "shared write");
        emulate::Machine::here().touch(data + i, sizeof(T) * count, true);
        return data + i;
    }
};

template <typename T>
Shared<T> shared_memory(int offset, int count) {
    return {reinterpret_cast<T*>(emulate::Machine::here().memory(offset, sizeof(T) * count)), count};
}

template <typename P>
P load_packed(const void* from) {
    return *static_cast<const P*>(from);
}

template <typename P>
void store_packed(void* to, const P& packed) {
    *static_cast<P*>(to) = packed;
}

struct Grid {
    dim3 blocks;
    int threads;
    size_t shared;
    void* stream;
};

template <typename... P, typename... A>
void launch(void (*kernel)(P...), const Grid& grid, A... args) {
    emulate::Machine::here().run([&] { kernel(P(args)...); }, grid.blocks, dim3(grid.threads), grid.shared);
}

inline int multiprocessors() { return 3; }  // few, so that tests see blocks loop

}  // namespace gankern

// For tests, of the library that holds it. order: 0 forward, 1 reversed, 2 shuffled by `seed`; `races`: whether shared
// memory is watched.
extern "C" inline __attribute__((visibility("default"), used)) void gankern_emulate(int order, unsigned seed, bool races) {
    gankern::emulate::order = static_cast<gankern::emulate::Order>(order);
    gankern::emulate::seed = seed;
    gankern::emulate::races = races;
}

inline void __syncthreads() { gankern::emulate::Machine::here().wait(gankern::emulate::Machine::AT_BARRIER); }

template <typename A>
A __shfl_xor_sync(unsigned, A mine, int mask) {
    auto& machine = gankern::emulate::Machine::here();
    return machine.exchange(mine, machine.lane() ^ mask);
}

template <typename A>
A __shfl_sync(unsigned, A mine, int lane) {
    return gankern::emulate::Machine::here().exchange(mine, lane);
}
