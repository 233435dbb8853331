// The wire formats of 16 bits: how vectors of f32 are written, read, and added by the owner of a part. The bits are those of
// `src/reduce/wire`. `Wire` is defined by whoever puts the files together: F16 or Bf16.

// Four or eight numbers: 16 bytes of either type.
static const int WIDTH = 16 / sizeof(Wire);
// A sum keeps up to LEVELS numbers for each lane, so its lanes are fewer.
static const int SUM_WIDTH = 4;
static const int LEVELS = 10;

// Every number that can be read back, a NaN with its sign and what it carries.
__device__ __forceinline__ float read(F16 value) {
    u32 bits = value.bits;
    float nan = __uint_as_float((bits & 0x8000u) << 16 | 0x7fc00000u | (bits & 0x3ffu) << 13);
    return (bits & 0x7fffu) > 0x7c00u ? nan : widen(value);
}
__device__ __forceinline__ float read(Bf16 value) { return widen(value); }

// What is not finite is not made up for.
__device__ __forceinline__ float finite_or_zero(float value) {
    return (__float_as_uint(value) & 0x7f800000u) == 0x7f800000u ? 0.0f : value;
}

struct Encode {
    Vector<Wire> into;
    Vector<float> values, left;
    bool feedback;

    template <int N> __device__ __forceinline__ void at(Count first) const {
        Lanes<float, N> value, before;
        Lanes<Wire, N> wire;
        values.load(first, value);
        if (feedback) {
            left.load(first, before);
#pragma unroll
            for (int i = 0; i < N; i++) value.lane[i] = value.lane[i] + before.lane[i];
        }
#pragma unroll
        for (int i = 0; i < N; i++) wire.lane[i] = narrow<Wire>(value.lane[i]);
        into.store(first, wire);
        if (feedback) {
#pragma unroll
            for (int i = 0; i < N; i++) before.lane[i] = finite_or_zero(value.lane[i] - read(wire.lane[i]));
            left.store(first, before);
        }
    }
};

// `left`, if it is not null, is what rounding took the last time: it is added first, and what rounding takes now is left.
extern "C" __global__ void encode(const float *values, float *left, Wire *into, Count count) {
    Count head = elements_before_alignment(into, count);
    Encode body = {Vector<Wire>(into, head, 16), Vector<float>((float *)values, head, 16),
                   Vector<float>(left, head, 16), left != nullptr};
    for_each<WIDTH>(head, count, body);
}

struct Decode {
    Vector<float> into;
    Vector<Wire> from;

    template <int N> __device__ __forceinline__ void at(Count first) const {
        Lanes<Wire, N> wire;
        Lanes<float, N> value;
        from.load(first, wire);
#pragma unroll
        for (int i = 0; i < N; i++) value.lane[i] = read(wire.lane[i]);
        into.store(first, value);
    }
};

extern "C" __global__ void decode(const Wire *from, float *into, Count count) {
    Count head = elements_before_alignment(into, count);
    Decode body = {Vector<float>(into, head, 16), Vector<Wire>((Wire *)from, head, 16)};
    for_each<WIDTH>(head, count, body);
}

// Between operands nobody looks at a NaN: it stays one, and is written as the canonical one.
template <int N> struct AddLanes {
    static __device__ __forceinline__ Lanes<float, N> of(const Lanes<float, N> &left, const Lanes<float, N> &right) {
        Lanes<float, N> result;
#pragma unroll
        for (int i = 0; i < N; i++) result.lane[i] = left.lane[i] + right.lane[i];
        return result;
    }
};

struct Combine {
    const unsigned char *operands;
    Count stride;
    u32 ranks;
    bool in_rank_order;
    float factor;
    bool scaled, feedback;
    Vector<Wire> result;
    Vector<float> values, left;
    Count head;

    template <int N> __device__ __forceinline__ void at(Count first) const {
        Tree<Lanes<float, N>, AddLanes<N>, LEVELS> tree;
        Lanes<float, N> sum, value;
        for (u32 rank = 0; rank < ranks; rank++) {
            Lanes<Wire, N> wire;
            Vector<Wire> operand((Wire *)(operands + rank * stride), head, sizeof(Wire) * SUM_WIDTH);
            operand.load(first, wire);
#pragma unroll
            for (int i = 0; i < N; i++) value.lane[i] = widen(wire.lane[i]);
            if (!in_rank_order) tree.push(value);
            else sum = rank == 0 ? value : AddLanes<N>::of(sum, value);
        }
        if (!in_rank_order) tree.finish(sum, false);
        if (scaled) {
#pragma unroll
            for (int i = 0; i < N; i++) sum.lane[i] = sum.lane[i] * factor;
        }
        if (feedback) {
            left.load(first, value);
            sum = AddLanes<N>::of(sum, value);
        }
        Lanes<Wire, N> wire;
#pragma unroll
        for (int i = 0; i < N; i++) {
            wire.lane[i] = narrow<Wire>(sum.lane[i]);
            value.lane[i] = read(wire.lane[i]);
        }
        result.store(first, wire);
        values.store(first, value);
        if (feedback) {
#pragma unroll
            for (int i = 0; i < N; i++) value.lane[i] = finite_or_zero(sum.lane[i] - value.lane[i]);
            left.store(first, value);
        }
    }
};

// Adds the contributions of `ranks` ranks, `stride` bytes apart, multiplies by `factor` if `scaled`, adds `left` if it is
// not null, writes the sum to `result`, and reads it back into `values`.
extern "C" __global__ void combine(const unsigned char *operands, Count stride, u32 ranks, u32 in_rank_order,
    u32 scaled, float factor, float *left, Wire *result, float *values, Count count) {
    Count head = elements_before_alignment(values, count);
    Combine body = {operands,
                    stride,
                    ranks,
                    in_rank_order != 0,
                    factor,
                    scaled != 0,
                    left != nullptr,
                    Vector<Wire>(result, head, sizeof(Wire) * SUM_WIDTH),
                    Vector<float>(values, head, 16),
                    Vector<float>(left, head, 16),
                    head};
    for_each<SUM_WIDTH>(head, count, body);
}
