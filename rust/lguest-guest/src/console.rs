// SPDX-License-Identifier: GPL-2.0
//! Printing: [`println!`](crate::println) over the CONSOLE hypercall.

use crate::address;
use core::fmt::{self, Write};
use lguest_call::hypercall;

/// Text in `N` bytes, always followed by a NUL.
pub struct Buffer<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Buffer<N> {
    pub(crate) fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }

    /// GPA of the text; the buffer must be on the stack, which is contiguous in Guest physical memory.
    pub(crate) fn gpa(&self) -> u64 {
        address::gpa_of(self.bytes.as_ptr())
    }
}

impl<const N: usize> Write for Buffer<N> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let len = text.len().min(N - 1 - self.len);
        self.bytes[self.len..self.len + len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        if len == text.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

/// Prints `arguments` in one hypercall, so that a line stays whole; what is longer than 255 bytes is cut.
pub fn print(arguments: fmt::Arguments<'_>) {
    let mut line = Buffer::<256>::new();
    let _ = line.write_fmt(arguments);
    hypercall::console(line.gpa(), line.len as u64);
}

/// Prints a line on the Launcher's console.
#[macro_export]
macro_rules! println {
    ($($arguments:tt)*) => {
        $crate::console::print(format_args!("{}\n", format_args!($($arguments)*)))
    };
}
