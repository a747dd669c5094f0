// BF16 as the kernels hold it, the upper half of a float32; and what they do to single values.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

using bf16 = uint16_t;

inline float widen(bf16 value) {
    uint32_t bits = uint32_t(value) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

inline bf16 narrow(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (std::isnan(value)) return bf16(bits >> 16 | 0x40);
    return bf16((bits + 0x7fff + (bits >> 16 & 1)) >> 16); // nearest, ties to even
}

// silu(gate) * up; V4 clamps both (limit is infinite elsewhere).
inline float swiglu(float gate, float up, float limit) {
    gate = std::min(gate, limit);
    return gate / (1 + std::exp(-gate)) * std::clamp(up, -limit, limit);
}

} // namespace
