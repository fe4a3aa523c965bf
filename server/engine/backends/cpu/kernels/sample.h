// The next token of every row: the best one, or a draw.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "interface.h"
#include "scratch.h"
#include "simd.h"
#include "thread_pool.h"

namespace {

constexpr int MASS_BLOCK = 1024;             // tokens whose mass is summed up together
constexpr float LEAST_EXPONENT = -87.0f;     // e to less than this is no normal float: such a token weighs nothing
constexpr float LEAST_TEMPERATURE = 1e-30f;  // below it only the best token is left

struct Best {
    float value;
    int32_t token;  // the first of the largest; -1 if a number is not a number, or the largest not finite
};

Best best_of(const float* logits, int32_t n) {
    __m512 top = _mm512_set1_ps(-INFINITY);
    __m512i where = _mm512_set1_epi32(INT32_MAX), index = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __mmask16 unordered = 0;
    for (int32_t i = 0; i < n; i += LANES) {
        const __mmask16 m = tail_mask(n - i);
        const __m512 x = _mm512_maskz_loadu_ps(m, logits + i);
        unordered |= _mm512_mask_cmp_ps_mask(m, x, x, _CMP_UNORD_Q);
        const __mmask16 larger = _mm512_mask_cmp_ps_mask(m, x, top, _CMP_GT_OQ);
        top = _mm512_mask_mov_ps(top, larger, x);
        where = _mm512_mask_mov_epi32(where, larger, index);
        index = _mm512_add_epi32(index, _mm512_set1_epi32(LANES));
    }
    const float value = _mm512_reduce_max_ps(top);
    if (unordered || !std::isfinite(value)) return {value, -1};
    const __mmask16 equal = _mm512_cmp_ps_mask(top, _mm512_set1_ps(value), _CMP_EQ_OQ);
    return {value, _mm512_mask_reduce_min_epi32(equal, where)};
}

// weights[i] = e^((logits[i] - best) / temperature), and their sum for each block of tokens. → the sum of all
double weigh(const float* logits, int32_t n, float best, float temperature, float* weights, double* blocks) {
    const __m512 top = _mm512_set1_ps(best), inverse = _mm512_set1_ps(1.0f / temperature);
    double total = 0;
    for (int32_t block = 0; block < n; block += MASS_BLOCK) {
        __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();
        const int32_t stop = std::min(n, block + MASS_BLOCK);
        for (int32_t i = block; i < stop; i += LANES) {
            const __mmask16 m = tail_mask(stop - i);
            const __m512 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, logits + i), top), inverse);
            const __mmask16 counts = _mm512_mask_cmp_ps_mask(m, x, _mm512_set1_ps(LEAST_EXPONENT), _CMP_GE_OQ);
            const __m512 w = _mm512_maskz_mov_ps(counts, exp(x));
            _mm512_mask_storeu_ps(weights + i, m, w);
            low = _mm512_add_pd(low, _mm512_cvtps_pd(_mm512_castps512_ps256(w)));
            high = _mm512_add_pd(high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(w, 1)));
        }
        total += blocks[block / MASS_BLOCK] = _mm512_reduce_add_pd(_mm512_add_pd(low, high));
    }
    return total;
}

// The first of weights[0 .. n] at which their running sum exceeds `target`; rounding may leave it to the last that counts.
int32_t place_of(const float* weights, int32_t n, double target) {
    double mass = 0;
    int32_t last = 0;
    for (int32_t i = 0; i < n; ++i) {
        if (weights[i] == 0) continue;
        last = i;
        if ((mass += weights[i]) > target) break;
    }
    return last;
}

int32_t draw_of_all(const float* weights, int32_t n, const double* blocks, double target) {
    int32_t block = 0, last = 0;
    for (; block * MASS_BLOCK < n; ++block) {
        if (blocks[block] == 0) continue;
        last = block;
        if (target < blocks[block]) break;
        target -= blocks[block];
    }
    // Rounding may have passed the last block that weighs anything: its last token, then.
    const int32_t first = last * MASS_BLOCK;
    if (block != last) target = blocks[last];
    return first + place_of(weights + first, std::min(MASS_BLOCK, n - first), target);
}

// Tokens in the order of their weights, the lower id first where those are equal.
inline bool precedes(const Candidate& a, const Candidate& b) {
    return a.weight > b.weight || (a.weight == b.weight && a.token < b.token);
}

double mass_of(const Candidate* first, const Candidate* last) {
    double mass = 0;
    for (; first != last; ++first) mass += first->weight;
    return mass;
}

// A weight that at least `k` tokens have: the k-th largest of the maxima of groups of tokens. 0 if there are fewer groups.
float weight_of_at_least(int32_t k, const float* weights, int32_t n, std::vector<float>& maxima) {
    constexpr int GROUP = 4 * LANES;
    maxima.clear();
    for (int32_t first = 0; first < n; first += GROUP) {
        __m512 top = _mm512_setzero_ps();
        for (int32_t i = first; i < std::min(n, first + GROUP); i += LANES)
            top = _mm512_max_ps(top, _mm512_maskz_loadu_ps(tail_mask(n - i), weights + i));
        maxima.push_back(_mm512_reduce_max_ps(top));
    }
    if (size_t(k) > maxima.size()) return 0;
    std::nth_element(maxima.begin(), maxima.begin() + k - 1, maxima.end(), [](float a, float b) { return a > b; });
    return maxima[k - 1];
}

// Buckets of weights from 1 down to the least normal float: the exponent and the first five bits of the fraction.
constexpr int BUCKETS = 127 * 32 + 1;

inline int bucket_of(const Candidate& candidate) { return int(std::bit_cast<uint32_t>(candidate.weight) >> 18); }

// The lightest of the fewest of the heaviest whose mass reaches `target`. Only the bucket that it lies in is ordered, by
// halving what is still in question: a few passes, however flat the weights are.
Candidate lightest_within(double target, const std::vector<Candidate>& all, Scratch::Row& scratch) {
    double* const masses = Scratch::at_least(scratch.masses, BUCKETS);
    std::fill(masses, masses + BUCKETS, 0.0);
    for (const Candidate& candidate : all) masses[bucket_of(candidate)] += candidate.weight;
    int edge = 0;
    double before = 0;
    for (int bucket = BUCKETS - 1; bucket >= 0; --bucket) {
        if (masses[bucket] == 0) continue;
        edge = bucket;
        if (before + masses[bucket] >= target) break;
        before += masses[bucket];
    }
    auto& inside = scratch.edge;
    inside.clear();
    for (const Candidate& candidate : all)
        if (bucket_of(candidate) == edge) inside.push_back(candidate);
    size_t low = 0, high = inside.size();
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        std::nth_element(inside.begin() + low, inside.begin() + middle, inside.begin() + high, precedes);
        const double upper = mass_of(inside.data() + low, inside.data() + middle);
        if (before + upper >= target) {
            high = middle;
        } else {
            before += upper;
            low = middle;
        }
    }
    return inside[low];
}

// Draws of what min_p, then top_k, then top_p leave. `total`: of all weights, the largest of which is 1.
int32_t draw_of_some(const float* weights, int32_t n, double total, const Sampling& sampling, Scratch::Row& scratch) {
    const bool top_k = sampling.top_k > 0 && sampling.top_k < n;
    float least = sampling.min_p;
    if (top_k) {
        least = std::max(least, weight_of_at_least(sampling.top_k, weights, n, scratch.maxima));
    } else if (least <= 0) {
        // Lighter tokens than this weigh, together, less than what top_p leaves out: none of them is needed to reach it.
        least = float((1.0 - sampling.top_p) * total / n) * 0.999f;
    }
    auto& candidates = scratch.candidates;  // in the order of their ids
    candidates.clear();
    for (int32_t i = 0; i < n; i += LANES) {
        const __mmask16 m = tail_mask(n - i);
        const __m512 w = _mm512_maskz_loadu_ps(m, weights + i);
        uint32_t inside = _mm512_mask_cmp_ps_mask(m, w, _mm512_set1_ps(least), _CMP_GE_OQ);
        inside &= _mm512_cmp_ps_mask(w, _mm512_setzero_ps(), _CMP_GT_OQ);
        for (; inside; inside &= inside - 1) {
            const int32_t token = i + __builtin_ctz(inside);
            candidates.push_back({weights[token], token});
        }
    }
    if (top_k && size_t(sampling.top_k) < candidates.size()) {
        std::nth_element(candidates.begin(), candidates.begin() + sampling.top_k, candidates.end(), precedes);
        candidates.resize(sampling.top_k);
        std::sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) { return a.token < b.token; });
    }
    Candidate last{0, n};  // the lightest that is kept
    if (sampling.top_p < 1) {
        const bool all = !top_k && sampling.min_p <= 0;
        const double mass = all ? total : mass_of(candidates.data(), candidates.data() + candidates.size());
        last = lightest_within(sampling.top_p * mass, candidates, scratch);
    }
    double mass = 0;
    for (const Candidate& candidate : candidates)
        if (!precedes(last, candidate)) mass += candidate.weight;
    double target = sampling.uniform * mass;
    int32_t token = -1;
    for (const Candidate& candidate : candidates) {
        if (precedes(last, candidate)) continue;
        token = candidate.token;
        if ((target -= candidate.weight) < 0) break;
    }
    return token;
}

int32_t sample_row(const float* logits, int32_t n, const Sampling& sampling, Scratch::Row& scratch) {
    const Best best = best_of(logits, n);
    if (best.token < 0 || sampling.temperature < LEAST_TEMPERATURE) return best.token;
    float* const weights = Scratch::at_least(scratch.weights, n);
    double* const blocks = Scratch::at_least(scratch.blocks, n / MASS_BLOCK + 1);
    const double total = weigh(logits, n, best.value, sampling.temperature, weights, blocks);
    if (sampling.top_k > 0 || sampling.top_p < 1 || sampling.min_p > 0)
        return draw_of_some(weights, n, total, sampling, scratch);
    return draw_of_all(weights, n, blocks, sampling.uniform * total);
}

}  // namespace
