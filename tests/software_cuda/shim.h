// What a kernel of `kernels/` needs in order to be compiled by the host's C++ compiler, and to run there with the launch
// geometry that it would have on a GPU.
//
// A translation unit is: this header (by -include), the kernels, and for each kernel a line SHIM_ENTRY(name), which makes
//
//     extern "C" void launch_<name>(void **arguments, const unsigned *geometry, unsigned long long first, unsigned long long blocks)
//     extern "C" const unsigned *parameters_<name>;  // how many parameters there are, then how many bytes each takes
//
// where `arguments` are what cuLaunchKernel is given, `geometry` is the grid's x, y, z and the block's x, y, z, and only the
// `blocks` blocks from `first` on are run (the last ones of a long grid, say). Blocks run one after the other, on the
// calling thread. The threads of a block are a loop; with SHIM_FIBERS, which modules with __syncthreads() need, they are
// fibers that take turns between barriers.
//
// Compile with -std=c++17 -fno-strict-aliasing -fwrapv -ffp-contract=off, so that arithmetic is the device's.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#ifdef SHIM_FIBERS
#include <ucontext.h>
#include <vector>
#endif

#define __CUDA_SHIM__ 1
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
// One kernel at a time runs on a thread of the host, and one block of it.
#define __shared__ static thread_local
#define __launch_bounds__(...)

namespace shim {
struct Index {
    unsigned x, y, z;
};
} // namespace shim

static thread_local shim::Index threadIdx, blockIdx, blockDim, gridDim;

// ---------------------------------------------------------------- intrinsics

namespace shim {
template <class To, class From> inline To bits_of(From value) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}
} // namespace shim

inline unsigned __float_as_uint(float value) { return shim::bits_of<unsigned>(value); }
inline int __float_as_int(float value) { return shim::bits_of<int>(value); }
inline float __uint_as_float(unsigned bits) { return shim::bits_of<float>(bits); }
inline float __int_as_float(int bits) { return shim::bits_of<float>(bits); }
inline long long __double_as_longlong(double value) { return shim::bits_of<long long>(value); }
inline double __longlong_as_double(long long bits) { return shim::bits_of<double>(bits); }

// Of libdevice, the device's own library: IEEE half precision to single and back, to nearest with ties to even.
extern "C" inline float __nv_half2float(unsigned short half) {
    unsigned sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00) return __uint_as_float(sign | 0x7f800000u | magnitude << 13);
    // 2^112 moves the exponent from one bias to the other, subnormal numbers too, exactly.
    return __uint_as_float(sign | __float_as_uint(__uint_as_float(magnitude << 13) * 0x1p112f));
}

extern "C" inline unsigned short __nv_float2half_rn(float value) {
    unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu, half;
    if (magnitude > 0x7f800000u) half = 0x7fff; // the device's NaN
    else if (magnitude >= 0x47800000u) half = 0x7c00; // 2^16 and more
    else if (magnitude < 0x38800000u) // below 2^-14: the adder rounds at the last place of a subnormal number
        half = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u;
    else half = (magnitude + (magnitude >> 13 & 1) + 0xc8000fffu) >> 13;
    return (unsigned short)(sign | half);
}

// ---------------------------------------------------------------- running

namespace shim {
inline void set_thread(unsigned thread) {
    threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y};
}

#ifdef SHIM_FIBERS
struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool ended;
};

struct Block {
    ucontext_t turns;
    std::vector<Fiber> fibers;
    unsigned running;
    void (*body)(void *);
    void *arguments;
};

static thread_local Block *block;

inline void fiber_main() {
    block->body(block->arguments);
    block->fibers[block->running].ended = true;
    // uc_link leads back to the turns.
}

// Every thread's turn ends at a barrier or at its end, so that after a round all that are left stand at the same barrier.
inline void run_block(void (*body)(void *), void *arguments) {
    constexpr std::size_t STACK_BYTES = 64 << 10;
    static thread_local Block here;
    unsigned threads = blockDim.x * blockDim.y * blockDim.z, left = threads;
    block = &here;
    here.body = body;
    here.arguments = arguments;
    if (here.fibers.size() < threads) here.fibers.resize(threads);
    for (unsigned thread = 0; thread < threads; thread++) {
        Fiber &fiber = here.fibers[thread];
        if (!fiber.stack) fiber.stack.reset(new char[STACK_BYTES]);
        fiber.ended = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK_BYTES;
        fiber.context.uc_link = &here.turns;
        makecontext(&fiber.context, fiber_main, 0);
    }
    while (left) {
        for (unsigned thread = 0; thread < threads; thread++) {
            Fiber &fiber = here.fibers[thread];
            if (fiber.ended) continue;
            here.running = thread;
            set_thread(thread);
            swapcontext(&here.turns, &fiber.context);
            if (fiber.ended) left--;
        }
    }
}

inline void barrier() {
    Block &here = *block;
    swapcontext(&here.fibers[here.running].context, &here.turns);
}
#else
inline void run_block(void (*body)(void *), void *arguments) {
    unsigned threads = blockDim.x * blockDim.y * blockDim.z;
    for (unsigned thread = 0; thread < threads; thread++) {
        set_thread(thread);
        body(arguments);
    }
}

inline void barrier() {
    std::fputs("shim: __syncthreads() in a module that was compiled without SHIM_FIBERS\n", stderr);
    std::abort();
}
#endif

template <class Kernel> struct Parameters;
template <class... Types> struct Parameters<void (*)(Types...)> {
    static constexpr unsigned BYTES[] = {sizeof...(Types), sizeof(Types)...};
};

template <class... Types, std::size_t... Places>
inline void call(void (*kernel)(Types...), void **arguments, std::index_sequence<Places...>) {
    kernel(*static_cast<std::remove_cv_t<Types> *>(arguments[Places])...);
}

template <class... Types>
inline void launch(void (*kernel)(Types...), void **arguments, const unsigned *geometry, unsigned long long first,
                   unsigned long long blocks) {
    struct Call {
        void (*kernel)(Types...);
        void **arguments;
    } here{kernel, arguments};
    gridDim = {geometry[0], geometry[1], geometry[2]};
    blockDim = {geometry[3], geometry[4], geometry[5]};
    unsigned long long row = gridDim.x, all = row * gridDim.y * gridDim.z;
    for (unsigned long long number = first; number < all && number - first < blocks; number++) {
        blockIdx = {unsigned(number % row), unsigned(number / row % gridDim.y), unsigned(number / row / gridDim.y)};
        run_block(
            [](void *of) {
                Call &here = *static_cast<Call *>(of);
                call(here.kernel, here.arguments, std::index_sequence_for<Types...>());
            },
            &here);
    }
}
} // namespace shim

inline void __syncthreads() { shim::barrier(); }

#define SHIM_ENTRY(name)                                                                                                   \
    extern "C" __attribute__((visibility("default"))) void launch_##name(                                                  \
        void **arguments, const unsigned *geometry, unsigned long long first, unsigned long long blocks) {                 \
        shim::launch(name, arguments, geometry, first, blocks);                                                            \
    }                                                                                                                      \
    extern "C" __attribute__((visibility("default"))) const unsigned *const parameters_##name;                             \
    const unsigned *const parameters_##name = shim::Parameters<decltype(&name)>::BYTES;
