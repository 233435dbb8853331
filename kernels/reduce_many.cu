// The reduction of up to 64 vectors in one pass: each is read once, and nothing between is stored. `Element` and `Operator`
// are defined by whoever puts the files together.

static const int WIDTH = 16 / sizeof(Element);
static const int MOST_SOURCES = 64;
// Operands that are loaded before the first of them is used, to keep many accesses in flight.
static const u32 AHEAD = 8;
// The counter of groups of AHEAD: 64 are eight groups.
static const int LEVELS = 4;

// Source i is the operand of rank i.
struct Sources {
    u64 address[MOST_SOURCES];
};

template <int N> struct OnLanes {
    static __device__ __forceinline__ Lanes<Element, N> of(const Lanes<Element, N> &left, const Lanes<Element, N> &right) {
        Lanes<Element, N> result;
#pragma unroll
        for (int i = 0; i < N; i++) result.lane[i] = apply<Operator>(left.lane[i], right.lane[i]);
        return result;
    }
};

struct ReduceMany {
    const Sources &sources;
    u32 ranks;
    bool in_rank_order;
    bool average;
    Share<Element> share;
    Vector<Element> into;
    Count head;

    template <int N> __device__ __forceinline__ void at(Count first) const {
        Lanes<Element, N> sum = in_rank_order ? from_left_to_right<N>(first) : canonical<N>(first);
        if (average) {
#pragma unroll
            for (int i = 0; i < N; i++) sum.lane[i] = share.of(sum.lane[i]);
        }
        into.store(first, sum);
    }

    template <int N> __device__ __forceinline__ void load(u32 rank, Count first, Lanes<Element, N> &operand) const {
        Vector<Element>((Element *)sources.address[rank], head, 16).load(first, operand);
    }

    template <int N> __device__ __forceinline__ Lanes<Element, N> from_left_to_right(Count first) const {
        Lanes<Element, N> sum, operand;
        load(0, first, sum);
        for (u32 rank = 1; rank < ranks; rank++) {
            load(rank, first, operand);
            sum = OnLanes<N>::of(sum, operand);
        }
        return sum;
    }

    template <int N> __device__ __forceinline__ Lanes<Element, N> canonical(Count first) const {
        typedef OnLanes<N> Add;
        Tree<Lanes<Element, N>, Add, LEVELS> groups;
        Lanes<Element, N> sum, operand[AHEAD];
        bool begun = false;
        for (u32 from = 0; from < ranks; from += AHEAD) {
            u32 here = ranks - from < AHEAD ? ranks - from : AHEAD;
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++)
                if (i < here) load(from + i, first, operand[i]);
            // The same counter as in Tree, whose lowest three bits are known here: i counts.
            Lanes<Element, N> two = operand[0], four, eight;
            if (here >= 2) two = Add::of(operand[0], operand[1]);
            if (here >= 4) four = Add::of(two, Add::of(operand[2], operand[3]));
            if (here >= 6) two = Add::of(operand[4], operand[5]);
            if (here == 8) {
                eight = Add::of(four, Add::of(two, Add::of(operand[6], operand[7])));
                groups.push(eight);
                continue;
            }
            // The last group is not full: its blocks of four, two and one, the last first.
            if (here & 1) {
                sum = here == 7 ? operand[6] : here == 5 ? operand[4] : here == 3 ? operand[2] : operand[0];
                begun = true;
            }
            if (here & 2) {
                sum = begun ? Add::of(two, sum) : two;
                begun = true;
            }
            if (here & 4) {
                sum = begun ? Add::of(four, sum) : four;
                begun = true;
            }
        }
        groups.finish(sum, begun);
        return sum;
    }
};

// `into` may be one of the sources. An average is finished by the number of ranks.
extern "C" __global__ void reduce_many(Sources sources, u32 ranks, u32 in_rank_order, u32 average, Element *into,
    Count count) {
    Count head = elements_before_alignment(into, count);
    ReduceMany body = {
        sources, ranks, in_rank_order != 0, average != 0 && ranks > 1, Share<Element>(ranks),
        Vector<Element>(into, head, 16), head};
    for_each<WIDTH>(head, count, body);
}
