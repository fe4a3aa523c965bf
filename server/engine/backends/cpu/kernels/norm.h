// The norm of a row, added to another.

#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "interface.h"
#include "layout.h"
#include "simd.h"
#include "thread_pool.h"

namespace {

void add_norm(ThreadPool& pool, const Op& op, const Step& step) {
    pool.run((step.num_rows + CHUNK_ROWS - 1) / CHUNK_ROWS, [&](int chunk, int) {
        std::vector<float> normed(op.x_width);
        const int last = std::min(step.num_rows, (chunk + 1) * CHUNK_ROWS);
        for (int row = chunk * CHUNK_ROWS; row < last; ++row) {
            rms_norm(op.x + size_t(row) * op.x_width, op.norm, op.eps, op.x_width, normed.data());
            float* const y = op.y + size_t(row) * op.y_width;
            for (int i = 0; i < op.x_width; ++i) y[i] += normed[i];
        }
    });
}

}  // namespace
