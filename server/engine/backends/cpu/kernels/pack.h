// Weights to bytes, in the layout that the kernels multiply by.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "layout.h"

extern "C" {

// rows[i * row_stride + k * column_stride], i < n, k < width, to bytes with a scale a row, sixteen rows side by side:
// panels [(n + 15) / 16][padded / 4][16][4], scales [n rounded up to 16]. What is missing to whole panels is zero.
void graft_pack(const float* rows, int64_t row_stride, int64_t column_stride, int32_t n, int32_t width, int32_t padded,
                uint8_t* panels, float* scales) {
    std::memset(panels, 128, size_t((n + LANES - 1) / LANES) * LANES * padded);
    for (int32_t i = 0; i < n; ++i) {
        const float* row = rows + i * row_stride;
        float top = 1e-30f;
        for (int32_t k = 0; k < width; ++k) top = std::max(top, std::fabs(row[k * column_stride]));
        const float inverse = 127.0f / top;
        uint8_t* out = panels + size_t(i / LANES) * LANES * padded + i % LANES * 4;
        for (int32_t k = 0; k < width; ++k)
            out[size_t(k / 4) * LANES * 4 + k % 4] = uint8_t(int(std::nearbyint(row[k * column_stride] * inverse)) + 128);
        scales[i] = top / 127.0f;
    }
    for (int32_t i = n; i % LANES != 0; ++i) scales[i] = 0;
}

}  // extern "C"
