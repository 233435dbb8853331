// How kernels go through vectors: 16 bytes at a time where addresses allow, one element at a time elsewhere.

// As many elements as one access moves (or as several of 16 bytes do).
template <class T, int WIDTH> struct alignas(sizeof(T) * WIDTH < 16 ? sizeof(T) * WIDTH : 16) Lanes {
    T lane[WIDTH];
};

// Loads and stores of a vector, each of as many elements as are asked for. Whether they are whole, which takes an aligned address, is
// the same for all that begin a multiple of so many elements after the first.
template <class T> struct Vector {
    T *start;
    bool whole;

    // `first` is the element at which the first access of WIDTH elements begins, and `bytes` how long it is.
    __device__ __forceinline__ Vector(T *start, Count first, u32 bytes)
        : start(start), whole(((u64)(start + first) & ((bytes < 16 ? bytes : 16) - 1)) == 0) {}

    template <int WIDTH> __device__ __forceinline__ void load(Count at, Lanes<T, WIDTH> &into) const {
        if (WIDTH > 1 && whole) {
            into = *(const Lanes<T, WIDTH> *)(start + at);
        } else {
#pragma unroll
            for (int i = 0; i < WIDTH; i++) into.lane[i] = start[at + i];
        }
    }

    template <int WIDTH> __device__ __forceinline__ void store(Count at, const Lanes<T, WIDTH> &from) const {
        if (WIDTH > 1 && whole) {
            *(Lanes<T, WIDTH> *)(start + at) = from;
        } else {
#pragma unroll
            for (int i = 0; i < WIDTH; i++) start[at + i] = from.lane[i];
        }
    }
};

// Elements before the first one at a multiple of 16 bytes, at most `count`.
template <class T> __device__ __forceinline__ Count elements_before_alignment(const T *start, Count count) {
    Count head = ((16 - ((u64)start & 15)) & 15) / sizeof(T);
    return head < count ? head : count;
}

// Calls `body.at<WIDTH>(first)` for every WIDTH elements from `head` on, and `body.at<1>(index)` for the few at either end.
// All indices are of 64 bits. Any grid does, whose blocks have at least head + WIDTH threads: each thread goes on by the
// number of all threads.
template <int WIDTH, class Body> __device__ __forceinline__ void for_each(Count head, Count count, const Body &body) {
    Count thread = (Count)blockIdx.x * blockDim.x + threadIdx.x, threads = (Count)gridDim.x * blockDim.x;
    Count groups = (count - head) / WIDTH, tail = head + groups * WIDTH;
    for (Count group = thread; group < groups; group += threads) body.template at<WIDTH>(head + group * WIDTH);
    Count ends = head + (count - tail);
    if (thread < ends) body.template at<1>(thread < head ? thread : thread - head + tail);
}
