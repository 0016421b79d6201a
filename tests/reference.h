// reference.h: the catalogue a second time, in namespace `cpu`, where floatX and floatS are double: what a test of
// kernels compares with. They are C functions; the kernels are C++ functions of the same names. The two do not meet when they
// are linked, since C++ adds the types to a name.
#pragma once
#include "common/ops.h"

namespace cpu {
typedef double floatX;
typedef double floatS;
typedef int stream_t;
extern "C" {
#undef OPS_H
#include "common/ops.h"
}
} // namespace cpu
