// reference.h: the catalogue a second time, in namespace `cpu`, where floatX and floatS are double: what a test of
// kernels compares with. The functions stand in tests/reference.c.
#pragma once
#include "common/ops.h"

namespace cpu {
typedef double floatX;
typedef double floatS;
typedef int stream_t;
extern "C" {
#undef OPS_H
#pragma push_macro("OPS_DECLARATIONS_ONLY")
#undef OPS_DECLARATIONS_ONLY
#define OPS_DECLARATIONS_ONLY
#include "common/ops.h"
#pragma pop_macro("OPS_DECLARATIONS_ONLY")
}
} // namespace cpu
