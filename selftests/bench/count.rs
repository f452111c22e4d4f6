// SPDX-License-Identifier: GPL-2.0
//! A plugin of QEMU's: counts the instructions that the emulated CPUs execute, and writes the count so far to a
//! file, a line each time that one of them executes the [`MARK`].
//!
//! Why not the time stamp counter: under -icount it goes on while a CPU waits, and QEMU's own devices work in the
//! time of the real machine, so it would tell how long they happened to take.
//!
//! The declarations are those of qemu/qemu-plugin.h, version 4, which Debian does not package. QEMU calls a plugin
//! from one thread at a time under -icount, and never after it has ended.

use std::ffi::{c_char, c_int, c_uint, c_void, CStr, OsStr};
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::sync::OnceLock;

/// nopl 0x626d676c(%rax), which any processor takes for nothing; clock.rs has it.
const MARK: [u8; 7] = [0x0f, 0x1f, 0x80, b'l', b'g', b'm', b'b'];

/// `qemu_plugin_u64`: a number of each CPU's, at an offset in memory of QEMU's.
#[derive(Clone, Copy)]
#[repr(C)]
struct PerCpu {
    score: *mut c_void,
    offset: usize,
}

/// `QEMU_PLUGIN_INLINE_ADD_U64`
const ADD: c_int = 0;
/// `QEMU_PLUGIN_CB_NO_REGS`
const NO_REGISTERS: c_int = 0;

type Translated = extern "C" fn(id: u64, block: *mut c_void);
type Executed = extern "C" fn(cpu: c_uint, data: *mut c_void);

extern "C" {
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, callback: Translated);
    fn qemu_plugin_tb_n_insns(block: *const c_void) -> usize;
    fn qemu_plugin_tb_get_insn(block: *const c_void, index: usize) -> *mut c_void;
    fn qemu_plugin_insn_data(insn: *const c_void, to: *mut c_void, size: usize) -> usize;
    fn qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(
        insn: *mut c_void,
        op: c_int,
        to: PerCpu,
        add: u64,
    );
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut c_void,
        callback: Executed,
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_scoreboard_new(size: usize) -> *mut c_void;
    fn qemu_plugin_u64_sum(of: PerCpu) -> u64;
}

/// The version of the interface.
#[no_mangle]
pub static qemu_plugin_version: c_int = 4;

struct Plugin {
    executed: PerCpu,
    out: File,
}

// SAFETY: the pointer in it is only handed to QEMU, which lets any thread do that.
unsafe impl Send for Plugin {}
// SAFETY: as above; a File may be shared.
unsafe impl Sync for Plugin {}

static PLUGIN: OnceLock<Plugin> = OnceLock::new();

extern "C" fn on_mark(_: c_uint, _: *mut c_void) {
    if let Some(plugin) = PLUGIN.get() {
        // SAFETY: a number that QEMU made.
        let count = unsafe { qemu_plugin_u64_sum(plugin.executed) };
        // A line that is lacking is seen by who reads them in pairs.
        let _ = writeln!(&plugin.out, "{count}");
    }
}

extern "C" fn on_translation(_: u64, block: *mut c_void) {
    let Some(plugin) = PLUGIN.get() else { return };
    // SAFETY: QEMU lends the block for this call, and its instructions with it; of each at most as many bytes
    // are copied as there is room for.
    unsafe {
        for index in 0..qemu_plugin_tb_n_insns(block) {
            let insn = qemu_plugin_tb_get_insn(block, index);
            qemu_plugin_register_vcpu_insn_exec_inline_per_vcpu(insn, ADD, plugin.executed, 1);
            let mut bytes = [0; MARK.len()];
            let size = qemu_plugin_insn_data(insn, bytes.as_mut_ptr().cast(), bytes.len());
            if size == MARK.len() && bytes == MARK {
                qemu_plugin_register_vcpu_insn_exec_cb(
                    insn,
                    on_mark,
                    NO_REGISTERS,
                    ptr::null_mut(),
                );
            }
        }
    }
}

/// QEMU starts the plugin. Its one argument is out=FILE.
///
/// # Safety
///
/// `argv` has `argc` strings.
#[no_mangle]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _: *const c_void,
    argc: c_int,
    argv: *mut *mut c_char,
) -> c_int {
    let argument = match argc {
        // SAFETY: the caller's promise.
        1 => unsafe { CStr::from_ptr(*argv) }.to_bytes(),
        _ => b"",
    };
    let path = argument.strip_prefix(b"out=").map(OsStr::from_bytes);
    let Some(out) = path.and_then(|path| File::create(path).ok()) else {
        eprintln!("count: say out=FILE, which can be written");
        return -1;
    };
    // SAFETY: takes a size.
    let score = unsafe { qemu_plugin_scoreboard_new(size_of::<u64>()) };
    PLUGIN.get_or_init(|| Plugin {
        executed: PerCpu { score, offset: 0 },
        out,
    });
    // SAFETY: a callback that is there as long as this is loaded.
    unsafe { qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation) };
    0
}
