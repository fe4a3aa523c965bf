// Sizes that the layout of weights and activations is made of.

#pragma once

namespace {

constexpr int LANES = 16;       // floats in a register
constexpr int BLOCK = 64;       // inputs that share an activation scale
constexpr int TILE = 32;        // outputs computed together: two panels of LANES
constexpr int RANK = 16;        // rank rows a page
constexpr int TILE_ROWS = 6;    // rows that share a tile's weights in registers
constexpr int CHUNK_ROWS = 4;   // rows that one thread makes ready at a time

}  // namespace
