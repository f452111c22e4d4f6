// SPDX-License-Identifier: GPL-2.0
//! `lg`, the Launcher.

fn main() {}
