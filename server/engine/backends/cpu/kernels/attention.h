// Attention: rotary positions, new keys and values into the cache, scores, softmax, weighted sums of values.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cfloat>
#include <cstddef>
#include <cstdint>

#include "interface.h"
#include "layout.h"
#include "scratch.h"
#include "simd.h"
#include "thread_pool.h"

namespace {

// x -> x * cos + rotate_half(x) * sin over the first `rotary` of a head's numbers; `rotary` is even.
void rotate(float* x, const float* cos, const float* sin, int rotary) {
    const int half = rotary / 2;
    for (int i = 0; i < half; i += LANES) {
        const __mmask16 m = tail_mask(half - i);
        const __m512 low = _mm512_maskz_loadu_ps(m, x + i), high = _mm512_maskz_loadu_ps(m, x + half + i);
        const __m512 c0 = _mm512_maskz_loadu_ps(m, cos + i), c1 = _mm512_maskz_loadu_ps(m, cos + half + i);
        const __m512 s0 = _mm512_maskz_loadu_ps(m, sin + i), s1 = _mm512_maskz_loadu_ps(m, sin + half + i);
        _mm512_mask_storeu_ps(x + i, m, _mm512_fmsub_ps(low, c0, _mm512_mul_ps(high, s0)));
        _mm512_mask_storeu_ps(x + half + i, m, _mm512_fmadd_ps(high, c1, _mm512_mul_ps(low, s1)));
    }
}

constexpr int MAX_QUERIES = 12;  // query vectors that look at one key together: heads of a group, of some rows
constexpr int MAX_ROWS = 4;
constexpr int POSITIONS_AHEAD = 24;  // how far ahead cache rows are fetched that were not fetched before

inline __m512 from_half(const uint16_t* p, __mmask16 mask) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
}

// Beyond what half precision holds comes its largest number, and a NaN stays one: min and max return their second.
void store_half(const float* x, int n, uint16_t* out) {
    for (int i = 0; i < n; i += LANES) {
        const __mmask16 m = tail_mask(n - i);
        const __m512 v = _mm512_min_ps(_mm512_set1_ps(65504.0f), _mm512_maskz_loadu_ps(m, x + i));
        const __m512 bounded = _mm512_max_ps(_mm512_set1_ps(-65504.0f), v);
        _mm256_mask_storeu_epi16(out + i, m, _mm512_cvtps_ph(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
}

// Rows become columns.
inline void transpose(__m512 (&r)[16]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
        r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// What a unit still has to fetch of its own cache rows: `width` numbers of each position from `done` on.
struct Fetch {
    int width, done;
};

// scores[q][l] = scale * (q . key l), sixteen keys in the lanes of a register, their numbers one after another: the
// order of a sum does not depend on who else looks at the key.
template <int Q>
void score(const float* const* q, const uint16_t* keys, int64_t stride, int dim, int length, float scale, float* scores,
           int score_stride, const Fetch& own, Prefetcher& prefetcher) {
    for (int l = 0; l < length; l += LANES) {
        const int count = std::min(LANES, length - l);
        prefetcher.step();
        __m512 sum[Q];
        for (int i = 0; i < Q; ++i) sum[i] = _mm512_setzero_ps();
        if (own.width && l + LANES + POSITIONS_AHEAD > own.done)
            for (int i = 0; i < count; ++i) Prefetcher::fetch(keys + (l + i + POSITIONS_AHEAD) * stride, own.width);
        for (int d = 0; d < dim; d += LANES) {
            const __mmask16 m = tail_mask(dim - d);
            __m512 k[LANES];
            const uint16_t* key = keys + l * stride + d;
#pragma GCC unroll 16
            for (int i = 0; i < LANES; ++i) k[i] = i < count ? from_half(key + i * stride, m) : _mm512_setzero_ps();
            transpose(k);
            if (dim - d >= LANES) {
#pragma GCC unroll 16
                for (int j = 0; j < LANES; ++j)
                    for (int i = 0; i < Q; ++i) sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(q[i][d + j]), k[j], sum[i]);
            } else {
#pragma GCC unroll 16
                for (int j = 0; j < LANES; ++j)
                    if (d + j < dim)
                        for (int i = 0; i < Q; ++i) sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(q[i][d + j]), k[j], sum[i]);
            }
        }
        for (int i = 0; i < Q; ++i)
            _mm512_storeu_ps(scores + i * score_stride + l, _mm512_mul_ps(sum[i], _mm512_set1_ps(scale)));
    }
}

// out[q] = inverse[q] * sum of weights[q][l] * value l, position after position.
template <int Q>
void weighted_sum(const float* weights, int weight_stride, const uint16_t* values, int64_t stride, int dim, int length,
                  const float* inverse, float* const* out, const Fetch& own, Prefetcher& prefetcher) {
    for (int d = 0; d < dim; d += 2 * LANES) {
        const __mmask16 m0 = tail_mask(dim - d), m1 = dim - d > LANES ? tail_mask(dim - d - LANES) : 0;
        __m512 sum[Q][2];
        for (int i = 0; i < Q; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
        const uint16_t* v = values + d;
        for (int l = 0; l < length; ++l, v += stride) {
            if (l % LANES == 0) prefetcher.step();
            if (d == 0 && own.width && l + POSITIONS_AHEAD >= own.done)
                Prefetcher::fetch(v + POSITIONS_AHEAD * stride, own.width);
            const __m512 v0 = from_half(v, m0), v1 = from_half(v + LANES, m1);
            for (int i = 0; i < Q; ++i) {
                const __m512 w = _mm512_set1_ps(weights[i * weight_stride + l]);
                sum[i][0] = _mm512_fmadd_ps(w, v0, sum[i][0]);
                sum[i][1] = _mm512_fmadd_ps(w, v1, sum[i][1]);
            }
        }
        for (int i = 0; i < Q; ++i) {
            const __m512 scale = _mm512_set1_ps(inverse[i]);
            _mm512_mask_storeu_ps(out[i] + d, m0, _mm512_mul_ps(sum[i][0], scale));
            _mm512_mask_storeu_ps(out[i] + d + LANES, m1, _mm512_mul_ps(sum[i][1], scale));
        }
    }
}

// Scores to e^(score - max), in place; the sum's inverse is returned.
float softmax(float* scores, int length, float softcap) {
    __m512 largest = _mm512_set1_ps(-FLT_MAX);
    for (int l = 0; l < length; l += LANES) {
        const __mmask16 m = tail_mask(length - l);
        __m512 s = _mm512_maskz_loadu_ps(m, scores + l);
        if (softcap > 0) {
            s = _mm512_mul_ps(_mm512_set1_ps(softcap), tanh(_mm512_mul_ps(s, _mm512_set1_ps(1.0f / softcap))));
            _mm512_mask_storeu_ps(scores + l, m, s);
        }
        largest = _mm512_mask_max_ps(largest, m, largest, s);
    }
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
    __m512 sum = _mm512_setzero_ps();
    for (int l = 0; l < length; l += LANES) {
        const __mmask16 m = tail_mask(length - l);
        const __m512 e = exp(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, scores + l), top));
        _mm512_mask_storeu_ps(scores + l, m, e);
        sum = _mm512_mask_add_ps(sum, m, sum, e);
    }
    return 1.0f / _mm512_reduce_add_ps(sum);
}

// The first position that row i of a block looks at.
inline int first_seen(const Attention& at, const QueryBlock& block, int i) {
    return at.window > 0 ? std::max(0, block.first + i + 1 - at.window) : 0;
}

// Some heads of one key-value head, for the rows of a block. q and out: [rows * heads] vectors, a row's heads together.
template <int Q>
void attend_block(const Attention& at, const QueryBlock& block, int heads, const float* const* q, const uint16_t* keys,
                  const uint16_t* values, float* scores, int score_stride, float* const* out, const Fetch& own,
                  Prefetcher& prefetcher) {
    const int64_t stride = int64_t(at.num_kv_heads) * at.dim;
    const auto start_of = [&](int i) { return first_seen(at, block, i); };
    const int start = start_of(0), length = block.first + block.count - start;
    keys += start * stride;
    values += start * stride;
    score<Q>(q, keys, stride, at.dim, length, at.scale, scores, score_stride, own, prefetcher);
    float inverse[Q];
    for (int i = 0; i < block.count; ++i) {
        const int from = start_of(i) - start, to = block.first + i + 1 - start;
        for (int h = 0; h < heads; ++h) {
            float* const own = scores + (i * heads + h) * score_stride;
            inverse[i * heads + h] = softmax(own + from, to - from, at.softcap);
            std::fill(own, own + from, 0.0f);
            std::fill(own + to, own + length, 0.0f);
        }
    }
    weighted_sum<Q>(scores, score_stride, values, stride, at.dim, length, inverse, out, own, prefetcher);
}

// x [rows, (heads + 2 kv_heads) * dim] holds q, k, v; y [rows, heads * dim].
void attend(ThreadPool& pool, Scratch& scratch, const Op& op, const Step& step) {
    const Attention& at = *op.attention;
    const int rows = step.num_rows, dim = at.dim, group = at.num_heads / at.num_kv_heads;
    const int kv_width = at.num_kv_heads * dim;
    const int heads_together = std::min(group, MAX_QUERIES);
    const int rows_together = std::min(MAX_ROWS, MAX_QUERIES / heads_together);
    auto& blocks = scratch.blocks;
    blocks.clear();
    int longest = 0;
    for (int row = 0; row < rows; ++row) {
        longest = std::max(longest, step.position[row] + 1);
        if (!blocks.empty()) {
            QueryBlock& last = blocks.back();
            const bool follows = last.slot == step.slot[row] && last.first + last.count == step.position[row];
            if (follows && last.count < rows_together) {
                ++last.count;
                continue;
            }
        }
        blocks.push_back({row, 1, step.slot[row], step.position[row]});
    }
    const int score_stride = (longest + LANES - 1) / LANES * LANES;
    scratch.scores.resize(pool.size());

    pool.run((rows + CHUNK_ROWS - 1) / CHUNK_ROWS, [&](int chunk, int) {
        const int last = std::min(rows, (chunk + 1) * CHUNK_ROWS);
        for (int row = chunk * CHUNK_ROWS; row < last; ++row) {
            float* const q = const_cast<float*>(op.x) + size_t(row) * op.x_width;
            float* const k = q + at.num_heads * dim;
            const float* const cos = step.cos[at.rope] + size_t(row) * at.rotary_dim;
            const float* const sin = step.sin[at.rope] + size_t(row) * at.rotary_dim;
            for (int h = 0; h < at.num_heads; ++h) {
                if (at.q_norm != nullptr) rms_norm(q + h * dim, at.q_norm, at.eps, dim, q + h * dim);
                rotate(q + h * dim, cos, sin, at.rotary_dim);
            }
            for (int h = 0; h < at.num_kv_heads; ++h) {
                if (at.k_norm != nullptr) rms_norm(k + h * dim, at.k_norm, at.eps, dim, k + h * dim);
                rotate(k + h * dim, cos, sin, at.rotary_dim);
            }
            const int64_t place = step.slot[row] * at.slot_stride + int64_t(step.position[row]) * kv_width;
            store_half(k, kv_width, at.keys + place);
            store_half(k + kv_width, kv_width, at.values + place);
        }
    });

    // With few blocks the heads of one are shared out, with many one thread takes them all: it fetches whole cache rows.
    const int num_blocks = int(blocks.size());
    const int shares = num_blocks < 2 * pool.size() ? at.num_kv_heads : 1;
    const int heads_a_share = at.num_kv_heads / shares;
    const auto length_of = [&](const QueryBlock& block) { return block.first + block.count - first_seen(at, block, 0); };
    const auto stretch_of = [&](int unit) {
        Prefetcher::Stretch stretch;
        if (unit >= num_blocks * shares) return stretch;
        const QueryBlock& block = blocks[unit / shares];
        const int64_t place = block.slot * at.slot_stride + int64_t(first_seen(at, block, 0)) * kv_width +
                              unit % shares * heads_a_share * dim;
        return Prefetcher::Stretch{unit, at.keys + place, at.values + place, kv_width, heads_a_share * dim,
                              std::min(length_of(block), Prefetcher::MOST)};
    };
    scratch.prefetchers.assign(pool.size(), {});
    pool.run(num_blocks * shares, [&](int unit, int thread) {
        const QueryBlock& block = blocks[unit / shares];
        Prefetcher& prefetcher = scratch.prefetchers[thread];
        const int num_steps = (length_of(block) + LANES - 1) / LANES * heads_a_share * (1 + (dim + 2 * LANES - 1) / (2 * LANES));
        // Whoever is free takes the next unit: with threads equally quick, this one's next.
        const int done = prefetcher.begin(unit, stretch_of(unit + pool.size()), num_steps);
        float* const scores = Scratch::at_least(scratch.scores[thread], size_t(MAX_QUERIES) * score_stride);
        for (int i = 0; i < heads_a_share; ++i) {
            const int kv_head = unit % shares * heads_a_share + i;
            const uint16_t* const keys = at.keys + block.slot * at.slot_stride + kv_head * dim;
            const uint16_t* const values = at.values + block.slot * at.slot_stride + kv_head * dim;
            for (int g = 0; g < group; g += heads_together) {
                const int heads = std::min(heads_together, group - g);
                const Fetch own{i == 0 && g == 0 ? heads_a_share * dim : 0, done};
                const float* q[MAX_QUERIES];
                float* out[MAX_QUERIES];
                for (int r = 0; r < block.count; ++r)
                    for (int h = 0; h < heads; ++h) {
                        const int head = kv_head * group + g + h;
                        q[r * heads + h] = op.x + size_t(block.row + r) * op.x_width + head * dim;
                        out[r * heads + h] = op.y + size_t(block.row + r) * op.y_width + head * dim;
                    }
                switch (block.count * heads) {
#define CASE(Q) \
    case Q: attend_block<Q>(at, block, heads, q, keys, values, scores, score_stride, out, own, prefetcher); break;
                    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
                }
            }
        }
    });
}

}  // namespace
