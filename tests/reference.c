// reference.c: the CPU operations of the catalogue in double, as one C object. Tests of kernels link it and call it
// through tests/reference.h. The kernels are C++ functions of the same names; the two do not meet, since C++ adds the
// types to a name.
#include "common/ops.h"
