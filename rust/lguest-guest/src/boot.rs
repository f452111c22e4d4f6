// SPDX-License-Identifier: GPL-2.0
//! From the entry point to `main`, and the end.

use crate::console::Buffer;
use crate::{event, params};
use core::arch::global_asm;
use core::fmt::Write;
use core::mem::size_of;
use core::panic::PanicInfo;
use lguest_call::abi::{lguest_note, LGUEST_ABI_VERSION, LGUEST_NOTE_ENTRY};
use lguest_call::abi::{LGUEST_SHUTDOWN_PANIC, LGUEST_SHUTDOWN_POWEROFF};
use lguest_call::hypercall;

// The note by which the Launcher knows us, and the first instruction. Only RSI and CR3 have a meaning there, and the
// Launcher has cleared .bss.
global_asm!(
    r#"
    .pushsection .note.Lguest, "a", @note
    .balign 4
    .long 2f - 1f, 4f - 3f, {note_type}
1:  .asciz "Lguest"
2:  .balign 4
3:  .long {abi_version}, 0
    .quad _start
4:  .popsection
    .if 4b - 3b != {note_size}
    .error "the note is not a struct lguest_note"
    .endif

    .pushsection .text._start, "ax"
    .globl _start
_start:
    lea stack_top(%rip), %rsp
    mov %rsi, %rdi
    xor %ebp, %ebp
    call lguest_start
    ud2
    .popsection

    .pushsection .bss.stack, "aw", @nobits
    .balign 4096
    .skip {stack_size}
stack_top:
    .popsection
    "#,
    note_type = const LGUEST_NOTE_ENTRY,
    abi_version = const LGUEST_ABI_VERSION,
    note_size = const size_of::<lguest_note>(),
    stack_size = const 64 * 1024,
    options(att_syntax)
);

extern "C" {
    /// The function that `entry!` makes.
    fn lguest_main() -> u8;
}

#[no_mangle]
extern "C" fn lguest_start(boot_params: u64) -> ! {
    params::set(boot_params);
    event::init();
    // SAFETY: `entry!` defines it with this signature.
    exit(unsafe { lguest_main() })
}

/// Ends the Guest; `status` is the exit status of `lg run`.
pub fn exit(status: u8) -> ! {
    hypercall::shutdown(LGUEST_SHUTDOWN_POWEROFF, u64::from(status))
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut message = Buffer::<512>::new();
    // A message that does not fit is cut.
    let _ = write!(message, "{info}");
    hypercall::shutdown(LGUEST_SHUTDOWN_PANIC, message.gpa())
}
