// Memory of a step that nobody outside sees, and what fetches cache rows ahead of their use.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

// Rows that follow one another in a slot: row i is at position `first + i`.
struct QueryBlock {
    int row, count, slot, first;
};

// Fetches the cache rows that a thread will read next, a few between the sums of those it reads now: a sequence's rows of
// one layer are a short stretch that the hardware sees the end of before it has guessed the rest.
class Prefetcher {
  public:
    static constexpr int MOST = 512;  // positions: more would push out what is being read

    // The cache rows that a unit of work begins with.
    struct Stretch {
        int unit = -1;
        const uint16_t* keys = nullptr;
        const uint16_t* values = nullptr;
        int64_t stride = 0;
        int width = 0, length = 0;
    };

    // `unit` begins, and in its `num_steps` steps `stretch` is fetched. → how many of its own positions were.
    int begin(int unit, const Stretch& stretch, int num_steps) {
        const int fetched = unit == stretch_.unit ? next_ : 0;
        stretch_ = stretch;
        next_ = 0;
        a_step_ = (stretch.length + num_steps - 1) / num_steps;
        return fetched;
    }

    void step() {
        for (const int stop = std::min(next_ + a_step_, stretch_.length); next_ < stop; ++next_) {
            fetch(stretch_.keys + next_ * stretch_.stride, stretch_.width);
            fetch(stretch_.values + next_ * stretch_.stride, stretch_.width);
        }
    }

    static void fetch(const uint16_t* p, int count) {
        for (int i = 0; i < count; i += 32) _mm_prefetch(reinterpret_cast<const char*>(p + i), _MM_HINT_T1);
    }

  private:
    Stretch stretch_;
    int next_ = 0, a_step_ = 0;
};

// A token that may be drawn.
struct Candidate {
    float weight;
    int32_t token;
};

// Memory of a step that nobody outside sees.
struct Scratch {
    // What a thread needs to choose the token of a row.
    struct Row {
        std::vector<float> weights;  // [V]
        std::vector<double> blocks, masses;
        std::vector<float> maxima;
        std::vector<Candidate> candidates, edge;
    };

    std::vector<float> inputs;      // [threads][padded K]: the row that is being made ready
    std::vector<int8_t> digits;     // [rows][padded K]
    std::vector<float> scales;      // [rows][blocks]
    std::vector<int32_t> offsets;   // [rows][blocks]: -128 * sum of the block's digits
    std::vector<int8_t> ranks;      // [groups][members][16]: A times the inputs
    std::vector<float> rank_scales;     // [groups][members]
    std::vector<int32_t> rank_offsets;  // [groups][members]
    std::vector<std::vector<float>> scores;  // a thread's [queries][positions]
    std::vector<QueryBlock> blocks;
    std::vector<Prefetcher> prefetchers;     // a thread's
    std::vector<Row> sampling;               // a thread's

    template <class T> static T* at_least(std::vector<T>& v, size_t n) {
        if (v.size() < n) v.resize(n + n / 2);
        return v.data();
    }
};

}  // namespace
