// rotary_table.h: the table of rotations that queries and keys of a diffusion transformer are turned by, written on the
// host for qknorm_rope_forward (common/ops.h).                                                         (Su et al. 2021)
//
// A head has `axes[0]` channels that turn by a third coordinate, which is 0 for all tokens here; behind them axes[1]
// that turn by the row and axes[2] that turn by the column, pair m of an axis of d channels by place theta^(-2 m / d).
// The first P tokens (a text's) lie at 0: they are not turned.
#pragma once
#include <math.h>

// defines: floatS
#include "common/device.h"

#define ROTARY_THETA 10000.0

static inline void rotary_table(floatS* table, int P, int GH, int GW, const int* axes) { // (P + GH GW, HS / 2, 2), (3)
    for (int n = 0; n < P + GH * GW; n++) {
        int place[3] = {0, n < P ? 0 : (n - P) / GW, n < P ? 0 : (n - P) % GW};
        for (int axis = 0; axis < 3; axis++) {
            for (int m = 0; m < axes[axis] / 2; m++) {
                double angle = place[axis] * pow(ROTARY_THETA, -2.0 * m / axes[axis]);
                *table++ = (floatS)cos(angle);
                *table++ = (floatS)sin(angle);
            }
        }
    }
}
