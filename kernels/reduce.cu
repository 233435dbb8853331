// One reduction of two vectors, and the last step of an average. `Element` is defined by whoever puts the files together.

static const int WIDTH = 16 / sizeof(Element);

template <class Operator> struct Reduce {
    Vector<Element> into, left, right;

    template <int N> __device__ __forceinline__ void at(Count first) const {
        Lanes<Element, N> l, r;
        left.load(first, l);
        right.load(first, r);
#pragma unroll
        for (int i = 0; i < N; i++) l.lane[i] = apply<Operator>(l.lane[i], r.lane[i]);
        into.store(first, l);
    }
};

// `into` may be one of the operands.
template <class Operator>
__device__ __forceinline__ void reduce(Element *into, const Element *left, const Element *right, Count count) {
    Count head = elements_before_alignment(into, count);
    Reduce<Operator> body = {Vector<Element>(into, head, 16), Vector<Element>((Element *)left, head, 16),
                             Vector<Element>((Element *)right, head, 16)};
    for_each<WIDTH>(head, count, body);
}

extern "C" __global__ void reduce_sum(Element *into, const Element *left, const Element *right, Count count) {
    reduce<Sum>(into, left, right, count);
}

extern "C" __global__ void reduce_min(Element *into, const Element *left, const Element *right, Count count) {
    reduce<Minimum>(into, left, right, count);
}

extern "C" __global__ void reduce_max(Element *into, const Element *left, const Element *right, Count count) {
    reduce<Maximum>(into, left, right, count);
}

extern "C" __global__ void reduce_product(Element *into, const Element *left, const Element *right, Count count) {
    reduce<Product>(into, left, right, count);
}

struct Scale {
    Vector<Element> values;
    Share<Element> share;

    template <int N> __device__ __forceinline__ void at(Count first) const {
        Lanes<Element, N> lanes;
        values.load(first, lanes);
#pragma unroll
        for (int i = 0; i < N; i++) lanes.lane[i] = share.of(lanes.lane[i]);
        values.store(first, lanes);
    }
};

extern "C" __global__ void scale_for_average(Element *values, Count count, u32 ranks) {
    Count head = elements_before_alignment(values, count);
    Scale body = {Vector<Element>(values, head, 16), Share<Element>(ranks)};
    for_each<WIDTH>(head, count, body);
}
