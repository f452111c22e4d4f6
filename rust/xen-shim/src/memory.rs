// SPDX-License-Identifier: GPL-2.0
//! Memory: by physical address through the alias, where nothing ever faults, and by the kernel's pointers, where anything may.

use core::cell::UnsafeCell;
use core::mem::{align_of, size_of, MaybeUninit};
use core::sync::atomic::AtomicU64;
use xen_abi::handover::{Handover, Raised, ALIAS, PORTS};
use xen_abi::number::error::{EFAULT, EINVAL};
use xen_abi::number::physdev;
use xen_abi::vcpu::VcpuInfo;
use xen_abi::{event_channel, memory, vcpu};

/// What a hypercall returns: a number of 0 or more, or an error, which is negative.
pub(crate) type Result<T = i64> = core::result::Result<T, i64>;

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;

/// A value that is written once: by the boot CPU, before anybody reads it and before any other vCPU is on.
pub(crate) struct Once<T>(UnsafeCell<T>);

// SAFETY: nobody writes it any more when there is a second vCPU.
unsafe impl<T: Sync> Sync for Once<T> {}

impl<T> Once<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    pub(crate) fn get(&self) -> &T {
        // SAFETY: it is written before anybody has a reference, see `set`.
        unsafe { &*self.0.get() }
    }

    /// # Safety
    ///
    /// Nobody has a reference to the value, and no other vCPU is on.
    pub(crate) unsafe fn set(&self, value: T) {
        // SAFETY: that nobody else looks is the caller's promise.
        unsafe { *self.0.get() = value };
    }
}

static HANDOVER: Once<Handover> = Once::new(Handover {
    magic: 0,
    version: 0,
    vcpus: 0,
    shim: 0,
    root: 0,
    ram_pages: 0,
    all_pages: 0,
    entry: 0,
    start_info: 0,
    stack: 0,
    cr3: 0,
    shared_info: 0,
    grants: 0,
    grant_frames: 0,
    raised: 0,
    notify: 0,
});

/// Remembers what the Launcher has told at `gpa`. For the boot CPU's first instructions.
pub(crate) fn set_handover(gpa: u64) {
    // SAFETY: the Launcher's page is in the alias; nobody reads ours yet.
    unsafe { HANDOVER.set(*(address(gpa) as *const Handover)) };
}

/// What the Launcher has told.
pub(crate) fn handover() -> &'static Handover {
    HANDOVER.get()
}

/// GVA of GPA `gpa` in the alias.
pub(crate) const fn address(gpa: u64) -> u64 {
    ALIAS + gpa
}

/// GPA of something in the shim's image.
pub(crate) fn gpa_of<T: ?Sized>(object: *const T) -> u64 {
    object.cast::<u8>() as u64 - xen_abi::handover::SHIM + handover().shim
}

/// `SharedInfo::evtchn_pending` and `evtchn_mask`, as both sides write them.
#[repr(C)]
pub(crate) struct Domain {
    vcpus: [VcpuInfo; vcpu::LEGACY_VCPUS],
    pub(crate) pending: [AtomicU64; PORTS / 64],
    pub(crate) mask: [AtomicU64; PORTS / 64],
}

/// What the domain shares with its kernel.
pub(crate) fn shared_info() -> &'static Domain {
    // SAFETY: the Launcher gave a page, which is in the alias; what is used of it are atomics.
    unsafe { &*(address(handover().shared_info) as *const Domain) }
}

/// What the Launcher raises.
pub(crate) fn raised() -> &'static Raised {
    // SAFETY: as in `shared_info`.
    unsafe { &*(address(handover().raised) as *const Raised) }
}

/// Is this the number of a page of RAM?
pub(crate) fn is_ram(frame: u64) -> bool {
    frame < handover().ram_pages
}

/// An aligned word of RAM.
pub(crate) fn word(gpa: u64) -> Option<&'static AtomicU64> {
    if gpa % 8 != 0 || !is_ram(gpa / PAGE) {
        return None;
    }
    // SAFETY: RAM is in the alias, and the word is atomic.
    Some(unsafe { &*(address(gpa) as *const AtomicU64) })
}

/// Writes to a page of the Launcher's area or of RAM.
pub(crate) fn write_at<T: Plain>(gpa: u64, value: T) {
    debug_assert!(gpa / PAGE < handover().all_pages);
    // SAFETY: the address is in the alias.
    unsafe { (address(gpa) as *mut T).write_volatile(value) };
}

/// Reads a word of the alias at `gva`: what [`address`] has returned.
pub(crate) fn read_at(gva: u64) -> u64 {
    // SAFETY: the address is in the alias.
    unsafe { (gva as *const u64).read_volatile() }
}

/// Types of which all bytes may have any value.
///
/// # Safety
///
/// That is so.
pub(crate) unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($type:ty),* $(,)?) => { $(
        // SAFETY: numbers, and structures of numbers.
        unsafe impl Plain for $type {}
    )* };
}
plain!(
    u8,
    u32,
    u64,
    [u8; 2],
    [u8; 7],
    [u8; 10],
    physdev::SetIopl,
    physdev::SetIobitmap,
    vcpu::VcpuTimeInfo,
    vcpu::TrapInfo,
    vcpu::IretFrame,
    vcpu::CallbackRegister,
    vcpu::SetSingleshotTimer,
    vcpu::GuestContext,
    vcpu::RunstateInfo,
    vcpu::RegisterVcpuInfo,
    vcpu::SchedPoll,
    vcpu::MulticallEntry,
    memory::MmuUpdate,
    memory::MmuExtOp,
    memory::MemoryMap,
    memory::E820Entry,
    memory::MachphysMapping,
    memory::Reservation,
    memory::Exchange,
    memory::GrantSetupTable,
    memory::GrantQuerySize,
    event_channel::AllocUnbound,
    event_channel::BindVirq,
    event_channel::BindIpi,
    event_channel::BindPirq,
    event_channel::BindVcpu,
    event_channel::Port,
    event_channel::Status,
);

extern "C" {
    fn shim_copy(to: *mut u8, from: *const u8, bytes: u64) -> u64;
}

/// The kernel's pointers may not lead into the half of the shim.
fn allowed(gva: u64, bytes: u64) -> Result<()> {
    // Slots 256 to 271: ours, and the switcher's, where lg ends a Guest.
    const HOLE: core::ops::Range<u64> = 0xffff_8000_0000_0000..0xffff_8800_0000_0000;
    let end = gva.checked_add(bytes).ok_or(EFAULT)?;
    if gva < HOLE.end && end > HOLE.start {
        return Err(EFAULT);
    }
    Ok(())
}

/// Copies from a pointer of the kernel's to `to`.
pub(crate) fn copy_in(to: &mut [u8], gva: u64) -> Result<()> {
    allowed(gva, to.len() as u64)?;
    // SAFETY: `to` is ours; a fault at the other end ends the copy.
    match unsafe { shim_copy(to.as_mut_ptr(), gva as *const u8, to.len() as u64) } {
        0 => Ok(()),
        _ => Err(EFAULT),
    }
}

/// Reads what a pointer of the kernel's points at: a copy.
pub(crate) fn read<T: Plain>(gva: u64) -> Result<T> {
    let bytes = size_of::<T>() as u64;
    allowed(gva, bytes)?;
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: `value` has that many bytes; any make a T.
    unsafe {
        match shim_copy(value.as_mut_ptr().cast(), gva as *const u8, bytes) {
            0 => Ok(value.assume_init()),
            _ => Err(EFAULT),
        }
    }
}

/// Writes to a pointer of the kernel's.
pub(crate) fn write<T: Plain>(gva: u64, value: T) -> Result<()> {
    let bytes = size_of::<T>() as u64;
    allowed(gva, bytes)?;
    // SAFETY: what is written is the kernel's, not Rust's: the hole is excluded.
    match unsafe { shim_copy(gva as *mut u8, core::ptr::from_ref(&value).cast(), bytes) } {
        0 => Ok(()),
        _ => Err(EFAULT),
    }
}

/// Element `index` of a list of the kernel's: its GVA.
pub(crate) fn element<T: Plain>(list: u64, index: u64) -> Result<u64> {
    const { assert!(align_of::<T>() <= 16) };
    index
        .checked_mul(size_of::<T>() as u64)
        .and_then(|offset| list.checked_add(offset))
        .ok_or(EINVAL)
}
