// The wire format `int8`: blocks of 256 elements, each behind a scale in f32. The bits are those of `src/reduce/wire`.
//
// 64 threads share a block of the format, four elements each, so that a block of 256 threads holds four of them.

static const u32 BLOCK = 256;
static const u32 SCALE_BYTES = 4;
static const u32 EACH = 4;
static const u32 TEAM = BLOCK / EACH;
static const u32 TEAMS = 4;
static const int LEVELS = 10;

// Blocks whose largest magnitude is below this (128 times the least normal number) become zeros.
static const u32 SMALLEST_BITS = 0x04000000u;
// A little below the largest number, so that 127 times the scale never rounds up to infinity.
static const u32 LARGEST_BITS = 0x7f7fffffu - 8;
static const u32 INFINITY_BITS = 0x7f800000u;

typedef Lanes<float, EACH> Four;

__device__ __forceinline__ float finite_or_zero(float value) {
    return (__float_as_uint(value) & INFINITY_BITS) == INFINITY_BITS ? 0.0f : value;
}

// Elements `first` and following, of which `count` are there; the others are zeros.
__device__ __forceinline__ Four load_floats(const float *from, Count first, u32 count) {
    Four four;
    if (count == EACH && ((u64)(from + first) & 15) == 0) return *(const Four *)(from + first);
#pragma unroll
    for (u32 i = 0; i < EACH; i++) four.lane[i] = i < count ? from[first + i] : 0.0f;
    return four;
}

__device__ __forceinline__ void store_floats(float *into, Count first, u32 count, const Four &four) {
    if (count == EACH && ((u64)(into + first) & 15) == 0) {
        *(Four *)(into + first) = four;
    } else {
#pragma unroll
        for (u32 i = 0; i < EACH; i++)
            if (i < count) into[first + i] = four.lane[i];
    }
}

// Up to four bytes, the first the lowest; those that are not there are zeros.
__device__ __forceinline__ u32 load_bytes(const unsigned char *from, u32 count) {
    if (count == 4 && ((u64)from & 3) == 0) return *(const u32 *)from;
    u32 word = 0;
#pragma unroll
    for (u32 i = 0; i < 4; i++)
        if (i < count) word |= (u32)from[i] << (8 * i);
    return word;
}

__device__ __forceinline__ void store_bytes(unsigned char *into, u32 count, u32 word) {
    if (count == 4 && ((u64)into & 3) == 0) {
        *(u32 *)into = word;
    } else {
#pragma unroll
        for (u32 i = 0; i < 4; i++)
            if (i < count) into[i] = (unsigned char)(word >> (8 * i));
    }
}

// The place of one thread: which block of the format, which elements of the vector, which bytes of the encoding.
struct Place {
    Count element;
    u32 count;
    Count scale;
    Count byte;

    __device__ __forceinline__ Place(Count block, Count elements) {
        u32 inside = threadIdx.x % TEAM * EACH;
        element = block * BLOCK + inside;
        Count left = element < elements ? elements - element : 0;
        count = left < EACH ? (u32)left : EACH;
        scale = block * (SCALE_BYTES + BLOCK);
        byte = scale + SCALE_BYTES + inside;
    }
};

// A NaN is canonical whatever the scale's is.
__device__ __forceinline__ Four decoded(u32 word, float step) {
    Four four;
#pragma unroll
    for (u32 i = 0; i < EACH; i++) four.lane[i] = quiet((float)(signed char)(word >> (8 * i) & 0xff) * step);
    return four;
}

// The scale of the team's block, once each thread has brought its elements. All threads of the block must come here.
__device__ __forceinline__ float common_step(const Four &four, u32 count) {
    __shared__ u32 largest_of[TEAMS * TEAM];
    __shared__ u32 largest_of_eight[TEAMS * TEAM / 8];
    u32 largest = 0;
    // Magnitudes compare like their bits, and infinities and NaNs are above all numbers.
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        u32 magnitude = i < count ? __float_as_uint(four.lane[i]) & 0x7fffffffu : 0;
        largest = magnitude > largest ? magnitude : largest;
    }
    largest_of[threadIdx.x] = largest;
    __syncthreads();
    if (threadIdx.x < TEAMS * TEAM / 8) {
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            u32 other = largest_of[threadIdx.x * 8 + i];
            largest = i == 0 || other > largest ? other : largest;
        }
        largest_of_eight[threadIdx.x] = largest;
    }
    __syncthreads();
    u32 team = threadIdx.x / TEAM;
#pragma unroll
    for (u32 i = 0; i < TEAM / 8; i++) {
        u32 other = largest_of_eight[team * (TEAM / 8) + i];
        largest = i == 0 || other > largest ? other : largest;
    }
    if (largest >= INFINITY_BITS) return canonical_nan<float>();
    if (largest < SMALLEST_BITS) return 0.0f;
    return __uint_as_float(largest < LARGEST_BITS ? largest : LARGEST_BITS) / 127.0f;
}

// Four bytes in the scale `step`.
__device__ __forceinline__ u32 encoded(const Four &four, float step) {
    if (step == 0.0f || is_nan(step)) return 0;
    // Adding this rounds a small number to an integer, ties to even, and leaves it in the lowest bits.
    const float rounding = 12582912.0f;
    float steps = 1.0f / step;
    u32 word = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; i++)
        word |= (__float_as_uint(four.lane[i] * steps + rounding) & 0xffu) << (8 * i);
    return word;
}

__device__ __forceinline__ void store_block(unsigned char *into, const Place &place, float step, u32 word) {
    if (threadIdx.x % TEAM == 0 && place.count > 0) store_bytes(into + place.scale, SCALE_BYTES, __float_as_uint(step));
    store_bytes(into + place.byte, place.count, word);
}

// The blocks of the format, TEAMS at a time, the same number of turns for all threads of a block.
template <class Body> __device__ __forceinline__ void for_each_block(Count count, const Body &body) {
    Count blocks = (count + BLOCK - 1) / BLOCK;
    for (Count first = (Count)blockIdx.x * TEAMS; first < blocks; first += (Count)gridDim.x * TEAMS)
        body.at(Place(first + threadIdx.x / TEAM, count));
}

struct Quantise {
    const float *values;
    float *left;
    unsigned char *into;

    __device__ __forceinline__ void at(const Place &place) const {
        Four four = load_floats(values, place.element, place.count);
        if (left != nullptr) {
            Four before = load_floats(left, place.element, place.count);
#pragma unroll
            for (u32 i = 0; i < EACH; i++) four.lane[i] = four.lane[i] + before.lane[i];
        }
        float step = common_step(four, place.count);
        u32 word = encoded(four, step);
        store_block(into, place, step, word);
        if (left != nullptr) {
            Four again = decoded(word, step);
#pragma unroll
            for (u32 i = 0; i < EACH; i++) again.lane[i] = finite_or_zero(four.lane[i] - again.lane[i]);
            store_floats(left, place.element, place.count, again);
        }
    }
};

// `left`, if it is not null, is what rounding took the last time: it is added first, and what rounding takes now is left.
extern "C" __global__ void encode(const float *values, float *left, unsigned char *into, Count count) {
    Quantise body = {values, left, into};
    for_each_block(count, body);
}

struct Dequantise {
    const unsigned char *from;
    float *into;

    __device__ __forceinline__ void at(const Place &place) const {
        if (place.count == 0) return;
        float step = __uint_as_float(load_bytes(from + place.scale, SCALE_BYTES));
        store_floats(into, place.element, place.count, decoded(load_bytes(from + place.byte, place.count), step));
    }
};

extern "C" __global__ void decode(const unsigned char *from, float *into, Count count) {
    Dequantise body = {from, into};
    for_each_block(count, body);
}

struct AddFour {
    static __device__ __forceinline__ Four of(const Four &left, const Four &right) {
        Four result;
#pragma unroll
        for (u32 i = 0; i < EACH; i++) result.lane[i] = left.lane[i] + right.lane[i];
        return result;
    }
};

struct Combine {
    const unsigned char *operands;
    Count stride;
    u32 ranks;
    bool in_rank_order, scaled;
    float factor;
    float *left;
    unsigned char *result;
    float *values;

    __device__ __forceinline__ void at(const Place &place) const {
        Tree<Four, AddFour, LEVELS> tree;
        Four sum = {};
        if (place.count > 0) {
            for (u32 rank = 0; rank < ranks; rank++) {
                const unsigned char *operand = operands + rank * stride;
                float step = __uint_as_float(load_bytes(operand + place.scale, SCALE_BYTES));
                Four value = decoded(load_bytes(operand + place.byte, place.count), step);
                if (!in_rank_order) tree.push(value);
                else sum = rank == 0 ? value : AddFour::of(sum, value);
            }
            if (!in_rank_order) tree.finish(sum, false);
            if (scaled) {
#pragma unroll
                for (u32 i = 0; i < EACH; i++) sum.lane[i] = sum.lane[i] * factor;
            }
            if (left != nullptr) sum = AddFour::of(sum, load_floats(left, place.element, place.count));
        }
        float step = common_step(sum, place.count);
        u32 word = encoded(sum, step);
        Four value = decoded(word, step);
        store_block(result, place, step, word);
        store_floats(values, place.element, place.count, value);
        if (left != nullptr) {
#pragma unroll
            for (u32 i = 0; i < EACH; i++) value.lane[i] = finite_or_zero(sum.lane[i] - value.lane[i]);
            store_floats(left, place.element, place.count, value);
        }
    }
};

// Adds the contributions of `ranks` ranks, `stride` bytes apart, multiplies by `factor` if `scaled`, adds `left` if it is
// not null, writes the sum to `result`, and reads it back into `values`.
extern "C" __global__ void combine(const unsigned char *operands, Count stride, u32 ranks, u32 in_rank_order,
    u32 scaled, float factor, float *left, unsigned char *result, float *values, Count count) {
    Combine body = {operands, stride, ranks, in_rank_order != 0, scaled != 0, factor, left, result, values};
    for_each_block(count, body);
}
