// SPDX-License-Identifier: GPL-2.0

//! The rules of the shim, one by one.

mod rules {
    mod clock;
    mod cpuid;
    mod frame;
    mod page_table;
    mod ports;
    mod small;
}
