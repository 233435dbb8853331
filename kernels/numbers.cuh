// The element types, and one operation on one element: the arithmetic of `src/reduce`, to the last bit.
//
// There is no `cuda_fp16.h` and no inline PTX here, so that NVRTC compiles these files without any header, and the host's
// C++ compiler too. To be compiled with --fmad=false: a multiplication and an addition must be rounded separately.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef u64 Count;

typedef float F32;
typedef double F64;
typedef int I32;
typedef long long I64;
struct F16 {
    unsigned short bits;
};
struct Bf16 {
    unsigned short bits;
};

// Of libdevice, which NVRTC has inside: one conversion instruction each.
extern "C" __device__ float __nv_half2float(unsigned short);
extern "C" __device__ unsigned short __nv_float2half_rn(float);

// ---------------------------------------------------------------- NaN

__device__ __forceinline__ bool is_nan(float value) { return value != value; }
__device__ __forceinline__ bool is_nan(double value) { return value != value; }

template <class T> __device__ __forceinline__ T canonical_nan();
template <> __device__ __forceinline__ float canonical_nan<float>() { return __uint_as_float(0x7fc00000u); }
template <> __device__ __forceinline__ double canonical_nan<double>() {
    return __longlong_as_double(0x7ff8000000000000ll);
}

// The device's own NaN has other bits than the host's, so every result is looked at.
template <class T> __device__ __forceinline__ T quiet(T value) {
    return is_nan(value) ? canonical_nan<T>() : value;
}

// ---------------------------------------------------------------- 16-bit types

// The type in which an element is computed with.
template <class T> struct WideOf {
    typedef T Type;
};
template <> struct WideOf<F16> {
    typedef float Type;
};
template <> struct WideOf<Bf16> {
    typedef float Type;
};

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
// A NaN becomes some NaN.
__device__ __forceinline__ float widen(F16 value) { return __nv_half2float(value.bits); }
__device__ __forceinline__ float widen(Bf16 value) { return __uint_as_float((u32)value.bits << 16); }

// To nearest, ties to even; a NaN becomes the canonical one.
template <class T> __device__ __forceinline__ T narrow(typename WideOf<T>::Type value);
template <> __device__ __forceinline__ float narrow<float>(float value) { return quiet(value); }
template <> __device__ __forceinline__ double narrow<double>(double value) { return quiet(value); }
template <> __device__ __forceinline__ F16 narrow<F16>(float value) {
    return F16{is_nan(value) ? (unsigned short)0x7e00 : __nv_float2half_rn(value)};
}
template <> __device__ __forceinline__ Bf16 narrow<Bf16>(float value) {
    u32 bits = __float_as_uint(value);
    u32 rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return Bf16{is_nan(value) ? (unsigned short)0x7fc0 : (unsigned short)rounded};
}

// ---------------------------------------------------------------- operators

struct Sum {
    static __device__ __forceinline__ float of(float left, float right) { return quiet(left + right); }
    static __device__ __forceinline__ double of(double left, double right) { return quiet(left + right); }
    static __device__ __forceinline__ I32 of(I32 left, I32 right) { return (I32)((u32)left + (u32)right); }
    static __device__ __forceinline__ I64 of(I64 left, I64 right) { return (I64)((u64)left + (u64)right); }
};

struct Product {
    static __device__ __forceinline__ float of(float left, float right) { return quiet(left * right); }
    static __device__ __forceinline__ double of(double left, double right) { return quiet(left * right); }
    static __device__ __forceinline__ I32 of(I32 left, I32 right) { return (I32)((u32)left * (u32)right); }
    static __device__ __forceinline__ I64 of(I64 left, I64 right) { return (I64)((u64)left * (u64)right); }
};

// Equal operands are the same number or two zeros: or-ing the bits keeps a minus sign, and-ing them drops it.
__device__ __forceinline__ float either_bits(float left, float right) {
    return __uint_as_float(__float_as_uint(left) | __float_as_uint(right));
}
__device__ __forceinline__ double either_bits(double left, double right) {
    return __longlong_as_double(__double_as_longlong(left) | __double_as_longlong(right));
}
__device__ __forceinline__ float common_bits(float left, float right) {
    return __uint_as_float(__float_as_uint(left) & __float_as_uint(right));
}
__device__ __forceinline__ double common_bits(double left, double right) {
    return __longlong_as_double(__double_as_longlong(left) & __double_as_longlong(right));
}

// IEEE 754-2019 minimum and maximum: NaN wins, -0 is less than +0.
struct Minimum {
    template <class T> static __device__ __forceinline__ T of_floats(T left, T right) {
        T number = left == right ? either_bits(left, right) : left < right ? left : right;
        return is_nan(left) || is_nan(right) ? canonical_nan<T>() : number;
    }
    static __device__ __forceinline__ float of(float left, float right) { return of_floats(left, right); }
    static __device__ __forceinline__ double of(double left, double right) { return of_floats(left, right); }
    static __device__ __forceinline__ I32 of(I32 left, I32 right) { return left < right ? left : right; }
    static __device__ __forceinline__ I64 of(I64 left, I64 right) { return left < right ? left : right; }
};

struct Maximum {
    template <class T> static __device__ __forceinline__ T of_floats(T left, T right) {
        T number = left == right ? common_bits(left, right) : left > right ? left : right;
        return is_nan(left) || is_nan(right) ? canonical_nan<T>() : number;
    }
    static __device__ __forceinline__ float of(float left, float right) { return of_floats(left, right); }
    static __device__ __forceinline__ double of(double left, double right) { return of_floats(left, right); }
    static __device__ __forceinline__ I32 of(I32 left, I32 right) { return left > right ? left : right; }
    static __device__ __forceinline__ I64 of(I64 left, I64 right) { return left > right ? left : right; }
};

// 16-bit operands are widened, and the result is rounded once.
template <class Operator, class T> __device__ __forceinline__ T apply(T left, T right) {
    return Operator::of(left, right);
}
template <class Operator> __device__ __forceinline__ F16 apply(F16 left, F16 right) {
    return narrow<F16>(Operator::of(widen(left), widen(right)));
}
template <class Operator> __device__ __forceinline__ Bf16 apply(Bf16 left, Bf16 right) {
    return narrow<Bf16>(Operator::of(widen(left), widen(right)));
}

// ---------------------------------------------------------------- average

// What finishes an average of `ranks` > 1 ranks: floats are multiplied by 1/ranks, integers divided, toward zero.
template <class T> struct Share {
    typedef typename WideOf<T>::Type Wide;
    Wide factor;
    __device__ __forceinline__ explicit Share(u32 ranks) : factor((Wide)1 / (Wide)ranks) {}
    __device__ __forceinline__ T of(T value) const { return narrow<T>(widen(value) * factor); }
};
template <> struct Share<I32> {
    u32 ranks;
    __device__ __forceinline__ explicit Share(u32 ranks) : ranks(ranks) {}
    // The quotient of magnitudes: that of the least number has no positive counterpart.
    __device__ __forceinline__ I32 of(I32 value) const {
        u32 magnitude = value < 0 ? 0u - (u32)value : (u32)value;
        u32 quotient = magnitude / ranks;
        return (I32)(value < 0 ? 0u - quotient : quotient);
    }
};
template <> struct Share<I64> {
    u32 ranks;
    __device__ __forceinline__ explicit Share(u32 ranks) : ranks(ranks) {}
    __device__ __forceinline__ I64 of(I64 value) const { return value / (I64)ranks; }
};
