// Sums in the canonical tree: power-of-two blocks of ranks, pairwise inside a block, B1 + (B2 + ...) between blocks.

// Operands are pushed in rank order and added as a binary counter carries. LEVELS bits count them.
template <class Value, class Add, int LEVELS> struct Tree {
    Value waiting[LEVELS];
    u32 taken;

    __device__ __forceinline__ Tree() : taken(0) {}

    __device__ __forceinline__ void push(const Value &value) {
        carry<0>(value);
        taken++;
    }

    // Folds what waits, from the last and smallest block to the first, onto `value`, if there is one.
    __device__ __forceinline__ void finish(Value &value, bool there_is_one) const {
#pragma unroll
        for (int level = 0; level < LEVELS; level++) {
            if (taken >> level & 1) {
                value = there_is_one ? Add::of(waiting[level], value) : waiting[level];
                there_is_one = true;
            }
        }
    }

  private:
    // A recursion, not a loop, so that every index is known to the compiler and all that waits stays in registers.
    template <int LEVEL> __device__ __forceinline__ void carry(const Value &value) {
        if constexpr (LEVEL < LEVELS) {
            if (taken >> LEVEL & 1) carry<LEVEL + 1>(Add::of(waiting[LEVEL], value));
            else waiting[LEVEL] = value;
        }
    }
};
