// Linear layers: activations to bytes, the base weights times them, and what adapters add.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "interface.h"
#include "layout.h"
#include "lora.h"
#include "scratch.h"
#include "simd.h"
#include "thread_pool.h"

namespace {

void quantize(const float* x, int num_blocks, int8_t* digits, float* scales, int32_t* offsets) {
    const __m512i ones = _mm512_set1_epi8(1);
    for (int block = 0; block < num_blocks; ++block, x += BLOCK, digits += BLOCK) {
        __m512 v[4];
        __m512 largest = _mm512_setzero_ps();
        __mmask16 broken = 0;
        for (int i = 0; i < 4; ++i) {
            v[i] = _mm512_loadu_ps(x + i * LANES);
            largest = _mm512_max_ps(largest, _mm512_abs_ps(v[i]));
            broken |= _mm512_cmp_ps_mask(v[i], v[i], _CMP_UNORD_Q);
        }
        // Bytes have no NaN: the scale carries it, so that a broken row stays broken to the end and is noticed there.
        const float top = broken ? NAN : _mm512_reduce_max_ps(largest);
        const float scale = top * (1.0f / 127.0f);
        const __m512 inverse = _mm512_set1_ps(top > 1e-30f ? 127.0f / top : 0.0f);
        for (int i = 0; i < 4; ++i)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(digits + i * LANES),
                             _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(v[i], inverse))));
        const __m512i bytes = _mm512_loadu_si512(digits);
        scales[block] = scale;
        offsets[block] = -128 * _mm512_reduce_add_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, bytes));
    }
}

// What the layer reads, from what the step holds: normed, activated or as it is; padded with zeros.
void prepare_row(const Op& op, const float* x, int n, int padded, float* out) {
    if (op.prologue == NORM) {
        rms_norm(x, op.norm, op.eps, n, out);
    } else if (op.prologue == PLAIN) {
        std::memcpy(out, x, sizeof(float) * n);
    } else {
        const float* up = x + n;
        for (int i = 0; i < n; i += LANES) {
            const __mmask16 m = tail_mask(n - i);
            const __m512 gate = _mm512_maskz_loadu_ps(m, x + i);
            const __m512 active = op.prologue == SILU_TIMES ? silu(gate) : gelu_tanh(gate);
            _mm512_mask_storeu_ps(out + i, m, _mm512_mul_ps(active, _mm512_maskz_loadu_ps(m, up + i)));
        }
    }
    for (int i = n; i < padded; ++i) out[i] = 0.0f;
}

template <int R>
void multiply_tile(const uint8_t* panels, int num_blocks, const int8_t* digits, const float* scales,
                   const int32_t* offsets, const uint8_t* next, __m512 (*out)[2]) {
    const int padded = num_blocks * BLOCK;
    const uint8_t* w0 = panels;
    const uint8_t* w1 = panels + size_t(padded) * LANES;
    const int8_t* x[R];  // a pointer a row: computed addresses would not leave registers for the sums
    for (int r = 0; r < R; ++r) x[r] = digits + size_t(r) * padded;
    __m512 total[R][2];
    for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = _mm512_setzero_ps();
    for (int block = 0; block < num_blocks; ++block) {
        __m512i sum[R][2];
        for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm512_set1_epi32(offsets[r * num_blocks + block]);
#pragma GCC unroll 16
        for (int k = 0; k < BLOCK / 4; ++k) {
            const __m512i v0 = _mm512_loadu_si512(w0 + k * 64);
            const __m512i v1 = _mm512_loadu_si512(w1 + k * 64);
            if constexpr (R > 2) {  // with fewer rows memory is busy anyway, and the hardware fetches ahead by itself
                _mm_prefetch(reinterpret_cast<const char*>(next + k * 128), _MM_HINT_T1);
                _mm_prefetch(reinterpret_cast<const char*>(next + k * 128 + 64), _MM_HINT_T1);
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                int32_t four;
                std::memcpy(&four, x[r] + k * 4, 4);
                const __m512i spread = _mm512_set1_epi32(four);
                sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], v0, spread);
                sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], v1, spread);
            }
        }
        w0 += BLOCK * LANES;
        w1 += BLOCK * LANES;
        next += 2 * BLOCK * LANES;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            x[r] += BLOCK;
            const __m512 scale = _mm512_set1_ps(scales[r * num_blocks + block]);
            total[r][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][0]), scale, total[r][0]);
            total[r][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r][1]), scale, total[r][1]);
        }
    }
    for (int r = 0; r < R; ++r) {
        out[r][0] = total[r][0];
        out[r][1] = total[r][1];
    }
}

void project(ThreadPool& pool, Scratch& scratch, const Op& op, const Step& step) {
    const Linear& linear = *op.linear;
    const int rows = step.num_rows, blocks = linear.num_blocks, padded = blocks * BLOCK;
    const bool adapted = linear.a != nullptr && step.adapters.num_groups > 0;
    float* const inputs = Scratch::at_least(scratch.inputs, size_t(pool.size()) * padded);
    int8_t* const digits = Scratch::at_least(scratch.digits, size_t(rows) * padded);
    float* const scales = Scratch::at_least(scratch.scales, size_t(rows) * blocks);
    int32_t* const offsets = Scratch::at_least(scratch.offsets, size_t(rows) * blocks);
    const size_t groups = size_t(step.adapters.num_groups) * linear.num_members;
    Scratch::at_least(scratch.ranks, groups * RANK);
    Scratch::at_least(scratch.rank_scales, groups);
    Scratch::at_least(scratch.rank_offsets, groups);

    pool.run((rows + CHUNK_ROWS - 1) / CHUNK_ROWS, [&](int chunk, int thread) {
        const int first = chunk * CHUNK_ROWS, last = std::min(rows, first + CHUNK_ROWS);
        float* const input = inputs + size_t(thread) * padded;
        for (int row = first; row < last; ++row) {
            prepare_row(op, op.x + size_t(row) * op.x_width, linear.num_inputs, padded, input);
            quantize(input, blocks, digits + size_t(row) * padded, scales + size_t(row) * blocks,
                     offsets + size_t(row) * blocks);
        }
        if (adapted) shrink_rows(linear, step.adapters, scratch, first, last);
    });

    // Enough parts for two threads to share evenly, few enough that handing them out costs nothing.
    const int tiles_a_part = std::max(1, linear.num_tiles / (pool.size() * 8));
    const int parts = (linear.num_tiles + tiles_a_part - 1) / tiles_a_part;
    pool.run(parts, [&](int part, int) {
        const int last_tile = std::min(linear.num_tiles, (part + 1) * tiles_a_part);
        for (int tile = part * tiles_a_part; tile < last_tile; ++tile) {
            const uint8_t* panels = linear.panels + size_t(tile) * TILE * padded;
            const int column = linear.tiles[tile * 3 + 1], columns = linear.tiles[tile * 3 + 2];
            const __mmask16 mask0 = tail_mask(columns), mask1 = columns > LANES ? tail_mask(columns - LANES) : 0;
            const __m512 scale0 = _mm512_loadu_ps(linear.scale + tile * TILE);
            const __m512 scale1 = _mm512_loadu_ps(linear.scale + tile * TILE + LANES);
            const int row_blocks = (rows + TILE_ROWS - 1) / TILE_ROWS;
            for (int i = 0; i < row_blocks; ++i) {
                const int row = int(int64_t(rows) * i / row_blocks), next = int(int64_t(rows) * (i + 1) / row_blocks);
                const int8_t* d = digits + size_t(row) * padded;
                const float* s = scales + size_t(row) * blocks;
                const int32_t* o = offsets + size_t(row) * blocks;
                // While the last rows of this tile are computed, the next tile is on its way from memory.
                const uint8_t* next_tile = panels + (i + 1 == row_blocks ? size_t(TILE) * padded : 0);
                __m512 y[TILE_ROWS][2];
                switch (next - row) {
                    case 1: multiply_tile<1>(panels, blocks, d, s, o, next_tile, y); break;
                    case 2: multiply_tile<2>(panels, blocks, d, s, o, next_tile, y); break;
                    case 3: multiply_tile<3>(panels, blocks, d, s, o, next_tile, y); break;
                    case 4: multiply_tile<4>(panels, blocks, d, s, o, next_tile, y); break;
                    case 5: multiply_tile<5>(panels, blocks, d, s, o, next_tile, y); break;
                    default: multiply_tile<6>(panels, blocks, d, s, o, next_tile, y); break;
                }
                for (int r = 0; r < next - row; ++r) {
                    y[r][0] = _mm512_mul_ps(y[r][0], scale0);
                    y[r][1] = _mm512_mul_ps(y[r][1], scale1);
                }
                if (adapted) expand_rows(linear, step.adapters, scratch, tile, row, next - row, y);
                for (int r = 0; r < next - row; ++r) {
                    float* out = op.y + size_t(row + r) * op.y_width + column;
                    if (op.with_bias) {
                        y[r][0] = _mm512_add_ps(y[r][0], _mm512_loadu_ps(linear.bias + tile * TILE));
                        y[r][1] = _mm512_add_ps(y[r][1], _mm512_loadu_ps(linear.bias + tile * TILE + LANES));
                    }
                    if (op.accumulate) {
                        y[r][0] = _mm512_add_ps(y[r][0], _mm512_maskz_loadu_ps(mask0, out));
                        y[r][1] = _mm512_add_ps(y[r][1], _mm512_maskz_loadu_ps(mask1, out + LANES));
                    }
                    _mm512_mask_storeu_ps(out, mask0, y[r][0]);
                    _mm512_mask_storeu_ps(out + LANES, mask1, y[r][1]);
                }
            }
        }
    });
}

}  // namespace
