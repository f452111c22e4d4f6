// SPDX-License-Identifier: GPL-2.0
//! From the first instruction to `xen_main`, hypercalls, text, and the end.

use core::arch::{asm, global_asm};
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use xen_abi::number::{console, CONSOLE_IO, SCHED_OP};
use xen_abi::start_info::StartInfo;
use xen_abi::vcpu::{sched, shutdown};

/// GVA of GPA 0 in the mapping that the Launcher made.
pub const BASE: u64 = 0xffff_ffff_8000_0000;

// The notes are those of Linux (linux:arch/x86/xen/xen-head.S).
global_asm!(
    r#"
    .macro xen_note type, content:vararg
    .balign 4
    .long 2f - 1f, 4f - 3f, \type
1:  .asciz "Xen"
2:  .balign 4
3:  \content
4:  .balign 4
    .endm

    .pushsection .note.Xen, "a", @note
    xen_note 6, .asciz "linux"
    xen_note 5, .asciz "xen-3.0"
    xen_note 8, .asciz "generic"
    xen_note 3, .quad {BASE}
    xen_note 4, .quad 0
    xen_note 1, .quad _start
    xen_note 15, .quad 0x8000000000
    xen_note 16, .quad 1
    .popsection

    .pushsection .text._start, "ax"
    .globl _start
_start:
    cld
    lea stack_top(%rip), %rsp
    mov %rsi, %rdi
    xor %ebp, %ebp
    call xen_start
    ud2
    .popsection

    .pushsection .bss.stack, "aw", @nobits
    .balign 4096
    .skip 64 * 1024
stack_top:
    .popsection
    "#,
    BASE = const BASE as i64,
    options(att_syntax)
);

extern "C" {
    /// The function that `entry!` makes.
    fn xen_main() -> !;
}

static START_INFO: AtomicU64 = AtomicU64::new(0);

#[no_mangle]
extern "C" fn xen_start(start_info: u64) -> ! {
    START_INFO.store(start_info, Relaxed);
    // SAFETY: `entry!` defines it with this signature.
    unsafe { xen_main() }
}

/// What the Launcher told.
pub fn start_info() -> &'static StartInfo {
    // SAFETY: RSI had the address of one, which nobody writes.
    unsafe { &*(START_INFO.load(Relaxed) as *const StartInfo) }
}

/// Makes a hypercall: arguments go to RDI, RSI, RDX, R10, R8 and R9.
pub fn call(number: u32, args: &[u64]) -> i64 {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    let result;
    // SAFETY: the hypervisor keeps every register but RAX, RCX and R11; what it writes to, the caller gave.
    unsafe {
        asm!("syscall", inlateout("rax") u64::from(number) => result, in("rdi") all[0], in("rsi") all[1],
            in("rdx") all[2], in("r10") all[3], in("r8") all[4], in("r9") all[5],
            lateout("rcx") _, lateout("r11") _);
    }
    result
}

/// Text, cut to what fits.
pub struct Buffer {
    bytes: [u8; 256],
    len: usize,
}

impl Write for Buffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let len = text.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}

/// Prints on the console of early kernels.
pub fn print(arguments: fmt::Arguments<'_>) {
    let mut line = Buffer {
        bytes: [0; 256],
        len: 0,
    };
    let _ = line.write_fmt(arguments);
    call(
        CONSOLE_IO,
        &[console::WRITE, line.len as u64, line.bytes.as_ptr() as u64],
    );
}

fn shut_down(reason: u32) -> ! {
    call(SCHED_OP, &[sched::SHUTDOWN, (&raw const reason) as u64]);
    panic!("SHUTDOWN came back");
}

/// The good end.
pub fn power_off() -> ! {
    shut_down(shutdown::POWEROFF)
}

/// The bad one.
pub fn crash() -> ! {
    shut_down(shutdown::CRASH)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    print(format_args!("{info}\n"));
    crash()
}
