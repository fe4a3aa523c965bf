// Adapters: shrink (A times the inputs of a row) and expand (B times that, onto its outputs), page by page.

#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "interface.h"
#include "layout.h"
#include "scratch.h"

namespace {

struct Ranks {
    int8_t* digits;
    float* scale;
    int32_t* offset;
};

// A . x for G rows and one member's page: 16 ranks in the lanes of a register, to bytes again at once.
template <int G>
void shrink(const uint8_t* a, const float* a_scale, int num_blocks, const int8_t* digits, const float* scales,
            const int32_t* offsets, const Ranks* out) {
    const int padded = num_blocks * BLOCK;
    __m512 total[G];
    for (int g = 0; g < G; ++g) total[g] = _mm512_setzero_ps();
    for (int block = 0; block < num_blocks; ++block) {
        __m512i sum[G][2];  // two chains a row: with few rows the sums would wait for one another
        for (int g = 0; g < G; ++g) {
            sum[g][0] = _mm512_set1_epi32(offsets[g * num_blocks + block]);
            sum[g][1] = _mm512_setzero_si512();
        }
        const int8_t* x = digits + block * BLOCK;
#pragma GCC unroll 8
        for (int k = 0; k < BLOCK / 4; ++k, a += 64) {
            const __m512i v = _mm512_loadu_si512(a);
            for (int g = 0; g < G; ++g) {
                int32_t four;
                std::memcpy(&four, x + size_t(g) * padded + k * 4, 4);
                sum[g][k & 1] = _mm512_dpbusd_epi32(sum[g][k & 1], v, _mm512_set1_epi32(four));
            }
        }
        for (int g = 0; g < G; ++g) {
            const __m512 both = _mm512_cvtepi32_ps(_mm512_add_epi32(sum[g][0], sum[g][1]));
            total[g] = _mm512_fmadd_ps(both, _mm512_set1_ps(scales[g * num_blocks + block]), total[g]);
        }
    }
    const __m512 scale = _mm512_loadu_ps(a_scale);
    for (int g = 0; g < G; ++g) {
        const __m512 h = _mm512_mul_ps(total[g], scale);
        const bool broken = _mm512_cmp_ps_mask(h, h, _CMP_UNORD_Q) != 0;
        const float top = broken ? NAN : _mm512_reduce_max_ps(_mm512_abs_ps(h));
        const __m512 inverse = _mm512_set1_ps(top > 1e-30f ? 127.0f / top : 0.0f);
        const __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(h, inverse)));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out[g].digits), bytes);
        *out[g].scale = top * (1.0f / 127.0f);
        *out[g].offset = -128 * _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(bytes));
    }
}

bool same_pages(const Adapters& adapters, int row, int other) {
    const int n = adapters.first[row + 1] - adapters.first[row];
    if (n != adapters.first[other + 1] - adapters.first[other]) return false;
    return std::memcmp(adapters.pages + adapters.first[row], adapters.pages + adapters.first[other], sizeof(int32_t) * n) == 0;
}

void shrink_rows(const Linear& linear, const Adapters& adapters, Scratch& scratch, int first, int last) {
    const int blocks = linear.num_blocks, padded = blocks * BLOCK, members = linear.num_members;
    for (int row = first; row < last;) {
        int count = 1;
        while (row + count < last && same_pages(adapters, row, row + count)) ++count;
        const int8_t* digits = scratch.digits.data() + size_t(row) * padded;
        const float* scales = scratch.scales.data() + size_t(row) * blocks;
        const int32_t* offsets = scratch.offsets.data() + size_t(row) * blocks;
        const int num_pages = adapters.first[row + 1] - adapters.first[row];
        for (int p = 0; p < num_pages; ++p) {
            for (int member = 0; member < members; ++member) {
                const size_t place = size_t(adapters.pages[adapters.first[row] + p]) * members + member;
                const uint8_t* a = linear.a + place * padded * RANK;
                const float* a_scale = linear.a_scale + place * RANK;
                Ranks out[CHUNK_ROWS];
                for (int g = 0; g < count; ++g) {
                    const size_t group = size_t(adapters.first[row + g] + p) * members + member;
                    out[g] = {scratch.ranks.data() + group * RANK, scratch.rank_scales.data() + group,
                              scratch.rank_offsets.data() + group};
                }
                switch (count) {
                    case 1: shrink<1>(a, a_scale, blocks, digits, scales, offsets, out); break;
                    case 2: shrink<2>(a, a_scale, blocks, digits, scales, offsets, out); break;
                    case 3: shrink<3>(a, a_scale, blocks, digits, scales, offsets, out); break;
                    default: shrink<4>(a, a_scale, blocks, digits, scales, offsets, out); break;
                }
            }
        }
        row += count;
    }
}

// y[row] += B . ranks[row] for one page and one tile.
inline void expand(const int8_t* ranks, float scale, int32_t offset, const __m512i (*b)[4], const __m512* b_scale, __m512* y) {
    __m512i sum0 = _mm512_set1_epi32(offset), sum1 = sum0;
#pragma GCC unroll 4
    for (int k = 0; k < RANK / 4; ++k) {
        int32_t four;
        std::memcpy(&four, ranks + k * 4, 4);
        const __m512i spread = _mm512_set1_epi32(four);
        sum0 = _mm512_dpbusd_epi32(sum0, b[0][k], spread);
        sum1 = _mm512_dpbusd_epi32(sum1, b[1][k], spread);
    }
    const __m512 v = _mm512_set1_ps(scale);
    y[0] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum0), v), b_scale[0], y[0]);
    y[1] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum1), v), b_scale[1], y[1]);
}

void expand_rows(const Linear& linear, const Adapters& adapters, const Scratch& scratch, int tile, int row, int rows,
                 __m512 (*y)[2]) {
    const int members = linear.num_members, member = linear.tiles[tile * 3];
    for (int r = 0; r < rows;) {
        int count = 1;
        while (r + count < rows && same_pages(adapters, row + r, row + r + count)) ++count;
        const int first = adapters.first[row + r], num_pages = adapters.first[row + r + 1] - first;
        for (int p = 0; p < num_pages; ++p) {
            const size_t place = size_t(adapters.pages[first + p]) * linear.num_tiles + tile;
            const uint8_t* panel = linear.b + place * RANK * TILE;
            __m512i b[2][4];
            for (int half = 0; half < 2; ++half)
                for (int k = 0; k < 4; ++k) b[half][k] = _mm512_loadu_si512(panel + (half * 4 + k) * 64);
            const __m512 b_scale[2] = {_mm512_loadu_ps(linear.b_scale + place * TILE),
                                       _mm512_loadu_ps(linear.b_scale + place * TILE + LANES)};
            for (int g = 0; g < count; ++g) {
                const size_t group = size_t(adapters.first[row + r + g] + p) * members + member;
                expand(scratch.ranks.data() + group * RANK, scratch.rank_scales[group], scratch.rank_offsets[group], b,
                       b_scale, y[r + g]);
            }
        }
        r += count;
    }
}

}  // namespace
