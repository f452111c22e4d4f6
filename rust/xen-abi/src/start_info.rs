// SPDX-License-Identifier: GPL-2.0
//! What a paravirtualized kernel finds at its first instruction: `struct start_info`.
//!
//! Source: xen/include/public/xen.h of Xen, include/xen/interface/xen.h of Linux.

/// `magic` of a [`StartInfo`] on x86-64.
pub const MAGIC: &[u8; 14] = b"xen-3.0-x86_64";
/// So long is a command line, with the NUL at its end.
pub const COMMAND_LINE_SIZE: usize = 1024;
/// Flag of a [`StartInfo`]: `mod_start` is the number of a frame, and not a GVA.
pub const SIF_MOD_START_PFN: u32 = 1 << 3;
/// Flag of a [`StartInfo`]: the kernel's list of frames is mapped, so that no tool needs a list of lists.
pub const SIF_VIRT_P2M_4TOOLS: u32 = 1 << 4;

/// One page, of which this is the beginning. "Machine" addresses and frames are those of RAM here.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StartInfo {
    /// [`MAGIC`], and NULs.
    pub magic: [u8; 32],
    /// Pages of RAM.
    pub nr_pages: u64,
    /// Machine address of the shared_info.
    pub shared_info: u64,
    /// SIF_ flags.
    pub flags: u32,
    /// Nothing.
    pub padding: u32,
    /// Machine frame of the xenstore's ring.
    pub store_mfn: u64,
    /// Its port; 0: there is none.
    pub store_evtchn: u32,
    /// Nothing.
    pub padding_store: u32,
    /// Machine frame of the console's ring.
    pub console_mfn: u64,
    /// Its port; 0: there is none.
    pub console_evtchn: u32,
    /// Nothing.
    pub padding_console: u32,
    /// GVA of the root page table, behind which the others lie.
    pub pt_base: u64,
    /// Their number, with the root.
    pub nr_pt_frames: u64,
    /// GVA of the list of frames: a `u64` for each page.
    pub mfn_list: u64,
    /// GVA or frame of the initrd; 0: there is none.
    pub mod_start: u64,
    /// Its size, in bytes.
    pub mod_len: u64,
    /// The command line, ended by NUL.
    pub cmd_line: [u8; COMMAND_LINE_SIZE],
    /// The first frame of the list of frames and of the tables that map it.
    pub first_p2m_pfn: u64,
    /// Their number.
    pub nr_p2m_frames: u64,
}

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn it_lies_as_in_c() {
        let offsets = [
            (offset_of!(StartInfo, nr_pages), 32),
            (offset_of!(StartInfo, shared_info), 40),
            (offset_of!(StartInfo, flags), 48),
            (offset_of!(StartInfo, store_mfn), 56),
            (offset_of!(StartInfo, store_evtchn), 64),
            (offset_of!(StartInfo, console_mfn), 72),
            (offset_of!(StartInfo, console_evtchn), 80),
            (offset_of!(StartInfo, pt_base), 88),
            (offset_of!(StartInfo, nr_pt_frames), 96),
            (offset_of!(StartInfo, mfn_list), 104),
            (offset_of!(StartInfo, mod_start), 112),
            (offset_of!(StartInfo, mod_len), 120),
            (offset_of!(StartInfo, cmd_line), 128),
            (offset_of!(StartInfo, first_p2m_pfn), 1152),
            (offset_of!(StartInfo, nr_p2m_frames), 1160),
            (size_of::<StartInfo>(), 1168),
        ];
        for (ours, theirs) in offsets {
            assert_eq!(ours, theirs);
        }
    }
}
