// SPDX-License-Identifier: GPL-2.0
//! Text for the Launcher's console, and the end of the shim when something is wrong.

use crate::memory::{self, gpa_of};
use crate::vcpu::{vcpu, whose_stack, Frame};
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use lguest_call::abi::LGUEST_SHUTDOWN_PANIC;
use lguest_call::hypercall;

/// Text in `N` bytes, always followed by a NUL. It must be on the stack or in the image.
pub(crate) struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }

    /// Copies `len` bytes of the kernel's, at most as many as fit; returns how many.
    pub(crate) fn copy_in(&mut self, gva: u64, len: u64) -> Result<u64, i64> {
        self.len = len.min(N as u64 - 1) as usize;
        memory::copy_in(&mut self.bytes[..self.len], gva)?;
        Ok(self.len as u64)
    }

    /// Has the Launcher show it.
    pub(crate) fn print(&self) {
        hypercall::console(gpa_of(self.bytes.as_ptr()), self.len as u64);
    }
}

impl<const N: usize> Write for Text<N> {
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

/// Tells all that can help, and ends the Guest. A message that does not fit is cut.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    static AGAIN: AtomicBool = AtomicBool::new(false);
    let mut message = Text::<512>::new();
    let _ = write!(message, "the shim of Xen's ABI: {}", info.message());
    if !AGAIN.swap(true, Relaxed) {
        let mut text = Text::<2048>::new();
        let _ = writeln!(text, "{info}");
        let id = whose_stack(&message);
        // SAFETY: whoever had the vCPU does not go on.
        let cpu = unsafe { vcpu(id) };
        let _ = write!(text, "vCPU {id}, ");
        let _ = dump(&mut text, &cpu.frame, cpu.user, cpu.cr3);
        text.print();
    }
    hypercall::shutdown(LGUEST_SHUTDOWN_PANIC, gpa_of(message.bytes.as_ptr()))
}

/// The state that the shim was to resume.
fn dump(out: &mut impl Write, frame: &Frame, user: u64, cr3: u64) -> fmt::Result {
    let mode = if user == 0 { "kernel" } else { "program" };
    writeln!(
        out,
        "{mode}: RIP {:016x} RSP {:016x} RFLAGS {:06x} CR3 {cr3:x}",
        frame.rip, frame.rsp, frame.rflags
    )?;
    let registers = [
        ("RAX", frame.rax),
        ("RBX", frame.rbx),
        ("RCX", frame.rcx),
        ("RDX", frame.rdx),
        ("RSI", frame.rsi),
        ("RDI", frame.rdi),
        ("RBP", frame.rbp),
        ("R8 ", frame.r8),
        ("R9 ", frame.r9),
        ("R10", frame.r10),
        ("R11", frame.r11),
        ("R12", frame.r12),
        ("R13", frame.r13),
        ("R14", frame.r14),
        ("R15", frame.r15),
    ];
    for row in registers.chunks(4) {
        for (name, value) in row {
            write!(out, "{name} {value:016x} ")?;
        }
        writeln!(out)?;
    }
    Ok(())
}
